//! What becomes of a new connection: the routes that the engine has decided on, read as each mode's backend carries them out.
//!
//! Where the answer of a route is carried out differently by the modes, that is said here and nowhere else; the oracle of
//! `integration`, which shares no code with this, is asked the same questions (`integration/tests/insight.rs`).

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use proxy_core::{
    environment::{Environment, LocalPods, NodePortAddresses},
    look::Look,
    model::{Family, Protocol, ServiceName, ServicePortName, TrafficPolicy},
    route::{Answer, Frontend, FrontendKind, Route, Target, asked},
};

use crate::state::Mode;

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// What it is to this node.
    pub kind: SourceKind,
    /// The address that its packets carry when they come to the node.
    pub address: IpAddr,
}

/// What a source is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceKind {
    /// A process on the node itself, or a pod on its host network.
    Node,
    /// A pod of the node.
    LocalPod,
    /// Whatever comes in from another machine.
    Elsewhere,
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The Service port by which it goes; `None`: nobody's.
    pub port: Option<(ServicePortName, Frontend)>,
    /// Its route.
    pub route: Option<Arc<Route>>,
    /// What is done with it.
    pub verdict: Verdict,
    /// The traffic policy by which endpoints are chosen; `None`: it did not come to that.
    pub policy: Option<TrafficPolicy>,
    /// Why, in words, from the first rule to the last.
    pub because: Vec<String>,
}

/// What is done with a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes to one of these (not empty).
    To(Vec<Chosen>),
    /// It is answered with a reset, or an ICMP error.
    Refused,
    /// Nobody answers.
    Dropped,
    /// It is no Service's, and goes its way.
    Passed,
}

/// An endpoint to which a connection may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// The endpoint.
    pub target: Target,
    /// Its source becomes an address of the node.
    pub masqueraded: bool,
}

/// Decides for one node.
pub struct Decider<'a> {
    look: &'a dyn Look,
    mode: Mode,
    localhost_v6: bool,
    cluster_ips: HashSet<IpAddr>,
    other_ips: HashSet<IpAddr>,
}

impl<'a> Decider<'a> {
    /// `localhost_v6`: NodePorts of TCP answer on ::1, where a program listens for them. This walks through all Services.
    pub fn new(look: &'a dyn Look, mode: Mode, localhost_v6: bool) -> Self {
        let (mut cluster_ips, mut other_ips) = (HashSet::new(), HashSet::new());
        for family in look.families() {
            for name in look.store().names() {
                let service = look.store().entry(name).and_then(|entry| entry.service.as_deref());
                for asked in service.iter().flat_map(|service| asked(service, family)) {
                    let Some(at) = asked.frontend.at else { continue };
                    match asked.frontend.kind {
                        FrontendKind::ClusterIp => cluster_ips.insert(at),
                        // Those that do not count are nobody's.
                        _ if !asked.counts => false,
                        _ => other_ips.insert(at),
                    };
                }
            }
        }
        Self { look, mode, localhost_v6, cluster_ips, other_ips }
    }

    /// What becomes of a new connection.
    pub fn decide(&self, source: Source, protocol: Protocol, to: SocketAddr) -> Decision {
        let family = Family::of(to.ip());
        let Some(environment) = self.look.environment(family) else {
            return Decision::without_service(
                Verdict::Passed,
                format!("the node does not serve {family}: nothing of a proxy is in its way"),
            );
        };
        match self.way_in(environment, source, protocol, to) {
            Some((name, frontend, route)) => {
                let way = (&name, frontend, &*route);
                let decision = self.through(environment, source, way);
                Decision { port: Some((name, frontend)), route: Some(route), ..decision }
            }
            None => self
                .refused_on_localhost(environment, source, protocol, to)
                .unwrap_or_else(|| self.unclaimed(environment, to)),
        }
    }

    /// Where NodePorts are not served on loopback addresses, the configuration may have them refused there.
    fn refused_on_localhost(
        &self,
        environment: &Environment,
        source: Source,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Option<Decision> {
        let refused = to.ip().is_loopback()
            && source.kind == SourceKind::Node
            && environment.refused_on_localhost.contains(&protocol);
        if !refused {
            return None;
        }
        let (name, ..) = self.owned(environment.family, protocol, None, to.port())?;
        let because =
            format!("port {} is the NodePort of {name}, and NodePorts are refused on localhost", to.port());
        Some(Decision::without_service(Verdict::Refused, because))
    }

    /// An address that somebody owns by name goes before a NodePort of the same number.
    fn way_in(
        &self,
        environment: &Environment,
        source: Source,
        protocol: Protocol,
        to: SocketAddr,
    ) -> Option<(ServicePortName, Frontend, Arc<Route>)> {
        let by_name = self.owned(environment.family, protocol, Some(to.ip()), to.port());
        by_name.or_else(|| {
            if !self.node_ports_answer(environment, source, protocol, to.ip()) {
                return None;
            }
            self.owned(environment.family, protocol, None, to.port())
        })
    }

    fn owned(
        &self,
        family: Family,
        protocol: Protocol,
        at: Option<IpAddr>,
        port: u16,
    ) -> Option<(ServicePortName, Frontend, Arc<Route>)> {
        let owner = self.look.owner(family, &(protocol, at, port))?;
        self.look.installed(family, owner).iter().find_map(|(name, route)| {
            let of = |frontend: &&Frontend| (frontend.at, frontend.port) == (at, port);
            let frontend = route.frontends.iter().find(of).filter(|_| route.protocol == protocol)?;
            Some((name.clone(), *frontend, route.clone()))
        })
    }

    fn node_ports_answer(
        &self,
        environment: &Environment,
        source: Source,
        protocol: Protocol,
        address: IpAddr,
    ) -> bool {
        if address.is_loopback() {
            let wanted = if address.is_ipv4() {
                environment.localhost_node_ports
                    && (self.mode == Mode::Iptables || environment.loopback_node_ports.contains(&address))
            } else {
                self.localhost_v6 && protocol == Protocol::Tcp
            };
            return wanted && source.kind == SourceKind::Node;
        }
        match &environment.node_ports {
            NodePortAddresses::Any => environment.interface_addresses.contains(&address),
            NodePortAddresses::Only(some) => some.contains(&address),
        }
    }

    fn through(
        &self,
        environment: &Environment,
        source: Source,
        (name, frontend, route): (&ServicePortName, Frontend, &Route),
    ) -> Decision {
        let mut because = vec![format!("{} is {} of {name}", place(frontend), kind(frontend.kind))];
        let vip = matches!(frontend.kind, FrontendKind::ExternalIp | FrontendKind::LoadBalancerIp);
        let end = |verdict, policy, because| Decision { port: None, route: None, verdict, policy, because };
        if !route.any_endpoint && vip && source.kind == SourceKind::Node && self.mode == Mode::Iptables {
            because.push(
                "in iptables mode a Service without endpoints refuses at external addresses only what comes in from \
                 outside: it goes its way"
                    .to_owned(),
            );
            return end(Verdict::Passed, None, because);
        }
        if let Some(sources) = route.sources(&frontend) {
            let ranges = || sources.ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if let Some(range) = sources.ranges.iter().find(|range| range.contains(&source.address)) {
                because.push(format!("loadBalancerSourceRanges lets {} in: {range}", source.address));
            } else if sources.own_vips.contains(&source.address) {
                because.push(format!("{} is the load balancer's own address", source.address));
            } else {
                because.push(format!("loadBalancerSourceRanges ({}) keeps {} out", ranges(), source.address));
                // With iptables the firewall chain of a Service exists only while it has endpoints.
                let refused = !route.any_endpoint && self.mode == Mode::Iptables;
                return end(if refused { Verdict::Refused } else { Verdict::Dropped }, None, because);
            }
        }
        let (targets, masqueraded, policy) = match route.answer(&frontend) {
            Answer::Reject => {
                because.push(match route.endpoints {
                    0 => "no slice names an endpoint for this port".to_owned(),
                    1 => "the only endpoint of this port may not be used".to_owned(),
                    some => format!("none of the {some} endpoints of this port may be used"),
                });
                let local =
                    frontend.kind == FrontendKind::ClusterIp && route.policy.internal == TrafficPolicy::Local;
                let policy = if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
                return end(Verdict::Refused, Some(policy), because);
            }
            Answer::Drop => {
                because.push(
                    "internalTrafficPolicy is Local, and no endpoint that may be used is on this node"
                        .to_owned(),
                );
                return end(Verdict::Dropped, Some(TrafficPolicy::Local), because);
            }
            Answer::To(targets) if frontend.kind == FrontendKind::ClusterIp => {
                if route.policy.internal == TrafficPolicy::Local {
                    because.push("internalTrafficPolicy is Local: endpoints on this node only".to_owned());
                }
                let masqueraded = self.masquerades_cluster_ip(environment, source, &mut because);
                (targets, masqueraded, route.policy.internal)
            }
            Answer::To(targets) => {
                because.push(
                    "externalTrafficPolicy is Cluster: any endpoint, and the source becomes the node's"
                        .to_owned(),
                );
                (targets, true, TrafficPolicy::Cluster)
            }
            Answer::Local { here, anywhere } => {
                self.externally_local(environment, source, (here, anywhere), &mut because)
            }
        };
        if targets.is_empty() {
            return end(Verdict::Dropped, Some(policy), because);
        }
        // Whatever its slice says of the node that it is on.
        let itself = |target: &Target| target.addr == source.address;
        if !masqueraded && targets.iter().any(itself) {
            because.push("an endpoint that is sent to itself sees the node's address".to_owned());
        }
        let chosen = |target: &Target| Chosen { target: *target, masqueraded: masqueraded || itself(target) };
        end(Verdict::To(targets.iter().map(chosen).collect()), Some(policy), because)
    }

    /// Where `externalTrafficPolicy: Local` leads: to whom, whether masqueraded, and under which policy that is.
    fn externally_local<'r>(
        &self,
        environment: &Environment,
        source: Source,
        (here, anywhere): (&'r [Target], &'r [Target]),
        because: &mut Vec<String>,
    ) -> (&'r [Target], bool, TrafficPolicy) {
        let local_pod = is_local_pod(environment, source);
        // The others look at the address first, and some of the node's are within the pods' network.
        let (said, result) = if source.kind == SourceKind::Node && (self.mode == Mode::Ipvs || !local_pod) {
            (
                "but the node itself may go anywhere, by its own address",
                (anywhere, true, TrafficPolicy::Cluster),
            )
        } else if local_pod {
            (
                "but this node's pods may go anywhere, as to a cluster IP",
                (anywhere, false, TrafficPolicy::Cluster),
            )
        } else if here.is_empty() {
            ("and no endpoint that may be used is on this node", (here, false, TrafficPolicy::Local))
        } else {
            ("endpoints on this node only, and the source stays", (here, false, TrafficPolicy::Local))
        };
        because.push(format!("externalTrafficPolicy is Local, {said}"));
        result
    }

    fn masquerades_cluster_ip(
        &self,
        environment: &Environment,
        source: Source,
        because: &mut Vec<String>,
    ) -> bool {
        let local_pod = is_local_pod(environment, source);
        let reason = if environment.masquerade_all {
            "masqueradeAll: the source becomes the node's"
        } else if environment.local_pods != LocalPods::Unknown && !local_pod {
            "the source is no local pod (detectLocalMode): it becomes the node's"
        } else if self.mode == Mode::Ipvs && source.kind == SourceKind::Node {
            // IPVS makes the address one of the node's own, whose connections may come from that very address.
            "IPVS has the node talk from the cluster IP itself: the source becomes the node's"
        } else {
            return false;
        };
        because.push(reason.to_owned());
        true
    }

    /// An address and port that no Service has.
    fn unclaimed(&self, environment: &Environment, to: SocketAddr) -> Decision {
        let address = to.ip();
        let is_cluster_ip = self.cluster_ips.contains(&address);
        match self.mode {
            Mode::Nftables if is_cluster_ip => Decision::without_service(
                Verdict::Refused,
                format!("{address} is a cluster IP that has no port {}", to.port()),
            ),
            Mode::Nftables if environment.service_cidrs.iter().any(|cidr| cidr.contains(&address)) => {
                Decision::without_service(
                    Verdict::Dropped,
                    format!("{address} is nobody's cluster IP, in a network of cluster IPs"),
                )
            }
            // The kernel has these as addresses of its own and no process may listen there.
            Mode::Ipvs if is_cluster_ip || self.other_ips.contains(&address) => Decision::without_service(
                Verdict::Refused,
                format!(
                    "{address} is a Service's address that has no port {}: IPVS makes it the node's own",
                    to.port()
                ),
            ),
            _ => Decision::without_service(
                Verdict::Passed,
                format!("no Service has {to}: nothing of a proxy is in its way"),
            ),
        }
    }

    /// Services that ask for this address and port, and do not have it.
    pub fn in_vain(&self, protocol: Protocol, to: SocketAddr) -> Vec<ServiceName> {
        let family = Family::of(to.ip());
        let owner = self.look.owner(family, &(protocol, Some(to.ip()), to.port()));
        let asks = |name: &&ServiceName| {
            let service = self.look.store().entry(name).and_then(|entry| entry.service.as_deref());
            let wanted = (protocol, Some(to.ip()), to.port());
            service.is_some_and(|service| asked(service, family).iter().any(|asked| asked.key() == wanted))
        };
        let mut names: Vec<ServiceName> =
            self.look.store().names().filter(|name| owner != Some(*name)).filter(asks).cloned().collect();
        names.sort_unstable();
        names
    }
}

impl Decision {
    fn without_service(verdict: Verdict, because: String) -> Self {
        Self { port: None, route: None, verdict, policy: None, because: vec![because] }
    }
}

/// Whether traffic from there counts as that of a local pod.
pub fn is_local_pod(environment: &Environment, source: Source) -> bool {
    match &environment.local_pods {
        LocalPods::Unknown => false,
        LocalPods::Cidrs(cidrs) => cidrs.iter().any(|cidr| cidr.contains(&source.address)),
        LocalPods::Bridge(_) | LocalPods::InterfacePrefix(_) => source.kind == SourceKind::LocalPod,
    }
}

fn place(frontend: Frontend) -> String {
    match frontend.at {
        Some(at) => SocketAddr::new(at, frontend.port).to_string(),
        None => format!("port {}", frontend.port),
    }
}

const fn kind(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "the cluster IP",
        FrontendKind::ExternalIp => "an external IP",
        FrontendKind::LoadBalancerIp => "a load balancer IP",
        FrontendKind::NodePort => "the NodePort",
    }
}
