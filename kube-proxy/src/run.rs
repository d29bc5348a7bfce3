//! The main job: from the settings to a running engine.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use anyhow::Context as _;
use proxy_core::model::{Family, Input};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    api::{
        client,
        events::{Event, Events},
        node::{self, Node},
        node_watch,
        watch::Source,
        watched, wire,
    },
    engine::Message,
    host::{
        cleanup,
        conntrack::{self, ConntrackReconciler, Pass},
        forwarding, interfaces,
        sysctl::{self, Sysctl},
    },
    reload,
    serve::{
        healthz,
        metrics_server::MetricsServer,
        service_health::{self, Wanted},
    },
    settings::{
        effective::{DetectLocal, Mode, Settings},
        environment,
        feature_gates::Feature,
        plausibility::{self, Found},
    },
    sync::{
        observe::{AfterFirstSync, Observations},
        start,
    },
    telemetry::{first_sync::FirstLists, health::HealthState, logging::LogControl, metrics::Metrics},
};

/// How long what is worth an Event at the end of the process may take to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);
const NODE_IPS_TIMEOUT: Duration = Duration::from_secs(30);
const POD_CIDRS_TIMEOUT: Duration = Duration::from_secs(300);
const METRICS_UPKEEP: Duration = Duration::from_secs(5);

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
    let mut errors = Sysctl::kernel().set_conntrack(&settings.conntrack);
    // The node's own networks do not matter here.
    if environment::settings(settings, &[]).localhost_node_ports {
        errors.extend(Sysctl::kernel().set(&sysctl::ROUTE_LOCALNET).err());
    }
    let text: Vec<String> = errors.iter().map(ToString::to_string).collect();
    anyhow::ensure!(
        errors.is_empty(),
        "could not set conntrack parameters from kube-proxy configuration: {}",
        text.join("; ")
    );
    if settings.mode == Mode::Ipvs {
        backend_ipvs::prepare(&crate::sync::ipvs::settings(&settings.ipvs)?);
    }
    tracing::info!("System initialized and --init-only specified");
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
    let (client, upkeep) = client::connect(&settings.client)?;
    let (messages, inbox) = mpsc::channel::<Message>();

    let (node_sender, mut node) = watch::channel::<Option<Node>>(None);
    let mut source = Source {
        client: client.clone(),
        accept: wire::accept(&settings.client.content_type, &settings.client.accept_content_types),
        events: None,
    };
    tokio::spawn(node_watch::run(source.clone(), name.clone(), node_sender));
    let ips = node_watch::wait_for(&mut node, NODE_IPS_TIMEOUT, Node::ips).await;
    let ips = node::primary_first(ips, settings.bind_address);
    if ips.is_empty() {
        tracing::error!(
            node = name,
            "Can't determine this node's IP, assuming loopback; if this is incorrect, please set the --bind-address flag"
        );
    } else {
        tracing::info!(NodeIPs = ?ips, "Successfully retrieved NodeIPs");
    }
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
    let environment = environment::settings(&settings, &pod_cidrs);
    let primary = ips.first().map_or(Family::V4, |ip| Family::of(*ip));
    let fits =
        |served: &[Family]| plausibility::check(&settings, Found { primary, served, pod_cidrs: &pod_cidrs });
    let engine_ended = start::engine(&settings, environment, inbox, observations, (&health, &events), &fits)?;

    let settings = Arc::new(settings);
    let (current, shown) = watch::channel(Arc::clone(&settings));
    let fatal = serve_http(&settings, shown, log.clone(), metrics, &health, &events);
    tokio::spawn(service_health::run(name.clone(), wanted_checks, health.clone(), events.clone()));
    events.send(Event::starting());

    messages.send(Input::NodeIps(ips.into()).into())?;
    interfaces::follow(messages.clone())?;
    let external_ips = settings.feature_gates.enabled(Feature::AllowServiceExternalIPs);
    let lists = FirstLists::default();
    source.events = Some(events.clone());
    tokio::spawn(watched::services(source.clone(), external_ips, lists.clone(), messages.clone()));
    tokio::spawn(watched::slices(source.clone(), name.clone(), lists, messages.clone()));
    tokio::spawn(watched::service_cidrs(source, messages.clone()));
    let reloaded = reload::follow(&arguments, &current, reload::INTERVAL, |settings| {
        log.apply(&settings.logging);
        health.set_limit(settings.sync_period * 2);
        sysctl::set_oom_score(settings.oom_score_adj);
        set_conntrack(settings, &events);
        let environment = environment::settings(settings, &pod_cidrs);
        // Where the engine has ended, so does the process.
        let _ = messages.send(Message::Settings(environment, start::pace(settings)));
    });
    let follow =
        node_watch::follow(node, settings.bind_address, pod_cidrs.clone(), messages.clone(), health.clone());
    let result = tokio::select! {
        result = follow => result,
        error = reloaded => Err(error.into()),
        error = fatal => Err(error),
        () = upkeep.run(health.clone(), events.clone()) => unreachable!("it goes on for ever"),
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
    let period = settings.sync_period;
    let then = move || {
        if mode == Mode::Ipvs {
            forwarding::keep_accepting(period);
        }
    };
    Box::new(move || {
        if let Err(error) = cleanup::leftovers(mode, excluded, then) {
            tracing::error!(%error, "What other modes have left cannot be removed");
        }
    })
}

fn report_conntrack(pass: Pass) {
    if let Some(error) = &pass.error {
        tracing::error!(ipFamily = %pass.family, %error, "Stale flows could not all be removed; trying again");
    }
    crate::telemetry::metrics::conntrack_cleaned(pass.family, pass.took, pass.deleted as u64);
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
