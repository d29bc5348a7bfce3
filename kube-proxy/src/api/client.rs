//! The connection to the API server.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use http::Uri;
use kube::{Client, Config, client::ClientBuilder};

use crate::{
    api::events::Events,
    settings::effective::ClientSettings,
    telemetry::{health::HealthState, metrics::RestClientMetrics},
};

mod contact;
mod credentials;
mod exec;
mod http_proxy;
mod identity;
mod kubeconfig;
mod secret;
mod stream;
mod tls;
mod token_file;
mod transport;

use contact::Contact;
use credentials::Credentials;
use exec::Plugin;
use identity::{Followed, Identity};
use stream::Connections;
use tls::{Trust, authority::Authority};
use transport::{Liveness, Way};

/// Where a pod finds what it needs to talk to the API server of its cluster.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What a connection needs as long as the process runs.
#[derive(Debug)]
pub(crate) struct Upkeep {
    certificate: Option<Followed>,
    contact: Contact,
}

impl Upkeep {
    /// Follows renewed client certificates and tells when the API server is not heard from. Never ends.
    pub(crate) async fn run(self, health: HealthState, events: Events) {
        let followed = async {
            match self.certificate {
                Some(certificate) => certificate.follow().await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(followed, self.contact.report(&health, &events));
    }
}

/// Where the API server is, and how it is spoken to.
pub(crate) struct Server {
    config: Config,
    authority: Option<Authority>,
}

impl Server {
    /// Whether a program hands out the credentials.
    pub(crate) fn has_plugin(&self) -> bool {
        self.config.auth_info.exec.is_some()
    }

    /// The ports to which connections are made: the server's, or its proxy's.
    pub(crate) fn ports(&self) -> Vec<u16> {
        let to = self.config.proxy_url.as_ref().unwrap_or(&self.config.cluster_url);
        let usual = match to.scheme_str() {
            Some("https") => 443,
            Some(socks) if socks.starts_with("socks") => 1080,
            _ => 80,
        };
        vec![to.port_u16().unwrap_or(usual)]
    }
}

/// From a kubeconfig file, or from inside the cluster; `master` replaces the server of either.
pub(crate) fn server(settings: &ClientSettings) -> anyhow::Result<Server> {
    let (mut config, authority) = match (&settings.kubeconfig, &settings.master) {
        (Some(path), master) => kubeconfig::read(path, master.as_deref())
            .with_context(|| format!("kubeconfig {}", path.display()))?,
        (None, Some(master)) => (Config::new(server_uri(master).context("--master")?), None),
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
    Ok(Server { config, authority })
}

/// Sets up the way there; nothing is sent yet.
pub(crate) fn connect(server: Server) -> anyhow::Result<(Client, Upkeep)> {
    let Server { config, authority } = server;
    client(&config, authority, Liveness::default()).context("the API client could not be set up")
}

fn client(
    config: &Config,
    authority: Option<Authority>,
    liveness: Liveness,
) -> anyhow::Result<(Client, Upkeep)> {
    let user = &config.auth_info;
    let (identity, connections) = (Arc::new(Identity::default()), Connections::new());
    let certificate = Followed::open(user, &identity, &connections)?;
    let plugin = user.exec.as_ref().map(|exec| {
        let cluster = exec.cluster.clone().unwrap_or_default();
        Plugin::new(exec, &cluster, &identity, &connections)
    });
    let credentials = Credentials::of(user, plugin.transpose()?)?;
    let secure = config.cluster_url.scheme_str() == Some("https")
        || config.proxy_url.as_ref().is_some_and(|proxy| proxy.scheme_str() == Some("https"));
    let trust = match (config.accept_invalid_certs, authority) {
        (true, _) => Trust::Anybody,
        (false, Some(authority)) => Trust::Authority(Arc::new(authority)),
        (false, None) if secure => Trust::Authority(Arc::new(Authority::of_system())),
        // TLS is not spoken.
        (false, None) => Trust::Authority(Arc::new(Authority::nobody())),
    };
    let tls = tls::config(trust, &identity)?;
    let contact = Contact::new();
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let way = Way { liveness, connections, contact: contact.clone(), credentials };
    let stack = transport::stack(config, tls, way)?;
    let builder = ClientBuilder::new(stack, config.default_namespace.clone());
    let client = builder.with_layer(&contact).with_layer(&RestClientMetrics::new(&host)).build();
    Ok((client, Upkeep { certificate, contact }))
}

/// What a pod is given: two variables of the environment and a mounted service account.
fn in_cluster(
    variable: impl Fn(&str) -> Option<String>,
    account: &Path,
) -> anyhow::Result<(Config, Option<Authority>)> {
    let variable = |name| variable(name).filter(|value| !value.is_empty());
    let (Some(host), Some(port)) = (variable("KUBERNETES_SERVICE_HOST"), variable("KUBERNETES_SERVICE_PORT"))
    else {
        anyhow::bail!(
            "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be defined"
        );
    };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let mut config = Config::new(server_uri(&format!("https://{host}:{port}"))?);
    let authority = Authority::of_file(account.join("ca.crt"))?;
    config.auth_info.token_file = Some(account.join("token").display().to_string());
    Ok((config, Some(authority)))
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
        let account = tls::tests::Folder::new("account");
        let folder = &account.0;
        let given = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        };
        let error = in_cluster(|_| None, folder).expect_err("nothing").to_string();
        assert!(error.contains("KUBERNETES_SERVICE_PORT must be defined"), "{error}");
        assert!(in_cluster(given, folder).expect_err("no ca.crt").to_string().contains("ca.crt"));
        std::fs::write(folder.join("ca.crt"), "").expect("a file");
        let error = in_cluster(given, folder).expect_err("an empty one");
        assert!(format!("{error:#}").contains("ca.crt: no certificate authority"), "{error:#}");
        account.own("ca", "ec:P-256", "", "");
        let (config, _) = in_cluster(given, folder).expect("complete");
        assert_eq!(config.cluster_url.to_string(), "https://[fd00::1]:443/");
    }
}
