//! A planner and an executor to be measured, and what to give them.
#![allow(dead_code, unreachable_pub, reason = "each measurement uses some of it")]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use backend_nft::{Executor, Planner};
use proxy_core::{
    backend::{Change, Effect, Executor as _, Planned, Planner as _},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, ObjectName, Protocol, ServicePortName, TrafficPolicy},
    route::{Frontend, FrontendKind, Route, Target},
};

pub type Routes = Vec<(ServicePortName, Arc<Route>)>;

pub struct Proxy {
    pub planner: Planner,
    pub executor: Executor,
    pub environment: Environment,
    /// For starting over.
    pub routes: Routes,
}

impl Proxy {
    pub fn new() -> Self {
        Self {
            planner: Planner::new(Family::V4),
            executor: Executor::open(Family::V4).expect("a socket can be opened"),
            environment: environment(),
            routes: Vec::new(),
        }
    }

    /// Time of planning, and of all.
    pub fn full(&mut self, routes: &Routes) -> (Duration, Duration) {
        let start = Instant::now();
        let found = self.executor.survey().expect("the kernel answers");
        let surveyed = Instant::now();
        let plan = self.planner.plan_full(routes, &self.environment, found, start);
        let planned = surveyed.elapsed();
        self.executor.apply(&plan).expect("the kernel accepts it");
        self.planner.settle(Effect::Applied);
        (planned, start.elapsed())
    }

    /// Applies a change that fits.
    pub fn change(&mut self, name: &ServicePortName, before: &Arc<Route>, after: &Arc<Route>) -> Duration {
        self.try_change(name, before, after).expect("the change fits")
    }

    /// Applies a change; where that takes larger maps, everything is written anew.
    pub fn change_or_start_over(
        &mut self,
        name: &ServicePortName,
        before: &Arc<Route>,
        after: &Arc<Route>,
    ) -> Duration {
        let route = self.routes.iter_mut().find(|(own, _)| own == name).expect("it is one of the routes");
        route.1 = Arc::clone(after);
        let start = Instant::now();
        self.try_change(name, before, after).unwrap_or_else(|| {
            let routes = std::mem::take(&mut self.routes);
            self.full(&routes);
            self.routes = routes;
            start.elapsed()
        })
    }

    fn try_change(
        &mut self,
        name: &ServicePortName,
        before: &Arc<Route>,
        after: &Arc<Route>,
    ) -> Option<Duration> {
        let start = Instant::now();
        let change =
            Change { name: name.clone(), before: Some(Arc::clone(before)), after: Some(Arc::clone(after)) };
        let Planned::Plan(plan) = self.planner.plan(&[change], &self.environment, start) else { return None };
        self.executor.apply(&plan).expect("the kernel accepts it");
        self.planner.settle(Effect::Applied);
        Some(start.elapsed())
    }

    /// What would be due in two seconds.
    pub fn upkeep(&mut self) {
        let later = Instant::now() + Duration::from_secs(2);
        while let Some(plan) = self.planner.plan_upkeep(later) {
            self.executor.apply(&plan).expect("the kernel accepts it");
            self.planner.settle(Effect::Applied);
        }
    }
}

pub fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    format!(
        "median {:.3} ms (min {:.3}, p99 {:.3}, max {:.3}, n={})",
        at(0.5),
        at(0.0),
        at(0.99),
        at(1.0),
        times.len()
    )
}

pub fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    format!("{} {}", line("VmRSS"), line("VmHWM"))
}

/// Slab, vmalloc and per-CPU memory of the whole machine in KiB.
pub fn kernel_memory() -> u64 {
    std::thread::sleep(Duration::from_millis(300));
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .filter(|line| ["Slab:", "VmallocUsed:", "Percpu:"].iter().any(|name| line.starts_with(name)))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

pub fn environment() -> Environment {
    Environment {
        family: Family::V4,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs(Box::new(["10.0.0.0/8".parse().expect("a network")])),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
        loopback_node_ports: Box::default(),
        service_cidrs: Box::new(["172.16.0.0/12".parse().expect("a network")]),
        node_ips: Box::new([]),
        interface_addresses: Box::new([]),
    }
}

pub fn target(number: u32) -> Target {
    Target {
        addr: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)),
        port: 8080,
        local: number.is_multiple_of(50),
    }
}

pub fn routes(services: usize, endpoints: usize, addresses: u32) -> Routes {
    (0..services as u32)
        .map(|service| {
            let name = ServicePortName {
                service: ObjectName::new("bench", &format!("service-{service:05}")),
                port: "http".into(),
                protocol: Protocol::Tcp,
            };
            let frontend = |at: u32| Frontend {
                kind: if at == 0 { FrontendKind::ClusterIp } else { FrontendKind::ExternalIp },
                at: Some(Ipv4Addr::from(0xac10_0000 + at * 0x2_0000 + service).into()),
                port: 80,
            };
            let cluster = (0..endpoints as u32).map(|at| target(service * endpoints as u32 + at)).collect();
            let route = Route {
                policy: Arc::default(),
                protocol: Protocol::Tcp,
                frontends: (0..addresses).map(frontend).collect(),
                external_policy: TrafficPolicy::Cluster,
                cluster,
                local: Box::new([]),
                any_endpoint: true,
                lost: Box::default(),
                endpoints: 0,
                kept: Box::default(),
            };
            (name, Arc::new(route))
        })
        .collect()
}
