//! Measures what a new connection to a Service costs: `cargo run --release -p backend-nft --example connections`.
//!
//! Datagrams of new flows to random Services pass from a pod through the node's rules, and are dropped in the forward hook
//! after them, so that what is measured is the choice and the translation, with our rules and with rules in the shape of
//! kube-proxy's nftables mode.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{net::Ipv4Addr, time::Instant};

use proxy_core::{
    model::{Family, Protocol, ServicePortName},
    route::Route,
};
use support::{
    enter_node,
    flood::flood,
    load, pod,
    routes::{Build, Proxy, ip, named, route},
    run,
};

const FLOWS: u32 = 100_000;

fn main() {
    let runs: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    enter_node();
    pod(1);
    pod(2);
    run("ip route add 10.100.0.0/16 dev vpod1");
    run("ip route add 10.64.0.0/10 dev vpod2");
    load(
        "nft",
        "table ip end {
 chain f {
 type filter hook forward priority 10
 drop
 }
 }",
    )
    .expect("nft takes it");
    println!("load average: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    for services in [1, 1_000, 10_000] {
        let (mut none, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        let routes = routes(services);
        let text = kube_proxy_shape(services);
        for _ in 0..runs {
            none.push(cost(services));
            let mut proxy = Proxy::new(Family::V4);
            proxy.full(routes.clone());
            ours.push(cost(services));
            backend_nft::cleanup(Family::V4).expect("the table is there");
            load("nft", &text).expect("nft takes it");
            theirs.push(cost(services));
            backend_nft::cleanup(Family::V4).expect("the table is there");
        }
        println!(
            "{services} Services, ns for a new connection: no rules {}, ours {}, in the shape of kube-proxy's {}",
            middle(&mut none),
            middle(&mut ours),
            middle(&mut theirs)
        );
    }
}

fn middle(costs: &mut [u64]) -> String {
    costs.sort_unstable();
    format!("{} ({} to {})", costs[costs.len() / 2], costs[0], costs[costs.len() - 1])
}

fn vip(service: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 30, 0, 1)) + service as u32)
}

fn endpoint(service: usize, number: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + (service * 10 + number) as u32)
}

/// Nanoseconds for each of many flows to Services in random order.
fn cost(services: usize) -> u64 {
    let mut state = 1_u64;
    let to = (0..services.max(1000))
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (vip((state >> 33) as usize % services), 80)
        })
        .collect();
    let start = Instant::now();
    let sent = flood("pod1", to, FLOWS).wait();
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX) / u64::from(sent.max(1))
}

fn routes(services: usize) -> Vec<(ServicePortName, Route)> {
    (0..services)
        .map(|service| {
            let targets: Vec<_> = (0..10)
                .map(|number| proxy_core::route::Target {
                    addr: ip(&endpoint(service, number).to_string()),
                    port: 8080,
                    local: false,
                })
                .collect();
            let mut route = route(&targets).cluster_ip(&vip(service).to_string());
            route.protocol = Protocol::Udp;
            (named(&format!("service-{service:05}"), Protocol::Udp), route)
        })
        .collect()
}

fn kube_proxy_shape(services: usize) -> String {
    let mut text = support::kube_proxy_rules("172.29.0.1", "udp", &["10.64.0.1"]);
    for service in 0..services {
        let chain = format!("service-X{service:05}-test/web/udp/http");
        let slots: Vec<_> =
            (0..10).map(|number| format!("{number} : {} . 8080", endpoint(service, number))).collect();
        let (vip, slots) = (vip(service), slots.join(", "));
        text += &format!(
            "add chain ip kube-proxy {chain}
add rule ip kube-proxy {chain} ip daddr {vip} udp dport 80 ip saddr != 10.0.0.0/8 meta mark set mark or 0x4000
add rule ip kube-proxy {chain} meta l4proto udp dnat ip to numgen random mod 10 map {{ {slots} }}
add element ip kube-proxy service-ips {{ {vip} . udp . 80 : goto {chain} }}
"
        );
    }
    text
}
