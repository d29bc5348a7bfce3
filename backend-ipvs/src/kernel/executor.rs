//! Operations -> the kernel: who carries each step out, in the order of the plan, and whether all of it still stands.

use std::{sync::mpsc::Sender, time::Duration};

use ipvs_netlink::ServiceKey;
use netlink::Traffic;
use nft_netlink::generation::OwnCommits;
use proxy_core::{
    backend::{ApplyError, Executor, Outcome, Plan},
    model::Family,
};

use crate::{
    kernel::{
        bindings::Bindings, refusal::lost, schedulers::Schedulers, servers::Servers, survey, sysctl,
        tables::Tables,
    },
    schema::{
        found::Found,
        op::{Op, Reaped},
        ownership::ipvs_family,
    },
    settings::Settings,
};

/// Programs one family. It belongs to the network namespace in which it was opened.
pub struct IpvsExecutor {
    pub(crate) settings: Settings,
    pub(crate) family: Family,
    pub(crate) servers: Servers,
    pub(crate) bindings: Bindings,
    pub(crate) tables: Tables,
    schedulers: Schedulers,
}

impl IpvsExecutor {
    pub(crate) fn new(
        settings: Settings,
        family: Family,
        ipvs: ipvs_netlink::Socket,
        route: netlink::Socket,
        nft: netlink::Socket,
        reports: Sender<Reaped>,
    ) -> Result<Self, netlink::Error> {
        Ok(Self {
            family,
            servers: Servers::new(ipvs, reports),
            bindings: Bindings::open(family, settings.binding, route)?,
            tables: Tables::new(family, nft, OwnCommits::default()),
            schedulers: Schedulers::default(),
            settings,
        })
    }

    /// Has those that write into the same network namespace from this thread count their transactions together, so that
    /// the work of one is no news to the other.
    #[must_use]
    pub fn counting(mut self, own: &OwnCommits) -> Self {
        self.tables.count_with(own.clone());
        self
    }

    /// What went to the kernel and came from it so far: to IPVS, for addresses and routes, and to nftables.
    pub fn traffic(&self) -> Traffic {
        let (calls, bytes) = self.servers.socket.traffic();
        Traffic { calls, bytes } + self.bindings.socket.traffic() + self.tables.traffic()
    }
}

impl Executor for IpvsExecutor {
    type Op = Op;
    type Found = Found;

    fn survey(&mut self) -> Result<Found, ApplyError> {
        self.bindings.begin_survey()?;
        let found = survey::survey(self.family, &mut self.servers, &mut self.bindings, &mut self.tables)?;
        self.servers.learn(&found.servers);
        Ok(found)
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        self.schedulers.check(&mut self.servers.socket, self.family, self.settings.marks, plan)?;
        let mut outcome = Outcome::default();
        for (at, step) in plan.steps.iter().enumerate() {
            let Some(first) = step.ops.first() else { continue };
            match Subsystem::of(&first.op) {
                Subsystem::Device => {
                    sysctl::apply(&self.settings, self.family);
                    self.bindings.prepare_device()?;
                }
                Subsystem::Nftables => self.tables.commit(&step.ops).map_err(|error| match error {
                    // Earlier steps took effect, so that not nothing happened.
                    ApplyError::Refused { reason, .. } if changed(plan, at) => lost(reason),
                    error => error,
                })?,
                Subsystem::Ipvs => self.servers.apply(&step.ops, &mut outcome)?,
                Subsystem::Addresses => self.bindings.apply(&step.ops, &mut outcome)?,
            }
        }
        self.bindings.remove_strays()?;
        Ok(outcome)
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        let sentinel =
            ServiceKey::Mark { family: ipvs_family(self.family), mark: self.settings.marks.sentinel() };
        Ok(self.servers.socket.service(&sentinel).map_err(lost)?.is_some()
            && self.bindings.intact()?
            && self.tables.intact().map_err(lost)?
            && self.servers.intact()?)
    }

    fn waited(&self) -> Duration {
        self.servers.socket.waited() + self.bindings.socket.waited() + self.tables.waited()
    }
}

/// Who carries an operation out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subsystem {
    Device,
    Nftables,
    Ipvs,
    Addresses,
}

impl Subsystem {
    fn of(op: &Op) -> Self {
        match op {
            Op::Device => Self::Device,
            Op::Rebuild(..)
            | Op::Rules(..)
            | Op::DropOtherTable
            | Op::AddElement(_)
            | Op::DeleteElement(_) => Self::Nftables,
            Op::Bind(_) | Op::Unbind(_) | Op::DropAddress(_) | Op::DropRoute(_) => Self::Addresses,
            Op::NewServer(..)
            | Op::SetServer(_)
            | Op::DeleteServer(_)
            | Op::NewDestination(..)
            | Op::SetDestination { .. }
            | Op::DeleteDestination(..)
            | Op::Reorder(..)
            | Op::Reap { .. } => Self::Ipvs,
        }
    }
}

/// Whether a step before this one changed something that matters.
fn changed(plan: &Plan<Op>, at: usize) -> bool {
    plan.steps[..at]
        .iter()
        .flat_map(|step| &step.ops)
        .any(|owned| Subsystem::of(&owned.op) != Subsystem::Device)
}
