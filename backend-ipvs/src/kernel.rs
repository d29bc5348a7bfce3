//! Operations -> the kernel: IPVS, nftables and routes, each in batches, in the order of the plan.

use std::{io, net::IpAddr, sync::mpsc::Sender, time::Duration};

use ipvs_netlink::{Batch as IpvsBatch, Destination, ServiceKey};
use netlink::{Pipeline, address, link, route::Route};
use nft_netlink::{Batch as NftBatch, CommitError, Position, Refusal, generation};
use nix::libc;
use proxy_core::{
    backend::{ApplyError, Executor, Outcome, Owned, Plan, Rejection},
    model::Family,
};

use crate::{
    drain::Reaped,
    element,
    found::Found,
    marks::SENTINEL,
    nftables::{self, FoundChain},
    op::Op,
    scaffold::{self, BASE_CHAINS, CHAINS, PREFIX},
    settings::{Binding, DEVICE, ROUTE_PROTOCOL, Settings},
    survey, sysctl,
};

/// As many as one send carries.
const REQUESTS_AT_ONCE: usize = 256;

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Programs one family. It belongs to the network namespace in which it was opened.
pub struct IpvsExecutor {
    pub(crate) settings: Settings,
    pub(crate) family: Family,
    pub(crate) ipvs: ipvs_netlink::Socket,
    pub(crate) route: netlink::Socket,
    pub(crate) nft: netlink::Socket,
    reports: Sender<Reaped>,
    /// The index of our device.
    pub(crate) device: Option<u32>,
    /// Our chains as we left them, and the rule set's generation when they were last seen so.
    chains: Vec<FoundChain>,
    generation: Option<u32>,
    batch: IpvsBatch,
    nft_batch: NftBatch,
}

impl IpvsExecutor {
    pub(crate) fn new(
        settings: Settings,
        family: Family,
        ipvs: ipvs_netlink::Socket,
        route: netlink::Socket,
        nft: netlink::Socket,
        reports: Sender<Reaped>,
    ) -> Self {
        Self {
            settings,
            family,
            ipvs,
            route,
            nft,
            reports,
            device: None,
            chains: Vec::new(),
            generation: None,
            batch: IpvsBatch::new(),
            nft_batch: NftBatch::new(),
        }
    }
}

impl Executor for IpvsExecutor {
    type Op = Op;
    type Found = Found;

    fn survey(&mut self) -> Result<Found, ApplyError> {
        survey::survey(self)
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        let mut outcome = Outcome::default();
        for (at, step) in plan.steps.iter().enumerate() {
            let Some(first) = step.ops.first() else { continue };
            match Subsystem::of(&first.op) {
                Subsystem::Device => self.prepare_device()?,
                Subsystem::Nftables => self.commit(&step.ops).map_err(|error| match error {
                    // Earlier steps took effect, so that not nothing happened.
                    ApplyError::Refused { reason, .. } if at > 0 && changed(plan, at) => lost(reason),
                    error => error,
                })?,
                Subsystem::Ipvs => self.virtual_servers(&step.ops, &mut outcome)?,
                Subsystem::Addresses => self.addresses(&step.ops, &mut outcome)?,
            }
        }
        Ok(outcome)
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        let family = ipvs_family(self.family);
        let sentinel = ServiceKey::Mark { family, mark: SENTINEL };
        if self.ipvs.service(&sentinel).map_err(lost)?.is_none() {
            return Ok(false);
        }
        let device = link::find(&mut self.route, DEVICE).map_err(lost)?;
        if device.is_none_or(|device| Some(device.index) != self.device || !device.is_up()) {
            return Ok(false);
        }
        let generation = generation::generation(&mut self.nft).map_err(lost)?;
        if Some(generation) == self.generation {
            return Ok(true);
        }
        let intact = self.look_at_chains()? == self.chains;
        self.generation = intact.then_some(generation);
        Ok(intact)
    }

    fn waited(&self) -> Duration {
        self.ipvs.waited() + self.route.waited() + self.nft.waited()
    }
}

impl IpvsExecutor {
    fn prepare_device(&mut self) -> Result<(), ApplyError> {
        sysctl::apply(&self.settings, self.family);
        let found = link::find(&mut self.route, DEVICE).map_err(lost)?;
        let device = match found {
            Some(device) => device,
            None => {
                link::create(&mut self.route, DEVICE, "dummy").map_err(|error| match error.refused() {
                    Some(libc::EOPNOTSUPP) => refused(format!(
                        "the device {DEVICE} cannot be made: this kernel has no dummy devices (module dummy, CONFIG_DUMMY)"
                    )),
                    _ => lost(error),
                })?;
                link::find(&mut self.route, DEVICE)
                    .map_err(lost)?
                    .ok_or_else(|| lost(format!("the device {DEVICE} is gone as soon as it was made")))?
            }
        };
        if !device.is_up() {
            link::set_up(&mut self.route, device.index).map_err(lost)?;
        }
        self.device = Some(device.index);
        Ok(())
    }

    /// One transaction.
    fn commit(&mut self, ops: &[Owned<Op>]) -> Result<(), ApplyError> {
        let table = scaffold::table(self.family);
        let batch = &mut self.nft_batch;
        batch.clear();
        let mut positions: Vec<(Position, usize)> = Vec::with_capacity(ops.len());
        let (mut rules, mut rebuilt) = (false, false);
        for (at, owned) in ops.iter().enumerate() {
            match &owned.op {
                Op::Rebuild(environment) => {
                    (rules, rebuilt) = (true, true);
                    scaffold::write(batch, environment, true);
                }
                Op::Rules(environment) => {
                    rules = true;
                    scaffold::write(batch, environment, false);
                }
                Op::AddElement(element) => positions.push((element::add(batch, table, element), at)),
                Op::DeleteElement(element) => positions.push((element::delete(batch, table, element), at)),
                _ => {}
            }
        }
        match batch.commit(&mut self.nft) {
            Ok(()) => {}
            Err(CommitError::Refused(refusals)) => return Err(culprit(&refusals[0], &positions, ops)),
            Err(error) => return Err(lost(error)),
        }
        if rebuilt {
            self.remove_others();
        }
        if rules {
            self.chains = self.look_at_chains()?;
        }
        self.generation = Some(generation::generation(&mut self.nft).map_err(lost)?);
        Ok(())
    }

    /// Our table was kube-proxy's, or of another mode of ours: its other chains and sets serve nothing any more.
    fn remove_others(&mut self) {
        if let Err(error) = self.try_remove_others() {
            tracing::warn!(%error, "chains or sets of another proxy stay in the table {}", scaffold::TABLE);
        }
    }

    fn try_remove_others(&mut self) -> Result<(), Box<dyn std::error::Error>> {
        let table = scaffold::table(self.family);
        let ours =
            |name: &str| name.starts_with(PREFIX) || BASE_CHAINS.iter().any(|chain| chain.name == name);
        let chains: Vec<String> = nftables::chains(&mut self.nft, self.family)?
            .into_iter()
            .map(|chain| chain.name)
            .filter(|name| !ours(name))
            .collect();
        let sets: Vec<String> =
            nftables::sets(&mut self.nft, self.family)?.into_iter().filter(|name| !ours(name)).collect();
        let mut batch = NftBatch::new();
        // Rules refer to sets and chains, elements to chains: emptied first, everything can go.
        chains.iter().for_each(|name| {
            batch.flush_chain(table, name);
        });
        sets.iter().for_each(|name| {
            batch.flush_set(table, name);
        });
        sets.iter().for_each(|name| {
            batch.delete_set(table, name);
        });
        chains.iter().for_each(|name| {
            batch.delete_chain(table, name);
        });
        Ok(batch.commit(&mut self.nft)?)
    }

    fn look_at_chains(&mut self) -> Result<Vec<FoundChain>, ApplyError> {
        let names = BASE_CHAINS.iter().map(|chain| chain.name).chain(CHAINS);
        let mut found = Vec::with_capacity(BASE_CHAINS.len() + CHAINS.len());
        for name in names {
            found.extend(nftables::chain(&mut self.nft, self.family, name).map_err(lost)?);
        }
        Ok(found)
    }

    fn virtual_servers(&mut self, ops: &[Owned<Op>], outcome: &mut Outcome) -> Result<(), ApplyError> {
        // What is encoded is sent while it is still in the processor's cache.
        for ops in ops.chunks(REQUESTS_AT_ONCE) {
            self.requests(ops, outcome)?;
        }
        Ok(())
    }

    fn requests(&mut self, ops: &[Owned<Op>], outcome: &mut Outcome) -> Result<(), ApplyError> {
        let mut pushed: Vec<&Owned<Op>> = Vec::with_capacity(ops.len());
        let mut reorders: Vec<&Owned<Op>> = Vec::new();
        self.batch.clear();
        for owned in ops {
            match &owned.op {
                Op::Reap { key, destinations, force, server } => {
                    self.reap(*key, destinations, *force, *server)?
                }
                Op::Reorder(..) => reorders.push(owned),
                op => {
                    push(&mut self.batch, op);
                    pushed.push(owned);
                }
            }
        }
        let failures = self.ipvs.send(&mut self.batch).map_err(lost)?;
        self.set_right(&failures, &pushed, outcome)?;
        for owned in reorders {
            if let Op::Reorder(key, destinations) = &owned.op {
                self.reorder(*key, destinations)?;
            }
        }
        Ok(())
    }

    /// Takes the other request where somebody had been there before us, and reports what cannot be.
    fn set_right(
        &mut self,
        failures: &[ipvs_netlink::Failure],
        pushed: &[&Owned<Op>],
        outcome: &mut Outcome,
    ) -> Result<(), ApplyError> {
        if failures.is_empty() {
            return Ok(());
        }
        let mut again: Vec<&Owned<Op>> = Vec::new();
        self.batch.clear();
        for failure in failures {
            let owned = pushed[failure.index];
            match (&owned.op, failure.errno) {
                (Op::NewServer(service), libc::EEXIST) => self.batch.set_service(service),
                (Op::NewDestination(key, to), libc::EEXIST) => self.batch.set_destination(key, to),
                (Op::SetDestination(_, Destination { weight: 0, .. }), libc::ENOENT | libc::ESRCH)
                | (Op::DeleteServer(_) | Op::DeleteDestination(..), libc::ENOENT | libc::ESRCH) => continue,
                (Op::SetDestination(key, to), libc::ENOENT) => self.batch.new_destination(key, to),
                (op, errno) => {
                    outcome.rejected.push(self.rejection(op, owned.owner, errno)?);
                    continue;
                }
            }
            again.push(owned);
        }
        for failure in self.ipvs.send(&mut self.batch).map_err(lost)? {
            let owned = again[failure.index];
            outcome.rejected.push(self.rejection(&owned.op, owned.owner, failure.errno)?);
        }
        Ok(())
    }

    /// Out and in again within one send: the kernel finds a destination that was just deleted by its address and takes
    /// it back with its connections (`ip_vs_trash_get_dest`).
    fn reorder(&mut self, key: ServiceKey, destinations: &[Destination]) -> Result<(), ApplyError> {
        self.batch.clear();
        for to in destinations {
            self.batch.del_destination(&key, to.address, to.port);
            self.batch.new_destination(&key, to);
        }
        if let Err(error) = sysctl::expire_orphans(false) {
            // Then the order may differ from that of other nodes, which costs less than connections.
            tracing::warn!(server = %key, %error, "endpoints keep their order for Maglev hashing");
            return Ok(());
        }
        let sent = self.ipvs.send(&mut self.batch);
        if let Err(error) = sysctl::expire_orphans(true) {
            tracing::warn!(%error, "net.ipv4.vs.expire_nodest_conn stays 0");
        }
        match sent.map_err(lost)?.first() {
            Some(failure) => Err(lost(failure)),
            None => Ok(()),
        }
    }

    fn rejection(&self, op: &Op, owner: Option<u32>, errno: i32) -> Result<Rejection, ApplyError> {
        let error = io::Error::from_raw_os_error(errno);
        // A virtual server that should be there is not: what else is missing must be read.
        let astray = matches!((op, errno), (Op::SetServer(_) | Op::SetDestination(..), libc::ESRCH));
        if astray || owner.is_none() || !is_an_objects_fault(errno) {
            return Err(lost(format!("{op}: {error}")));
        }
        let reason = match (op, errno) {
            (Op::NewServer(service) | Op::SetServer(service), libc::ENOENT) => {
                format!("{op}: this kernel has no scheduler {0} (module ip_vs_{0})", service.scheduler)
            }
            _ => format!("{op}: {error}"),
        };
        Ok(Rejection { owner, reason })
    }

    fn reap(
        &mut self,
        key: ServiceKey,
        unwanted: &[(IpAddr, u16)],
        force: bool,
        server: bool,
    ) -> Result<(), ApplyError> {
        let standing = self.ipvs.destinations(&key).map_err(lost)?;
        let mut batch = IpvsBatch::new();
        let mut left = standing.len();
        let mut gone = Vec::new();
        for (addr, port) in unwanted {
            let found = standing
                .iter()
                .find(|found| (found.destination.address, found.destination.port) == (*addr, *port));
            // What only waits for its end does not hold an address that may be somebody else's by now.
            let idle = found.is_none_or(|found| {
                found.active_connections == 0 && (server || found.inactive_connections == 0)
            });
            if idle || force {
                if found.is_some() {
                    batch.del_destination(&key, *addr, *port);
                    left -= 1;
                }
                gone.push(Reaped::Destination(key, *addr, *port));
            }
        }
        if server && left == 0 {
            batch.del_service(&key);
            gone.push(Reaped::Server(key));
        }
        for failure in self.ipvs.send(&mut batch).map_err(lost)? {
            if !matches!(failure.errno, libc::ENOENT | libc::ESRCH) {
                return Err(lost(failure));
            }
        }
        for reaped in gone {
            // Without a planner there is nobody to tell.
            let _ = self.reports.send(reaped);
        }
        Ok(())
    }

    fn addresses(&mut self, ops: &[Owned<Op>], outcome: &mut Outcome) -> Result<(), ApplyError> {
        let device = self.device.ok_or_else(|| lost("the device was not made yet"))?;
        let drops = ops.iter().any(|owned| matches!(owned.op, Op::DropAddress(_)));
        if self.settings.binding == Binding::Addresses || !drops || self.family == Family::V6 {
            return self.bind(ops, device, outcome);
        }
        // With the last IPv4 address of a device the kernel takes all its routes away (`fib_inetaddr_event` calls
        // `fib_disable_ip`): loopback stands in for it meanwhile.
        let standing: Vec<IpAddr> = survey::routes(self)?.into_iter().collect();
        let again = |output| move |addr: &IpAddr| Route::local(*addr, output, ROUTE_PROTOCOL);
        self.append(standing.iter().map(again(LOOPBACK)))?;
        self.bind(ops, device, outcome)?;
        self.append(standing.iter().map(again(device)))?;
        let mut pipeline = Pipeline::new();
        standing.iter().map(again(LOOPBACK)).for_each(|route| {
            route.push_delete(&mut pipeline);
        });
        pipeline.run(&mut self.route).map_err(lost)?;
        Ok(())
    }

    fn bind(&mut self, ops: &[Owned<Op>], device: u32, outcome: &mut Outcome) -> Result<(), ApplyError> {
        let local = |addr| Route::local(addr, device, ROUTE_PROTOCOL);
        let as_route = self.settings.binding == Binding::Routes;
        let mut pipeline = Pipeline::new();
        for owned in ops {
            match owned.op {
                Op::Bind(addr) if as_route => local(addr).push_add(&mut pipeline),
                Op::Bind(addr) => address::push_add(&mut pipeline, addr, device),
                Op::Unbind(addr) if as_route => local(addr).push_delete(&mut pipeline),
                Op::DropRoute(addr) => local(addr).push_delete(&mut pipeline),
                Op::Unbind(addr) | Op::DropAddress(addr) => address::push_delete(&mut pipeline, addr, device),
                _ => continue,
            };
        }
        let mut beside = Vec::new();
        for failure in pipeline.run(&mut self.route).map_err(lost)? {
            let owned = &ops[failure.index];
            match (&owned.op, failure.errno) {
                // An address of the device has a local route of the kernel's; ours goes beside it.
                (Op::Bind(addr), libc::EEXIST) if as_route => beside.push(local(*addr)),
                (Op::Bind(_), libc::EEXIST)
                | (
                    Op::Unbind(_) | Op::DropRoute(_) | Op::DropAddress(_),
                    libc::ESRCH | libc::EADDRNOTAVAIL,
                ) => {}
                (op, errno) => outcome.rejected.push(self.rejection(op, owned.owner, errno)?),
            }
        }
        self.append(beside.into_iter())
    }

    /// Adds routes beside others; those that are there already stay.
    fn append(&mut self, routes: impl Iterator<Item = Route>) -> Result<(), ApplyError> {
        let mut pipeline = Pipeline::new();
        routes.for_each(|route| {
            route.push_append(&mut pipeline);
        });
        match pipeline
            .run(&mut self.route)
            .map_err(lost)?
            .into_iter()
            .find(|failure| failure.errno != libc::EEXIST)
        {
            Some(failure) => Err(lost(failure)),
            None => Ok(()),
        }
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
            Op::Rebuild(_) | Op::Rules(_) | Op::AddElement(_) | Op::DeleteElement(_) => Self::Nftables,
            Op::Bind(_) | Op::Unbind(_) | Op::DropAddress(_) | Op::DropRoute(_) => Self::Addresses,
            Op::NewServer(_)
            | Op::SetServer(_)
            | Op::DeleteServer(_)
            | Op::NewDestination(..)
            | Op::SetDestination(..)
            | Op::DeleteDestination(..)
            | Op::Reorder(..)
            | Op::Reap { .. } => Self::Ipvs,
        }
    }
}

fn push(batch: &mut IpvsBatch, op: &Op) {
    match op {
        Op::NewServer(service) => batch.new_service(service),
        Op::SetServer(service) => batch.set_service(service),
        Op::DeleteServer(key) => batch.del_service(key),
        Op::NewDestination(key, to) => batch.new_destination(key, to),
        Op::SetDestination(key, to) => batch.set_destination(key, to),
        Op::DeleteDestination(key, addr, port) => batch.del_destination(key, *addr, *port),
        _ => unreachable!("a step is of one subsystem"),
    }
}

/// Whether a step before this one changed something that matters.
fn changed(plan: &Plan<Op>, at: usize) -> bool {
    plan.steps[..at]
        .iter()
        .flat_map(|step| &step.ops)
        .any(|owned| Subsystem::of(&owned.op) != Subsystem::Device)
}

fn culprit(refusal: &Refusal, positions: &[(Position, usize)], ops: &[Owned<Op>]) -> ApplyError {
    let at = refusal.position.and_then(|position| {
        let behind = positions.partition_point(|(begin, _)| *begin <= position);
        positions.get(behind.checked_sub(1)?).map(|(_, at)| &ops[*at])
    });
    let culprit = at.and_then(|owned| owned.owner).filter(|_| is_an_objects_fault(refusal.errno));
    let reason = match at {
        Some(owned) => format!("{}: {refusal}", owned.op),
        None => refusal.to_string(),
    };
    ApplyError::Refused { reason, culprit }
}

/// Some errors are nobody's fault but the kernel's.
fn is_an_objects_fault(errno: i32) -> bool {
    !matches!(
        errno,
        libc::ENOMEM
            | libc::ENOBUFS
            | libc::EBUSY
            | libc::EAGAIN
            | libc::ENFILE
            | libc::EINTR
            | libc::ENODEV
            | libc::ENETDOWN
            | libc::EPERM
    )
}

fn refused(reason: String) -> ApplyError {
    ApplyError::Refused { reason, culprit: None }
}

pub(crate) fn lost(error: impl ToString) -> ApplyError {
    ApplyError::Lost(io::Error::other(error.to_string()))
}

pub(crate) fn ipvs_family(family: Family) -> ipvs_netlink::Family {
    match family {
        Family::V4 => ipvs_netlink::Family::V4,
        Family::V6 => ipvs_netlink::Family::V6,
    }
}
