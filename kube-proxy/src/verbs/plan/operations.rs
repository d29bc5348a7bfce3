//! The operations of a change, as the mode's own planner decides on them. Nothing is applied.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::anyhow;
use insight::state::Mode;
use proxy_core::{
    backend::{Change, Effect, Executor as _, Plan, Planned, Planner},
    model::{Family, ServicePortName},
    route::{Frontend, Route},
};

use crate::verbs::intended::{Half, Intended, now};

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Operation {
    /// The Service port that it serves; `None`: all of them, or nobody.
    pub(crate) owner: Option<ServicePortName>,
    /// As the mode's own tools would write it, where they could.
    pub(crate) text: String,
    /// Objects of the kernel that it touches: elements, rules, chains, virtual servers, destinations, addresses.
    pub(crate) objects: usize,
}

/// What one family's planner decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Operations {
    /// Why everything is written anew; `None`: only what differs.
    pub(crate) full: Option<String>,
    pub(crate) all: Vec<Operation>,
    /// Service ports whose route differs.
    pub(crate) changes: Vec<RouteChange>,
    /// Objects that there are afterwards.
    pub(crate) total: usize,
}

/// How one Service port's route changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RouteChange {
    pub(crate) name: ServicePortName,
    pub(crate) what: String,
}

impl Operations {
    pub(crate) fn objects(&self) -> usize {
        self.all.iter().map(|operation| operation.objects).sum()
    }
}

/// Where a plan begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum From<'a> {
    /// The process has this in the kernel.
    Intended(&'a Intended),
    /// Nothing of this mode is remembered: a start.
    Start,
}

/// What it takes to get there, by family. `live`: full plans are made over what the kernel holds, and else over nothing.
pub(crate) fn plan(
    from: From<'_>,
    to: &Intended,
    live: bool,
) -> anyhow::Result<BTreeMap<Family, Operations>> {
    let mut plans = BTreeMap::new();
    for (family, after) in &to.halves {
        let before = match from {
            From::Intended(intended) => intended.halves.get(family),
            From::Start => None,
        };
        let operations = match to.mode {
            Mode::Nftables => {
                let found = || match live {
                    true => backend_nft::Executor::open(*family)
                        .map_err(|error| anyhow!("{error}"))?
                        .survey()
                        .map_err(|error| anyhow!("the nftables rules cannot be read: {error}")),
                    false => Ok(backend_nft::Found::default()),
                };
                let planner = || backend_nft::Planner::new(*family);
                decide(planner, before, after, found, backend_nft::Op::objects)?
            }
            Mode::Iptables => {
                let found = || match live {
                    true => Ok(backend_iptables::survey(&after.environment, None)?),
                    false => Ok(backend_iptables::Found::default()),
                };
                decide(
                    || backend_iptables::Planner::new(*family),
                    before,
                    after,
                    found,
                    backend_iptables::Op::objects,
                )?
            }
            Mode::Ipvs => {
                let settings = to.ipvs.clone().unwrap_or_default();
                let found = || match live {
                    true => Ok(backend_ipvs::survey(*family, &settings)?),
                    false => Ok(backend_ipvs::schema::found::Found::default()),
                };
                let planner = || backend_ipvs::IpvsPlanner::alone(settings.clone());
                decide(planner, before, after, found, backend_ipvs::schema::op::Op::objects)?
            }
        };
        plans.insert(*family, operations);
    }
    Ok(plans)
}

fn decide<P>(
    planner: impl Fn() -> P,
    before: Option<&Half>,
    after: &Half,
    found: impl FnOnce() -> anyhow::Result<P::Found>,
    objects: fn(&P::Op) -> usize,
) -> anyhow::Result<Operations>
where
    P: Planner,
    P::Found: Default,
{
    let now = now();
    let changes = changes(before.map_or(&[], |half| &half.routes), &after.routes);
    let owner_of = |names: &[(ServicePortName, Arc<Route>)], at: Option<u32>| {
        at.and_then(|at| names.get(at as usize)).map(|(name, _)| name.clone())
    };
    let list = |plan: &Plan<P::Op>, owner: &dyn Fn(Option<u32>) -> Option<ServicePortName>| {
        let ops = plan.steps.iter().flat_map(|step| &step.ops);
        ops.map(|owned| Operation {
            owner: owner(owned.owner),
            text: owned.op.to_string(),
            objects: objects(&owned.op),
        })
        .collect::<Vec<_>>()
    };
    let total = {
        let plan = planner().plan_full(&after.routes, &after.environment, P::Found::default(), now);
        plan.steps.iter().flat_map(|step| &step.ops).map(|owned| objects(&owned.op)).sum()
    };
    let mut worker = planner();
    let planned = before.map(|before| {
        worker.plan_full(&before.routes, &before.environment, P::Found::default(), now);
        worker.settle(Effect::Applied);
        worker.plan(&changes, &after.environment, now)
    });
    let (full, all) = match planned {
        Some(Planned::Plan(plan)) => {
            let owner = |at: Option<u32>| {
                at.and_then(|at| changes.get(at as usize)).map(|change| change.name.clone())
            };
            (None, list(&plan, &owner))
        }
        other => {
            let reason = match other {
                Some(Planned::StartOver(reason)) => reason,
                _ => "the first sync of a process",
            };
            let plan = worker.plan_full(&after.routes, &after.environment, found()?, now);
            (Some(reason.to_owned()), list(&plan, &|at| owner_of(&after.routes, at)))
        }
    };
    let changes =
        changes.iter().map(|change| RouteChange { name: change.name.clone(), what: words(change) }).collect();
    Ok(Operations { full, all, changes, total })
}

/// A route before and after.
type Sides<'a> = (Option<&'a Arc<Route>>, Option<&'a Arc<Route>>);

/// What differs, sorted by name, as the engine hands it to a planner.
pub(crate) fn changes(
    before: &[(ServicePortName, Arc<Route>)],
    after: &[(ServicePortName, Arc<Route>)],
) -> Vec<Change> {
    let mut all: BTreeMap<&ServicePortName, Sides<'_>> = BTreeMap::new();
    before.iter().for_each(|(name, route)| all.entry(name).or_default().0 = Some(route));
    after.iter().for_each(|(name, route)| all.entry(name).or_default().1 = Some(route));
    all.into_iter()
        .filter(|(_, (before, after))| before != after)
        .map(|(name, (before, after))| Change {
            name: name.clone(),
            before: before.cloned(),
            after: after.cloned(),
        })
        .collect()
}

fn words(change: &Change) -> String {
    let (Some(before), Some(after)) = (&change.before, &change.after) else {
        return match &change.after {
            Some(route) => format!(
                "comes, with {} addresses and {} endpoints",
                route.frontends.len(),
                route.cluster.len().max(route.local.len())
            ),
            None => "goes".to_owned(),
        };
    };
    let mut parts = Vec::new();
    let mut count = |what: &str, came: usize, went: usize| match (came, went) {
        (0, 0) => {}
        (came, 0) => parts.push(format!("{what} +{came}")),
        (0, went) => parts.push(format!("{what} -{went}")),
        (came, went) => parts.push(format!("{what} +{came} -{went}")),
    };
    let differ =
        |one: &[Frontend], other: &[Frontend]| one.iter().filter(|item| !other.contains(item)).count();
    count(
        "addresses",
        differ(&after.frontends, &before.frontends),
        differ(&before.frontends, &after.frontends),
    );
    let differ = |one: &[proxy_core::route::Target], other: &[proxy_core::route::Target]| {
        one.iter().filter(|item| other.binary_search(item).is_err()).count()
    };
    count("endpoints", differ(&after.cluster, &before.cluster), differ(&before.cluster, &after.cluster));
    count("local endpoints", differ(&after.local, &before.local), differ(&before.local, &after.local));
    if before.policy != after.policy || before.external_policy != after.external_policy {
        parts.push("other policies".to_owned());
    }
    if parts.is_empty() { "changes".to_owned() } else { parts.join(", ") }
}
