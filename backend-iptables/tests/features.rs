//! What the iptables rules do that no other mode does alike, with real TCP.

mod rig;

use std::{collections::BTreeSet, io, net::IpAddr, net::SocketAddr};

use backend_iptables::Variant;
use proxy_core::{
    model::{Family, TrafficPolicy},
    route::{AllowedSources, FrontendKind, Route},
};
use rig::{Node, Proxy, cluster_ip, frontend, name, target};

fn in_both_variants(test: fn(Variant)) {
    for variant in [Variant::Legacy, Variant::Nft] {
        let thread = std::thread::Builder::new().name(variant.to_string()).spawn(move || test(variant));
        thread.expect("a thread").join().unwrap_or_else(|_| panic!("fails in the {variant} variant"));
    }
}

fn vip() -> IpAddr {
    "203.0.113.20".parse().expect("an address")
}

/// A load balancer IP and a node port in front of both servers, the first of which counts as this node's.
fn exposed(node: &Node) -> Route {
    let [a, b] = &node.servers;
    let endpoints = [target(a.addr, 8080, true), target(b.addr, 8080, false)];
    let at = "10.96.0.10".parse().expect("an address");
    Route {
        frontends: [
            frontend(FrontendKind::ClusterIp, Some(at), 80),
            frontend(FrontendKind::LoadBalancerIp, Some(vip()), 80),
            frontend(FrontendKind::NodePort, None, 30080),
        ]
        .into(),
        local: [endpoints[0]].into(),
        external_policy: TrafficPolicy::Local,
        ..cluster_ip(at, 80, &endpoints)
    }
}

fn served() -> Node {
    let node = Node::new(Family::V4);
    let [a, b] = &node.servers;
    a.serve("a", 8080);
    b.serve("b", 8080);
    node
}

fn answers(connect: impl Fn() -> io::Result<rig::Answer>) -> BTreeSet<(String, IpAddr)> {
    (0..30)
        .map(|_| connect().expect("the Service answers"))
        .map(|answer| (answer.server, answer.source))
        .collect()
}

#[test]
fn policy_local_keeps_sources_from_outside_and_spares_pods_and_the_node() {
    in_both_variants(|variant| {
        let node = served();
        let [a, b] = &node.servers;
        let mut proxy = Proxy::new(variant, node.environment());
        proxy.routes = vec![(name("web", "http"), exposed(&node).into())];
        proxy.full().expect("taken");
        let gateway = node.outside.gateway;
        for (to, port) in [(vip(), 80), (gateway, 30080)] {
            let outside = answers(|| node.outside.connect(to, port));
            assert_eq!(outside, BTreeSet::from([("a".to_owned(), node.outside.addr)]), "{to}:{port}");
            let pod = answers(|| node.client.connect(to, port));
            let both = ["a", "b"].map(|server| (server.to_owned(), node.client.addr));
            assert_eq!(pod, BTreeSet::from(both), "{to}:{port}");
            let own = answers(|| rig::connect(to, port));
            let both = [("a".to_owned(), a.gateway), ("b".to_owned(), b.gateway)];
            assert_eq!(own, BTreeSet::from(both), "{to}:{port}");
        }
    });
}

#[test]
fn a_source_outside_the_ranges_is_dropped_at_the_load_balancer_ip_only() {
    in_both_variants(|variant| {
        let node = served();
        let mut route = exposed(&node);
        let ranges = ["10.244.0.0/16".parse().expect("a network")];
        route.policy_mut().sources =
            Some(AllowedSources { ranges: ranges.into(), own_vips: Box::default() }.into());
        let mut proxy = Proxy::new(variant, node.environment());
        proxy.routes = vec![(name("web", "http"), route.into())];
        proxy.full().expect("taken");
        let dropped = node.outside.connect(vip(), 80).expect_err("not in the ranges");
        assert_eq!(dropped.kind(), io::ErrorKind::TimedOut);
        node.client.connect(vip(), 80).expect("in the ranges");
        node.outside.connect(node.outside.gateway, 30080).expect("ranges do not hold for node ports");
    });
}

#[test]
fn node_ports_answer_on_127_0_0_1_where_they_are_wanted_there() {
    in_both_variants(|variant| {
        let node = served();
        let mut proxy = Proxy::new(variant, node.environment());
        proxy.environment.localhost_node_ports = true;
        proxy.routes = vec![(name("web", "http"), exposed(&node).into())];
        proxy.full().expect("taken");
        let localhost = "127.0.0.1".parse().expect("an address");
        rig::connect(localhost, 30080).expect("a node port on loopback");
        let accepted =
            backend_iptables::accounting::packets(backend_iptables::accounting::LOCALHOST_ACCEPTED);
        assert_eq!(accepted.expect("netlink works"), Some(1), "one connection is counted");

        // route_localnet alone would let a neighbour reach what listens on loopback.
        rig::serve_tcp("private", SocketAddr::new(localhost, 9000));
        rig::connect(localhost, 9000).expect("the node itself may");
        let gateway = node.outside.gateway;
        let stolen = node.outside.run(move || {
            rig::ip("addr add 127.0.0.7/32 dev lo");
            rig::ip("addr del 127.0.0.1/8 dev lo");
            rig::ip("link set lo down");
            rig::run("echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet");
            rig::ip(&format!("route add 127.0.0.1/32 via {gateway}"));
            rig::connect("127.0.0.1".parse().expect("an address"), 9000)
        });
        assert!(stolen.is_err(), "{stolen:?}");
        proxy.environment.localhost_node_ports = false;
        proxy.full().expect("taken");
        rig::connect(localhost, 30080).expect_err("not wanted any more");
    });
}
