//! Five incidents on a cluster of its own, and what the verbs say of them: the outputs in docs/insight.md are this program's.
//!
//! Everything lives in namespaces of this process and goes with it.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};
use integration::{
    lab::{Lab, Mode, Options, cluster_ip, service, slices},
    network::{
        Family,
        Place::{Client, Node, PodA, PodB, PodC, PodD, PodE},
        Probe,
        Protocol::Tcp,
    },
};
use serde_json::json;

/// Shows what an operator asks when something is wrong, and what is answered.
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, value_enum, default_value_t = ModeName::Nftables)]
    mode: ModeName,
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
    ensure!(nix::unistd::geteuid().is_root(), "this makes network namespaces: run it as root");
    let mode = match arguments.mode {
        ModeName::Nftables => Mode::Nftables,
        ModeName::Iptables => Mode::IptablesNft,
        ModeName::Ipvs => Mode::Ipvs,
    };
    let mut lab = Lab::start(Options { mode, ..Options::default() })?;
    without_traffic(&mut lab)?;
    foreign_drop(&mut lab)?;
    disputed(&mut lab)?;
    to_be_judged(&lab, mode);
    one_bad_endpoint(&mut lab)?;
    Ok(())
}

fn heading(text: &str) {
    println!("\n### {text}\n");
}

/// Runs a verb on the node, and prints what it says. Returns its exit code.
fn ask(lab: &Lab, line: &str) -> i32 {
    let words: Vec<&str> = line.split(' ').collect();
    let (code, said) = lab.verb(&words);
    println!("    $ kube-proxy {line}");
    said.lines().for_each(|line| println!("{}", format!("    {line}").trim_end()));
    println!("    (exit code {code})\n");
    code
}

/// A rolling update hangs: pod-b is not ready, and its owner wonders why it is idle.
fn without_traffic(lab: &mut Lab) -> Result<()> {
    heading("A pod without traffic");
    lab.apply(service("web", 1).port("http", 80, Tcp).node_port(30080));
    lab.apply(slices("web").port("http", 8080, Tcp).ready(&[PodA, PodD]).unready(&[PodB]));
    lab.settle();
    ask(lab, "endpoints lab/web");
    let question = format!("explain outside lab/web:http --why-not {}", PodB.address(Family::V4));
    ensure!(ask(lab, &question) == 0, "the Service serves");
    Ok(())
}

/// Somebody's hardening script dropped more than it should have.
fn foreign_drop(lab: &mut Lab) -> Result<()> {
    heading("A rule of somebody else's");
    let rules = "table inet hardening { chain forward { type filter hook forward priority 10; policy accept; \
                 ct state established accept; tcp dport 8080 drop comment \"no alternative HTTP ports\"; }; }";
    let nft = |rules: &str| lab.network.namespace(Node).output(Command::new("nft").arg(rules));
    nft(rules)?;
    let question = format!("explain {} lab/web:http", Client.address(Family::V4));
    let code = ask(lab, &question);
    nft("delete table inet hardening")?;
    ensure!(code == 2, "the rule that drops was not found");
    Ok(())
}

/// Two tenants name the same external address.
fn disputed(lab: &mut Lab) -> Result<()> {
    heading("An address that two Services claim");
    let since = |when: &str| json!(format!("{when}T08:00:00Z"));
    lab.apply(
        service("older", 2)
            .port("http", 80, Tcp)
            .external_ip(7)
            .set("/metadata/creationTimestamp", since("2024-03-01")),
    );
    lab.apply(
        service("younger", 3)
            .port("http", 80, Tcp)
            .external_ip(7)
            .set("/metadata/creationTimestamp", since("2026-06-01")),
    );
    for name in ["older", "younger"] {
        lab.apply(slices(name).port("http", 8080, Tcp).ready(&[PodA]));
    }
    lab.settle();
    ask(lab, "services -A");
    ask(lab, "services lab/younger");
    Ok(())
}

/// What would another mode change on this node, and for this cluster?
fn to_be_judged(lab: &Lab, mode: Mode) {
    heading("A change of mode, judged before it is made");
    let other = if mode == Mode::Nftables { "iptables" } else { "nftables" };
    ask(lab, &format!("plan --mode {other}"));
    ask(lab, &format!("migrate check --to {other} -A"));
}

/// One endpoint of a Service refuses connections.
fn one_bad_endpoint(lab: &mut Lab) -> Result<()> {
    heading("One bad endpoint");
    lab.apply(service("shop", 4).port("http", 80, Tcp));
    lab.apply(slices("shop").port("http", 8080, Tcp).ready(&[PodA, PodB, PodD]));
    // Nobody listens there.
    lab.apply(slices("shop").named("canary").port("http", 9999, Tcp).ready(&[PodE]));
    lab.settle();
    let to = cluster_ip(4, Tcp, 80).address(Family::V4);
    let done = AtomicBool::new(false);
    let lab = &*lab;
    thread::scope(|scope| {
        let clients = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                lab.network.probe(PodC, &vec![Probe::new(Tcp, to); 8])?;
            }
            Ok(())
        });
        ask(lab, "top endpoints --once");
        done.store(true, Ordering::Relaxed);
        clients.join().expect("a client does not panic")
    })
}
