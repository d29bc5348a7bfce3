//! The device, and virtual IPs as local routes or addresses of it: made, taken away, and missed when they go.

use std::{collections::HashSet, fs, net::IpAddr};

use netlink::{
    Dump, Pipeline, Socket, address, link,
    loss::{Loss, LossMonitor},
    route::{self, AddressFamily, Filter, Route},
};
use nix::libc;
use proxy_core::{
    backend::{ApplyError, Outcome, Owned},
    model::Family,
};

use crate::{
    kernel::refusal::{lost, refused, rejection},
    schema::op::Op,
    settings::{Binding, DEVICE, ROUTE_PROTOCOL},
};

/// `IN6_ADDR_GEN_MODE_NONE` there: no link-local address when the device comes up.
const NO_LINK_LOCAL: &str = "/proc/sys/net/ipv6/conf/kube-ipvs0/addr_gen_mode";

/// The index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Times that a dump is repeated because something changed meanwhile.
const TRIES: usize = 5;

/// As many as the monitor's receive buffer holds the news of.
const OPERATIONS_AT_ONCE: usize = 4096;

pub(crate) struct Bindings {
    family: Family,
    binding: Binding,
    pub(crate) socket: Socket,
    /// The index of our device.
    device: Option<u32>,
    monitor: LossMonitor,
    /// Somebody else took something of ours away.
    damaged: bool,
    /// Routes to loopback by which another mode of ours held addresses, or that an interrupted exchange left.
    strays: Vec<Route>,
}

impl Bindings {
    pub(crate) fn open(family: Family, binding: Binding, socket: Socket) -> Result<Self, netlink::Error> {
        let monitor = LossMonitor::open(ROUTE_PROTOCOL)?;
        Ok(Self { family, binding, socket, device: None, monitor, damaged: false, strays: Vec::new() })
    }

    /// What is bound at present: by local routes, and as addresses of the device.
    pub(crate) fn standing(&mut self) -> Result<(HashSet<IpAddr>, HashSet<IpAddr>), ApplyError> {
        let device = link::find(&mut self.socket, DEVICE).map_err(lost)?.map(|device| device.index);
        let all = routes(&mut self.socket, self.family)?;
        let (own, strays): (Vec<Route>, Vec<Route>) =
            all.into_iter().partition(|route| route.output != Some(LOOPBACK));
        self.strays = strays;
        let routes = own.into_iter().map(|route| route.destination).collect();
        let addresses = match device {
            Some(device) => addresses(&mut self.socket, self.family, device)?,
            None => HashSet::new(),
        };
        Ok((routes, addresses))
    }

    /// Removes what held addresses until ours are bound.
    pub(crate) fn remove_strays(&mut self) -> Result<(), ApplyError> {
        let strays = std::mem::take(&mut self.strays);
        if strays.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::new();
        strays.iter().for_each(|route| {
            route.push_delete(&mut pipeline);
        });
        pipeline.run(&mut self.socket).map_err(lost)?;
        self.hear(|addr| strays.iter().any(|route| route.destination == *addr))
    }

    /// Everything is about to be read: what went before is no news then.
    pub(crate) fn begin_survey(&mut self) -> Result<(), ApplyError> {
        self.hear(|_| true)?;
        self.damaged = false;
        Ok(())
    }

    pub(crate) fn intact(&mut self) -> Result<bool, ApplyError> {
        let device = link::find(&mut self.socket, DEVICE).map_err(lost)?;
        if device.is_none_or(|device| Some(device.index) != self.device || !device.is_up()) {
            return Ok(false);
        }
        self.hear(|_| false)?;
        Ok(!self.damaged)
    }

    /// Takes the news in. What `is_own` says of an address or a route, we did ourselves.
    fn hear(&mut self, is_own: impl Fn(&IpAddr) -> bool) -> Result<(), ApplyError> {
        let Self { family, device, monitor, damaged, .. } = self;
        let concerns_us = |addr: IpAddr| Family::of(addr) == *family && !is_own(&addr);
        let complete = monitor.drain(|loss| {
            *damaged |= match loss {
                Loss::Route(route) => concerns_us(route.destination),
                // With the last IPv4 address of a device its routes go, silently.
                Loss::Address(gone) => Some(gone.interface) == *device && concerns_us(gone.address),
                Loss::Interface(index) => Some(index) == *device,
            };
        });
        if !complete.map_err(lost)? {
            self.damaged = true;
        }
        Ok(())
    }

    pub(crate) fn prepare_device(&mut self) -> Result<(), ApplyError> {
        // Until it is up, news of it are our own.
        self.device = None;
        let found = link::find(&mut self.socket, DEVICE).map_err(lost)?;
        let device = match found {
            Some(device) => device,
            None => {
                link::create(&mut self.socket, DEVICE, "dummy").map_err(|error| match error.refused() {
                    Some(libc::EOPNOTSUPP) => refused(format!(
                        "the device {DEVICE} cannot be made: this kernel has no dummy devices (module dummy, CONFIG_DUMMY)"
                    )),
                    _ => lost(error),
                })?;
                link::find(&mut self.socket, DEVICE)
                    .map_err(lost)?
                    .ok_or_else(|| lost(format!("the device {DEVICE} is gone as soon as it was made")))?
            }
        };
        if !device.is_up() {
            // kube-proxy leaves it down, but a local route of IPv6 needs a device that is up. Without an address of its own
            // nothing looks for neighbours there, and nobody takes it for a link.
            let _ = fs::write(NO_LINK_LOCAL, "1");
            link::set_up(&mut self.socket, device.index).map_err(lost)?;
        }
        self.hear(|_| false)?;
        self.device = Some(device.index);
        Ok(())
    }

    pub(crate) fn apply(&mut self, ops: &[Owned<Op>], outcome: &mut Outcome) -> Result<(), ApplyError> {
        let device = self.device.ok_or_else(|| lost("the device was not made yet"))?;
        let drops = ops.iter().any(|owned| matches!(owned.op, Op::DropAddress(_)));
        if self.binding == Binding::Addresses || !drops || self.family == Family::V6 {
            return self.bind(ops, device, outcome);
        }
        // With the last IPv4 address of a device the kernel takes all its routes away (`fib_inetaddr_event` calls
        // `fib_disable_ip`): loopback stands in for it meanwhile.
        let standing: HashSet<IpAddr> =
            routes(&mut self.socket, self.family)?.into_iter().map(|route| route.destination).collect();
        let again = |output| move |addr: &IpAddr| Route::local(*addr, output, ROUTE_PROTOCOL);
        self.append(standing.iter().map(again(LOOPBACK)))?;
        self.bind(ops, device, outcome)?;
        self.append(standing.iter().map(again(device)))?;
        let mut pipeline = Pipeline::new();
        standing.iter().map(again(LOOPBACK)).for_each(|route| {
            route.push_delete(&mut pipeline);
        });
        pipeline.run(&mut self.socket).map_err(lost)?;
        self.hear(|addr| standing.contains(addr))
    }

    fn bind(&mut self, ops: &[Owned<Op>], device: u32, outcome: &mut Outcome) -> Result<(), ApplyError> {
        let mut pipeline = Pipeline::new();
        for ops in ops.chunks(OPERATIONS_AT_ONCE) {
            pipeline.clear();
            self.bind_some(&mut pipeline, ops, device, outcome)?;
            let took_away: HashSet<IpAddr> = ops.iter().filter_map(|owned| removed(&owned.op)).collect();
            self.hear(|addr| took_away.contains(addr))?;
        }
        Ok(())
    }

    fn bind_some(
        &mut self,
        pipeline: &mut Pipeline,
        ops: &[Owned<Op>],
        device: u32,
        outcome: &mut Outcome,
    ) -> Result<(), ApplyError> {
        let local = |addr| Route::local(addr, device, ROUTE_PROTOCOL);
        let as_route = self.binding == Binding::Routes;
        for owned in ops {
            match owned.op {
                Op::Bind(addr) if as_route => local(addr).push_add(pipeline),
                Op::Bind(addr) => address::push_add(pipeline, addr, device),
                Op::Unbind(addr) if as_route => local(addr).push_delete(pipeline),
                Op::DropRoute(addr) => local(addr).push_delete(pipeline),
                Op::Unbind(addr) | Op::DropAddress(addr) => address::push_delete(pipeline, addr, device),
                _ => continue,
            };
        }
        let mut beside = Vec::new();
        for failure in pipeline.run(&mut self.socket).map_err(lost)? {
            let owned = &ops[failure.index];
            match (&owned.op, failure.errno) {
                // An address of the device has a local route of the kernel's; ours goes beside it.
                (Op::Bind(addr), libc::EEXIST) if as_route => beside.push(local(*addr)),
                (Op::Bind(_), libc::EEXIST)
                | (
                    Op::Unbind(_) | Op::DropRoute(_) | Op::DropAddress(_),
                    libc::ESRCH | libc::EADDRNOTAVAIL,
                ) => {}
                (op, errno) => outcome.rejected.push(rejection(op, owned.owner, errno)?),
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
            .run(&mut self.socket)
            .map_err(lost)?
            .into_iter()
            .find(|failure| failure.errno != libc::EEXIST)
        {
            Some(failure) => Err(lost(failure)),
            None => Ok(()),
        }
    }
}

/// What an operation takes away.
fn removed(op: &Op) -> Option<IpAddr> {
    match op {
        Op::Unbind(addr) | Op::DropAddress(addr) | Op::DropRoute(addr) => Some(*addr),
        _ => None,
    }
}

/// Our local routes.
fn routes(socket: &mut Socket, family: Family) -> Result<Vec<Route>, ApplyError> {
    let family = match family {
        Family::V4 => AddressFamily::V4,
        Family::V6 => AddressFamily::V6,
    };
    let filter = Filter { family, table: Some(route::table::LOCAL), protocol: Some(ROUTE_PROTOCOL) };
    let mut found = Vec::new();
    for _ in 0..TRIES {
        found.clear();
        let dump = route::list(socket, filter, |route| found.push(route));
        if dump.map_err(lost)? == Dump::Complete {
            break;
        }
    }
    Ok(found)
}

fn addresses(socket: &mut Socket, family: Family, device: u32) -> Result<HashSet<IpAddr>, ApplyError> {
    let all = address::list(socket).map_err(lost)?;
    let ours = |addr: &IpAddr| {
        Family::of(*addr) == family
            // The kernel's own link-local address is no virtual IP.
            && !matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
    };
    let on_device = all.into_iter().filter(|found| found.interface == device);
    Ok(on_device.map(|found| found.address).filter(ours).collect())
}
