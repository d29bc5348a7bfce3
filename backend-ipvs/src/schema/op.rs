//! One thing to do to the kernel; a plan is a list of these.

use std::{fmt, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use ipvs_netlink::{Destination, Forwarding, Service, ServiceFlags, ServiceKey};
use proxy_core::{environment::Environment, model::Protocol};

use crate::settings::MarkSpace;

/// An operation on the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// See to it that the device is there and up.
    Device,
    /// Write the rules for an environment and empty the sets; the elements follow in the same step. Everything else
    /// in our tables goes.
    Rebuild(Arc<Environment>, MarkSpace),
    /// Write the rules for an environment, keep the sets.
    Rules(Arc<Environment>, MarkSpace),
    /// Remove the table of the nftables modes, in the same transaction with the rules that take their place.
    DropOtherTable,
    /// Put an element into its set.
    AddElement(Element),
    /// Take an element out of its set.
    DeleteElement(Element),
    /// With its destinations, in the order of their addition.
    NewServer(Service, Box<[Destination]>),
    /// Change its options; its destinations and connections stay.
    SetServer(Service),
    /// With its connections.
    DeleteServer(ServiceKey),
    /// Give a virtual server another destination.
    NewDestination(ServiceKey, Destination),
    /// Change a destination's weight; its connections stay.
    SetDestination {
        /// The virtual server.
        key: ServiceKey,
        /// As it is to be.
        to: Destination,
        /// Its weight until now.
        was: u32,
    },
    /// With its connections.
    DeleteDestination(ServiceKey, Destination),
    /// Take these destinations out and put them back in this order, without an end to their connections.
    Reorder(ServiceKey, Box<[Destination]>),
    /// Delete those of these destinations that have no connections, or all if `force`. With `server`, delete the
    /// virtual server too once it has none left.
    Reap {
        /// The virtual server.
        key: ServiceKey,
        /// Addresses and ports.
        destinations: Box<[(IpAddr, u16)]>,
        /// Whatever their connections.
        force: bool,
        /// The virtual server is to go as well.
        server: bool,
    },
    /// Make an address the node's own.
    Bind(IpAddr),
    /// The other way round.
    Unbind(IpAddr),
    /// Remove an address of the device that kube-proxy, or the other form of binding, left there.
    DropAddress(IpAddr),
    /// Remove a local route of ours that the other form of binding left.
    DropRoute(IpAddr),
}

/// Address, protocol and port of a frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Spot {
    /// The address.
    pub addr: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// An element of one of our nftables sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Element {
    /// An address bound by us: what no virtual server takes is refused.
    Vip(IpAddr),
    /// A cluster IP: masqueraded unless the source is a pod of this node.
    ClusterIp(IpAddr),
    /// Masqueraded whatever the source.
    Masquerade(Spot),
    /// Connections of this node and its pods go to the virtual server of this mark.
    ShortCircuit(Spot, u32),
    /// A mark in use by a short circuit: taken off again behind IPVS.
    Mark(u32),
    /// Refused: its Service has no endpoint anywhere.
    Refused(Spot),
    /// Dropped.
    Drop(Spot),
    /// Dropped, unless it comes from this node or its pods.
    DropOutside(Spot),
    /// Only sources with an `Allowed` element may use it.
    Restricted(Spot),
    /// A source that may use a restricted spot.
    Allowed(Spot, IpNet),
    /// An endpoint, which may reach itself through a virtual server: masqueraded then.
    Hairpin(IpAddr),
    /// A health check node port: answered by us on virtual IPs too.
    HealthCheck(u16),
}

/// What the executor found while reaping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaped {
    /// A destination is gone.
    Destination(ServiceKey, IpAddr, u16),
    /// The virtual server is gone, too.
    Server(ServiceKey),
}

impl Op {
    /// How many objects of the kernel it touches: elements, virtual servers, destinations, addresses. The fixed rules count as
    /// one.
    pub fn objects(&self) -> usize {
        match self {
            Self::NewServer(_, destinations) => 1 + destinations.len(),
            Self::Reorder(_, destinations) => destinations.len(),
            Self::Reap { destinations, server, .. } => destinations.len() + usize::from(*server),
            _ => 1,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device => f.write_str("ensure device"),
            Self::Rebuild(..) => f.write_str("rebuild rules, empty sets"),
            Self::Rules(..) => f.write_str("rewrite rules"),
            Self::DropOtherTable => f.write_str("drop the table of another mode"),
            Self::AddElement(element) => write!(f, "add {element}"),
            Self::DeleteElement(element) => write!(f, "delete {element}"),
            Self::NewServer(service, destinations) => {
                write!(f, "new server {}", Options(service))?;
                let key = service.key;
                destinations.iter().try_for_each(|to| write!(f, "\n{}", Self::NewDestination(key, *to)))
            }
            Self::SetServer(service) => write!(f, "set server {}", Options(service)),
            Self::DeleteServer(key) => write!(f, "delete server {key}"),
            Self::NewDestination(key, to) => write!(f, "new destination {key} -> {}", Weighted(to)),
            Self::SetDestination { key, to, .. } => write!(f, "set destination {key} -> {}", Weighted(to)),
            Self::DeleteDestination(key, to) => {
                write!(f, "delete destination {key} -> {}", Socket(to.address, to.port))
            }
            Self::Reorder(key, destinations) => {
                write!(f, "reorder {key} ->")?;
                destinations.iter().try_for_each(|to| write!(f, " {}", Socket(to.address, to.port)))
            }
            Self::Reap { key, destinations, force, server } => {
                write!(f, "reap{} {key} ->", if *force { " by force" } else { "" })?;
                for (addr, port) in destinations {
                    write!(f, " {}", Socket(*addr, *port))?;
                }
                f.write_str(if *server { ", then the server" } else { "" })
            }
            Self::Bind(addr) => write!(f, "bind {addr}"),
            Self::Unbind(addr) => write!(f, "unbind {addr}"),
            Self::DropAddress(addr) => write!(f, "drop address {addr}"),
            Self::DropRoute(addr) => write!(f, "drop route {addr}"),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vip(addr) => write!(f, "vip {addr}"),
            Self::ClusterIp(addr) => write!(f, "cluster IP {addr}"),
            Self::Masquerade(spot) => write!(f, "masquerade {spot}"),
            Self::ShortCircuit(spot, mark) => write!(f, "short circuit {spot} mark {mark:#x}"),
            Self::Mark(mark) => write!(f, "mark {mark:#x}"),
            Self::Refused(spot) => write!(f, "refused {spot}"),
            Self::Drop(spot) => write!(f, "drop {spot}"),
            Self::DropOutside(spot) => write!(f, "drop outside {spot}"),
            Self::Restricted(spot) => write!(f, "restricted {spot}"),
            Self::Allowed(spot, net) => write!(f, "allowed {spot} from {net}"),
            Self::Hairpin(addr) => write!(f, "hairpin {addr}"),
            Self::HealthCheck(port) => write!(f, "health check {port}"),
        }
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, Socket(self.addr, self.port))
    }
}

struct Options<'a>(&'a Service);

impl fmt::Display for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(service) = self;
        write!(f, "{} {}", service.key, service.scheduler)?;
        if service.flags.contains(ServiceFlags::PERSISTENT) {
            write!(f, " persistent {}", service.timeout)?;
        }
        if service.flags.contains(ServiceFlags::SCHEDULER_2) {
            f.write_str(" by port")?;
        }
        Ok(())
    }
}

struct Weighted<'a>(&'a Destination);

impl fmt::Display for Weighted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(to) = self;
        write!(f, "{} weight {}", Socket(to.address, to.port), to.weight)?;
        if to.forwarding != Forwarding::Masquerade {
            write!(f, " {:?}", to.forwarding)?;
        }
        Ok(())
    }
}

struct Socket(IpAddr, u16);

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", std::net::SocketAddr::new(self.0, self.1))
    }
}
