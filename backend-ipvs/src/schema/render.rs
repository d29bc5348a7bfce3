//! What a route is in the kernel: virtual servers, bound addresses and set elements. Pure, one route at a time.

use std::net::IpAddr;

use ipnet::IpNet;
use ipvs_netlink::{Destination, Scheduler, Service, ServiceFlags, ServiceKey};
use proxy_core::{
    environment::{Environment, NodePortAddresses},
    model::Protocol,
    route::{Answer, Frontend, FrontendKind, Route, Target},
};

use crate::schema::{
    op::{Element, Spot},
    options::Options,
    ownership::OURS,
};

/// `FTPPORT` of `include/net/ip_vs.h`.
const FTP: u16 = 21;

/// A virtual server with its destinations, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) service: Service,
    pub(crate) destinations: Vec<Destination>,
    /// Whether endpoints that go wait for their connections to end ([`drains`]).
    pub(crate) drains: bool,
    /// Where they do not: addresses and ports of endpoints that serve and get no new flows here. Those that had some keep
    /// them. Sorted.
    pub(crate) stays: Vec<(IpAddr, u16)>,
}

/// Which schedulers are used where a Service does not choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Schedulers {
    pub(crate) default: Scheduler,
    /// Keeps a client where persistence cannot, by a hash of its address.
    pub(crate) by_client: Scheduler,
}

/// Everything that a route wants of the kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) servers: Vec<Server>,
    /// Addresses to bind.
    pub(crate) vips: Vec<IpAddr>,
    pub(crate) elements: Vec<Element>,
    /// Endpoints that are addresses of the node itself.
    pub(crate) host_endpoints: Vec<IpAddr>,
}

/// Renders a route. `mark` is that of its short-circuit virtual server, should it need one; `is_claimed` tells where
/// another Service goes before a NodePort ([`claims`]).
pub(crate) fn render(
    route: &Route,
    environment: &Environment,
    schedulers: Schedulers,
    mark: Option<u32>,
    is_claimed: impl Fn(&Spot) -> bool,
) -> Rendered {
    let mut render = Renderer {
        route,
        environment,
        options: Options::read(&route.policy.options, schedulers.default),
        by_client: schedulers.by_client,
        mark,
        rendered: Rendered::default(),
        short_circuit: None,
    };
    for frontend in &route.frontends {
        match frontend.at {
            Some(addr) => render.frontend(frontend, addr),
            None => {
                for addr in node_port_addresses(environment) {
                    let spot = Spot { addr: *addr, protocol: route.protocol, port: frontend.port };
                    if !is_claimed(&spot) {
                        render.frontend(frontend, *addr);
                    }
                }
            }
        }
    }
    render.hairpins();
    render.rendered.elements.extend(route.policy.health_check_node_port.map(Element::HealthCheck));
    let mut rendered = render.rendered;
    rendered.servers.extend(render.short_circuit);
    rendered.vips.sort_unstable();
    rendered.vips.dedup();
    rendered
}

/// Addresses of the node that the route claims by name, as external or load balancer IPs. They go before a NodePort with
/// the same number, as in kube-proxy, which looks at NodePorts last.
pub(crate) fn claims(route: &Route, environment: &Environment) -> impl Iterator<Item = Spot> {
    route.frontends.iter().filter_map(|frontend| {
        let addr = frontend.at.filter(|addr| is_on_node(environment, addr))?;
        Some(Spot { addr, protocol: route.protocol, port: frontend.port })
    })
}

pub(crate) fn is_on_node(environment: &Environment, addr: &IpAddr) -> bool {
    environment.interface_addresses.binary_search(addr).is_ok()
}

/// Whether the route answers on the node's own addresses.
pub(crate) fn has_node_port(route: &Route) -> bool {
    route.frontends.iter().any(|frontend| frontend.at.is_none())
}

/// Whether the route needs a mark: external traffic under policy Local splits by where it comes from.
pub(crate) fn needs_mark(route: &Route) -> bool {
    route.frontends.iter().any(
        |frontend| matches!(route.answer(frontend), Answer::Local { anywhere, .. } if !anywhere.is_empty()),
    )
}

/// The addresses on which NodePorts answer.
pub(crate) fn node_port_addresses(environment: &Environment) -> impl Iterator<Item = &IpAddr> {
    let all = match &environment.node_ports {
        NodePortAddresses::Any => &environment.interface_addresses,
        NodePortAddresses::Only(only) => only,
    };
    all.iter().filter(|addr| answers_node_ports(**addr))
}

/// IPVS cannot translate what comes in on loopback, and a link-local address is ambiguous without its link.
fn answers_node_ports(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_loopback(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
    }
}

struct Renderer<'a> {
    route: &'a Route,
    environment: &'a Environment,
    options: Options,
    by_client: Scheduler,
    mark: Option<u32>,
    rendered: Rendered,
    short_circuit: Option<Server>,
}

impl Renderer<'_> {
    fn frontend(&mut self, frontend: &Frontend, addr: IpAddr) {
        let spot = Spot { addr, protocol: self.route.protocol, port: frontend.port };
        if frontend.at.is_some() {
            // Also where an interface has it: our route stands beside the kernel's, and serves on when the address moves
            // to another node (kube-vip, keepalived). But then the node's other ports on it stay open.
            self.rendered.vips.push(addr);
            if !is_on_node(self.environment, &addr) {
                self.rendered.elements.push(Element::Vip(addr));
            }
        }
        self.sources(frontend, spot);
        let elements = &mut self.rendered.elements;
        if frontend.kind == FrontendKind::ClusterIp {
            elements.push(Element::ClusterIp(addr));
        } else if self.route.masquerades_always(frontend) {
            elements.push(Element::Masquerade(spot));
        }
        match self.route.answer(frontend) {
            Answer::To(targets) => self.server(spot, targets),
            Answer::Local { here, anywhere } => self.local(spot, here, anywhere),
            // Without a virtual server. One that drains yet would answer with ICMP errors, of which the kernel sends only
            // some (`icmp_ratelimit`), and what reached the node itself would have an entry in connection tracking.
            Answer::Reject => elements.push(Element::Refused(spot)),
            Answer::Drop => elements.push(Element::Drop(spot)),
        }
    }

    fn sources(&mut self, frontend: &Frontend, spot: Spot) {
        let Some(sources) = self.route.sources(frontend) else { return };
        let elements = &mut self.rendered.elements;
        elements.push(Element::Restricted(spot));
        let mut allowed: Vec<IpNet> = sources.ranges.iter().map(IpNet::trunc).collect();
        allowed.extend(sources.own_vips.iter().copied().map(IpNet::from));
        elements.extend(aggregate(allowed).into_iter().map(|net| Element::Allowed(spot, net)));
    }

    fn server(&mut self, spot: Spot, targets: &[Target]) {
        let key = ServiceKey::new(spot.addr, spot.port, protocol(spot.protocol));
        let server = self.make(key, targets);
        self.rendered.servers.push(server);
    }

    fn local(&mut self, spot: Spot, here: &[Target], anywhere: &[Target]) {
        if here.is_empty() {
            self.rendered.elements.push(Element::DropOutside(spot));
        } else {
            self.server(spot, here);
        }
        let Some(mark) = self.mark.filter(|_| !anywhere.is_empty()) else { return };
        self.rendered.elements.push(Element::ShortCircuit(spot, mark));
        self.rendered.elements.push(Element::Mark(mark));
        if self.short_circuit.is_none() {
            let family = match spot.addr {
                IpAddr::V4(_) => ipvs_netlink::Family::V4,
                IpAddr::V6(_) => ipvs_netlink::Family::V6,
            };
            self.short_circuit = Some(self.make(ServiceKey::Mark { family, mark }, anywhere));
        }
    }

    fn make(&self, key: ServiceKey, targets: &[Target]) -> Server {
        let mut service = Service::new(key, self.options.scheduler);
        service.flags = OURS;
        // Hashes give an endpoint of weight 0 its share as before. The first flag has them look further.
        match self.options.scheduler {
            // The second as kube-proxy: without the port all connections of a client would go to one endpoint.
            Scheduler::MH => {
                service.flags =
                    service.flags.union(ServiceFlags::SCHEDULER_1).union(ServiceFlags::SCHEDULER_2);
            }
            Scheduler::SH => service.flags = service.flags.union(ServiceFlags::SCHEDULER_1),
            _ => {}
        }
        match (self.route.policy.affinity, key) {
            (None, _) => {}
            // Persistence by mark leaves the port as the client has it, and on the port of FTP it lets every higher port
            // of the address through to the endpoint (`ip_vs_sched_persist`, `ip_vs_service_find`). A hash of the
            // client's address, with a fallback from unusable endpoints (the first flag), does neither.
            (Some(_), ServiceKey::Mark { .. } | ServiceKey::Address { port: FTP, .. }) => {
                service.scheduler = self.by_client;
                service.flags = OURS.union(ServiceFlags::SCHEDULER_1);
            }
            (Some(seconds), ServiceKey::Address { .. }) => service = service.persistent(seconds),
        }
        let weight =
            |target: &Target| if target.local { self.options.local_weight } else { self.options.weight };
        let destinations =
            targets.iter().map(|target| Destination::new(target.addr, target.port, weight(target))).collect();
        // A virtual server of a mark does not say of which protocol it is, the route does.
        let drains = self.route.protocol != Protocol::Udp && drains(&service);
        let stays =
            if drains || service.scheduler == Scheduler::DH { Vec::new() } else { self.stays(targets) };
        Server { service, destinations, drains, stays }
    }

    /// Endpoints that serve and are not among these targets.
    fn stays(&self, targets: &[Target]) -> Vec<(IpAddr, u16)> {
        let Route { cluster, local, kept, .. } = self.route;
        let serving = cluster.iter().chain(local).chain(kept);
        let mut stays: Vec<_> = serving
            .filter(|target| targets.binary_search(target).is_err())
            .map(|target| (target.addr, target.port))
            .collect();
        stays.sort_unstable();
        stays.dedup();
        stays
    }

    /// Whoever reaches itself, whatever its slice says of the node that it is on; a host's own address is no pod and needs
    /// nothing.
    fn hairpins(&mut self) {
        let targets = self.route.cluster.iter().chain(&self.route.local);
        let mut all: Vec<IpAddr> = targets.map(|target| target.addr).collect();
        all.sort_unstable();
        all.dedup();
        let (of_host, of_pods): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|addr| is_on_node(self.environment, addr));
        self.rendered.host_endpoints = of_host;
        self.rendered.elements.extend(of_pods.into_iter().map(Element::Hairpin));
    }
}

/// Whether destinations of a virtual server stay at weight 0 while they have connections: not those of UDP, where nobody
/// can tell, nor those of `dh`, which has no way around an endpoint of weight 0.
pub(crate) fn drains(service: &Service) -> bool {
    let udp = matches!(service.key, ServiceKey::Address { protocol: ipvs_netlink::Protocol::Udp, .. });
    !udp && service.scheduler != Scheduler::DH
}

/// Whether an endpoint that gets no new connections at a virtual server of this route is there for those that it has.
pub(crate) fn keeps(route: &Route, service: &Service, to: (IpAddr, u16)) -> bool {
    if service.scheduler == Scheduler::DH || route.protocol != Protocol::Udp {
        return drains(service);
    }
    let mut serving = route.cluster.iter().chain(&route.local).chain(&route.kept);
    serving.any(|target| (target.addr, target.port) == to)
}

/// Networks without those that another one holds: interval sets refuse overlaps.
fn aggregate(mut nets: Vec<IpNet>) -> Vec<IpNet> {
    nets.sort_unstable_by_key(|net| (net.prefix_len(), *net));
    let mut kept: Vec<IpNet> = Vec::with_capacity(nets.len());
    for net in nets {
        if !kept.iter().any(|wider| wider.contains(&net)) {
            kept.push(net);
        }
    }
    kept
}

fn protocol(protocol: Protocol) -> ipvs_netlink::Protocol {
    match protocol {
        Protocol::Tcp => ipvs_netlink::Protocol::Tcp,
        Protocol::Udp => ipvs_netlink::Protocol::Udp,
        Protocol::Sctp => ipvs_netlink::Protocol::Sctp,
    }
}
