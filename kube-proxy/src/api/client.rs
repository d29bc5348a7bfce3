//! The connection to the API server.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use http::Uri;
use kube::{Client, Config, client::ClientBuilder};

use crate::{settings::effective::ClientSettings, telemetry::metrics::RestClientMetrics};

mod certificate_files;
mod direct;
mod http_proxy;
mod kubeconfig;
mod token_file;

pub(crate) use certificate_files::CertificateFiles;
use token_file::TokenFile;

/// How long a connection may be silent before it counts as dead. The API server sends a bookmark on every watch about
/// once a minute; without this limit a connection that died unseen would be noticed only when the watch's own time is
/// up, minutes later.
const SILENCE: Duration = Duration::from_secs(150);

/// Where a pod finds what it needs to talk to the API server of its cluster.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// From a kubeconfig file, or from inside the cluster; `master` replaces the server of either. Also, what the client
/// will not read again by itself.
pub(crate) fn connect(settings: &ClientSettings) -> anyhow::Result<(Client, CertificateFiles)> {
    let mut config = match (&settings.kubeconfig, &settings.master) {
        (Some(path), master) => kubeconfig::read(path, master.as_deref())
            .with_context(|| format!("kubeconfig {}", path.display()))?,
        (None, Some(master)) => Config::new(server_uri(master).context("--master")?),
        (None, None) => {
            tracing::info!(
                "Neither kubeconfig file nor master URL was specified, falling back to in-cluster config"
            );
            in_cluster(|name| std::env::var(name).ok(), Path::new(SERVICE_ACCOUNT))?
        }
    };
    if config.proxy_url.is_none() {
        config.proxy_url =
            http_proxy::from_environment(&config.cluster_url, |name| std::env::var(name).ok())?;
    }
    if let Some(proxy) = &config.proxy_url {
        // Its user and password are nobody's business.
        let host = proxy.host().unwrap_or_default();
        tracing::info!(proxy = host, "The API server is asked through a proxy");
    }
    // Watched here and not by the client library, which keeps a line feed at the end of the file.
    let token = config.auth_info.token_file.take();
    if token.is_some() {
        config.auth_info.token = None;
    }
    let token = token.map(|path| TokenFile::open(path.into())).transpose()?;
    let certificate = CertificateFiles::of(&config.auth_info);
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let builder = match direct::builder(&config) {
        Ok(Some(builder)) => Ok(builder),
        Ok(None) => ClientBuilder::try_from(config).map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    let builder = builder.context("the API client could not be set up")?;
    let metrics = RestClientMetrics::new(&host);
    let client = match token {
        Some(token) => builder.with_layer(&metrics).with_layer(&token).build(),
        None => builder.with_layer(&metrics).build(),
    };
    Ok((client, certificate))
}

/// What a pod is given: two variables of the environment and a mounted service account.
fn in_cluster(variable: impl Fn(&str) -> Option<String>, account: &Path) -> anyhow::Result<Config> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"))
    else {
        anyhow::bail!(
            "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
        );
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let mut config = Config::new(server_uri(&format!("https://{host}:{port}"))?);
    let authority = account.join("ca.crt");
    let pem = std::fs::read(&authority).with_context(|| format!("cannot read {}", authority.display()))?;
    config.root_cert = Some(kubeconfig::certificates(&pem).with_context(|| authority.display().to_string())?);
    config.root_cert_file = Some(authority);
    config.auth_info.token_file = Some(account.join("token").display().to_string());
    Ok(config)
}

/// The address of an API server; one without a scheme is spoken to without TLS, as by all Kubernetes programs.
fn server_uri(text: &str) -> anyhow::Result<Uri> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let uri = whole.parse::<Uri>().ok().filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
    uri.with_context(|| format!("host must be a URL or a host:port pair: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_url_or_host_and_port() {
        for (text, uri) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443/"),
            ("10.0.0.1:8080", "http://10.0.0.1:8080/"),
            ("localhost:8080", "http://localhost:8080/"),
            ("https://[fd00::1]:6443/k8s", "https://[fd00::1]:6443/k8s"),
        ] {
            assert_eq!(server_uri(text).expect("good").to_string(), uri);
        }
        for text in ["", "http://", "a b"] {
            assert!(server_uri(text).expect_err("bad").to_string().contains("must be a URL"), "{text}");
        }
    }

    #[test]
    fn a_pod_needs_two_variables_and_its_service_account() {
        let folder = std::env::temp_dir().join(format!("switchyard-account-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let given = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        let error = in_cluster(|_| None, &folder).expect_err("nothing").to_string();
        assert!(error.contains("KUBERNETES_SERVICE_PORT must be defined"), "{error}");
        assert!(in_cluster(given, &folder).expect_err("no ca.crt").to_string().contains("ca.crt"));
        std::fs::write(folder.join("ca.crt"), "").expect("a file");
        let config = in_cluster(given, &folder).expect("complete");
        assert_eq!(config.cluster_url.to_string(), "https://[fd00::1]:443/");
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
