//! Measures what a packet costs that has nothing to do with a Service, and one of an established connection:
//! `cargo run --release -p backend-nft --example forwarding [runs]`.
//!
//! Datagrams pass from one pod towards another through the node, and are dropped in the forward hook after all rules, with
//! a single `dnat` rule (the least there can be), with our rules for 1,000 Services, and with rules in the shape of
//! kube-proxy's.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use proxy_core::{
    environment::NodePortAddresses,
    model::{Family, Protocol},
};
use support::{
    enter_node,
    flood::flood,
    load, pod,
    routes::{Build, Proxy, environment, named, route, target},
    run, within,
};

const PACKETS: u32 = 200_000;
const VIP: &str = "172.30.0.1";
const POD: &str = "10.0.2.1";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    One,
    Ours,
    KubeProxys,
}

fn main() {
    let runs: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    enter_node();
    pod(1);
    pod(2);
    run("ip route add 10.100.0.0/16 dev vpod1");
    run("ip neigh replace 10.0.2.1 lladdr 02:00:00:00:00:01 dev vpod2 nud reachable");
    run("ip -n pod2 link set eth0 address 02:00:00:00:00:01");
    let kinds = [Rules::One, Rules::Ours, Rules::KubeProxys];
    let mut costs = vec![[const { Vec::new() }; 3]; kinds.len()];
    println!("load average: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    for _ in 0..runs {
        for (at, kind) in kinds.into_iter().enumerate() {
            install(kind);
            costs[at][0].push(new_connections());
            costs[at][1].push(established(format!("{POD}:8080")));
            costs[at][2].push(established(format!("{VIP}:80")));
            run("nft flush ruleset");
        }
    }
    println!(
        "ns for a packet: of a new connection to a pod, of an established one to a pod, of one to a Service"
    );
    for (name, costs) in ["one dnat rule", "ours", "in the shape of kube-proxy's"].iter().zip(&mut costs) {
        let [new, to_pod, to_service] = costs.each_mut().map(|costs| middle(costs));
        println!("{name}: {new}, {to_pod}, {to_service}");
    }
}

fn middle(costs: &mut [u64]) -> String {
    costs.sort_unstable();
    format!("{} ({} to {})", costs[costs.len() / 2], costs[0], costs[costs.len() - 1])
}

fn install(rules: Rules) {
    match rules {
        Rules::One => {
            let text = format!(
                "add table ip one
add chain ip one n {{ type nat hook prerouting priority -100; }}
add rule ip one n ip daddr {VIP} udp dport 80 dnat to {POD}:8080"
            );
            load("nft", &text).expect("nft takes it");
        }
        Rules::Ours => {
            let routes = (0..1000_u32).map(|number| {
                let vip = Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 30, 0, 1)) + number);
                let targets: Vec<_> = if number == 0 {
                    vec![target(POD)]
                } else {
                    (0..10)
                        .map(|at| target(&Ipv4Addr::from(0x0a40_0000 + number * 10 + at).to_string()))
                        .collect()
                };
                let mut route = route(&targets).cluster_ip(&vip.to_string());
                route.protocol = Protocol::Udp;
                (named(&format!("service-{number}"), Protocol::Udp), route)
            });
            // As `nodePortAddresses` is by default in this mode.
            let mut environment = environment(Family::V4);
            environment.node_ports =
                NodePortAddresses::Only(Box::new(["203.0.113.254".parse().expect("literal")]));
            Proxy::with(environment).full(routes.collect());
        }
        Rules::KubeProxys => {
            load("nft", &support::kube_proxy_rules(VIP, "udp", &[POD])).expect("nft takes it");
        }
    }
}

/// Everything that gets through all other rules ends here.
fn drop_behind() {
    let rules = "add table ip end
add chain ip end f { type filter hook forward priority 10; }
add rule ip end f ip saddr 10.0.0.0/8 drop";
    load("nft", rules).expect("nft takes it");
}

fn new_connections() -> u64 {
    drop_behind();
    let start = Instant::now();
    let sent = flood("pod1", vec![(POD.parse().expect("literal"), 8080)], PACKETS).wait();
    let took = start.elapsed();
    run("nft delete table ip end");
    nanoseconds(took, sent)
}

/// A connection on which there was an answer; its further packets are measured.
fn established(to: String) -> u64 {
    let server = within(Some("pod2"), || UdpSocket::bind("0.0.0.0:8080").expect("the port is free"));
    let timeout = Some(Duration::from_secs(2));
    server.set_read_timeout(timeout).expect("a timeout can be set");
    let client = within(Some("pod1"), || UdpSocket::bind("0.0.0.0:0").expect("there is a port"));
    client.set_read_timeout(timeout).expect("a timeout can be set");
    let to: SocketAddr = to.parse().expect("an address");
    client.connect(to).expect("there is a route");
    client.send(b"?").expect("it is sent");
    let mut buffer = [0; 8];
    let (_, from) = server.recv_from(&mut buffer).expect("it arrives");
    server.send_to(b"!", from).expect("it is sent");
    client.recv(&mut buffer).expect("the answer arrives");
    client.send(b"?").expect("it is sent");
    drop_behind();
    let start = Instant::now();
    let mut sent = 0;
    for _ in 0..PACKETS {
        sent += u32::from(client.send(b"?").is_ok());
    }
    let took = start.elapsed();
    run("nft delete table ip end");
    nanoseconds(took, sent)
}

fn nanoseconds(took: Duration, packets: u32) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / u64::from(packets.max(1))
}
