//! How long one pass over a table with many connections takes, and what memory it needs.
//!
//! `conntrack_scale [entries] [stale] [tcp|udp]`: so many entries in a network namespace of its own, of that protocol
//! (udp unless told otherwise), so many of them UDP flows to endpoints that are gone. Needs root.

use std::{error::Error, net::IpAddr, sync::mpsc, time::Duration};

use netlink::{
    Pipeline, Socket,
    conntrack::{Flow, Tuple, protocol},
};
use nix::sched::{CloneFlags, unshare};
use proxy_core::{
    conntrack::FlowRule,
    environment::{EnvironmentSettings, LocalPods, NodeFacts, NodePortSettings},
    model::{Family, Protocol},
};

// rustfmt looks for its tests beside this file; it is formatted as part of the binary.
#[rustfmt::skip]
#[path = "../src/host/conntrack.rs"]
#[allow(dead_code, reason = "part of the binary, which uses all of it")]
mod conntrack;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u32| arguments.next().map_or(Ok(default), |given| given.parse());
    let (entries, stale) = (number(500_000)?, number(1_000)?);
    let bulk = if arguments.next().as_deref() == Some("tcp") { protocol::TCP } else { protocol::UDP };
    unshare(CloneFlags::CLONE_NEWNET)?;
    fill(entries, stale.min(entries), bulk)?;
    let before = resident()?;

    let (sender, told) = mpsc::channel();
    let reconciler = conntrack::ConntrackReconciler::spawn(
        false,
        |work| std::thread::Builder::new().spawn(work).map(drop),
        move |pass| {
            let _ = sender.send(pass);
        },
        |_, _| {},
    )?;
    let settings = EnvironmentSettings {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Unknown,
        node_ports: NodePortSettings::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
    };
    let environment = settings.resolve(Family::V4, &NodeFacts::default());
    for round in 1..=6 {
        reconciler.submit((0..1000).map(rule).collect(), &environment);
        let pass = told.recv_timeout(Duration::from_secs(60))?;
        let resident = resident()?;
        println!(
            "pass {round}: {entries} entries, {} deleted, {:?}, resident {resident} KiB ({:+} KiB)",
            pass.deleted,
            pass.took,
            resident as i64 - before as i64
        );
        if let Some(error) = pass.error {
            return Err(error.into());
        }
        if round < 6 {
            insert((0..stale.min(entries)).map(|n| flow(n, protocol::UDP, gone())))?;
        }
    }
    Ok(())
}

fn gone() -> IpAddr {
    IpAddr::from([10, 255, 0, 1])
}

fn service(n: u32) -> IpAddr {
    let [_, _, c, d] = (n % 1000).to_be_bytes();
    IpAddr::from([172, 30, c, d])
}

fn endpoint() -> IpAddr {
    IpAddr::from([10, 0, 0, 1])
}

/// One of a thousand DNS Services, all of which have one endpoint.
fn rule(n: u32) -> FlowRule {
    let frontend = (Protocol::Udp, Some(service(n)), 53);
    FlowRule {
        frontend,
        serving: [(endpoint(), 5353)].into(),
        translated: true,
        untranslated: true,
        urgent: true,
    }
}

fn flow(n: u32, protocol: u8, replier: IpAddr) -> Flow {
    let [_, b, c, d] = (n / 50_000).to_be_bytes();
    let (client, client_port) = (IpAddr::from([192, b, c, d]), 10_000 + (n % 50_000) as u16);
    let tuple = |source, source_port, destination, destination_port| Tuple {
        source,
        destination,
        protocol,
        source_port,
        destination_port,
        icmp: None,
    };
    Flow {
        original: tuple(client, client_port, service(n), 53),
        reply: tuple(replier, 5353, client, client_port),
        zone: 0,
        status: 0,
        id: None,
        timeout: 3600,
        mark: 0,
        tcp_state: (protocol == protocol::TCP).then_some(3),
    }
}

fn fill(entries: u32, stale: u32, bulk: u8) -> Result<(), Box<dyn Error>> {
    insert((0..stale).map(|n| flow(n, protocol::UDP, gone())))?;
    insert((stale..entries).map(|n| flow(n, bulk, endpoint())))
}

fn insert(flows: impl Iterator<Item = Flow>) -> Result<(), Box<dyn Error>> {
    let mut socket = Socket::open(netlink::Protocol::Netfilter)?;
    let mut requests = Pipeline::new();
    let mut flows = flows.peekable();
    while flows.peek().is_some() {
        requests.clear();
        for flow in flows.by_ref().take(10_000) {
            flow.push_insert(&mut requests);
        }
        if let Some(failure) = requests.run(&mut socket)?.into_iter().next() {
            return Err(format!("an entry was refused: {failure}").into());
        }
    }
    Ok(())
}

/// The resident size of this process in KiB.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no value")?.parse()?)
}
