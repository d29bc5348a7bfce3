//! The kernel's part played in memory: applies operations and says where a packet would go.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipvs_netlink::{Destination, Service, ServiceKey};
use proxy_core::{
    backend::Plan,
    environment::{Environment, LocalPods},
    model::Protocol,
};

use crate::{
    schema::{
        found::{Found, FoundServer},
        op::{Element, Op, Spot},
    },
    settings::Binding,
};

/// What plans have made of an empty kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    environment: Option<Arc<Environment>>,
    servers: BTreeMap<ServiceKey, (Service, Destinations)>,
    elements: BTreeSet<Element>,
    bound: BTreeSet<IpAddr>,
}

type Destinations = BTreeMap<(IpAddr, u16), Destination>;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) source: IpAddr,
    pub(crate) origin: Origin<'a>,
    pub(crate) destination: IpAddr,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
}

/// Where a packet comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin<'a> {
    /// A process of the node itself.
    Node,
    /// It came in through this interface.
    Interface(&'a str),
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It goes to one of these, not empty.
    To {
        targets: Vec<(IpAddr, u16)>,
        masquerade: bool,
    },
    Refused,
    Dropped,
    /// No Service is concerned.
    Passed,
}

impl Model {
    /// Carries out a plan.
    ///
    /// # Errors
    /// Names the operation that the kernel would refuse.
    pub(crate) fn apply(&mut self, plan: &Plan<Op>) -> Result<(), String> {
        for owned in plan.steps.iter().flat_map(|step| &step.ops) {
            if !self.carry_out(&owned.op) {
                return Err(format!("the kernel would refuse: {}", owned.op));
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, op: &Op) -> bool {
        match op {
            Op::Device | Op::DropOtherTable | Op::DropAddress(_) | Op::DropRoute(_) => true,
            Op::Rebuild(environment, _) => {
                self.environment = Some(environment.clone());
                self.elements.clear();
                true
            }
            Op::Rules(environment, _) => self.environment.replace(environment.clone()).is_some(),
            Op::AddElement(element) => self.fits(element) && self.elements.insert(*element),
            Op::DeleteElement(element) => self.elements.remove(element),
            Op::NewServer(service, destinations) => {
                let destinations = destinations.iter().map(|to| ((to.address, to.port), *to)).collect();
                self.servers.insert(service.key, (*service, destinations)).is_none()
            }
            Op::SetServer(service) => {
                self.servers.get_mut(&service.key).map(|(known, _)| *known = *service).is_some()
            }
            Op::DeleteServer(key) => self.servers.remove(key).is_some(),
            Op::NewDestination(key, to) => self
                .servers
                .get_mut(key)
                .is_some_and(|(_, destinations)| destinations.insert((to.address, to.port), *to).is_none()),
            Op::SetDestination { key, to, was } => {
                let server = self.servers.get_mut(key);
                let before =
                    server.and_then(|(_, destinations)| destinations.insert((to.address, to.port), *to));
                before.is_some_and(|before| before.weight == *was)
            }
            Op::DeleteDestination(key, from) => {
                let server = self.servers.get_mut(key);
                let before =
                    server.and_then(|(_, destinations)| destinations.remove(&(from.address, from.port)));
                before == Some(*from)
            }
            Op::Reorder(key, destinations) => self.servers.get(key).is_some_and(|(_, standing)| {
                destinations.iter().all(|to| standing.get(&(to.address, to.port)) == Some(to))
            }),
            // Nothing has connections here; an operation on what is gone already is no error.
            Op::Reap { key, destinations: gone, server, .. } => {
                if let Some((_, destinations)) = self.servers.get_mut(key) {
                    gone.iter().for_each(|at| {
                        destinations.remove(at);
                    });
                    if *server && destinations.is_empty() {
                        self.servers.remove(key);
                    }
                }
                true
            }
            Op::Bind(addr) => self.bound.insert(*addr),
            Op::Unbind(addr) => self.bound.remove(addr),
        }
    }

    /// A map has one value a key, an interval set no overlaps.
    fn fits(&self, element: &Element) -> bool {
        match element {
            Element::ShortCircuit(spot, _) => self.mark(*spot).is_none(),
            Element::Allowed(spot, net) => {
                !self.allowed(*spot).any(|other| other.contains(net) || net.contains(other))
            }
            _ => true,
        }
    }

    /// Where a packet goes.
    pub(crate) fn fate(&self, packet: &Packet<'_>) -> Fate {
        let Packet { destination: addr, protocol, port, .. } = *packet;
        let spot = Spot { addr, protocol, port };
        let has = |element| self.elements.contains(&element);
        if has(Element::Restricted(spot)) && !self.allowed(spot).any(|net| net.contains(&packet.source)) {
            return Fate::Dropped;
        }
        if has(Element::Drop(spot)) {
            return Fate::Dropped;
        }
        if has(Element::Refused(spot)) {
            return Fate::Refused;
        }
        let pod = self.is_pod(packet);
        let node = packet.origin == Origin::Node;
        if let Some(mark) = self.mark(spot).filter(|_| pod || node) {
            let family = match addr {
                IpAddr::V4(_) => ipvs_netlink::Family::V4,
                IpAddr::V6(_) => ipvs_netlink::Family::V6,
            };
            return self.serve(&ServiceKey::Mark { family, mark }, packet, node).unwrap_or(Fate::Refused);
        }
        if has(Element::DropOutside(spot)) && !pod && !node {
            return Fate::Dropped;
        }
        let masquerade = has(Element::Masquerade(spot))
            || (has(Element::ClusterIp(addr))
                && self.environment.as_ref().is_some_and(|environment| {
                    environment.masquerade_all
                        || node
                        || (environment.local_pods != LocalPods::Unknown && !pod)
                }));
        let protocol = match protocol {
            Protocol::Tcp => ipvs_netlink::Protocol::Tcp,
            Protocol::Udp => ipvs_netlink::Protocol::Udp,
            Protocol::Sctp => ipvs_netlink::Protocol::Sctp,
        };
        match self.serve(&ServiceKey::new(addr, port, protocol), packet, masquerade) {
            Some(fate) => fate,
            None if has(Element::Vip(addr)) => Fate::Refused,
            None => Fate::Passed,
        }
    }

    /// Whether a connection of an endpoint to itself is masqueraded.
    pub(crate) fn is_hairpin(&self, addr: IpAddr) -> bool {
        self.elements.contains(&Element::Hairpin(addr))
    }

    /// What a survey would find.
    pub(crate) fn found(&self, binding: Binding) -> Found {
        let servers = self.servers.values().map(|(service, destinations)| FoundServer {
            service: *service,
            destinations: destinations.values().copied().collect(),
        });
        let bound = self.bound.iter().copied().collect();
        let (routes, addresses) = match binding {
            Binding::Routes => (bound, Default::default()),
            Binding::Addresses => (Default::default(), bound),
        };
        Found { servers: servers.collect(), routes, addresses, ..Found::default() }
    }

    /// Servers and elements but for what drains, as text: two models with the same text treat new connections alike.
    pub(crate) fn settled(&self) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (service, destinations) in self.servers.values() {
            let live: Vec<_> = destinations.values().filter(|to| to.weight > 0).collect();
            if !live.is_empty() {
                lines.push(format!("{service:?}"));
                lines.extend(live.into_iter().map(|to| format!("  {to:?}")));
            }
        }
        let shown = |element: &&Element| !matches!(element, Element::Vip(_));
        lines.extend(self.elements.iter().filter(shown).map(ToString::to_string));
        lines
    }

    /// The destinations of virtual servers of UDP, those without new flows too.
    pub(crate) fn of_udp(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        let udp = |key: &ServiceKey| {
            matches!(key, ServiceKey::Address { protocol: ipvs_netlink::Protocol::Udp, .. })
        };
        let servers = self.servers.iter().filter(move |(key, _)| udp(key));
        servers.flat_map(|(_, (_, destinations))| destinations.keys().copied())
    }

    /// The addresses that are bound.
    pub(crate) fn bound(&self) -> &BTreeSet<IpAddr> {
        &self.bound
    }

    /// Whether what no virtual server takes is refused on an address.
    pub(crate) fn is_guarded(&self, addr: IpAddr) -> bool {
        self.elements.contains(&Element::Vip(addr))
    }

    /// Whether a virtual server of the address has no destination for new connections.
    pub(crate) fn drains(&self, addr: IpAddr) -> bool {
        self.servers.iter().any(|(key, (_, destinations))| {
            matches!(key, ServiceKey::Address { address, .. } if *address == addr)
                && destinations.values().all(|to| to.weight == 0)
        })
    }

    fn serve(&self, key: &ServiceKey, packet: &Packet<'_>, masquerade: bool) -> Option<Fate> {
        let (_, destinations) = self.servers.get(key)?;
        let targets: Vec<_> =
            destinations.iter().filter(|(_, to)| to.weight > 0).map(|(at, _)| *at).collect();
        if targets.is_empty() {
            // IPVS answers that itself (`ip_vs_leave`).
            return Some(Fate::Refused);
        }
        // The node's own connection has the virtual IP as its source: it must not leave like that.
        let own = packet.origin == Origin::Node && self.bound.contains(&packet.source);
        Some(Fate::To { targets, masquerade: masquerade || own })
    }

    fn mark(&self, spot: Spot) -> Option<u32> {
        let range = Element::ShortCircuit(spot, 0)..=Element::ShortCircuit(spot, u32::MAX);
        self.elements.range(range).find_map(|element| match element {
            Element::ShortCircuit(_, mark) => Some(*mark),
            _ => None,
        })
    }

    fn allowed(&self, spot: Spot) -> impl Iterator<Item = &ipnet::IpNet> {
        self.elements.iter().filter_map(move |element| match element {
            Element::Allowed(of, net) if *of == spot => Some(net),
            _ => None,
        })
    }

    fn is_pod(&self, packet: &Packet<'_>) -> bool {
        let Some(environment) = &self.environment else { return false };
        match (&environment.local_pods, packet.origin) {
            (LocalPods::Unknown, _) => false,
            (LocalPods::Cidrs(nets), _) => nets.iter().any(|net| net.contains(&packet.source)),
            (LocalPods::Bridge(name), Origin::Interface(interface)) => **name == *interface,
            (LocalPods::InterfacePrefix(prefix), Origin::Interface(interface)) => {
                interface.starts_with(&**prefix)
            }
            (_, Origin::Node) => false,
        }
    }
}
