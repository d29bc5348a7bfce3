//! Whole plans: as text, and by what becomes of packets.

mod combinations;
mod commits;
mod golden;
mod history;
mod packets;
mod writes;

use std::{net::IpAddr, sync::Arc, time::Instant};

use proxy_core::{
    backend::{Change, Effect, Plan, Planned, Planner as _},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, Protocol, ServiceName, ServicePortName, TrafficPolicy},
    route::{Frontend, FrontendKind, Route, Target},
};

use crate::{Host, Op, Planner, Variant, model::Model};

pub(crate) fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn environment(family: Family) -> Environment {
    let pods = match family {
        Family::V4 => "10.244.0.0/16",
        Family::V6 => "fd00:10:244::/56",
    };
    Environment {
        family,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs([pods.parse().expect("a network")].into()),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: family == Family::V4,
        refused_on_localhost: Box::default(),
        loopback_node_ports: Box::default(),
        service_cidrs: Box::default(),
        node_ips: Box::default(),
        interface_addresses: Box::default(),
    }
}

pub(crate) fn name(service: &str) -> ServicePortName {
    ServicePortName {
        service: ServiceName::new("shop", service),
        port: "http".into(),
        protocol: Protocol::Tcp,
    }
}

pub(crate) fn target(at: &str, local: bool) -> Target {
    let at: std::net::SocketAddr = at.parse().expect("a socket address");
    Target { addr: at.ip(), port: at.port(), local }
}

pub(crate) fn frontend(kind: FrontendKind, at: Option<&str>, port: u16) -> Frontend {
    Frontend { kind, at: at.map(addr), port }
}

/// A cluster IP with two endpoints, the first of them on this node.
pub(crate) fn web() -> Route {
    Route {
        policy: Arc::default(),
        protocol: Protocol::Tcp,
        frontends: [frontend(FrontendKind::ClusterIp, Some("10.96.0.10"), 80)].into(),
        external_policy: TrafficPolicy::Cluster,
        cluster: [target("10.244.0.5:8080", true), target("10.244.1.5:8080", false)].into(),
        local: Box::default(),
        any_endpoint: true,
        lost: Box::default(),
        endpoints: 0,
        kept: Box::default(),
    }
}

/// The same with a node port, an external IP and a load balancer IP.
pub(crate) fn exposed_web() -> Route {
    Route {
        frontends: [
            frontend(FrontendKind::ClusterIp, Some("10.96.0.10"), 80),
            frontend(FrontendKind::ExternalIp, Some("203.0.113.10"), 80),
            frontend(FrontendKind::LoadBalancerIp, Some("203.0.113.20"), 80),
            frontend(FrontendKind::NodePort, None, 30080),
        ]
        .into(),
        ..web()
    }
}

/// The same under `externalTrafficPolicy: Local`.
pub(crate) fn local_web() -> Route {
    Route {
        external_policy: TrafficPolicy::Local,
        local: [target("10.244.0.5:8080", true)].into(),
        ..exposed_web()
    }
    .under(|policy| policy.health_check_node_port = Some(32123))
}

/// The rules that Service ports add, without those that are there without any.
pub(crate) fn rules_added(
    environment: &Environment,
    ports: impl IntoIterator<Item = (ServicePortName, Route)>,
) -> String {
    let without = Bench::with(environment.clone(), []).model.save();
    let with = Bench::with_ports(environment.clone(), ports).model.save();
    let new = |line: &&str| line.starts_with('*') || (line.starts_with("-A") && !without.contains(*line));
    with.lines().filter(new).map(|line| format!("{line}\n")).collect()
}

#[expect(clippy::disallowed_methods, reason = "no planner of ours looks at it")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// A planner and the tables that its plans are applied to.
pub(crate) struct Bench {
    pub(crate) planner: Planner,
    pub(crate) model: Model,
    pub(crate) environment: Environment,
    pub(crate) routes: Vec<(ServicePortName, Arc<Route>)>,
}

impl Bench {
    pub(crate) fn new(environment: Environment) -> Self {
        let family = environment.family;
        Self {
            planner: Planner::new(family),
            model: Model::new(family, Variant::Legacy),
            environment,
            routes: Vec::new(),
        }
    }

    /// With these routes written in full.
    pub(crate) fn with(
        environment: Environment,
        routes: impl IntoIterator<Item = (&'static str, Route)>,
    ) -> Self {
        Self::with_ports(environment, routes.into_iter().map(|(service, route)| (name(service), route)))
    }

    fn with_ports(
        environment: Environment,
        routes: impl IntoIterator<Item = (ServicePortName, Route)>,
    ) -> Self {
        let mut bench = Self::new(environment);
        bench.routes = routes.into_iter().map(|(name, route)| (name, Arc::new(route))).collect();
        bench.routes.sort_by(|(a, _), (b, _)| a.cmp(b));
        bench.full();
        bench
    }

    pub(crate) fn full(&mut self) -> Plan<Op> {
        let found = self.model.found(Host::default());
        let plan = self.planner.plan_full(&self.routes, &self.environment, found, now());
        self.model.apply(&plan).expect("the tables take a full plan");
        self.planner.settle(Effect::Applied);
        plan
    }

    pub(crate) fn plan(&mut self, changes: &[(ServicePortName, Option<Route>)]) -> Planned<Op> {
        let changes: Vec<Change> = changes
            .iter()
            .map(|(name, after)| Change {
                name: name.clone(),
                before: self.routes.iter().find(|(other, _)| other == name).map(|(_, route)| route.clone()),
                after: after.clone().map(Arc::new),
            })
            .collect();
        self.planner.plan(&changes, &self.environment, now())
    }

    /// Carries changes through, and returns the text.
    pub(crate) fn change(&mut self, changes: &[(ServicePortName, Option<Route>)]) -> String {
        let Planned::Plan(plan) = self.plan(changes) else { panic!("the planner wants to start over") };
        self.model.apply(&plan).expect("the tables take the plan");
        self.planner.settle(Effect::Applied);
        self.remember(changes);
        plan.steps.iter().map(|step| crate::restore::text(step, Variant::Legacy)).collect()
    }

    pub(crate) fn remember(&mut self, changes: &[(ServicePortName, Option<Route>)]) {
        for (name, after) in changes {
            self.routes.retain(|(other, _)| other != name);
            self.routes.extend(after.clone().map(|route| (name.clone(), Arc::new(route))));
        }
        self.routes.sort_by(|(a, _), (b, _)| a.cmp(b));
    }

    /// The rules of our chains, without those that hold no Service.
    pub(crate) fn rules(&self, chain: &str) -> Vec<String> {
        let start = format!("-A {chain}");
        self.model.save().lines().filter(|line| line.starts_with(&start)).map(str::to_owned).collect()
    }
}
