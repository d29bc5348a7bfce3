//! What is intended on this node, family by family, as backends take it: from the inputs of a state, by the engine itself.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use anyhow::Context as _;
use insight::{
    engine,
    state::{Mode, State},
};
use proxy_core::{
    difference::{Comparison, Unreadable},
    environment::Environment,
    model::{Family, ServiceName, ServicePortName},
    route::Route,
};

use crate::sync::ipvs;

/// One family's half.
#[derive(Debug, Clone)]
pub(crate) struct Half {
    pub(crate) environment: Environment,
    /// Sorted by name.
    pub(crate) routes: Vec<(ServicePortName, Arc<Route>)>,
}

/// Everything that is intended.
#[derive(Debug, Clone)]
pub(crate) struct Intended {
    pub(crate) mode: Mode,
    pub(crate) halves: BTreeMap<Family, Half>,
    pub(crate) ipvs: Option<backend_ipvs::Settings>,
}

#[expect(clippy::disallowed_methods, reason = "nothing depends on the time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

impl Intended {
    /// What the engine makes of a state.
    pub(crate) fn of(state: &State) -> anyhow::Result<Self> {
        let engine = engine::engine(state, now());
        let mut halves = BTreeMap::new();
        for family in state.families() {
            let environment = engine.instance(family).and_then(|instance| instance.environment().cloned());
            if let Some(environment) = environment {
                halves.insert(family, Half { environment, routes: engine::routes(&engine, family) });
            }
        }
        let ipvs = match (state.header.mode, &state.header.ipvs) {
            (Mode::Ipvs, Some(settings)) => Some(ipvs::of_insight(settings)?),
            (Mode::Ipvs, None) => Some(backend_ipvs::Settings::default()),
            _ => None,
        };
        Ok(Self { mode: state.header.mode, halves, ipvs })
    }

    /// The kernel of this node, compared with it. Reads only.
    pub(crate) fn compare(&self) -> Result<BTreeMap<Family, Comparison>, Unreadable> {
        let settings = self.ipvs.clone().unwrap_or_default();
        let compare = |half: &Half| match self.mode {
            Mode::Nftables => backend_nft::compare(&half.routes, &half.environment, now()),
            Mode::Iptables => backend_iptables::compare(&half.routes, &half.environment, None),
            Mode::Ipvs => backend_ipvs::compare(&half.routes, &half.environment, &settings, now()),
        };
        self.halves.iter().map(|(family, half)| Ok((*family, compare(half)?))).collect()
    }

    /// Service ports of a Service.
    pub(crate) fn services(&self) -> usize {
        let names = self.halves.values().flat_map(|half| &half.routes).map(|(name, _)| &name.service);
        names.collect::<std::collections::BTreeSet<&ServiceName>>().len()
    }
}

/// A comparison needs the kernel of the node that the state is of.
pub(crate) fn only_live(live: bool, verb: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        live,
        "{verb} reads the kernel of the node, which a file does not hold: run it on the node, without replay"
    );
    Ok(())
}

/// A state's families, or why there are none.
pub(crate) fn checked(intended: Intended) -> anyhow::Result<Intended> {
    (!intended.halves.is_empty())
        .then_some(intended)
        .context("the process has not found out yet what its node is: ask again when it has synced")
}
