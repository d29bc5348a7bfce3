//! A kubeconfig file's current context, as the client library wants it.
//!
//! The library's own reading is not used: it consults the environment's proxies by rules that are not Kubernetes'.

use std::path::Path;

use anyhow::Context as _;
use kube::{
    Config,
    config::{AuthInfo, Cluster, ExecAuthCluster, Kubeconfig},
};

use super::{server_uri, tls::authority::Authority};

/// `master` replaces the server. Also, who vouches for it where the file says so.
pub(super) fn read(path: &Path, master: Option<&str>) -> anyhow::Result<(Config, Option<Authority>)> {
    let file = Kubeconfig::read_from(path)?;
    let (cluster, user) = current(&file)?;
    config(cluster, user, master)
}

/// The cluster and the user of the current context. As everywhere in Kubernetes, the user may be missing.
fn current(file: &Kubeconfig) -> anyhow::Result<(Cluster, AuthInfo)> {
    let name = file.current_context.as_deref().filter(|name| !name.is_empty());
    let name = name.context("no current-context is set")?;
    let context = file.contexts.iter().find(|context| context.name == name);
    let context = context.and_then(|found| found.context.as_ref());
    let context = context.with_context(|| format!("context was not found for specified context: {name}"))?;
    let cluster = file.clusters.iter().find(|cluster| cluster.name == context.cluster);
    let cluster = cluster.and_then(|found| found.cluster.clone());
    let cluster =
        cluster.with_context(|| format!("cluster {:?} of context {name:?} is missing", context.cluster))?;
    let user = file.auth_infos.iter().find(|user| Some(&user.name) == context.user.as_ref());
    Ok((cluster, user.and_then(|found| found.auth_info.clone()).unwrap_or_default()))
}

fn config(
    cluster: Cluster,
    mut user: AuthInfo,
    master: Option<&str>,
) -> anyhow::Result<(Config, Option<Authority>)> {
    let server = match master {
        Some(master) => server_uri(master).context("--master")?,
        None => server_uri(cluster.server.as_deref().unwrap_or_default())?,
    };
    // This reads the authority from wherever it is.
    let about = ExecAuthCluster::try_from(&cluster)?;
    let mut config = Config::new(server);
    let authority = match (&about.certificate_authority_data, cluster.certificate_authority) {
        // The data count where there are both.
        (Some(text), _) if cluster.certificate_authority_data.is_some() => {
            Some(Authority::of_text(text).context("certificate-authority-data")?)
        }
        (_, Some(path)) => Some(Authority::of_file(path.into())?),
        _ => None,
    };
    config.accept_invalid_certs = cluster.insecure_skip_tls_verify.unwrap_or_default();
    config.disable_compression = cluster.disable_compression.unwrap_or_default();
    config.tls_server_name = cluster.tls_server_name;
    if let Some(proxy) = cluster.proxy_url.filter(|proxy| !proxy.is_empty()) {
        config.proxy_url = Some(proxy.parse().with_context(|| format!("proxy-url {proxy:?}"))?);
    }
    if let Some(exec) = &mut user.exec {
        exec.cluster = Some(about);
    }
    config.auth_info = user;
    Ok((config, authority))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, master: Option<&str>) -> anyhow::Result<Config> {
        let (cluster, user) = current(&Kubeconfig::from_yaml(text)?)?;
        Ok(config(cluster, user, master)?.0)
    }

    const FILE: &str = "
        current-context: b
        contexts:
        - { name: a, context: { cluster: one, user: me } }
        - { name: b, context: { cluster: two, user: me } }
        - { name: c, context: { cluster: one, user: nobody } }
        - { name: d, context: { cluster: three, user: me } }
        clusters:
        - { name: one, cluster: { server: 'https://one:6443' } }
        - { name: two, cluster: { server: 'https://two:6443', insecure-skip-tls-verify: true, tls-server-name: two.example, proxy-url: 'socks5://p:1080' } }
        users:
        - { name: me, user: { tokenFile: /token } }";

    #[test]
    fn the_current_context_counts() {
        let config = of(FILE, None).expect("good");
        assert_eq!(config.cluster_url.host(), Some("two"));
        assert!(config.accept_invalid_certs);
        assert_eq!(config.tls_server_name.as_deref(), Some("two.example"));
        assert_eq!(config.proxy_url.expect("a proxy").to_string(), "socks5://p:1080/");
        assert_eq!(config.auth_info.token_file.as_deref(), Some("/token"));
    }

    #[test]
    fn the_server_may_be_named_on_the_command_line() {
        let config = of(FILE, Some("10.0.0.1:8080")).expect("good");
        assert_eq!(config.cluster_url.to_string(), "http://10.0.0.1:8080/");
    }

    #[test]
    fn what_is_missing_is_named_and_a_user_may_be_missing() {
        let switched =
            |context: &str| FILE.replace("current-context: b", &format!("current-context: {context}"));
        assert!(of(&switched("c"), None).expect("anonymous").auth_info.token_file.is_none());
        for (context, reason) in [
            ("x", "context was not found for specified context: x"),
            ("d", "cluster \"three\" of context \"d\" is missing"),
            ("''", "no current-context is set"),
        ] {
            assert_eq!(of(&switched(context), None).expect_err("incomplete").to_string(), reason);
        }
    }
}
