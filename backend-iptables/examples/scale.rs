//! Compares this backend with plain `iptables-restore` of the very same text, in a network namespace of its own.
//!
//! `cargo run --release -p backend-iptables --example scale -- [legacy|nft] [services] [endpoints] [rounds] [whole]`
//!
//! `whole`: in the nft variant also the text as kube-proxy writes it, with one `COMMIT` for table `nat`. That takes the
//! plain program seconds for 1,000 Services and minutes for 5,000.

use std::{
    fs::File,
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use backend_iptables::{Executor, Op, Planner, Variant, restore};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use proxy_core::{
    backend::{Change, Effect, Executor as _, Plan, Planned, Planner as _},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, Protocol, ServiceName, ServicePortName, TrafficPolicy},
    route::{Frontend, FrontendKind, Route, Target},
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let variants = match arguments.first().map(String::as_str) {
        Some("legacy") => vec![Variant::Legacy],
        Some("nft") => vec![Variant::Nft],
        _ => vec![Variant::Legacy, Variant::Nft],
    };
    let number = |at: usize| arguments.get(at).and_then(|text| text.parse::<u32>().ok());
    let sizes = number(1).map_or_else(|| vec![1000, 5000, 10_000], |services| vec![services]);
    let endpoints = number(2).unwrap_or(10);
    let rounds = number(3).unwrap_or(7) as usize;
    let whole = arguments.iter().any(|argument| argument == "whole");

    println!(
        "Median of {rounds} rounds, milliseconds. \"restore\" is the program alone, with the same text in a file."
    );
    println!("A change there and the change back are one round, and what is shown is half of it.");
    println!("| variant | services x endpoints | what | text | ours: plan | ours: all | restore | ratio |");
    println!("|---|---|---|---|---|---|---|---|");
    for variant in variants {
        for &services in &sizes {
            // Every size starts with empty tables.
            std::thread::spawn(move || measure(variant, services, endpoints, rounds, whole))
                .join()
                .expect("the measurement does not panic");
        }
    }
}

fn measure(variant: Variant, services: u32, endpoints: u32, rounds: usize, whole: bool) {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("needs root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .expect("the mount namespace is ours");
    // A lock file of our own: nobody else writes to this namespace.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("/run is a directory");

    let mut bench = Bench::new(variant, services, endpoints);
    report(variant, services, endpoints, "first sync", &bench.first(rounds));
    if whole && variant == Variant::Nft {
        println!(
            "| {variant} | {services} x {endpoints} | first sync, one COMMIT | | | | {:.1} | |",
            milliseconds(bench.whole())
        );
    }
    let restart = bench.restarts(rounds);
    println!(
        "| {variant} | {services} x {endpoints} | restart, nothing changed | | | {:.1} | | |",
        milliseconds(median(&restart))
    );
    report(variant, services, endpoints, "one endpoint", &bench.endpoint_changes(rounds));
    report(variant, services, endpoints, "one Service", &bench.service_changes(rounds));
    for (what, disturbed) in [("drift check", false), ("drift check after somebody's change", true)] {
        println!(
            "| {variant} | {services} x {endpoints} | {what} | | | {:.1} | | |",
            milliseconds(median(&bench.checks(rounds, disturbed)))
        );
    }
}

struct Bench {
    variant: Variant,
    planner: Planner,
    executor: Executor,
    environment: Environment,
    routes: Vec<(ServicePortName, Arc<Route>)>,
}

#[derive(Default)]
struct Samples {
    plan: Vec<Duration>,
    ours: Vec<Duration>,
    plain: Vec<Duration>,
    bytes: usize,
}

impl Bench {
    fn new(variant: Variant, services: u32, endpoints: u32) -> Self {
        let mut routes: Vec<_> = (0..services)
            .map(|at| {
                let name = ServiceName::new("bench", &format!("service-{at:05}"));
                let name = ServicePortName { service: name, port: "http".into(), protocol: Protocol::Tcp };
                (name, Arc::new(route(at, endpoints, endpoints)))
            })
            .collect();
        routes.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self {
            variant,
            planner: Planner::new(Family::V4),
            executor: Executor::open_variant(Family::V4, variant).expect("iptables is installed"),
            environment: environment(),
            routes,
        }
    }

    /// All rules onto empty tables.
    fn first(&mut self, rounds: usize) -> Samples {
        let mut samples = Samples::default();
        for _ in 0..rounds {
            let (plan, planned, all) = self.full();
            self.empty();
            let plain = self.plain(&plan, self.variant);
            samples.add(self.variant, &plan, planned, all, plain);
        }
        samples
    }

    /// How long the plain program takes for all rules as kube-proxy writes them.
    fn whole(&mut self) -> Duration {
        let (plan, ..) = self.full();
        self.empty();
        self.plain(&plan, Variant::Legacy)
    }

    /// A plan for empty tables, and how long the plan and all of it took.
    fn full(&mut self) -> (Plan<Op>, Duration, Duration) {
        self.empty();
        let found = self.executor.survey().expect("the tables can be read");
        let start = now();
        let plan = self.planner.plan_full(&self.routes, &self.environment, found, start);
        let planned = now();
        self.executor.apply(&plan).expect("the kernel takes it");
        let ended = now();
        self.planner.settle(Effect::Applied);
        (plan, planned - start, ended - start)
    }

    fn empty(&self) {
        self.feed("*mangle\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n", &[]);
    }

    fn feed(&self, text: &str, arguments: &[&str]) {
        let program = format!("iptables-{}-restore", self.variant);
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .expect("iptables is installed");
        child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("it reads");
        assert!(child.wait().expect("it ends").success());
    }

    /// What a restart costs: everything is read, and nothing differs.
    fn restarts(&mut self, rounds: usize) -> Vec<Duration> {
        (0..rounds)
            .map(|_| {
                let start = now();
                let found = self.executor.survey().expect("the tables can be read");
                let plan = self.planner.plan_full(&self.routes, &self.environment, found, start);
                self.executor.apply(&plan).expect("the kernel takes it");
                self.planner.settle(Effect::Applied);
                now() - start
            })
            .collect()
    }

    /// A Service loses and regains an endpoint.
    fn endpoint_changes(&mut self, rounds: usize) -> Samples {
        let at = self.routes.len() / 2;
        let (name, all) = self.routes[at].clone();
        let fewer = Arc::new(Route { cluster: all.cluster[1..].into(), ..(*all).clone() });
        self.alternate(rounds, &name, [Some(all), Some(fewer)])
    }

    /// A Service comes and goes.
    fn service_changes(&mut self, rounds: usize) -> Samples {
        let name = ServiceName::new("bench", "service-02500-more");
        let name = ServicePortName { service: name, port: "http".into(), protocol: Protocol::Tcp };
        let route = Arc::new(route(60_000, 10, 10));
        self.alternate(rounds, &name, [None, Some(route)])
    }

    /// There by us, back by the plain program, there by the plain program, back by us.
    fn alternate(
        &mut self,
        rounds: usize,
        name: &ServicePortName,
        states: [Option<Arc<Route>>; 2],
    ) -> Samples {
        let [first, second] = states;
        let mut samples = Samples::default();
        let change = |before: &Option<Arc<Route>>, after: &Option<Arc<Route>>| {
            [Change { name: name.clone(), before: before.clone(), after: after.clone() }]
        };
        let (there, back) = (change(&first, &second), change(&second, &first));
        for round in 0..=rounds {
            let (plan, planned_there, there_by_us) = self.ours(&there);
            let back_by_plain = self.plainly(&back);
            let there_by_plain = self.plainly(&there);
            let (_, planned_back, back_by_us) = self.ours(&back);
            // The first round is for the caches.
            if round > 0 {
                samples.add(
                    self.variant,
                    &plan,
                    (planned_there + planned_back) / 2,
                    (there_by_us + back_by_us) / 2,
                    (there_by_plain + back_by_plain) / 2,
                );
            }
        }
        samples
    }

    /// Carries changes through; how long the plan and all of it took.
    fn ours(&mut self, changes: &[Change]) -> (Plan<Op>, Duration, Duration) {
        let start = now();
        let plan = self.plan(changes);
        let planned = now();
        self.executor.apply(&plan).expect("the kernel takes it");
        let ended = now();
        self.planner.settle(Effect::Applied);
        (plan, planned - start, ended - start)
    }

    fn plainly(&mut self, changes: &[Change]) -> Duration {
        let plan = self.plan(changes);
        let took = self.plain(&plan, self.variant);
        self.planner.settle(Effect::Applied);
        took
    }

    fn checks(&mut self, rounds: usize, disturbed: bool) -> Vec<Duration> {
        (0..=rounds)
            .map(|_| {
                if disturbed {
                    self.feed(
                        "*filter\n:SOMEBODY - [0:0]\nCOMMIT\n*filter\n-X SOMEBODY\nCOMMIT\n",
                        &["--noflush"],
                    );
                }
                let start = now();
                assert!(self.executor.intact().expect("the check runs"));
                now() - start
            })
            // The first finds what the benchmark did before.
            .skip(1)
            .collect()
    }

    fn plan(&mut self, changes: &[Change]) -> Plan<Op> {
        match self.planner.plan(changes, &self.environment, now()) {
            Planned::Plan(plan) => plan,
            Planned::StartOver(reason) => panic!("starts over: {reason}"),
        }
    }

    /// Feeds the text of a plan to the program from a file.
    fn plain(&self, plan: &Plan<Op>, layout: Variant) -> Duration {
        let path = format!("/run/switchyard-scale-{}", std::process::id());
        let mut file = File::create(&path).expect("/run is ours");
        for step in &plan.steps {
            file.write_all(restore::text(step, layout).as_bytes()).expect("/run has room");
        }
        drop(file);
        let start = now();
        let status = Command::new(format!("iptables-{}-restore", self.variant))
            .args(["-w", "5", "--noflush", "--counters"])
            .stdin(File::open(&path).expect("just written"))
            .stdout(Stdio::null())
            .status()
            .expect("iptables is installed");
        let took = now() - start;
        assert!(status.success());
        took
    }
}

impl Samples {
    fn add(&mut self, variant: Variant, plan: &Plan<Op>, planned: Duration, all: Duration, plain: Duration) {
        self.plan.push(planned);
        self.ours.push(all);
        self.plain.push(plain);
        self.bytes = plan.steps.iter().map(|step| restore::text(step, variant).len()).sum();
    }
}

fn report(variant: Variant, services: u32, endpoints: u32, what: &str, samples: &Samples) {
    let (ours, plain) = (median(&samples.ours), median(&samples.plain));
    println!(
        "| {variant} | {services} x {endpoints} | {what} | {} | {:.2} | {:.1} | {:.1} | {:.3} |",
        if samples.bytes > 100_000 {
            format!("{:.1} MB", samples.bytes as f64 / 1e6)
        } else {
            format!("{:.1} KB", samples.bytes as f64 / 1e3)
        },
        milliseconds(median(&samples.plan)),
        milliseconds(ours),
        milliseconds(plain),
        ours.as_secs_f64() / plain.as_secs_f64(),
    );
}

fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[expect(clippy::disallowed_methods, reason = "a benchmark")]
fn now() -> Instant {
    Instant::now()
}

fn route(at: u32, endpoints: u32, of: u32) -> Route {
    let addr = |base: u32, at: u32| IpAddr::V4(Ipv4Addr::from_bits(base + at));
    let target = |n: u32| Target { addr: addr(0x0a80_0000, at * of + n), port: 8080, local: false };
    Route {
        protocol: Protocol::Tcp,
        frontends: [Frontend { kind: FrontendKind::ClusterIp, at: Some(addr(0x0a60_0000, at)), port: 80 }]
            .into(),
        policy: Arc::default(),
        external_policy: TrafficPolicy::Cluster,
        cluster: (0..endpoints).map(target).collect(),
        local: Box::default(),
        any_endpoint: true,
        lost: Box::default(),
        endpoints,
        kept: Box::default(),
    }
}

fn environment() -> Environment {
    Environment {
        family: Family::V4,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs(["10.128.0.0/10".parse().expect("a network")].into()),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: true,
        refused_on_localhost: Box::default(),
        loopback_node_ports: Box::default(),
        service_cidrs: Box::default(),
        node_ips: Box::default(),
        interface_addresses: Box::default(),
    }
}
