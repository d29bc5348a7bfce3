//! The connection to the API server.

use std::time::Duration;

use anyhow::Context as _;
use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::{config::settings::ClientSettings, metrics::RestClientMetrics};

/// How long a connection may be silent before it counts as dead. The API server sends a bookmark on every watch about
/// once a minute; without this limit a connection that died unseen would be noticed only when the watch's own time is
/// up, minutes later.
const SILENCE: Duration = Duration::from_secs(150);

/// From a kubeconfig file, or from inside the cluster; `master` replaces the server of either.
pub(crate) async fn connect(settings: &ClientSettings) -> anyhow::Result<Client> {
    let mut config = match (&settings.kubeconfig, &settings.master) {
        (Some(path), _) => {
            let file =
                Kubeconfig::read_from(path).with_context(|| format!("kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("kubeconfig {}", path.display()))?
        }
        (None, Some(master)) => Config::new(master.parse().with_context(|| format!("--master {master}"))?),
        (None, None) => {
            tracing::info!(
                "Neither kubeconfig file nor master URL was specified, falling back to in-cluster config"
            );
            Config::incluster().context("in-cluster configuration")?
        }
    };
    if let Some(master) = &settings.master {
        config.cluster_url = master.parse().with_context(|| format!("--master {master}"))?;
    }
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let builder = ClientBuilder::try_from(config).context("the API client could not be set up")?;
    Ok(builder.with_layer(&RestClientMetrics::new(&host)).build())
}
