//! How long IPVS mode takes, beside what the kernel needs for the same messages alone and beside `ipvsadm --restore`.
//!
//! "The same messages alone": every message of the plan (rules and set elements, virtual servers and destinations, local
//! routes), encoded before the clock starts, sent by a writer that does nothing else, acknowledged as seldom.
//!
//! `cargo build --release -p backend-ipvs --example ipvs_speed`, then run the program as root where the kernel has IPVS, or
//! with `integration/vm/vm-run --timeout 1800 -- target/release/examples/ipvs_speed`. Every run has a network namespace of
//! its own; the kinds of run take turns. Arguments: the numbers of Services, endpoints of each, and rounds (10000 10 5).

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use backend_ipvs::{
    IpvsExecutor, IpvsPlanner, Settings,
    kernel::{servers, tables},
    open,
    schema::op::Op,
    settings::{DEVICE, ROUTE_PROTOCOL},
};
use ipvs_netlink::{Batch, Socket};
use netlink::{link, route::Route as KernelRoute};
use nix::sched::{CloneFlags, unshare};
use proxy_core::{
    backend::{Change, Effect, Executor, Plan, Planned, Planner},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, ObjectName, Protocol, ServicePortName, TrafficPolicy},
    route::{Frontend, FrontendKind, Route, Target},
};

const ALONE: &str = "the kernel alone, the same messages encoded before";
const SERVERS_ALONE: &str = "  of it virtual servers and destinations, alone";

type Routes = Vec<(ServicePortName, Arc<Route>)>;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse().expect("a number"));
    let services = arguments.next().unwrap_or(10_000);
    let endpoints = arguments.next().unwrap_or(10);
    let rounds: u32 = arguments.next().unwrap_or(5);
    state_the_machine(services, endpoints, rounds);

    let all = routes(services, endpoints);
    let few = routes(100, endpoints);
    let mut table: Vec<(&str, Vec<Duration>)> = Vec::new();
    let mut note =
        |name: &'static str, took: Duration| match table.iter_mut().find(|(known, _)| *known == name) {
            Some((_, times)) => times.push(took),
            None => table.push((name, vec![took])),
        };
    for _ in 0..rounds {
        let (alone, script) = apart(&all, |mut setup, routes| {
            let plan = setup.plan(&routes);
            (setup.kernel_alone(&plan), script(&plan))
        });
        for (name, took) in alone {
            note(name, took);
        }
        note("ipvsadm --restore of the same set", apart(&all, move |_, _| restore(&script)));
        for (name, took) in apart(&all, |mut setup, routes| setup.measure_all(&routes)) {
            note(name, took);
        }
        note(
            "one endpoint more or less, 100 Services",
            apart(&few, |mut setup, routes| {
                setup.start(&routes);
                setup.one_change(&routes)
            }),
        );
    }
    let sorted = |name: &str| {
        let (_, times) = table.iter().find(|(known, _)| *known == name).expect("measured");
        let mut times = times.clone();
        times.sort();
        times
    };
    let median = |name: &str| sorted(name)[rounds as usize / 2];
    let least = |name: &str| sorted(name)[0];
    println!("| | median | least | most |\n|---|---|---|---|");
    for (name, times) in &table {
        let most = times.iter().max().expect("rounds");
        println!("| {name} | {} | {} | {} |", shown(median(name)), shown(least(name)), shown(*most));
    }
    // What else runs on the machine only adds, so that the least of each says the most.
    let ratio = |what: &str, one: &str, other: &str| {
        let of = |time: &dyn Fn(&str) -> Duration| time(one).as_secs_f64() / time(other).as_secs_f64();
        println!("{what}: {:.2} of medians, {:.2} of the least", of(&median), of(&least));
    };
    println!();
    ratio("engine state to kernel, of the kernel alone", "engine state to kernel", ALONE);
    let servers = "  of it virtual servers and destinations";
    ratio("virtual servers and destinations, of the kernel alone", servers, SERVERS_ALONE);
    ratio(
        "engine state to kernel, of virtual servers and destinations alone",
        "engine state to kernel",
        SERVERS_ALONE,
    );
    let one_change = ["one endpoint more or less, all Services", "one endpoint more or less, 100 Services"];
    ratio(&format!("one change at {services} Services, of one at 100"), one_change[0], one_change[1]);
}

fn state_the_machine(services: u32, endpoints: u32, rounds: u32) {
    let kind = std::env::var("VM_RUN_GUEST")
        .map_or_else(|_| "no VM".to_owned(), |kind| format!("VM of kind {kind}"));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!(
        "Linux {}, {kind}; {services} Services x {endpoints} endpoints, {rounds} rounds\n",
        kernel.trim()
    );
}

/// A backend in a namespace of its own.
struct Setup {
    planner: IpvsPlanner,
    executor: IpvsExecutor,
}

/// Runs something on a thread that has a network namespace of its own.
fn apart<T: Send + 'static>(routes: &Routes, what: impl FnOnce(Setup, Routes) -> T + Send + 'static) -> T {
    let routes = routes.clone();
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("root");
        // Without any address there is no routing table, and IPVS takes every destination for a broadcast address.
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("iproute2").success());
        let (planner, executor) = open(Family::V4, Settings::default()).expect("a kernel with IPVS");
        what(Setup { planner, executor }, routes)
    };
    let result = thread::spawn(run).join().expect("no failure");
    // The namespace's virtual servers are taken down in the background: it shall not be part of the next run.
    thread::sleep(Duration::from_secs(2));
    result
}

impl Setup {
    fn plan(&mut self, routes: &Routes) -> Plan<Op> {
        let found = self.executor.survey().expect("readable");
        self.planner.plan_full(routes, &environment(), found, now())
    }

    fn start(&mut self, routes: &Routes) {
        let plan = self.plan(routes);
        self.apply(&plan);
    }

    fn apply(&mut self, plan: &Plan<Op>) {
        let outcome = self.executor.apply(plan).expect("applied");
        assert!(outcome.rejected.is_empty(), "{:?}", outcome.rejected.first());
        self.planner.settle(Effect::Applied);
    }

    /// A first sync in parts, single changes, and a restart.
    fn measure_all(&mut self, routes: &Routes) -> Vec<(&'static str, Duration)> {
        let mut times = Vec::new();
        let begin = now();
        let plan = self.plan(routes);
        times.push(("  of it reading the empty kernel and planning", begin.elapsed()));
        for step in &plan.steps {
            let name = match step.ops[0].op {
                Op::Rebuild(..) => "  of it rules and set elements",
                Op::NewServer(..) => "  of it virtual servers and destinations",
                Op::Bind(_) => "  of it local routes",
                _ => "  of it the device",
            };
            let part = Plan { steps: vec![step.clone()] };
            let begin = now();
            assert!(self.executor.apply(&part).expect("applied").rejected.is_empty());
            times.push((name, begin.elapsed()));
        }
        self.planner.settle(Effect::Applied);
        times.insert(0, ("engine state to kernel", times.iter().map(|(_, took)| *took).sum()));
        times.push(("one endpoint more or less, all Services", self.one_change(routes)));
        times.push(("one check for drift, all Services", self.one_check()));
        let begin = now();
        let found = self.executor.survey().expect("readable");
        times.push(("restart: reading the kernel", begin.elapsed()));
        let plan = self.planner.plan_full(routes, &environment(), found, now());
        let writes = plan.steps.iter().flat_map(|step| &step.ops);
        assert_eq!(
            writes
                .filter(|owned| matches!(owned.op, Op::NewServer(..) | Op::SetServer(_) | Op::Bind(_)))
                .count(),
            0
        );
        self.apply(&plan);
        times.push(("restart: all of it", begin.elapsed()));
        times
    }

    /// The median of some checks in turn, each of other virtual servers.
    fn one_check(&mut self) -> Duration {
        let mut times: Vec<Duration> = (0..20)
            .map(|_| {
                let begin = now();
                assert!(self.executor.intact().expect("readable"));
                begin.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    }

    /// Sends the messages of a plan and does nothing else meanwhile.
    fn kernel_alone(&mut self, plan: &Plan<Op>) -> Vec<(&'static str, Duration)> {
        let (device, others): (Vec<_>, Vec<_>) =
            plan.steps.iter().cloned().partition(|step| step.ops[0].op == Op::Device);
        self.executor.apply(&Plan { steps: device }).expect("a device");
        let mut route = netlink::Socket::open(netlink::Protocol::Route).expect("a socket");
        let device = link::find(&mut route, DEVICE).expect("readable").expect("just made").index;
        let (mut rules, mut servers, mut routes) =
            (nft_netlink::Batch::new(), Batch::new(), netlink::Pipeline::new());
        for step in &others {
            for owned in &step.ops {
                match &owned.op {
                    Op::NewServer(..) => servers::push(&mut servers, &owned.op),
                    Op::Bind(addr) => {
                        KernelRoute::local(*addr, device, ROUTE_PROTOCOL).push_add(&mut routes);
                    }
                    _ => {}
                }
            }
            tables::encode(&mut rules, Family::V4, &step.ops);
        }
        let mut nft = netlink::Socket::open(netlink::Protocol::Netfilter).expect("a socket");
        let mut ipvs = Socket::open().expect("a kernel with IPVS");
        let begin = now();
        rules.commit(&mut nft).expect("accepted");
        let after_rules = begin.elapsed();
        let refused = ipvs.send(&mut servers).expect("answered").len();
        let after_servers = begin.elapsed();
        let refused = refused + routes.run(&mut route).expect("answered").len();
        let all = begin.elapsed();
        assert_eq!(refused, 0);
        vec![
            (ALONE, all),
            ("  of it rules and set elements, alone", after_rules),
            (SERVERS_ALONE, after_servers - after_rules),
            ("  of it local routes, alone", all - after_servers),
        ]
    }

    /// The median of many single changes, from the changed route to the kernel's acknowledgement.
    fn one_change(&mut self, routes: &Routes) -> Duration {
        let (name, before) = routes[routes.len() / 2].clone();
        let mut more = (*before).clone();
        let mut targets = more.cluster.into_vec();
        targets.push(Target { addr: [10, 3, 255, 254].into(), port: 8080, local: false });
        targets.sort_unstable();
        more.cluster = targets.into();
        let (mut from, mut to) = (before, Arc::new(more));
        let mut times: Vec<Duration> = (0..200)
            .map(|_| {
                let change =
                    Change { name: name.clone(), before: Some(from.clone()), after: Some(to.clone()) };
                let begin = now();
                match self.planner.plan(&[change], &environment(), begin) {
                    Planned::Plan(plan) => self.apply(&plan),
                    Planned::StartOver(reason) => panic!("{reason}"),
                }
                std::mem::swap(&mut from, &mut to);
                begin.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    }
}

/// The plan as `ipvsadm` reads it.
fn script(plan: &Plan<Op>) -> String {
    let mut script = String::new();
    for owned in plan.steps.iter().flat_map(|step| &step.ops) {
        let address = |key: &ipvs_netlink::ServiceKey| match key {
            ipvs_netlink::ServiceKey::Address { address, port, .. } => format!("{address}:{port}"),
            ipvs_netlink::ServiceKey::Mark { .. } => String::new(),
        };
        match &owned.op {
            Op::NewServer(service, destinations) if !address(&service.key).is_empty() => {
                let at = address(&service.key);
                script += &format!("-A -t {at} -s {}\n", service.scheduler);
                for to in destinations {
                    script += &format!("-a -t {at} -r {}:{} -m -w {}\n", to.address, to.port, to.weight);
                }
            }
            _ => {}
        }
    }
    script
}

fn restore(script: &str) -> Duration {
    let begin = now();
    let mut ipvsadm =
        Command::new("ipvsadm").arg("--restore").stdin(Stdio::piped()).spawn().expect("ipvsadm is installed");
    ipvsadm.stdin.take().expect("piped").write_all(script.as_bytes()).expect("it reads");
    assert!(ipvsadm.wait().expect("it ends").success());
    begin.elapsed()
}

fn routes(services: u32, endpoints: u32) -> Routes {
    (0..services)
        .map(|number| {
            let service = ObjectName::new("default", &format!("service-{number:06}"));
            let vip = IpAddr::from(Ipv4Addr::from(0x0a60_0001 + number));
            let mut cluster: Vec<Target> = (0..endpoints)
                .map(|endpoint| {
                    let addr = IpAddr::from(Ipv4Addr::from(
                        0x0a80_0001 + (number * endpoints + endpoint) % 4_000_000,
                    ));
                    // One of ten nodes is this one.
                    Target { addr, port: 8080, local: endpoint % 10 == 0 }
                })
                .collect();
            cluster.sort_unstable();
            let route = Route {
                protocol: Protocol::Tcp,
                frontends: [Frontend { kind: FrontendKind::ClusterIp, at: Some(vip), port: 80 }].into(),
                policy: Arc::default(),
                external_policy: TrafficPolicy::Cluster,
                any_endpoint: !cluster.is_empty(),
                cluster: cluster.into(),
                local: Box::default(),
                lost: Box::default(),
                endpoints: 0,
                kept: Box::default(),
            };
            (ServicePortName { service, port: "".into(), protocol: Protocol::Tcp }, Arc::new(route))
        })
        .collect()
}

fn environment() -> Environment {
    Environment {
        family: Family::V4,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs(["10.128.0.0/9".parse().expect("a network")].into()),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
        loopback_node_ports: Box::default(),
        service_cidrs: Box::default(),
        node_ips: Box::default(),
        interface_addresses: [IpAddr::from([127, 0, 0, 1])].into(),
    }
}

#[expect(clippy::disallowed_methods, reason = "a measuring program")]
fn now() -> Instant {
    Instant::now()
}

fn shown(took: Duration) -> String {
    match took.as_micros() {
        micros @ 0..=9_999 => format!("{micros} µs"),
        micros => format!("{} ms", micros / 1000),
    }
}
