//! How many rules and look-ups each kind of packet meets, counted from the rules themselves: a rule more is a line here.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use proxy_core::{
    environment::NodePortAddresses,
    model::{Protocol, TrafficPolicy},
    route::{AllowedSources, Frontend, FrontendKind, Route, Target},
};

use super::history::{NODE, OUTSIDE, POD, World, cluster_ip, load_balancer, name};
use crate::model::{Met, Moment, Packet};

const ENDPOINT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 1));

fn service(number: u8, more: Vec<Frontend>) -> Route {
    let target =
        |number: u8| Target { addr: Ipv4Addr::new(10, 0, 2, number).into(), port: 8080, local: false };
    let mut frontends =
        vec![Frontend { kind: FrontendKind::ClusterIp, at: Some(cluster_ip(number)), port: 80 }];
    frontends.extend(more);
    Route {
        policy: Arc::default(),
        protocol: Protocol::Tcp,
        frontends: frontends.into(),
        external_policy: TrafficPolicy::Cluster,
        any_endpoint: true,
        cluster: (1..=10).map(target).collect(),
        local: Box::new([]),
        lost: Box::default(),
        endpoints: 0,
        kept: Box::default(),
    }
}

fn world(routes: Vec<Route>) -> World {
    let mut world = World::new();
    world.environment.node_ports = NodePortAddresses::Only(Box::new([NODE]));
    for (number, route) in (0..).zip(routes) {
        world.routes.insert(name(number), Arc::new(route));
    }
    world.start_over(false).expect("taken");
    world
}

fn packet(source: IpAddr, interface: Option<&str>, to: IpAddr, port: u16) -> Packet {
    let to = SocketAddr::new(to, port);
    Packet { source, interface: interface.map(Into::into), protocol: Protocol::Tcp, to, priority: 0 }
}

fn from_pod(to: IpAddr, port: u16) -> Packet {
    packet(POD, Some("pod1"), to, port)
}

/// Hooks, rules, look-ups.
fn meets(world: &mut World, packet: &Packet, moment: Moment) -> (u32, u32, u32) {
    let Met { hooks, rules, look_ups } = world.model.meets(packet, moment, &[NODE]);
    (hooks, rules, look_ups)
}

#[test]
fn what_is_no_services_meets_one_look_up_and_then_none() {
    let mut world = world(vec![service(0, Vec::new())]);
    let elsewhere = from_pod(ENDPOINT, 8080);
    assert_eq!(meets(&mut world, &elsewhere, Moment::First), (3, 7, 1));
    assert_eq!(meets(&mut world, &elsewhere, Moment::Unanswered { translated: false }), (1, 4, 0));
    assert_eq!(meets(&mut world, &elsewhere, Moment::Established { translated: false }), (1, 1, 0));
    // Into the node, and out of it.
    let to_node = from_pod(NODE, 22);
    assert_eq!(meets(&mut world, &to_node, Moment::First), (2, 5, 1));
    assert_eq!(meets(&mut world, &to_node, Moment::Established { translated: false }), (1, 1, 0));
    let from_node = packet(NODE, None, ENDPOINT, 8080);
    assert_eq!(meets(&mut world, &from_node, Moment::First), (3, 7, 1));
    assert_eq!(meets(&mut world, &from_node, Moment::Established { translated: false }), (1, 1, 0));
}

#[test]
fn a_services_first_packet_meets_four_look_ups_and_the_rest_none() {
    let mut world = world(vec![service(0, Vec::new())]);
    let to_service = from_pod(cluster_ip(0), 80);
    assert_eq!(meets(&mut world, &to_service, Moment::First), (3, 13, 4));
    let translated = from_pod(ENDPOINT, 8080);
    assert_eq!(meets(&mut world, &translated, Moment::Unanswered { translated: true }), (1, 5, 0));
    assert_eq!(meets(&mut world, &translated, Moment::Established { translated: true }), (1, 1, 0));
}

#[test]
fn rules_that_look_into_an_empty_set_are_absent() {
    let plain = || vec![service(0, Vec::new())];
    let external = || Frontend { kind: FrontendKind::LoadBalancerIp, at: Some(load_balancer(0)), port: 80 };
    let node_port = Frontend { kind: FrontendKind::NodePort, at: None, port: 30_080 };
    let elsewhere = from_pod(ENDPOINT, 8080);
    let first = |routes| meets(&mut world(routes), &elsewhere, Moment::First);
    assert_eq!(first(plain()), (3, 7, 1));
    // An address outside the Service networks: one more look-up where packets go on, none on the way in.
    assert_eq!(first(vec![service(0, vec![external()])]), (3, 8, 2));
    // Source ranges: nothing at all for those who do not go there.
    let sources = AllowedSources {
        ranges: Box::new(["192.168.50.0/24".parse().expect("a network")]),
        own_vips: Box::new([]),
    };
    let route = service(0, vec![external()]).under(|policy| policy.sources = Some(Arc::new(sources)));
    let mut restricted = world(vec![route]);
    assert_eq!(meets(&mut restricted, &elsewhere, Moment::First), (3, 8, 2));
    let allowed = packet(OUTSIDE, Some("eth0"), load_balancer(0), 80);
    assert_eq!(meets(&mut restricted, &allowed, Moment::First), (3, 14, 4));
    // NodePorts: the node's address is asked for, and no more.
    let mut node_ports = world(vec![service(0, vec![node_port])]);
    assert_eq!(meets(&mut node_ports, &elsewhere, Moment::First), (3, 8, 2));
    assert_eq!(meets(&mut node_ports, &elsewhere, Moment::Established { translated: false }), (1, 1, 0));
}

#[test]
fn only_an_invalid_packet_is_compared_with_endpoints() {
    let mut world = world(vec![service(0, Vec::new())]);
    let answer = packet(ENDPOINT, Some("eth0"), POD, 40_000);
    assert_eq!(meets(&mut world, &answer, Moment::Invalid), (1, 4, 1));
}
