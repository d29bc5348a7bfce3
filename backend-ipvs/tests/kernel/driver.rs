//! The engine's part played simply: routes in, plans applied.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use backend_ipvs::{IpvsExecutor, IpvsPlanner, Settings, open, schema::op::Op};
use proxy_core::{
    backend::{ApplyError, Change, Effect, Executor, Plan, Planned, Planner},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, ObjectName, Protocol, ServicePortName, TrafficPolicy},
    route::{Frontend, FrontendKind, Route, Target},
};

pub(crate) struct Driver {
    planner: IpvsPlanner,
    pub(crate) executor: IpvsExecutor,
    pub(crate) environment: Environment,
    routes: BTreeMap<ServicePortName, Arc<Route>>,
    /// Virtual time: real from the start, and as much more as was skipped.
    now: Instant,
}

impl Driver {
    /// Opens the backend and makes the kernel hold nothing.
    pub(crate) fn start(family: Family, settings: Settings) -> Self {
        let mut driver = Self::open(family, settings);
        driver.full();
        driver
    }

    #[expect(clippy::disallowed_methods, reason = "the origin of virtual time")]
    pub(crate) fn open(family: Family, settings: Settings) -> Self {
        let (planner, executor) = open(family, settings).expect("IPVS is there");
        Self {
            planner,
            executor,
            environment: environment(family),
            routes: BTreeMap::new(),
            now: Instant::now(),
        }
    }

    /// A new process over what the kernel holds, with the same routes.
    pub(crate) fn restart(&mut self, settings: Settings) {
        let mut new = Self::open(self.environment.family, settings);
        new.environment = self.environment.clone();
        new.routes = std::mem::take(&mut self.routes);
        new.full();
        *self = new;
    }

    pub(crate) fn set(&mut self, service: &str, route: Route) {
        self.change(service, Some(route));
    }

    /// Wanted from the next full plan on.
    pub(crate) fn set_without_plan(&mut self, service: &str, route: Route) {
        let name = ServicePortName {
            service: ObjectName::new("default", service),
            port: "".into(),
            protocol: route.protocol,
        };
        self.routes.insert(name, Arc::new(route));
    }

    pub(crate) fn remove(&mut self, service: &str, protocol: Protocol) {
        let name =
            ServicePortName { service: ObjectName::new("default", service), port: "".into(), protocol };
        assert!(self.routes.contains_key(&name));
        self.apply_change(name, None);
    }

    fn change(&mut self, service: &str, route: Option<Route>) {
        let protocol = route.as_ref().map_or(Protocol::Tcp, |route| route.protocol);
        let name =
            ServicePortName { service: ObjectName::new("default", service), port: "".into(), protocol };
        self.apply_change(name, route);
    }

    fn apply_change(&mut self, name: ServicePortName, route: Option<Route>) {
        let after = route.map(Arc::new);
        let before = match &after {
            Some(route) => self.routes.insert(name.clone(), route.clone()),
            None => self.routes.remove(&name),
        };
        let _ = self.incremental(&[Change { name, before, after }]);
    }

    /// Applies changes to the same Service ports again and again, as the engine would. Returns the plan, or nothing where
    /// everything had to be written anew.
    pub(crate) fn incremental(&mut self, changes: &[Change]) -> Option<Plan<Op>> {
        match self.planner.plan(changes, &self.environment, self.now) {
            Planned::Plan(plan) => {
                let outcome = self.executor.apply(&plan).unwrap_or_else(|error| panic!("{error}\n{plan}"));
                assert!(outcome.rejected.is_empty(), "{:?}\n{plan}", outcome.rejected);
                self.planner.settle(Effect::Applied);
                Some(plan)
            }
            Planned::StartOver(_) => {
                self.full();
                None
            }
        }
    }

    /// As `incremental`, but the kernel's refusals are returned.
    pub(crate) fn rejected(&mut self, service: &str, route: Route) -> Vec<String> {
        let name = ServicePortName {
            service: ObjectName::new("default", service),
            port: "".into(),
            protocol: route.protocol,
        };
        let change = Change { name, before: None, after: Some(Arc::new(route)) };
        let Planned::Plan(plan) = self.planner.plan(&[change], &self.environment, self.now) else {
            panic!("started over");
        };
        let outcome = match self.executor.apply(&plan) {
            Ok(outcome) => outcome,
            // What is known to be missing is refused before anything is applied.
            Err(ApplyError::Refused { reason, culprit: Some(0) }) => {
                self.planner.settle(Effect::Nothing);
                return vec![reason];
            }
            Err(error) => panic!("only one Service is at fault: {error}"),
        };
        self.planner.settle(Effect::Applied);
        assert!(outcome.rejected.iter().all(|rejection| rejection.owner == Some(0)));
        outcome.rejected.into_iter().map(|rejection| rejection.reason).collect()
    }

    /// Reads the kernel and makes it hold the routes. Returns how many operations it took on virtual servers and
    /// addresses.
    pub(crate) fn full(&mut self) -> usize {
        let found = self.executor.survey().expect("readable");
        let routes: Vec<_> = self.routes.iter().map(|(name, route)| (name.clone(), route.clone())).collect();
        let plan = self.planner.plan_full(&routes, &self.environment, found, self.now);
        let outcome = self.executor.apply(&plan).unwrap_or_else(|error| panic!("{error}\n{plan}"));
        assert!(outcome.rejected.is_empty(), "{:?}\n{plan}", outcome.rejected);
        self.planner.settle(Effect::Applied);
        plan.steps.iter().skip(2).map(|step| step.ops.len()).sum()
    }

    /// What is wanted, sorted by name.
    pub(crate) fn routes(&self) -> Vec<(ServicePortName, Arc<Route>)> {
        self.routes.iter().map(|(name, route)| (name.clone(), route.clone())).collect()
    }

    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Lets time pass and does what is due.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        if let Some(plan) = self.planner.plan_upkeep(self.now) {
            self.executor.apply(&plan).expect("upkeep");
            self.planner.settle(Effect::Applied);
        }
    }

    pub(crate) fn is_intact(&mut self) -> bool {
        self.executor.intact().expect("readable")
    }
}

pub(crate) fn environment(family: Family) -> Environment {
    let v4 = family == Family::V4;
    let addresses = if v4 {
        ["127.0.0.1", "10.1.0.1", "10.1.1.1", "10.2.0.1", "192.168.7.1"]
    } else {
        ["::1", "fd01:0:0:1::1", "fd01:0:0:2::1", "fd02:0:0:1::1", "fd07:0:0:1::1"]
    };
    let mut interface_addresses: Vec<IpAddr> = addresses.map(ip).into();
    interface_addresses.sort_unstable();
    Environment {
        family,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs(
            [if v4 { "10.1.0.0/16" } else { "fd01::/16" }.parse().expect("a network")].into(),
        ),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
        loopback_node_ports: Box::default(),
        service_cidrs: Box::default(),
        node_ips: [ip(if v4 { "192.168.7.1" } else { "fd07:0:0:1::1" })].into(),
        interface_addresses: interface_addresses.into(),
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A Service with a cluster IP on port 80 and these endpoints on port 8080.
pub(crate) fn route(protocol: Protocol, cluster_ip: &str, endpoints: &[&str]) -> Route {
    let mut targets: Vec<Target> = endpoints
        .iter()
        .map(|addr| {
            let addr = ip(addr);
            let local = match addr {
                IpAddr::V4(addr) => addr.octets()[1] == 1,
                IpAddr::V6(addr) => addr.segments()[0] == 0xfd01,
            };
            Target { addr, port: 8080, local }
        })
        .collect();
    targets.sort_unstable();
    let local: Vec<Target> = targets.iter().copied().filter(|target| target.local).collect();
    Route {
        policy: Arc::default(),
        protocol,
        frontends: [frontend(FrontendKind::ClusterIp, Some(cluster_ip), 80)].into(),
        external_policy: TrafficPolicy::Cluster,
        any_endpoint: !targets.is_empty(),
        cluster: targets.into(),
        local: local.into(),
        lost: Box::default(),
        endpoints: 0,
        kept: Box::default(),
    }
}

pub(crate) fn frontend(kind: FrontendKind, at: Option<&str>, port: u16) -> Frontend {
    Frontend { kind, at: at.map(ip), port }
}

/// The same with a load balancer IP on port 80 and a node port 30080.
pub(crate) fn exposed(mut route: Route, vip: &str, external_policy: TrafficPolicy) -> Route {
    let mut frontends = route.frontends.into_vec();
    frontends.push(frontend(FrontendKind::LoadBalancerIp, Some(vip), 80));
    frontends.push(frontend(FrontendKind::NodePort, None, 30080));
    route.frontends = frontends.into();
    route.external_policy = external_policy;
    route
}
