//! How long the kernel will take and how much memory it will need: measured here, where that is cheap, and else from the
//! figures of `docs/benchmarks.md`.

use std::{collections::BTreeMap, time::Duration};

use insight::state::Mode;
use netlink::scratch;
use proxy_core::{
    backend::{Effect, Executor as _, Planned, Planner as _},
    model::Family,
};
use serde::Serialize;

use super::operations::{From, Operations, changes};
use crate::verbs::intended::{Half, Intended, now};

/// More than this is not written into a namespace to be measured.
const CHEAP: usize = 60_000;

/// From a table of `docs/benchmarks.md`: 10,000 Services with 10 endpoints each.
#[derive(Debug, Clone, Copy)]
struct Figures {
    /// Objects in the kernel then.
    objects: f64,
    /// What the first sync waited for the kernel or for `iptables-restore`, in seconds.
    first_sync: f64,
    /// What one change of an endpoint took until it was committed: what does not depend on how much is changed.
    one_change: f64,
    /// Memory of the rules in the kernel, in bytes.
    memory: f64,
}

/// The heading of the table that the figures are from.
pub(crate) const SOURCE: &str = "docs/benchmarks.md, 10kx10";

const NFTABLES: Figures =
    Figures { objects: 225_258.0, first_sync: 0.0647, one_change: 0.000_132, memory: 30.6e6 };
/// `iptables-restore` reads the whole table for every change, however small.
const IPTABLES: Figures = Figures { objects: 430_163.0, first_sync: 4.42, one_change: 0.401, memory: 227e6 };

/// An estimate, and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Estimate {
    /// Until the kernel has it, of all families, one after the other.
    pub(crate) seconds: f64,
    /// Of the rules afterwards, in all; absent where it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) kernel_bytes: Option<u64>,
    pub(crate) source: String,
}

/// What is known of a plan's cost; `None`: nothing was measured for this mode.
pub(crate) fn estimate(
    from: From<'_>,
    to: &Intended,
    plans: &BTreeMap<Family, Operations>,
) -> Option<Estimate> {
    let total: usize = plans.values().map(|plan| plan.total).sum();
    let figures = match to.mode {
        Mode::Nftables => NFTABLES,
        Mode::Iptables => IPTABLES,
        Mode::Ipvs => return None,
    };
    let memory = Some((figures.memory / figures.objects * total as f64) as u64);
    if to.mode == Mode::Nftables
        && total <= CHEAP
        && let Some(took) = measured(from, to)
    {
        let source =
            "time: measured, the same operations in a network namespace of this node's; memory: ".to_owned();
        return Some(Estimate { seconds: took.as_secs_f64(), kernel_bytes: memory, source: source + SOURCE });
    }
    let seconds = plans.values().map(|plan| by_figures(figures, to.mode, plan)).sum();
    Some(Estimate { seconds, kernel_bytes: memory, source: SOURCE.to_owned() })
}

fn by_figures(figures: Figures, mode: Mode, plan: &Operations) -> f64 {
    if plan.all.is_empty() {
        return 0.0;
    }
    let each = figures.first_sync / figures.objects * plan.objects() as f64;
    // Of iptables the standing costs grow with all rules there are.
    let standing = match mode {
        Mode::Iptables => figures.one_change / figures.objects * plan.total as f64,
        _ => figures.one_change,
    };
    each.max(standing)
}

/// Writes what there is and then the change into a namespace of its own, and tells how long the change took. `None`: that
/// cannot be done here.
fn measured(from: From<'_>, to: &Intended) -> Option<Duration> {
    let halves: Vec<(Family, Option<&Half>, &Half)> = to
        .halves
        .iter()
        .map(|(family, after)| {
            let before = match from {
                From::Intended(intended) => intended.halves.get(family),
                From::Start => None,
            };
            (*family, before, after)
        })
        .collect();
    let measure = || -> Option<Duration> {
        halves.iter().map(|(family, before, after)| one(*family, *before, after)).sum()
    };
    scratch::in_own_namespace(measure).ok()?
}

fn one(family: Family, before: Option<&Half>, after: &Half) -> Option<Duration> {
    let mut planner = backend_nft::Planner::new(family);
    let mut executor = backend_nft::Executor::open(family).ok()?;
    // What the loopback guard does is no matter of these rules.
    let quiet = |half: &Half| {
        let mut environment = half.environment.clone();
        environment.localhost_node_ports = false;
        environment
    };
    if let Some(before) = before {
        let found = executor.survey().ok()?;
        let plan = planner.plan_full(&before.routes, &quiet(before), found, now());
        executor.apply(&plan).ok()?;
        planner.settle(Effect::Applied);
    }
    let changes = changes(before.map_or(&[], |half| &half.routes), &after.routes);
    let begun = now();
    let plan = match before.map(|_| planner.plan(&changes, &quiet(after), now())) {
        Some(Planned::Plan(plan)) => plan,
        _ => {
            let found = executor.survey().ok()?;
            planner.plan_full(&after.routes, &quiet(after), found, now())
        }
    };
    executor.apply(&plan).ok()?;
    Some(now().saturating_duration_since(begun))
}
