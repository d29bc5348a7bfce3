//! The main job: from the settings to a running engine.

use std::{
    net::IpAddr,
    path::Path,
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::Context as _;
use kube::Client;
use proxy_core::model::{Family, Input};
use tokio::{
    runtime::Handle,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    api::{
        client::{self, Server},
        events::{self, Event, Events},
        node::{self, Node},
        node_watch,
        watch::Source,
        watched, wire,
    },
    engine::mailbox::mailbox,
    host::{
        accounting, cleanup,
        confinement::{self, Needs},
        conntrack::{self, ConntrackReconciler, Pass},
        forwarding::Forwarding,
        interfaces, service_metrics,
        sysctl::{self, Sysctl},
    },
    live::{self, Live},
    reload,
    serve::{
        capacity::Capacity,
        healthz, insight,
        localhost_node_ports::{Listeners, NodePorts},
        metrics_server::MetricsServer,
        service_health::{self, Wanted},
    },
    settings::{
        effective::{DetectLocal, Mode, NodePortAddressSet, Settings},
        environment,
        feature_gates::Feature,
        insight::socket,
        plausibility::{self, Found},
        service_metrics::ServiceMetrics,
    },
    supervisor::{self, Ends, Supervisor},
    sync::{
        observe::{AfterFirstSync, Observers},
        start,
    },
    telemetry::{
        first_sync::FirstLists, health::HealthState, logging::LogControl, metrics::Metrics,
        service_metrics::Services,
    },
};

/// How long what is worth an Event at the end of the process may take to be sent.
const LAST_WORDS: Duration = Duration::from_secs(1);
const NODE_IPS_TIMEOUT: Duration = Duration::from_secs(30);
const POD_CIDRS_TIMEOUT: Duration = Duration::from_secs(300);
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

/// Runs until a signal or a failure ends it. What is in the kernel stays.
///
/// `arguments` are the command line, to read the configuration again when its file changes.
pub(crate) fn run(settings: Settings, arguments: Vec<String>, log: LogControl) -> anyhow::Result<()> {
    supervisor::log_panics();
    let metrics = Metrics::install(&settings)?;
    let server = client::server(&settings.client)?;
    let wanted = confinement::Wanted::from_environment().map_err(anyhow::Error::msg)?;
    // A listener for NodePorts connects to endpoints, and a plugin to whomever it asks: neither to ports that are known.
    let free = environment::listens_on_localhost(&settings) || server.has_plugin();
    let ports = (!free).then(|| server.ports());
    // Somebody may have named another place for the socket: the first folder there that exists.
    let beside = socket(settings.insight_socket.as_deref());
    let beside = beside.as_deref().and_then(|path| path.ancestors().skip(1).find(|folder| folder.is_dir()));
    // Never the root: that would be no restraint at all.
    let beside = beside.filter(|folder| folder.parent().is_some());
    let folders = beside.map(Path::to_path_buf).into_iter().collect();
    // Before there is another thread: they inherit it.
    confinement::confine(wanted, &Needs { plugin: server.has_plugin(), ports, folders });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("the asynchronous runtime could not be started")?;
    let (supervisor, ends) = Supervisor::new(runtime.handle().clone());
    let name = node::name(settings.hostname_override.as_deref())?;
    let (events, outgoing) = events::channel(&name);
    let start =
        start(settings, arguments, (log, metrics), (name, server), (supervisor, events.clone(), outgoing));
    let result = runtime.block_on(until_end(start, ends));
    if result.is_err() {
        let (done, wait) = mpsc::channel();
        runtime.spawn(async move {
            events.flush(LAST_WORDS).await;
            let _ = done.send(());
        });
        // Not by the runtime's clock: its workers may be what hangs.
        let _ = wait.recv_timeout(LAST_WORDS);
    }
    // Threads that wait for the network must not keep the process.
    runtime.shutdown_background();
    result
}

/// Only the privileged part of a start: the kernel settings. No rule is written.
pub(crate) fn init(settings: &Settings) -> anyhow::Result<()> {
    let errors = Sysctl::kernel().set_conntrack(&settings.conntrack);
    let mut text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    // The node's own networks do not matter here.
    if environment::settings(settings, &[]).localhost_node_ports {
        // With the guard: it is a while until there are rules.
        text.extend(localnet::open().err().map(|error| error.to_string()));
    }
    anyhow::ensure!(
        text.is_empty(),
        "could not set conntrack parameters from kube-proxy configuration: {}",
        text.join("; ")
    );
    if settings.mode == Mode::Ipvs {
        backend_ipvs::prepare(&crate::sync::ipvs::settings(&settings.ipvs)?);
    }
    tracing::info!("System initialized and --init-only specified");
    Ok(())
}

/// Waits for a signal, for a start that fails, or for something that must not end and does.
async fn until_end(start: impl Future<Output = anyhow::Result<()>>, mut ends: Ends) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let job = async {
        start.await?;
        std::future::pending().await
    };
    tokio::select! {
        result = job => result,
        error = ends.next() => Err(error),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Starts everything; what runs from then on is watched by the supervisor.
async fn start(
    settings: Settings,
    arguments: Vec<String>,
    (log, metrics): (LogControl, Metrics),
    (name, server): (String, Server),
    (supervisor, events, outgoing): (Supervisor, Events, events::Outgoing),
) -> anyhow::Result<()> {
    let (client, upkeep) = client::connect(server)?;
    let (messages, inboxes) = mailbox(&Family::BOTH);
    supervisor.task("Events", outgoing.run(client.clone()));

    let (node_sender, mut node) = watch::channel::<Option<Node>>(None);
    let mut source = Source {
        client: client.clone(),
        accept: wire::accept(&settings.client.content_type, &settings.client.accept_content_types),
        events: None,
    };
    supervisor.task("node watch", node_watch::run(source.clone(), name.clone(), node_sender));
    let ips = node_ips(&mut node, (&client, &name), &settings, &events).await;
    let pod_cidrs = match settings.detect_local {
        DetectLocal::NodeCidr => {
            let cidrs = node_watch::wait_for(&mut node, POD_CIDRS_TIMEOUT, Node::pod_cidrs).await;
            anyhow::ensure!(!cidrs.is_empty(), "timeout waiting for PodCIDR allocation on node {name:?}");
            cidrs
        }
        _ => Vec::new(),
    };

    sysctl::set_oom_score(settings.oom_score_adj);
    let health = HealthState::new(settings.sync_period * 2);
    live::set_conntrack(&settings, &events);
    supervisor.task("API connection", upkeep.run(health.clone(), events.clone()));
    let (checks, wanted_checks) = watch::channel(Wanted::default());
    let (forwarding, periods) = watch::channel(settings.sync_period);
    let beside = messages.beside();
    let ask = move |family, destinations| beside.ask(family, destinations);
    let start_thread = |work| supervisor.thread("conntrack", work);
    let mut observers = Observers::new(
        settings.mode,
        health.clone(),
        (
            conntrack::reset_tcp().map_err(anyhow::Error::msg)?,
            Some(ConntrackReconciler::spawn(
                settings.mode == Mode::Ipvs,
                start_thread,
                report_conntrack,
                ask,
            )?),
        ),
        checks,
        events.clone(),
        name.clone(),
        after_first_sync(&settings, (supervisor.clone(), events.clone()), (periods, wanted_checks.clone()))?,
    );
    count_services(&settings, &mut observers, &metrics, &supervisor)?;
    let capacity = Capacity::of_this_process();
    if environment::listens_on_localhost(&settings) {
        let ports = NodePorts::default();
        observers.set_localhost_node_ports(ports.clone());
        let (listeners, connections) = capacity.localhost;
        supervisor.task("NodePorts on ::1", Listeners::new(listeners, connections).run(ports));
    }
    let primary = ips.first().map_or(Family::V4, |ip| Family::of(*ip));
    let fits =
        |served: &[Family]| plausibility::check(&settings, Found { primary, served, pod_cidrs: &pod_cidrs });
    let environment = environment::settings(&settings, &pod_cidrs);
    let surroundings = (&health, &events, &supervisor);
    let served = start::engine(&settings, environment, inboxes, &observers, surroundings, &fits)?;

    let settings = Arc::new(settings);
    let (current, shown) = watch::channel(Arc::clone(&settings));
    let sources = insight::Sources {
        path: socket(settings.insight_socket.as_deref()),
        engines: messages.beside(),
        families: served.clone(),
        settings: shown.clone(),
        recent: observers.recent(),
        node: name.clone(),
        ipvs: crate::sync::ipvs::insight(&settings)?,
    };
    supervisor.task("insight", insight::serve(sources));
    let shown = (shown, log.clone(), metrics);
    serve_http(&settings, shown, &health, (&events, &capacity, &supervisor));
    let checks = service_health::Servers::new(&name, &health, &events, &capacity.services);
    supervisor.task("health check node ports", checks.run(wanted_checks));
    events.send(Event::starting());
    if settings.mode_defaulted {
        tracing::warn!(
            mode = settings.mode.as_str(),
            "No mode is configured; the default will be nftables from Kubernetes 1.40 on. Set it"
        );
        events.send(Event::mode_defaulted(settings.mode.as_str()));
    }

    messages.send(Input::NodeIps(ips.into()).into())?;
    interfaces::follow(messages.clone(), &supervisor)?;
    let external_ips = settings.feature_gates.enabled(Feature::AllowServiceExternalIPs);
    let lists = FirstLists::default();
    source.events = Some(events.clone());
    supervisor.task(
        "Services watch",
        watched::services(source.clone(), external_ips, lists.clone(), messages.clone()),
    );
    supervisor
        .task("EndpointSlices watch", watched::slices(source.clone(), name.clone(), lists, messages.clone()));
    supervisor.task("ServiceCIDRs watch", watched::service_cidrs(source, messages.clone()));

    let (in_force, pod_cidrs) = watch::channel(pod_cidrs);
    let follow = (node.clone(), settings.bind_address, pod_cidrs, messages.clone(), health.clone());
    supervisor.task("node", node_watch::follow(follow.0, follow.1, follow.2, follow.3, follow.4));
    let live = Live {
        log,
        health,
        events,
        messages,
        node,
        pod_cidrs: in_force,
        forwarding,
        primary,
        served,
        localhost_v6: settings.node_port_addresses.localhost_v6,
    };
    supervisor.task("configuration file", async move {
        anyhow::Error::from(reload::follow(&arguments, &current, reload::INTERVAL, &live).await)
    });
    Ok(())
}

/// The node's addresses, the primary one first; none where nobody says them in time, which is told.
async fn node_ips(
    node: &mut watch::Receiver<Option<Node>>,
    (client, name): (&Client, &str),
    settings: &Settings,
    events: &Events,
) -> Vec<IpAddr> {
    let ips = node_watch::wait_for(node, NODE_IPS_TIMEOUT, Node::ips).await;
    let ips = node::primary_first(ips, settings.bind_address);
    if !ips.is_empty() {
        tracing::info!(NodeIPs = ?ips, "Successfully retrieved NodeIPs");
        return ips;
    }
    let reason = node::why_unknown(client, name).await;
    tracing::error!(
        node = name,
        reason,
        "Can't determine this node's IP, assuming loopback; if this is incorrect, please set the --bind-address flag"
    );
    let off = settings.node_port_addresses.addresses == NodePortAddressSet::Primary;
    if off {
        tracing::error!(
            node = name,
            reason,
            "NodePorts stay off: nodePortAddresses is \"primary\", and the node's addresses are not known"
        );
    }
    events.send(Event::node_unknown(&reason, off));
    ips
}

/// What other modes, or kube-proxy in another mode, have left is removed once ours is in force; then an eye is kept on
/// the firewall of others, where the mode needs that.
fn after_first_sync(
    settings: &Settings,
    (supervisor, events): (Supervisor, Events),
    (periods, checks): (watch::Receiver<Duration>, watch::Receiver<Wanted>),
) -> anyhow::Result<AfterFirstSync> {
    let (mode, excluded) = (settings.mode, settings.ipvs.exclude_cidrs.clone());
    let limit = crate::sync::ipvs::Variables::read()?.leaving_limit();
    let runtime = Handle::current();
    // The node's own networks do not matter here.
    let localhost = environment::settings(settings, &[]).localhost_node_ports;
    Ok(Box::new(move || {
        if localhost && let Err(error) = Sysctl::kernel().expect(&sysctl::ROUTE_LOCALNET) {
            tracing::warn!(%error, "NodePorts on 127.0.0.1 do not work");
            events.send(Event::setting_failed(format!("NodePorts on 127.0.0.1 do not work: {error}")));
        }
        let others = supervisor.clone();
        let started = supervisor.errand("cleanup", move || {
            if mode == Mode::Ipvs {
                // What the present mode itself needs in iptables comes first, and is spared.
                let mut forwarding = Forwarding::default();
                forwarding.accept();
                let keep = move || forwarding.keep(&runtime, checks, periods);
                if let Err(error) = others.errand("forwarding", keep) {
                    tracing::error!(%error, "A firewall in iptables may drop what endpoints answer");
                }
            }
            // The nftables mode opens and closes by itself.
            if !localhost
                && mode != Mode::Nftables
                && let Err(error) = localnet::leave()
            {
                tracing::warn!(%error, "What NodePorts on 127.0.0.1 needed is still there");
            }
            cleanup::leftovers(mode, &excluded, limit, crate::telemetry::metrics::leaving_ipvs);
        });
        if let Err(error) = started {
            tracing::error!(%error, "What other modes have left cannot be removed");
        }
    }))
}

/// Metrics of single Services, where a variable asks for them; else what they set is given back.
fn count_services(
    settings: &Settings,
    observers: &mut Observers,
    metrics: &Metrics,
    supervisor: &Supervisor,
) -> anyhow::Result<()> {
    let asked = ServiceMetrics::read()?;
    let bytes = asked.as_ref().is_some_and(|asked| asked.bytes);
    // IPVS counts bytes by itself.
    let accounting =
        if bytes && settings.mode != Mode::Ipvs { accounting::begin() } else { accounting::end() };
    if let Err(error) = accounting {
        tracing::warn!(%error, bytes, "Conntrack does not count bytes as it was asked to");
    }
    let Some(asked) = asked else { return Ok(()) };
    let services = Services::new(asked);
    observers.set_services(services.clone());
    metrics.show_services(&services);
    let mode = settings.mode;
    supervisor.thread("service metrics", move || service_metrics::run(&services, mode))?;
    Ok(())
}

fn report_conntrack(pass: Pass) {
    if let Some(error) = &pass.error {
        tracing::error!(ipFamily = %pass.family, %error, "Stale flows could not all be removed; trying again");
    }
    crate::telemetry::metrics::conntrack_cleaned(pass.family, pass.took, pass.deleted as u64);
}

/// Starts the health and the metrics server. They end only where a port cannot be bound and that is to be fatal.
fn serve_http(
    settings: &Settings,
    (shown, log, metrics): (watch::Receiver<Arc<Settings>>, LogControl, Metrics),
    health: &HealthState,
    (events, capacity, supervisor): (&Events, &Capacity, &Supervisor),
) {
    let hard_fail = settings.bind_address_hard_fail;
    if let Some(address) = settings.healthz_address {
        let (health, events, connections) = (health.clone(), events.clone(), capacity.health.clone());
        supervisor.task("health server", async move {
            let error = healthz::serve(health, address, hard_fail, &connections).await;
            events.send(Event::health_server_failed(error.to_string()));
            anyhow::Error::from(error)
        });
    }
    supervisor.task("metrics upkeep", keep_up(metrics.clone()));
    if let Some(address) = settings.metrics_address {
        let (events, connections) = (events.clone(), capacity.metrics.clone());
        supervisor.task("metrics server", async move {
            let server = MetricsServer::new(metrics, shown, log);
            let error = server.serve(address, hard_fail, &connections).await;
            events.send(Event::metrics_server_failed(error.to_string()));
            anyhow::Error::from(error)
        });
    }
}

async fn keep_up(metrics: Metrics) {
    loop {
        tokio::time::sleep(METRICS_UPKEEP).await;
        metrics.upkeep();
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::settings::{self, Command};

    #[test]
    fn the_privileged_part_leaves_no_kernel_setting_to_the_rest() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests run as root)");
        let route_localnet = || {
            std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet").expect("a setting").trim()
                == "1"
        };
        let arguments = |mode| {
            [format!("--proxy-mode={mode}"), "--conntrack-max-per-core=0".into(), "--init-only".into()]
        };
        for (mode, localhost) in [("nftables", false), ("iptables", true)] {
            let Command::InitOnly(settings) = settings::load(&arguments(mode)).expect("good").command else {
                panic!("not the privileged part");
            };
            init(&settings).expect("settings");
            assert_eq!(route_localnet(), localhost, "{mode}");
        }
    }
}
