//! The main job on a small cluster of its own: a node in network namespaces, an API server, kube-proxy for real,
//! traffic through every kind of address, endpoints that come and go while a client runs, and an account of it.
//!
//! Everything lives in namespaces of this process and goes with it.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use integration::{
    lab::{Lab, Mode, Options, To, cluster_ip, load_balancer, node_address, service, slices},
    network::{
        Family, Outcome,
        Place::{self, Client, Node, PodA, PodB, PodC, PodD, PodE},
        Probe,
        Protocol::Tcp,
    },
};

const CONNECTIONS: usize = 60;
/// A change must be in force after so long, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the client runs on after an endpoint was removed.
const AFTERWARDS: Duration = Duration::from_millis(500);
const ROUNDS: usize = 20;

/// Shows kube-proxy at work on a cluster that exists only for the demonstration.
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value_t = ModeName::Nftables)]
    mode: ModeName,
    /// Also print the rules that the kernel holds, as the admin tool lists them.
    #[arg(long)]
    rules: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ModeName {
    Nftables,
    Iptables,
    /// Where the kernel has IPVS.
    Ipvs,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(nix::unistd::geteuid().is_root(), "the demonstration makes network namespaces: run it as root");
    let mode = match arguments.mode {
        ModeName::Nftables => Mode::Nftables,
        ModeName::Iptables => Mode::IptablesNft,
        ModeName::Ipvs => Mode::Ipvs,
    };
    if matches!(arguments.mode, ModeName::Ipvs) {
        ensure!(std::path::Path::new("/proc/net/ip_vs").exists(), "this kernel has no IPVS (module ip_vs)");
    }

    heading("A node, its pods, a second node, a client; an API server; kube-proxy");
    let mut lab = Lab::start(Options { mode, ..Options::default() })?;
    println!("  node      {}   pods pod-a, pod-b, pod-c", Node.address(Family::V4));
    println!("  node2     {}   pods pod-d, pod-e", Place::Node2.address(Family::V4));
    println!("  client    {}  outside the cluster", Client.address(Family::V4));

    heading("Service web: ClusterIP, NodePort 30080 and LoadBalancer, three endpoints");
    let endpoints = |places: &[Place]| slices("web").port("http", 8080, Tcp).ready(places);
    lab.apply(service("web", 1).port("http", 80, Tcp).node_port(30080).load_balancer(10));
    lab.apply(endpoints(&[PodA, PodB, PodD]));
    let ways = [
        ("pod-c  to the ClusterIP   ", PodC, cluster_ip(1, Tcp, 80)),
        ("node   to the ClusterIP   ", Node, cluster_ip(1, Tcp, 80)),
        ("client to the NodePort    ", Client, node_address(0, Tcp, 30080)),
        ("client to the LoadBalancer", Client, load_balancer(10, Tcp, 80)),
    ];
    for family in Family::BOTH {
        println!("  {family:?}: {CONNECTIONS} connections each; who answered, and whom the endpoint saw");
        for (what, from, to) in ways {
            println!(
                "    {what} {:<26} {}",
                to.address(family).to_string(),
                spread(&mut lab, from, to, family)?
            );
        }
    }

    heading("An endpoint comes and goes while pod-c keeps connecting to the ClusterIP");
    let web = cluster_ip(1, Tcp, 80);
    let appeared = watch(
        &mut lab,
        web,
        |lab| lab.apply(endpoints(&[PodA, PodB, PodD, PodE])),
        |seen| seen.contains_key("pod-e"),
    )?;
    println!(
        "  pod-e added:   its first connection came {} after the API was told ({} connections meanwhile, none failed)",
        in_ms(appeared.effect),
        appeared.connections
    );
    let vanished = watch_absence(&mut lab, web, |lab| lab.apply(endpoints(&[PodA, PodB, PodD])), "pod-e")?;
    let last = vanished.effect.map_or_else(
        || "no connection reached it after the API was told".to_owned(),
        |last| format!("the last connection that reached it began {} after the API was told", in_ms(last)),
    );
    println!("  pod-e removed: {last} ({} connections meanwhile, none failed)", vanished.connections);

    heading("How long from the API to the packet: one endpoint is exchanged for another, again and again");
    lab.apply(service("solo", 2).port("http", 80, Tcp));
    lab.apply(slices("solo").port("http", 8080, Tcp).ready(&[PodA]));
    lab.settle();
    let solo = cluster_ip(2, Tcp, 80);
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let (next, name) = if round % 2 == 0 { (PodB, "pod-b") } else { (PodA, "pod-a") };
        let change = |lab: &mut Lab| lab.apply(slices("solo").port("http", 8080, Tcp).ready(&[next]));
        times.push(watch(&mut lab, solo, change, |seen| seen.contains_key(name))?.effect);
    }
    times.sort_unstable();
    println!(
        "  {ROUNDS} changes: median {}, fastest {}, slowest {} (with the time that the connections themselves take)",
        in_ms(times[ROUNDS / 2]),
        in_ms(times[0]),
        in_ms(times[ROUNDS - 1])
    );

    heading("What the kernel holds now");
    let (program, options): (&str, &[&str]) = match arguments.mode {
        ModeName::Nftables => ("nft", &["list", "ruleset"]),
        ModeName::Iptables => ("iptables-nft-save", &[]),
        ModeName::Ipvs => ("ipvsadm", &["-Ln"]),
    };
    let listed = lab.network.namespace(Node).output(Command::new(program).args(options))?;
    let listing = String::from_utf8_lossy(&listed.stdout);
    let command = [&[program], options].concat().join(" ");
    println!("  `{command}`: {} lines", listing.lines().count());
    if arguments.rules {
        println!("\n{listing}");
    } else {
        println!("  (--rules prints them)");
    }
    heading("What it says of itself: who gets a client's traffic, and why; who has the connections");
    let client = Client.address(Family::V4).to_string();
    let (code, said) = lab.verb(&["explain", &client, &format!("{}:30080", Node.address(Family::V4))]);
    print!("{}", indented(&said));
    ensure!(code == 0, "explain ended with {code}, and the Service serves");
    let (code, said) = top(&lab, web.address(Family::V4))?;
    print!("{}", indented(&said));
    ensure!(code == 0, "top ended with {code}");
    lab.stop_proxy()?;
    let after = lab.network.probe_one(PodC, Probe::new(Tcp, web.address(Family::V4)))?;
    ensure!(matches!(after, Outcome::Answered { .. }), "the rules did not outlive kube-proxy: {after}");
    println!("  kube-proxy was ended; its rules stay in force, as they must during an upgrade.");
    drop(lab);
    println!("\nNothing is left behind: the namespaces are gone with this process.");
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}").trim_end().to_owned() + "\n").collect()
}

/// What `top` says while pod-c connects to an address.
fn top(lab: &Lab, to: std::net::SocketAddr) -> Result<(i32, String)> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                lab.network.probe(PodC, &vec![Probe::new(Tcp, to); 8])?;
            }
            Ok(())
        });
        let said = lab.verb(&["top", "endpoints", "--once", "--interval", "1s"]);
        done.store(true, Ordering::Relaxed);
        clients.join().expect("a client does not panic")?;
        Ok(said)
    })
}

fn in_ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Connects many times and says who answered and which sources they saw.
fn spread(lab: &mut Lab, from: Place, to: To, family: Family) -> Result<String> {
    lab.settle();
    let probes = vec![Probe::new(Tcp, to.address(family)); CONNECTIONS];
    let mut answers: BTreeMap<String, usize> = BTreeMap::new();
    let mut sources: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in lab.network.probe(from, &probes)? {
        let Outcome::Answered { answer, .. } = outcome else {
            bail!("a connection from {} failed: {outcome}", from.name())
        };
        *answers.entry(answer.by).or_default() += 1;
        *sources.entry(answer.seen_source.ip().to_string()).or_default() += 1;
    }
    let list: Vec<String> = answers.iter().map(|(name, count)| format!("{name} {count}x")).collect();
    let seen: Vec<String> = sources.into_keys().collect();
    Ok(format!("{}; saw {}", list.join(", "), seen.join(", ")))
}

/// What a client saw around a change.
struct Observed<T> {
    effect: T,
    connections: usize,
}

#[expect(clippy::disallowed_methods, reason = "the demonstration measures time")]
fn now() -> Instant {
    Instant::now()
}

/// Makes a change while connecting without a pause, until what was seen satisfies `enough`.
fn watch(
    lab: &mut Lab,
    to: To,
    change: impl FnOnce(&mut Lab),
    enough: impl Fn(&BTreeMap<String, usize>) -> bool,
) -> Result<Observed<Duration>> {
    lab.settle();
    let start = now();
    change(lab);
    let mut seen = BTreeMap::new();
    let mut connections = 0;
    loop {
        connections += 1;
        *seen.entry(connect(lab, to)?).or_default() += 1;
        if enough(&seen) {
            return Ok(Observed { effect: start.elapsed(), connections });
        }
        ensure!(start.elapsed() < PATIENCE, "the change is not in force after {PATIENCE:?}: {seen:?}");
    }
}

/// Makes a change that removes an endpoint while connecting, and tells when that endpoint answered last.
fn watch_absence(
    lab: &mut Lab,
    to: To,
    change: impl FnOnce(&mut Lab),
    gone: &str,
) -> Result<Observed<Option<Duration>>> {
    lab.settle();
    let start = now();
    change(lab);
    let (mut last, mut connections) = (None, 0);
    while start.elapsed() < AFTERWARDS {
        connections += 1;
        let asked = start.elapsed();
        if connect(lab, to)? == gone {
            last = Some(asked);
        }
    }
    ensure!(last.is_none_or(|last| last < AFTERWARDS / 2), "{gone} still answers after it was removed");
    Ok(Observed { effect: last, connections })
}

/// One connection; a failed one ends the demonstration.
fn connect(lab: &Lab, to: To) -> Result<String> {
    let outcome = lab.network.probe_one(PodC, Probe::new(Tcp, to.address(Family::V4)))?;
    match outcome {
        Outcome::Answered { answer, .. } => Ok(answer.by),
        other => Err(anyhow::anyhow!("{other}")).context("a connection failed"),
    }
}
