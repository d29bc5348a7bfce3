//! Routes for tests, in few words.

use std::{net::IpAddr, sync::Arc, time::Instant};

use backend_nft::{Executor, Planner};
use ipnet::IpNet;
use proxy_core::{
    backend::{Change, Effect, Executor as _, Planned, Planner as _},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, ObjectName, Protocol, ServicePortName, TrafficPolicy},
    route::{AllowedSources, Frontend, FrontendKind, Route, Target},
};

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn name(text: &str) -> ServicePortName {
    named(text, Protocol::Tcp)
}

pub fn named(text: &str, protocol: Protocol) -> ServicePortName {
    ServicePortName { service: ObjectName::new("test", text), port: "http".into(), protocol }
}

pub fn target(addr: &str) -> Target {
    Target { addr: ip(addr), port: 8080, local: false }
}

pub fn local(addr: &str) -> Target {
    Target { local: true, ..target(addr) }
}

pub fn environment(family: Family) -> Environment {
    let (pods, cidr) = match family {
        Family::V4 => ("10.0.0.0/16", "172.30.0.0/16"),
        Family::V6 => ("fd00::/16", "fd99::/112"),
    };
    let net = |text: &str| -> Box<[IpNet]> { Box::new([text.parse().expect("a network")]) };
    Environment {
        family,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs(net(pods)),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
        loopback_node_ports: Box::default(),
        service_cidrs: net(cidr),
        node_ips: Box::new([]),
        interface_addresses: Box::new([]),
    }
}

/// A TCP route with nothing but endpoints; the local ones are those that say so.
pub fn route(targets: &[Target]) -> Route {
    let mut cluster = targets.to_vec();
    cluster.sort_unstable();
    let local = cluster.iter().copied().filter(|target| target.local).collect();
    Route {
        policy: Arc::default(),
        protocol: Protocol::Tcp,
        frontends: Box::new([]),
        external_policy: TrafficPolicy::Cluster,
        any_endpoint: !cluster.is_empty(),
        cluster: cluster.into(),
        local,
        lost: Box::default(),
        endpoints: 0,
        kept: Box::default(),
    }
}

pub trait Build: Sized {
    fn frontend(self, frontend: Frontend) -> Self;

    fn at(self, kind: FrontendKind, addr: &str, port: u16) -> Self {
        self.frontend(Frontend { kind, at: Some(ip(addr)), port })
    }

    fn cluster_ip(self, addr: &str) -> Self {
        self.at(FrontendKind::ClusterIp, addr, 80)
    }

    fn load_balancer(self, addr: &str) -> Self {
        self.at(FrontendKind::LoadBalancerIp, addr, 80)
    }

    fn restricted(self, addr: &str, ranges: &[&str]) -> Self {
        let ranges = ranges.iter().map(|range| range.parse().expect("a network")).collect();
        let sources = Some(Arc::new(AllowedSources { ranges, own_vips: Box::new([]) }));
        self.load_balancer(addr).limited(sources)
    }

    fn limited(self, sources: Option<Arc<AllowedSources>>) -> Self;

    fn node_port(self, port: u16) -> Self {
        self.frontend(Frontend { kind: FrontendKind::NodePort, at: None, port })
    }
}

impl Build for Route {
    fn limited(self, sources: Option<Arc<AllowedSources>>) -> Self {
        self.under(|policy| policy.sources = sources)
    }

    fn frontend(mut self, frontend: Frontend) -> Self {
        let mut frontends = self.frontends.to_vec();
        frontends.push(frontend);
        self.frontends = frontends.into();
        self
    }
}

/// A planner and an executor, and the routes they installed.
pub struct Proxy {
    pub planner: Planner,
    pub executor: Executor,
    pub environment: Environment,
    pub routes: Vec<(ServicePortName, Arc<Route>)>,
}

#[expect(clippy::disallowed_methods, reason = "a kernel test runs in real time")]
pub fn now() -> Instant {
    Instant::now()
}

impl Proxy {
    pub fn new(family: Family) -> Self {
        Self::with(environment(family))
    }

    pub fn with(environment: Environment) -> Self {
        let family = environment.family;
        Self {
            planner: Planner::new(family),
            executor: Executor::open(family).expect("a netlink socket can be opened"),
            environment,
            routes: Vec::new(),
        }
    }

    /// Installs exactly these routes, whatever is there.
    pub fn full(&mut self, routes: Vec<(ServicePortName, Route)>) {
        self.routes = routes.into_iter().map(|(name, route)| (name, Arc::new(route))).collect();
        self.routes.sort_by(|a, b| a.0.cmp(&b.0));
        self.start_over();
    }

    pub fn start_over(&mut self) {
        let found = self.executor.survey().expect("the table can be read");
        let plan = self.planner.plan_full(&self.routes, &self.environment, found, now());
        self.executor.apply(&plan).expect("the plan is accepted");
        self.planner.settle(Effect::Applied);
    }

    /// Changes one Service port.
    pub fn change(&mut self, name: &ServicePortName, after: Option<Route>) {
        let at = self.routes.binary_search_by(|(own, _)| own.cmp(name));
        let before = at.ok().map(|at| Arc::clone(&self.routes[at].1));
        let after = after.map(Arc::new);
        match (at, &after) {
            (Ok(at), Some(after)) => self.routes[at].1 = Arc::clone(after),
            (Ok(at), None) => {
                self.routes.remove(at);
            }
            (Err(at), Some(after)) => self.routes.insert(at, (name.clone(), Arc::clone(after))),
            (Err(_), None) => return,
        }
        let change = Change { name: name.clone(), before, after };
        match self.planner.plan(&[change], &self.environment, now()) {
            Planned::Plan(plan) => {
                self.executor.apply(&plan).expect("the plan is accepted");
                self.planner.settle(Effect::Applied);
            }
            Planned::StartOver(_) => self.start_over(),
        }
    }

    /// Does what upkeep is due at a time in the future.
    pub fn upkeep(&mut self, later: std::time::Duration) {
        while let Some(plan) = self.planner.plan_upkeep(now() + later) {
            self.executor.apply(&plan).expect("the plan is accepted");
            self.planner.settle(Effect::Applied);
        }
    }
}
