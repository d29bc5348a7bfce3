//! The main job: from the settings to a running engine.

use std::{
    net::IpAddr,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use ipnet::IpNet;
use kube::{Api, Client, runtime::watcher::Event as WatchEvent};
use netlink::address::{self, AddressMonitor};
use proxy_core::{
    backend::{Executor, Planner},
    environment::{EnvironmentSettings, LocalPods, NodePortSettings},
    model::{Family, Input},
    reconciler::{Pace, Reconciler},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    cleanup, client,
    config::settings::{DetectLocal, Mode, NodePortAddressSet, Settings},
    conntrack::{self, ConntrackReconciler, Pass},
    engine::{self, Message},
    events::{Event, Events},
    feature_gates::Feature,
    first_sync::FirstLists,
    http::{
        health::HealthState,
        healthz,
        metrics_server::MetricsServer,
        service_health::{self, Wanted},
    },
    logging::LogControl,
    metrics::Metrics,
    node::{self, Node},
    observe::{AfterFirstSync, Observations},
    plausibility::{self, Found},
    reload,
    sysctl::{self, Sysctl},
    watch as watches,
    watched::Watched,
};

/// How long what is worth an Event at the end of the process may take to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// One small exchange with the kernel, so that a flushed rule set is repaired within a second.
const NFT_DRIFT_CHECK: Duration = Duration::from_millis(500);
/// A few requests of constant cost.
const IPVS_DRIFT_CHECK: Duration = Duration::from_secs(2);
const NODE_IPS_TIMEOUT: Duration = Duration::from_secs(30);
/// How often the thread that follows addresses looks whether anybody still listens.
const INTERFACE_RECHECK: Duration = Duration::from_secs(60);
const POD_CIDRS_TIMEOUT: Duration = Duration::from_secs(300);

/// Runs until a signal or a failure ends it. What is in the kernel stays.
///
/// `arguments` are the command line, to read the configuration again when its file changes.
pub(crate) fn run(settings: Settings, arguments: Vec<String>, log: LogControl) -> anyhow::Result<()> {
    let metrics = Metrics::install(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the asynchronous runtime could not be started")?;
    let result = runtime.block_on(until_signal(start(settings, arguments, log, metrics)));
    // Threads that wait for the network must not keep the process.
    runtime.shutdown_background();
    result
}

/// Only the privileged part of a start: the kernel settings. No rule is written.
pub(crate) fn init(settings: &Settings) -> anyhow::Result<()> {
    let errors = Sysctl::kernel().set_conntrack(&settings.conntrack);
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    anyhow::ensure!(
        errors.is_empty(),
        "could not set conntrack parameters from kube-proxy configuration: {}",
        text.join("; ")
    );
    Ok(())
}

async fn until_signal(job: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = job => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Returns only when something ends the process.
async fn start(
    settings: Settings,
    arguments: Vec<String>,
    log: LogControl,
    metrics: Metrics,
) -> anyhow::Result<()> {
    let name = node::name(settings.hostname_override.as_deref())?;
    let (client, certificate) = client::connect(&settings.client)?;
    let (messages, inbox) = mpsc::channel::<Message>();

    let (node_sender, mut node) = watch::channel::<Option<Node>>(None);
    tokio::spawn(watch_node(client.clone(), name.clone(), node_sender));
    let ips = wait_for(&mut node, NODE_IPS_TIMEOUT, Node::ips).await;
    let ips = node::primary_first(ips, settings.bind_address);
    if ips.is_empty() {
        tracing::error!(
            node = name,
            "Can't determine this node's IP, assuming loopback; if this is incorrect, please set the --bind-address flag"
        );
    } else {
        tracing::info!(nodeIPs = ?ips, "Successfully retrieved NodeIPs");
    }
    let pod_cidrs = match settings.detect_local {
        DetectLocal::NodeCidr => {
            let cidrs = wait_for(&mut node, POD_CIDRS_TIMEOUT, Node::pod_cidrs).await;
            anyhow::ensure!(!cidrs.is_empty(), "timeout waiting for PodCIDR allocation on node {name:?}");
            cidrs
        }
        _ => Vec::new(),
    };

    sysctl::set_oom_score(settings.oom_score_adj);
    let health = HealthState::new(settings.sync_period * 2);
    let events = Events::start(client.clone(), &name);
    set_conntrack(&settings, &events);
    let (checks, wanted_checks) = watch::channel(Wanted::default());
    let observations = Observations::new(
        settings.mode,
        health.clone(),
        (
            conntrack::tracker().map_err(anyhow::Error::msg)?,
            Some(ConntrackReconciler::spawn(report_conntrack)?),
        ),
        checks,
        events.clone(),
        name.clone(),
        remove_leftovers(&settings),
    );
    let environment = environment_settings(&settings, &pod_cidrs);
    let primary = ips.first().map_or(Family::V4, |ip| Family::of(*ip));
    let fits =
        |served: &[Family]| plausibility::check(&settings, Found { primary, served, pod_cidrs: &pod_cidrs });
    let engine_ended = start_engine(&settings, environment, inbox, observations, (&health, &events), &fits)?;

    let settings = Arc::new(settings);
    let (current, shown) = watch::channel(Arc::clone(&settings));
    let fatal = serve_http(&settings, shown, log.clone(), metrics, &health, &events);
    tokio::spawn(service_health::run(name.clone(), wanted_checks, health.clone(), events.clone()));
    events.send(Event::starting());

    messages.send(Input::NodeIps(ips.into()).into())?;
    start_interface_watch(messages.clone())?;
    let external_ips = settings.feature_gates.enabled(Feature::AllowServiceExternalIPs);
    let lists = FirstLists::default();
    tokio::spawn(watches::services(client.clone(), external_ips, lists.clone(), messages.clone()));
    tokio::spawn(watches::slices(client.clone(), name.clone(), lists, messages.clone()));
    tokio::spawn(watches::service_cidrs(client.clone(), messages.clone()));
    let reloaded = reload::follow(&arguments, &current, reload::INTERVAL, |settings| {
        log.apply(&settings.logging);
        health.set_limit(settings.sync_period * 2);
        sysctl::set_oom_score(settings.oom_score_adj);
        set_conntrack(settings, &events);
        let environment = environment_settings(settings, &pod_cidrs);
        // Where the engine has ended, so does the process.
        let _ = messages.send(Message::Settings(environment, pace(settings)));
    });
    let follow =
        follow_node(node, settings.bind_address, pod_cidrs.clone(), messages.clone(), health.clone());
    let result = tokio::select! {
        result = follow => result,
        error = reloaded => Err(error.into()),
        error = fatal => Err(error),
        error = certificate.changed() => Err(error),
        result = engine_ended => match result {
            Ok(Err(error)) => Err(error),
            _ => Err(anyhow::anyhow!("the engine ended")),
        },
    };
    events.flush(LAST_WORDS).await;
    result
}

/// The kernel settings that the configuration asks for; what cannot be made is told and does no harm otherwise.
fn set_conntrack(settings: &Settings, events: &Events) {
    for error in Sysctl::kernel().set_conntrack(&settings.conntrack) {
        tracing::error!(%error, "A kernel setting could not be made");
        events.send(Event::setting_failed(error.to_string()));
    }
}

/// What other modes, or kube-proxy in another mode, have left: removed once ours is in force.
fn remove_leftovers(settings: &Settings) -> AfterFirstSync {
    let (mode, excluded) = (settings.mode, settings.ipvs.exclude_cidrs.clone());
    Box::new(move || {
        if let Err(error) = cleanup::leftovers(mode, excluded) {
            tracing::error!(%error, "What other modes have left cannot be removed");
        }
    })
}

fn report_conntrack(pass: Pass) {
    if let Some(error) = &pass.error {
        tracing::error!(ipFamily = %pass.family, %error, "Stale flows could not all be removed; trying again");
    }
    crate::metrics::conntrack_cleaned(pass.family, pass.took, pass.deleted as u64);
}

/// Starts the health and the metrics server. Ends only where a port cannot be bound and that is to be fatal.
async fn serve_http(
    settings: &Settings,
    shown: watch::Receiver<Arc<Settings>>,
    log: LogControl,
    metrics: Metrics,
    health: &HealthState,
    events: &Events,
) -> anyhow::Error {
    let hard_fail = settings.bind_address_hard_fail;
    let upkeep = metrics.clone();
    let healthz = async {
        match settings.healthz_address {
            Some(address) => healthz::serve(health.clone(), address, hard_fail).await,
            None => std::future::pending().await,
        }
    };
    let metrics = async {
        match settings.metrics_address {
            Some(address) => MetricsServer::new(metrics, shown, log).serve(address, hard_fail).await,
            None => std::future::pending().await,
        }
    };
    let upkeep = async {
        loop {
            tokio::time::sleep(METRICS_UPKEEP).await;
            upkeep.upkeep();
        }
    };
    tokio::select! {
        error = healthz => {
            events.send(Event::health_server_failed(error.to_string()));
            anyhow::Error::from(error).context("the health server could not be started")
        }
        error = metrics => {
            events.send(Event::metrics_server_failed(error.to_string()));
            anyhow::Error::from(error).context("the metrics server could not be started")
        }
        () = upkeep => unreachable!("it loops"),
    }
}

/// Waits until the Node object shows what is asked for; empty when the time is up.
async fn wait_for<T>(
    node: &mut watch::Receiver<Option<Node>>,
    limit: Duration,
    select: fn(&Node) -> Vec<T>,
) -> Vec<T> {
    let found = node.wait_for(|node| node.as_ref().is_some_and(|node| !select(node).is_empty()));
    match tokio::time::timeout(limit, found).await {
        Ok(Ok(node)) => node.as_ref().map(select).unwrap_or_default(),
        _ => Vec::new(),
    }
}

async fn watch_node(client: Client, name: String, sender: watch::Sender<Option<Node>>) {
    let query = watches::Query::new(None, Some(format!("metadata.name={name}")));
    let mut listed = None;
    watches::watch(Api::<Node>::all(client), query, false, |event| {
        match event {
            WatchEvent::Init => listed = None,
            WatchEvent::InitApply(node) => listed = Some(node),
            WatchEvent::InitDone => sender.send_replace(listed.take()).map_or((), drop),
            WatchEvent::Apply(node) => sender.send_replace(Some(node)).map_or((), drop),
            WatchEvent::Delete(_) => sender.send_replace(None).map_or((), drop),
        }
        true
    })
    .await;
}

/// Passes on what changes about the node while the process runs. Ends when the process should.
async fn follow_node(
    mut node: watch::Receiver<Option<Node>>,
    bind_address: Option<IpAddr>,
    pod_cidrs: Vec<IpNet>,
    messages: mpsc::Sender<Message>,
    health: HealthState,
) -> anyhow::Result<()> {
    loop {
        {
            let now = node.borrow_and_update();
            // A Node object that is gone for a moment must not take the NodePorts with it, nor load balancers' health
            // checks: as in kube-proxy, what was last seen stays.
            if let Some(now) = now.as_ref() {
                health.set_eligible(now.eligible());
                let cidrs = now.pod_cidrs();
                if !pod_cidrs.is_empty() && !cidrs.is_empty() && cidrs != pod_cidrs {
                    anyhow::bail!(
                        "the node's podCIDRs changed from {pod_cidrs:?} to {cidrs:?}: starting over with them"
                    );
                }
                messages.send(Input::Zone(now.zone().map(Into::into)).into())?;
                let ips = node::primary_first(now.ips(), bind_address);
                if !ips.is_empty() {
                    messages.send(Input::NodeIps(ips.into()).into())?;
                }
            }
        }
        node.changed().await.context("the node's watch ended")?;
    }
}

/// The part of the settings that backends act on.
pub(crate) fn environment_settings(settings: &Settings, pod_cidrs: &[IpNet]) -> EnvironmentSettings {
    let local_pods = match &settings.detect_local {
        DetectLocal::ClusterCidr(cidrs) if cidrs.is_empty() => {
            tracing::info!("Defaulting to no-op detect-local");
            LocalPods::Unknown
        }
        DetectLocal::ClusterCidr(cidrs) => LocalPods::Cidrs(cidrs.clone().into()),
        DetectLocal::NodeCidr => LocalPods::Cidrs(pod_cidrs.into()),
        DetectLocal::BridgeInterface(name) => LocalPods::Bridge(name.as_str().into()),
        DetectLocal::InterfaceNamePrefix(prefix) => LocalPods::InterfacePrefix(prefix.as_str().into()),
    };
    let selection = &settings.node_port_addresses;
    let node_ports = match &selection.addresses {
        NodePortAddressSet::Any => NodePortSettings::Any,
        NodePortAddressSet::Primary => NodePortSettings::Primary,
        NodePortAddressSet::Cidrs(cidrs) => NodePortSettings::Within(cidrs.clone().into()),
    };
    let v4: Vec<&IpNet> = match &selection.addresses {
        NodePortAddressSet::Cidrs(cidrs) => cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()).collect(),
        _ => Vec::new(),
    };
    let loopback = IpAddr::from([127, 0, 0, 0]);
    let names_loopback = v4
        .iter()
        .any(|cidr| cidr.prefix_len() > 0 && (cidr.addr().is_loopback() || cidr.contains(&loopback)));
    let everywhere = match &selection.addresses {
        NodePortAddressSet::Any => true,
        NodePortAddressSet::Primary => false,
        NodePortAddressSet::Cidrs(_) => v4.is_empty() || v4.iter().any(|cidr| cidr.prefix_len() == 0),
    };
    let localhost_node_ports = match settings.mode {
        // As kube-proxy: on by default, where NodePorts answer on all addresses or on a loopback network.
        Mode::Iptables => {
            settings.localhost_node_ports && (selection.localhost || names_loopback || everywhere)
        }
        // Only where it is asked for: the kernel setting behind it has a cost in safety.
        Mode::Nftables | Mode::Ipvs => selection.localhost || names_loopback,
    };
    EnvironmentSettings {
        masquerade_mark: settings.masquerade_mark,
        masquerade_all: settings.masquerade_all,
        local_pods,
        node_ports,
        localhost_node_ports,
    }
}

type EngineEnded = tokio::sync::oneshot::Receiver<anyhow::Result<()>>;

/// Opens the mode's backends and gives them to a thread of their own.
fn start_engine(
    settings: &Settings,
    environment: EnvironmentSettings,
    inbox: mpsc::Receiver<Message>,
    observations: Observations,
    (health, events): (&HealthState, &Events),
    fits: &dyn Fn(&[Family]) -> anyhow::Result<()>,
) -> anyhow::Result<EngineEnded> {
    let start = Start { environment, pace: pace(settings), inbox, observations, health, fits };
    match settings.mode {
        Mode::Nftables => {
            let commits = backend_nft::OwnCommits::default();
            let open = |family| {
                for missing in backend_nft::probe(family)? {
                    tracing::error!(ipFamily = %family, "{missing}");
                    events.send(Event::kernel_lacks(missing.to_string()));
                }
                let executor = backend_nft::Executor::open(family)?.counting(&commits);
                Ok((backend_nft::Planner::new(family), executor))
            };
            start.spawn(open_families(open)?, NFT_DRIFT_CHECK)
        }
        Mode::Iptables => {
            let open = |family| {
                Ok((backend_iptables::Planner::new(family), backend_iptables::Executor::open(family)?))
            };
            start.spawn(open_families(open)?, settings.sync_period)
        }
        Mode::Ipvs => {
            let chosen = crate::ipvs::settings(&settings.ipvs)?;
            let commits = backend_ipvs::OwnCommits::default();
            let open = |family| {
                let (planner, executor) = backend_ipvs::open(family, chosen.clone())?;
                Ok((planner, executor.counting(&commits)))
            };
            start.spawn(open_families(open)?, settings.sync_period.min(IPVS_DRIFT_CHECK))
        }
    }
}

fn pace(settings: &Settings) -> Pace {
    let default = Pace::default();
    Pace { min_interval: settings.min_sync_period.unwrap_or(default.min_interval), ..default }
}

/// A family that the machine does not support is left out with a log line; none at all is an error.
fn open_families<P, X>(
    open: impl Fn(Family) -> anyhow::Result<(P, X)>,
) -> anyhow::Result<Vec<(Family, P, X)>> {
    let mut opened = Vec::new();
    let mut failed = None;
    for family in Family::BOTH {
        if family == Family::V6 && !ipv6_supported() {
            tracing::info!("No IPv6 in this kernel; running IPv4 only");
            continue;
        }
        match open(family) {
            Ok((planner, executor)) => opened.push((family, planner, executor)),
            Err(error) => {
                tracing::error!(%family, error = %format!("{error:#}"), "This family cannot be served");
                failed = Some(error.context(format!("{family} cannot be served")));
            }
        }
    }
    match (opened.is_empty(), failed) {
        (true, Some(error)) => Err(error),
        _ => Ok(opened),
    }
}

fn ipv6_supported() -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    std::path::Path::new("/proc/net/if_inet6").exists() && disabled.is_ok_and(|value| value.trim() == "0")
}

/// What every mode's engine is started with.
struct Start<'a> {
    environment: EnvironmentSettings,
    pace: Pace,
    inbox: mpsc::Receiver<Message>,
    observations: Observations,
    health: &'a HealthState,
    /// Whether the configuration fits these families.
    fits: &'a dyn Fn(&[Family]) -> anyhow::Result<()>,
}

impl Start<'_> {
    #[expect(clippy::disallowed_methods, reason = "the health state is told when it begins")]
    fn spawn<P, X>(
        mut self,
        backends: Vec<(Family, P, X)>,
        drift_interval: Duration,
    ) -> anyhow::Result<EngineEnded>
    where
        P: Planner + Send + 'static,
        X: Executor<Op = P::Op, Found = P::Found> + Send + 'static,
    {
        let served: Vec<Family> = backends.iter().map(|(family, ..)| *family).collect();
        (self.fits)(&served)?;
        let watched = backends.into_iter().map(|(family, planner, executor)| {
            self.health.started(family, Instant::now());
            (family, planner, Watched { family, executor, health: self.health.clone() })
        });
        let (ended, receiver) = tokio::sync::oneshot::channel();
        let reconciler = Reconciler::new(self.environment, self.pace, watched.collect());
        thread::Builder::new().name("engine".to_owned()).spawn(move || {
            engine::run(reconciler, &self.inbox, &mut self.observations, drift_interval);
            // Nobody may be listening any more.
            let _ = ended.send(Ok(()));
        })?;
        Ok(receiver)
    }
}

/// Follows the addresses of the node's interfaces; a list goes to the engine before this returns.
fn start_interface_watch(messages: mpsc::Sender<Message>) -> anyhow::Result<()> {
    // The monitor first: what changes while the list is read is told afterwards.
    let mut monitor = AddressMonitor::open().context("interface addresses cannot be watched")?;
    let mut socket =
        netlink::Socket::open(netlink::Protocol::Route).context("interface addresses cannot be read")?;
    let mut tell = move || -> anyhow::Result<bool> {
        let all = address::list(&mut socket).context("interface addresses cannot be read")?;
        // Virtual IPs bound as addresses are not the node's own.
        let device = netlink::link::find(&mut socket, backend_ipvs::settings::DEVICE)
            .context("interfaces cannot be read")?
            .map(|device| device.index);
        let own = all.iter().filter(|found| !found.unusable && Some(found.interface) != device);
        let usable = own.map(|found| found.address).collect();
        Ok(messages.send(Input::InterfaceAddresses(usable).into()).is_ok())
    };
    tell()?;
    thread::Builder::new().name("addresses".to_owned()).spawn(move || {
        loop {
            let told = match monitor.wait(INTERFACE_RECHECK) {
                Ok(false) => Ok(true),
                Ok(true) => tell(),
                Err(error) => Err(error.into()),
            };
            match told {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::error!(error = %format!("{error:#}"), "Interface addresses cannot be followed; trying again");
                    thread::sleep(Duration::from_secs(1));
                }
            }
        }
    })?;
    Ok(())
}
