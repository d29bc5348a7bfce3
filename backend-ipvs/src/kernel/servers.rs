//! Virtual servers and destinations: operations as requests to IPVS, in batches, and what became of each.

use std::{net::IpAddr, sync::mpsc::Sender};

use ipvs_netlink::{Batch, Destination, Failure, ServiceKey, Socket};
use nix::libc;
use proxy_core::backend::{ApplyError, Outcome, Owned};

use crate::{
    kernel::{
        audit::Audit,
        refusal::{lost, rejection},
        sysctl,
    },
    schema::{
        found::FoundServer,
        op::{Op, Reaped},
    },
};

/// As many as one send carries.
const REQUESTS_AT_ONCE: usize = 256;

/// Compared with the kernel at each check for drift, twice a second: a few milliseconds.
const AUDITED_AT_ONCE: usize = 64;

pub(crate) struct Servers {
    pub(crate) socket: Socket,
    batch: Batch,
    audit: Audit,
    reports: Sender<Reaped>,
}

impl Servers {
    pub(crate) fn new(socket: Socket, reports: Sender<Reaped>) -> Self {
        Self { socket, batch: Batch::new(), audit: Audit::default(), reports }
    }

    /// This is what the kernel holds.
    pub(crate) fn learn(&mut self, found: &[FoundServer]) {
        self.audit.learn(found);
    }

    /// Whether the virtual servers whose turn it is are as we left them.
    pub(crate) fn intact(&mut self) -> Result<bool, ApplyError> {
        for key in self.audit.next(AUDITED_AT_ONCE) {
            let service = self.socket.service(&key).map_err(lost)?;
            let destinations = self.socket.destinations(&key).map_err(lost)?;
            let destinations: Vec<Destination> =
                destinations.into_iter().map(|entry| entry.destination).collect();
            if !service.is_some_and(|entry| self.audit.holds(&entry.service, &destinations)) {
                tracing::warn!(server = %key, "somebody else changed a virtual server");
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn apply(&mut self, ops: &[Owned<Op>], outcome: &mut Outcome) -> Result<(), ApplyError> {
        let mut rest = ops;
        while !rest.is_empty() {
            // What is encoded is sent while it is still in the processor's cache.
            let mut requests = 0;
            let fits = rest.iter().take_while(|owned| {
                let before = requests;
                requests += parts(&owned.op);
                before == 0 || requests <= REQUESTS_AT_ONCE
            });
            let (now, later) = rest.split_at(fits.count());
            self.requests(now, outcome)?;
            rest = later;
        }
        Ok(())
    }

    fn requests(&mut self, ops: &[Owned<Op>], outcome: &mut Outcome) -> Result<(), ApplyError> {
        // Where the requests of each operation begin.
        let mut pushed: Vec<(usize, &Owned<Op>)> = Vec::with_capacity(ops.len());
        let mut reorders: Vec<(ServiceKey, &[Destination])> = Vec::new();
        self.batch.clear();
        for owned in ops {
            match &owned.op {
                Op::Reap { key, destinations, force, server } => {
                    self.reap(*key, destinations, *force, *server)?
                }
                Op::Reorder(key, destinations) => reorders.push((*key, destinations)),
                op => {
                    pushed.push((self.batch.len(), owned));
                    push(&mut self.batch, op);
                    self.audit.note(op);
                }
            }
        }
        let failures = self.socket.send(&mut self.batch).map_err(lost)?;
        if !failures.is_empty() {
            self.set_right(&failures, &pushed, outcome)?;
        }
        for (key, destinations) in reorders {
            self.reorder(key, destinations)?;
        }
        Ok(())
    }

    /// Takes the other request where somebody had been there before us, and reports what cannot be.
    fn set_right(
        &mut self,
        failures: &[Failure],
        pushed: &[(usize, &Owned<Op>)],
        outcome: &mut Outcome,
    ) -> Result<(), ApplyError> {
        let mut again: Vec<(Op, Option<u32>)> = Vec::new();
        self.batch.clear();
        for failure in failures {
            let behind = pushed.partition_point(|(begin, _)| *begin <= failure.index);
            let (begin, owned) = pushed[behind - 1];
            let op = part(&owned.op, failure.index - begin);
            let other = match (&op, failure.errno) {
                (Op::NewServer(service, _), libc::EEXIST) => Op::SetServer(*service),
                (Op::NewDestination(key, to), libc::EEXIST) => {
                    Op::SetDestination { key: *key, to: *to, was: to.weight }
                }
                (
                    Op::SetDestination { to: Destination { weight: 0, .. }, .. },
                    libc::ENOENT | libc::ESRCH,
                )
                | (Op::DeleteServer(_) | Op::DeleteDestination(..), libc::ENOENT | libc::ESRCH) => {
                    self.forget(&op);
                    continue;
                }
                (Op::SetDestination { key, to, .. }, libc::ENOENT) => Op::NewDestination(*key, *to),
                (op, errno) => {
                    self.forget(op);
                    outcome.rejected.push(rejection(op, owned.owner, errno)?);
                    continue;
                }
            };
            push(&mut self.batch, &other);
            again.push((other, owned.owner));
        }
        for failure in self.socket.send(&mut self.batch).map_err(lost)? {
            let (op, owner) = &again[failure.index];
            self.forget(op);
            outcome.rejected.push(rejection(op, *owner, failure.errno)?);
        }
        Ok(())
    }

    /// It is not known what the virtual server of an operation looks like now.
    fn forget(&mut self, op: &Op) {
        if let Some(key) = server_of(op) {
            self.audit.forget(&key);
        }
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
        let sent = self.socket.send(&mut self.batch);
        if let Err(error) = sysctl::expire_orphans(true) {
            tracing::warn!(%error, "net.ipv4.vs.expire_nodest_conn stays 0");
        }
        match sent.map_err(lost)?.first() {
            Some(failure) => Err(lost(failure)),
            None => Ok(()),
        }
    }

    fn reap(
        &mut self,
        key: ServiceKey,
        unwanted: &[(IpAddr, u16)],
        force: bool,
        server: bool,
    ) -> Result<(), ApplyError> {
        let standing = self.socket.destinations(&key).map_err(lost)?;
        let mut batch = Batch::new();
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
                if let Some(found) = found {
                    batch.del_destination(&key, *addr, *port);
                    self.audit.toggle(&key, &found.destination);
                    left -= 1;
                }
                gone.push(Reaped::Destination(key, *addr, *port));
            }
        }
        if server && left == 0 {
            batch.del_service(&key);
            self.audit.forget(&key);
            gone.push(Reaped::Server(key));
        }
        for failure in self.socket.send(&mut batch).map_err(lost)? {
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
}

/// The requests that an operation takes.
fn parts(op: &Op) -> usize {
    match op {
        Op::NewServer(_, destinations) => 1 + destinations.len(),
        _ => 1,
    }
}

/// The operation that one request of another is by itself.
fn part(op: &Op, at: usize) -> Op {
    match (op, at.checked_sub(1)) {
        (Op::NewServer(service, destinations), Some(at)) => Op::NewDestination(service.key, destinations[at]),
        (Op::NewServer(service, _), None) => Op::NewServer(*service, Box::default()),
        _ => op.clone(),
    }
}

/// Adds the requests of an operation to a batch.
pub fn push(batch: &mut Batch, op: &Op) {
    match op {
        Op::NewServer(service, destinations) => {
            batch.new_service(service);
            destinations.iter().for_each(|to| batch.new_destination(&service.key, to));
        }
        Op::SetServer(service) => batch.set_service(service),
        Op::DeleteServer(key) => batch.del_service(key),
        Op::NewDestination(key, to) => batch.new_destination(key, to),
        Op::SetDestination { key, to, .. } => batch.set_destination(key, to),
        Op::DeleteDestination(key, to) => batch.del_destination(key, to.address, to.port),
        _ => unreachable!("a step is of one subsystem"),
    }
}

fn server_of(op: &Op) -> Option<ServiceKey> {
    match op {
        Op::NewServer(service, _) | Op::SetServer(service) => Some(service.key),
        Op::DeleteServer(key)
        | Op::NewDestination(key, _)
        | Op::SetDestination { key, .. }
        | Op::DeleteDestination(key, _) => Some(*key),
        _ => None,
    }
}
