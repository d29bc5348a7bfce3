//! Measures the backend in a network namespace of its own: `cargo run --release -p backend-nft --example speed`.
//!
//! Full loads from routes to the kernel, one change of an endpoint, source ranges, and the design question whether
//! endpoints are stored once per Service port or once per address.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use backend_nft::{Executor, Planner};
use netlink::Socket;
use nft_netlink::{Table, list};
use nix::sched::{CloneFlags, unshare};
use proxy_core::{
    backend::{Change, Effect, Executor as _, Planned, Planner as _},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, ObjectName, Protocol, ServicePortName, TrafficPolicy},
    route::{AllowedSources, Frontend, FrontendKind, Named, Route, Target},
};

type Routes = Vec<(ServicePortName, Arc<Route>)>;

fn main() {
    let runs: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    unshare(CloneFlags::CLONE_NEWNET).expect("measurements run as root");
    println!("load average: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    match std::env::args().nth(2).as_deref() {
        Some("ranges") => return ranges(runs),
        Some("memory") => return resident(),
        _ => {}
    }
    let shapes = [(10_000, 10), (45_000, 1), (5_000, 50)];
    let mut loads = vec![Vec::new(); shapes.len()];
    let mut planning = vec![Vec::new(); shapes.len()];
    for _ in 0..runs {
        for (at, (services, endpoints)) in shapes.into_iter().enumerate() {
            let routes = routes(services, endpoints, 1);
            let mut proxy = Proxy::new();
            let (plan, total) = proxy.full(&routes);
            planning[at].push(plan);
            loads[at].push(total);
            backend_nft::cleanup(Family::V4).expect("the table is there");
        }
    }
    for (at, (services, endpoints)) in shapes.into_iter().enumerate() {
        println!(
            "full load {services} x {endpoints}: {} (planning alone {})",
            spread(&mut loads[at]),
            spread(&mut planning[at])
        );
    }
    takeover(runs);
    changes();
    ranges(runs);
    for addresses in [1, 3] {
        once_per_port(addresses, runs);
    }
}

struct Proxy {
    planner: Planner,
    executor: Executor,
    environment: Environment,
}

impl Proxy {
    fn new() -> Self {
        Self {
            planner: Planner::new(Family::V4),
            executor: Executor::open(Family::V4).expect("a socket can be opened"),
            environment: environment(),
        }
    }

    /// Time of planning, and of all.
    fn full(&mut self, routes: &Routes) -> (Duration, Duration) {
        let start = Instant::now();
        let found = self.executor.survey().expect("the kernel answers");
        let surveyed = Instant::now();
        let plan = self.planner.plan_full(routes, &self.environment, found, start);
        let planned = surveyed.elapsed();
        self.executor.apply(&plan).expect("the kernel accepts it");
        self.planner.settle(Effect::Applied);
        (planned, start.elapsed())
    }

    fn change(&mut self, name: &ServicePortName, before: &Arc<Route>, after: &Arc<Route>) -> Duration {
        let start = Instant::now();
        let change =
            Change { name: name.clone(), before: Some(Arc::clone(before)), after: Some(Arc::clone(after)) };
        let Planned::Plan(plan) = self.planner.plan(&[change], &self.environment, start) else {
            panic!("the change fits");
        };
        self.executor.apply(&plan).expect("the kernel accepts it");
        self.planner.settle(Effect::Applied);
        start.elapsed()
    }
}

fn takeover(runs: usize) {
    let routes = routes(10_000, 10, 1);
    let mut times = Vec::new();
    for _ in 0..runs {
        Proxy::new().full(&routes);
        times.push(Proxy::new().full(&routes).1);
        backend_nft::cleanup(Family::V4).expect("the table is there");
    }
    println!("start over an older generation, 10000 x 10: {}", spread(&mut times));
}

fn changes() {
    for services in [100, 10_000, 45_000] {
        let routes = routes(services, 10.min(450_000 / services), 1);
        let mut proxy = Proxy::new();
        proxy.full(&routes);
        let mut times = Vec::new();
        for round in 0..500 {
            let (name, before) = &routes[round * 7919 % services];
            let mut after = Route::clone(before);
            let mut targets = after.cluster.to_vec();
            targets.pop();
            targets.push(target(u32::try_from(round).unwrap_or(0) + 900_000));
            after.cluster = targets.into();
            let after = Arc::new(after);
            times.push(proxy.change(name, before, &after));
            times.push(proxy.change(name, &after, before));
        }
        println!("one endpoint changed at {services} services: {}", spread(&mut times));
        checks(&mut proxy, services);
        backend_nft::cleanup(Family::V4).expect("the table is there");
    }
}

/// The check for drift, when nobody else committed and when somebody did.
fn checks(proxy: &mut Proxy, services: usize) {
    let (mut idle, mut disturbed) = (Vec::new(), Vec::new());
    let check = |proxy: &mut Proxy| {
        let start = Instant::now();
        assert!(proxy.executor.intact().expect("the kernel answers"));
        start.elapsed()
    };
    for _ in 0..100 {
        somebody_commits();
        disturbed.push(check(proxy));
        idle.push(check(proxy));
    }
    println!("reading all sets at {services} services: {:.0} ms", read_all().as_secs_f64() * 1000.0);
    println!(
        "check for drift at {services} services: nobody committed {}, somebody did {}",
        spread(&mut idle),
        spread(&mut disturbed)
    );
}

fn somebody_commits() {
    let mut socket = Socket::open(netlink::Protocol::Netfilter).expect("a socket can be opened");
    let mut batch = nft_netlink::Batch::new();
    let table = Table::new(nft_netlink::Family::Ip, "other");
    batch.add_table(table, None);
    batch.delete_table(table);
    batch.commit(&mut socket).expect("the kernel accepts it");
}

/// What the rarer comparison of all elements costs, on a thread of its own.
fn read_all() -> Duration {
    let start = Instant::now();
    let table = Table::new(nft_netlink::Family::Ip, "kube-proxy");
    let mut socket = Socket::open(netlink::Protocol::Netfilter).expect("a socket can be opened");
    for set in list::sets(&mut socket, table).expect("the kernel answers") {
        let dump =
            list::elements(&mut socket, table, &set.name, |element| drop(std::hint::black_box(element)));
        assert_eq!(dump.expect("the kernel answers"), netlink::Dump::Complete);
    }
    start.elapsed()
}

/// What planner and executor take at 10,000 x 10, beside the routes.
fn resident() {
    let routes = routes(10_000, 10, 1);
    println!("with the routes alone: {}", memory());
    let mut proxy = Proxy::new();
    proxy.full(&routes);
    println!("after the first load: {}", memory());
    for _ in 0..5 {
        for (name, before) in &routes {
            let mut after = Route::clone(before);
            after.cluster = after.cluster[1..].into();
            let after = Arc::new(after);
            proxy.change(name, before, &after);
            proxy.change(name, &after, before);
        }
    }
    println!("after 100,000 changes: {}", memory());
    proxy.full(&routes);
    println!("after a start over: {}", memory());
}

fn ranges(runs: usize) {
    let mut routes = routes(200, 2, 1);
    let sources = |seed: u32| {
        let ranges = (0..100_u32)
            .map(|at| {
                let net = Ipv4Addr::from(0x5000_0000 + ((seed * 100 + at) << 8));
                ipnet::IpNet::new_assert(net.into(), 24)
            })
            .collect();
        Some(Arc::new(AllowedSources { ranges, own_vips: Box::new([]) }))
    };
    for (at, (_, route)) in (0_u32..).zip(&mut routes) {
        let route = Arc::make_mut(route);
        let mut frontends = route.frontends.to_vec();
        frontends.push(Frontend {
            kind: FrontendKind::LoadBalancerIp,
            at: Some(Ipv4Addr::from(0xc633_0000 + at).into()),
            port: 80,
            sources: sources(at),
        });
        route.frontends = frontends.into();
    }
    let mut proxy = Proxy::new();
    proxy.full(&routes);
    let mut times = Vec::new();
    for changed in [1, 10, 100] {
        for (round, (name, before)) in routes.iter().take(runs * 4).enumerate() {
            let mut after = Route::clone(before);
            let mut own = sources(round as u32).expect("there are some").ranges.to_vec();
            own.truncate(100 - changed);
            let new = sources(1000 + round as u32).expect("there are some");
            own.extend(&new.ranges[..changed]);
            after.frontends[1].sources =
                Some(Arc::new(AllowedSources { ranges: own.into(), own_vips: Box::new([]) }));
            let after = Arc::new(after);
            times.push(proxy.change(name, before, &after));
            times.push(proxy.change(name, &after, before));
        }
        println!("{changed} of 20000 source ranges changed: {}", spread(&mut times));
        times.clear();
    }
    backend_nft::cleanup(Family::V4).expect("the table is there");
}

/// A Service port with several addresses, stored as it is, and as it would be with endpoints once per address.
fn once_per_port(addresses: u32, runs: usize) {
    let together = routes(5_000, 10, addresses);
    let apart: Routes = together
        .iter()
        .flat_map(|(name, route)| {
            route.frontends.iter().enumerate().map(move |(at, frontend)| {
                let mut own = Route::clone(route);
                own.frontends = Box::new([frontend.clone()]);
                let port = format!("{}-{at}", name.port).into();
                (ServicePortName { port, ..name.clone() }, Arc::new(own))
            })
        })
        .collect();
    for (what, routes) in [("once per Service port", &together), ("once per address", &apart)] {
        let (mut loads, mut changes, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            let before = kernel_memory();
            let mut proxy = Proxy::new();
            loads.push(proxy.full(routes).1);
            memory.push(kernel_memory().saturating_sub(before));
            for round in 0..100 {
                // The same Service's addresses all change.
                let each = if what == "once per address" { addresses as usize } else { 1 };
                let first = round * 31 % 5_000 * each;
                let mut took = Duration::ZERO;
                for (name, old) in &routes[first..first + each] {
                    let mut new = Route::clone(old);
                    let mut targets = new.cluster.to_vec();
                    targets.pop();
                    new.cluster = targets.into();
                    let new = Arc::new(new);
                    took += proxy.change(name, old, &new);
                    proxy.change(name, &new, old);
                }
                changes.push(took);
            }
            backend_nft::cleanup(Family::V4).expect("the table is there");
        }
        memory.sort_unstable();
        println!(
            "5000 services x 10 endpoints x {addresses} addresses, {what}: load {}, one change {}, kernel memory {} MB",
            spread(&mut loads),
            spread(&mut changes),
            memory[memory.len() / 2] / 1024
        );
    }
}

fn spread(times: &mut [Duration]) -> String {
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

fn memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
    format!("{} {}", line("VmRSS"), line("VmHWM"))
}

/// Slab, vmalloc and per-CPU memory of the whole machine in KiB.
fn kernel_memory() -> u64 {
    std::thread::sleep(Duration::from_millis(300));
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    text.lines()
        .filter(|line| ["Slab:", "VmallocUsed:", "Percpu:"].iter().any(|name| line.starts_with(name)))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

fn environment() -> Environment {
    Environment {
        family: Family::V4,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs(Box::new(["10.0.0.0/8".parse().expect("a network")])),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: false,
        loopback_node_ports: Box::default(),
        service_cidrs: Box::new(["172.16.0.0/12".parse().expect("a network")]),
        node_ips: Box::new([]),
        interface_addresses: Box::new([]),
    }
}

fn target(number: u32) -> Target {
    Target {
        addr: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)),
        port: 8080,
        local: number.is_multiple_of(50),
    }
}

fn routes(services: usize, endpoints: usize, addresses: u32) -> Routes {
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
                sources: None,
            };
            let cluster = (0..endpoints as u32).map(|at| target(service * endpoints as u32 + at)).collect();
            let route = Route {
                protocol: Protocol::Tcp,
                frontends: (0..addresses).map(frontend).collect(),
                internal_policy: TrafficPolicy::Cluster,
                external_policy: TrafficPolicy::Cluster,
                cluster,
                local: Box::new([]),
                any_endpoint: true,
                affinity: None,
                health_check_node_port: None,
                named: Named::default(),
                options: Box::new([]),
            };
            (name, Arc::new(route))
        })
        .collect()
}
