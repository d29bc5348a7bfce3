//! Starts the engine: opens the mode's backends and gives each family's to a thread of its own.

use std::time::{Duration, Instant};

use backend_ipvs::MarkSpace;
use proxy_core::{
    backend::{Executor, Planner},
    environment::EnvironmentSettings,
    model::Family,
    reconciler::{Pace, Reconciler},
};

use crate::{
    api::{
        events::{Event, Events},
        watch::chain,
    },
    engine::{self, mailbox::Inbox},
    settings::effective::{Mode, Settings},
    supervisor::Supervisor,
    sync::{
        observe::Observers,
        watched::{Turns, Watched},
    },
    telemetry::health::HealthState,
};

/// A few small exchanges with the kernel, so that what somebody flushed is back within a second.
const DRIFT_CHECK: Duration = Duration::from_millis(500);

/// Opens the mode's backends and gives each family's to a thread of its own. Answers the families that are served.
pub(crate) fn engine(
    settings: &Settings,
    environment: EnvironmentSettings,
    inboxes: Vec<(Family, Inbox)>,
    observers: &Observers,
    (health, events, supervisor): (&HealthState, &Events, &Supervisor),
    fits: &dyn Fn(&[Family]) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Family>> {
    let drift_interval = drift_interval(settings);
    let pace = pace(settings);
    let start = Start { environment, pace, drift_interval, inboxes, observers, health, supervisor, fits };
    // By this line people and scripts tell the mode of a node.
    tracing::info!("Using {} Proxier", settings.mode.as_str());
    match settings.mode {
        Mode::Nftables => {
            let commits = backend_nft::OwnCommits::default();
            let open = |family| {
                let mut planner = backend_nft::Planner::new(family);
                for missing in backend_nft::probe(family)? {
                    if missing.is_hash() {
                        planner = planner.without_hash();
                    }
                    tracing::error!(ipFamily = %family, "{missing}");
                    events.send(Event::kernel_lacks(missing.to_string()));
                }
                let executor = backend_nft::Executor::open(family)?.counting(&commits);
                Ok((planner, executor))
            };
            start.spawn(open_families(open)?, &Turns::one_at_a_time())
        }
        Mode::Iptables => {
            let commits = backend_iptables::OwnCommits::default();
            let open = |family| {
                let executor = backend_iptables::Executor::open(family)?.counting(&commits);
                Ok((backend_iptables::Planner::new(family), executor))
            };
            start.spawn(open_families(open)?, &Turns::side_by_side())
        }
        Mode::Ipvs => {
            let chosen = crate::sync::ipvs::settings(&settings.ipvs)?;
            let commits = backend_ipvs::OwnCommits::default();
            let open = |family| {
                let (planner, executor) = backend_ipvs::open(family, chosen.clone())?;
                Ok((planner, executor.counting(&commits)))
            };
            let families = open_families(open)?;
            name_missing_schedulers(supervisor, chosen.marks);
            start.spawn(families, &Turns::one_at_a_time())
        }
    }
}

/// How often to look whether others have changed what is installed.
pub(crate) fn drift_interval(settings: &Settings) -> Duration {
    settings.sync_period.min(DRIFT_CHECK)
}

/// Says which schedulers a Service cannot choose here, before one does. It tries, which takes its time.
fn name_missing_schedulers(supervisor: &Supervisor, marks: MarkSpace) {
    let work = move || match backend_ipvs::kernel::schedulers::missing(Family::V4, marks) {
        Ok(missing) if missing.is_empty() => {}
        Ok(missing) => {
            let modules: Vec<String> = missing.iter().map(|name| format!("ip_vs_{name}")).collect();
            tracing::info!(
                modules = modules.join(" "),
                "This kernel lacks schedulers of IPVS; a Service that asks for one of them is set aside"
            );
        }
        Err(error) => tracing::debug!(%error, "IPVS cannot be asked for its schedulers"),
    };
    // Only a line of the log depends on it.
    if let Err(error) = supervisor.errand("schedulers", work) {
        tracing::debug!(%error, "IPVS is not asked for its schedulers");
    }
}

pub(crate) fn pace(settings: &Settings) -> Pace {
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
                tracing::error!(%family, error = chain(error.as_ref()), "This family cannot be served");
                failed.get_or_insert_with(|| error.context(format!("{family} cannot be served")));
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
    drift_interval: Duration,
    inboxes: Vec<(Family, Inbox)>,
    observers: &'a Observers,
    health: &'a HealthState,
    supervisor: &'a Supervisor,
    /// Whether the configuration fits these families.
    fits: &'a dyn Fn(&[Family]) -> anyhow::Result<()>,
}

impl Start<'_> {
    #[expect(clippy::disallowed_methods, reason = "the health state is told when it begins")]
    fn spawn<P, X>(mut self, backends: Vec<(Family, P, X)>, turns: &Turns) -> anyhow::Result<Vec<Family>>
    where
        P: Planner + Send + 'static,
        X: Executor<Op = P::Op, Found = P::Found> + Send + 'static,
    {
        let served: Vec<Family> = backends.iter().map(|(family, ..)| *family).collect();
        (self.fits)(&served)?;
        let drift_interval = self.drift_interval;
        let observers = self.observers.of(&served);
        for ((family, planner, executor), mut observations) in backends.into_iter().zip(observers) {
            let at = self.inboxes.iter().position(|(of, _)| *of == family);
            let (_, inbox) = self.inboxes.swap_remove(at.expect("there is one for each family"));
            self.health.started(family, Instant::now());
            let watched = Watched {
                family,
                executor,
                health: self.health.clone(),
                turns: turns.clone(),
                put_off: None,
            };
            let reconciler =
                Reconciler::new(self.environment.clone(), self.pace, vec![(family, planner, watched)]);
            let name = match family {
                Family::V4 => "engine IPv4",
                Family::V6 => "engine IPv6",
            };
            self.supervisor.thread(name, move || {
                engine::run(reconciler, &inbox, &mut observations, drift_interval);
            })?;
        }
        Ok(served)
    }
}
