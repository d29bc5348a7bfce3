//! What becomes of packets, by the rules as written.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use proptest::prelude::*;
use proxy_core::{
    environment::{LocalPods, NodePortAddresses},
    model::{Family, Protocol, TrafficPolicy},
    route::{AllowedSources, Answer, Frontend, FrontendKind, Route, Target},
};

use super::{Bench, addr, environment, exposed_web, local_web, web};
use crate::model::{Fate, Packet};

const POD: (&str, Option<&str>) = ("10.244.0.77", Some("veth1"));
const OUTSIDE: (&str, Option<&str>) = ("198.51.100.7", Some("eth0"));
const STRANGER: (&str, Option<&str>) = ("192.0.2.1", Some("eth0"));
const NODE: (&str, Option<&str>) = ("192.168.10.1", None);

const CLUSTER_IP: &str = "10.96.0.10:80";
const EXTERNAL_IP: &str = "203.0.113.10:80";
const BALANCER_IP: &str = "203.0.113.20:80";
const NODE_PORT: &str = "192.168.10.1:30080";

fn local(addr: IpAddr) -> bool {
    addr.is_loopback() || addr == super::addr("192.168.10.1") || addr == super::addr("fd00:10::1")
}

fn fates(bench: &Bench, (source, interface): (&str, Option<&str>), to: &str) -> BTreeSet<Fate> {
    let to: SocketAddr = to.parse().expect("a socket address");
    bench.model.fates(&Packet { source: addr(source), interface, protocol: Protocol::Tcp, to }, &local)
}

fn to(targets: &[Target], masqueraded: bool) -> BTreeSet<Fate> {
    let socket = |target: &Target| SocketAddr::new(target.addr, target.port);
    targets.iter().map(|target| Fate::Translated { to: socket(target), masqueraded }).collect()
}

fn only(fate: Fate) -> BTreeSet<Fate> {
    BTreeSet::from([fate])
}

/// What the route says of a packet, without a look at any rule.
fn answer(route: &Route, frontend: &Frontend, from: (&str, Option<&str>)) -> BTreeSet<Fate> {
    let allowed = route.sources(frontend).is_none_or(|sources| {
        let source = addr(from.0);
        sources.ranges.iter().any(|range| range.contains(&source)) || sources.own_vips.contains(&source)
    });
    let external = frontend.kind != FrontendKind::ClusterIp;
    let masqueraded = if external { route.masquerades_always(frontend) } else { from != POD };
    match route.answer(frontend) {
        // kube-proxy's chain for refusals of external traffic is not on the way out of the node.
        Answer::Reject if external && from == NODE => only(Fate::Passed),
        Answer::Reject => only(Fate::Rejected),
        _ if !allowed => only(Fate::Dropped),
        Answer::Drop => only(Fate::Dropped),
        Answer::To(targets) => to(targets, masqueraded),
        Answer::Local { anywhere, .. } if from == POD => to(anywhere, false),
        Answer::Local { anywhere, .. } if from == NODE => to(anywhere, true),
        Answer::Local { here: [], .. } => only(Fate::Dropped),
        Answer::Local { here, .. } => to(here, false),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_frontend_answers_as_the_route_says(route in super::history::route(3)) {
        let bench = Bench::with(environment(Family::V4), [("web", route.clone())]);
        for frontend in &route.frontends {
            let at = SocketAddr::new(frontend.at.unwrap_or_else(|| addr(NODE.0)), frontend.port);
            for from in [POD, OUTSIDE, STRANGER, NODE] {
                prop_assert_eq!(
                    fates(&bench, from, &at.to_string()),
                    answer(&route, frontend, from),
                    "{:?} to {}", from, at
                );
            }
        }
    }
}

#[test]
fn a_cluster_ip_leads_to_every_endpoint_and_masquerades_what_comes_from_outside() {
    let bench = Bench::with(environment(Family::V4), [("web", web())]);
    let all = web().cluster;
    assert_eq!(fates(&bench, POD, CLUSTER_IP), to(&all, false));
    assert_eq!(fates(&bench, OUTSIDE, CLUSTER_IP), to(&all, true));
    assert_eq!(fates(&bench, NODE, CLUSTER_IP), to(&all, true));
    assert_eq!(fates(&bench, POD, "10.96.0.10:81"), only(Fate::Passed));
    assert_eq!(fates(&bench, POD, "10.96.0.11:80"), only(Fate::Passed));
}

#[test]
fn an_endpoint_that_reaches_itself_is_masqueraded() {
    let bench = Bench::with(environment(Family::V4), [("web", web())]);
    let from_itself = fates(&bench, ("10.244.0.5", Some("veth0")), CLUSTER_IP);
    let [itself, other] = &*web().cluster else { panic!("two endpoints") };
    assert_eq!(from_itself, &to(&[*itself], true) | &to(&[*other], false));
}

#[test]
fn masquerade_all_spares_nobody() {
    let mut environment = environment(Family::V4);
    environment.masquerade_all = true;
    let bench = Bench::with(environment, [("web", web())]);
    assert_eq!(fates(&bench, POD, CLUSTER_IP), to(&web().cluster, true));
}

#[test]
fn without_a_detector_cluster_ips_are_not_masqueraded() {
    let mut environment = environment(Family::V4);
    environment.local_pods = LocalPods::Unknown;
    let bench =
        Bench::with(environment, [("web", web()), ("local", Route { frontends: Box::default(), ..web() })]);
    assert_eq!(fates(&bench, OUTSIDE, CLUSTER_IP), to(&web().cluster, false));
}

#[test]
fn pods_are_told_by_network_bridge_or_interface_prefix() {
    let network = |text: &str| text.parse().expect("a network");
    let two = LocalPods::Cidrs([network("10.244.0.0/24"), network("10.245.0.0/24")].into());
    for detector in [LocalPods::Bridge("cni0".into()), LocalPods::InterfacePrefix("cni".into()), two] {
        let mut environment = environment(Family::V4);
        environment.local_pods = detector.clone();
        let bench = Bench::with(environment, [("web", local_web())]);
        let all = &*web().cluster;
        for (source, interface, is_pod) in
            [("10.244.0.77", "cni0", true), ("10.245.0.9", "cni0", true), ("198.51.100.7", "eth0", false)]
        {
            let from = (source, Some(interface));
            assert_eq!(fates(&bench, from, CLUSTER_IP), to(all, !is_pod), "{detector:?} {source}");
            let external = if is_pod { to(all, false) } else { to(&local_web().local, false) };
            assert_eq!(fates(&bench, from, BALANCER_IP), external, "{detector:?} {source}");
        }
    }
}

#[test]
fn external_traffic_is_masqueraded_under_policy_cluster() {
    let bench = Bench::with(environment(Family::V4), [("web", exposed_web())]);
    for at in [EXTERNAL_IP, BALANCER_IP, NODE_PORT] {
        for from in [POD, OUTSIDE, NODE] {
            assert_eq!(fates(&bench, from, at), to(&web().cluster, true), "{at} {from:?}");
        }
    }
    assert_eq!(
        fates(&bench, OUTSIDE, "198.51.100.9:30080"),
        only(Fate::Passed),
        "not an address of the node"
    );
}

#[test]
fn policy_local_keeps_sources_and_spares_the_node_and_its_pods() {
    let bench = Bench::with(environment(Family::V4), [("web", local_web())]);
    for at in [EXTERNAL_IP, BALANCER_IP, NODE_PORT] {
        assert_eq!(fates(&bench, OUTSIDE, at), to(&local_web().local, false), "{at}");
        assert_eq!(fates(&bench, POD, at), to(&web().cluster, false), "{at}");
        assert_eq!(fates(&bench, NODE, at), to(&web().cluster, true), "{at}");
    }
}

#[test]
fn policy_local_drops_what_finds_no_endpoint_here() {
    let bench =
        Bench::with(environment(Family::V4), [("web", Route { local: Box::default(), ..local_web() })]);
    for at in [EXTERNAL_IP, BALANCER_IP, NODE_PORT] {
        assert_eq!(fates(&bench, OUTSIDE, at), only(Fate::Dropped), "{at}");
        assert_eq!(fates(&bench, POD, at), to(&web().cluster, false), "{at}");
    }
    assert_eq!(fates(&bench, OUTSIDE, CLUSTER_IP), to(&web().cluster, true));
}

#[test]
fn internal_policy_local_uses_this_nodes_endpoints_or_drops() {
    let internal =
        Route { cluster: Box::default(), ..web() }.under(|policy| policy.internal = TrafficPolicy::Local);
    let here = Route { local: local_web().local, ..internal.clone() };
    let bench = Bench::with(environment(Family::V4), [("web", here)]);
    assert_eq!(fates(&bench, POD, CLUSTER_IP), to(&local_web().local, false));
    let bench = Bench::with(environment(Family::V4), [("web", internal)]);
    assert_eq!(fates(&bench, POD, CLUSTER_IP), only(Fate::Dropped));
}

#[test]
fn without_any_endpoint_everything_is_refused() {
    let none = Route { cluster: Box::default(), any_endpoint: false, ..exposed_web() };
    let bench = Bench::with(environment(Family::V4), [("web", none)]);
    for at in [CLUSTER_IP, EXTERNAL_IP, BALANCER_IP, NODE_PORT] {
        assert_eq!(fates(&bench, POD, at), only(Fate::Rejected), "{at}");
        if at == CLUSTER_IP {
            assert_eq!(fates(&bench, NODE, at), only(Fate::Rejected), "{at}");
        }
    }
}

#[test]
fn source_ranges_hold_for_load_balancer_ips_only() {
    let mut route = exposed_web();
    let sources = AllowedSources {
        ranges: ["198.51.100.0/24".parse().expect("a network")].into(),
        own_vips: [addr("203.0.113.20")].into(),
    };
    route.policy_mut().sources = Some(sources.into());
    let bench = Bench::with(environment(Family::V4), [("web", route)]);
    let all = web().cluster;
    assert_eq!(fates(&bench, OUTSIDE, BALANCER_IP), to(&all, true));
    assert_eq!(fates(&bench, ("203.0.113.20", None), BALANCER_IP), to(&all, true), "a VIP bound to the node");
    assert_eq!(fates(&bench, STRANGER, BALANCER_IP), only(Fate::Dropped));
    assert_eq!(fates(&bench, STRANGER, NODE_PORT), to(&all, true));
    assert_eq!(fates(&bench, STRANGER, EXTERNAL_IP), to(&all, true));
}

#[test]
fn node_ports_answer_on_loopback_only_where_they_are_wanted_there() {
    let mut environment = environment(Family::V4);
    let bench = Bench::with(environment.clone(), [("web", exposed_web())]);
    assert_eq!(fates(&bench, ("127.0.0.1", None), "127.0.0.1:30080"), to(&web().cluster, true));
    environment.localhost_node_ports = false;
    let bench = Bench::with(environment, [("web", exposed_web())]);
    assert_eq!(fates(&bench, ("127.0.0.1", None), "127.0.0.1:30080"), only(Fate::Passed));
}

#[test]
fn martians_for_loopback_are_dropped_where_route_localnet_is_set() {
    let bench = Bench::with(environment(Family::V4), [("web", web())]);
    assert_eq!(fates(&bench, OUTSIDE, "127.0.0.1:9000"), only(Fate::Dropped));
    assert_eq!(fates(&bench, ("127.0.0.1", None), "127.0.0.1:9000"), only(Fate::Passed));
}

#[test]
fn node_ports_keep_to_the_addresses_that_are_given() {
    let mut environment = environment(Family::V4);
    environment.localhost_node_ports = false;
    environment.node_ports = NodePortAddresses::Only([addr("192.168.10.1")].into());
    let mut bench = Bench::with(environment, [("web", exposed_web())]);
    assert_eq!(fates(&bench, OUTSIDE, NODE_PORT), to(&web().cluster, true));
    bench.environment.node_ports = NodePortAddresses::Only(Box::default());
    bench.change(&[]);
    assert_eq!(fates(&bench, OUTSIDE, NODE_PORT), only(Fate::Passed));
}

#[test]
fn ipv6_is_treated_alike() {
    let v6 = |at: &str, local| super::target(at, local);
    let route = Route {
        frontends: [
            super::frontend(FrontendKind::ClusterIp, Some("fd00:10:96::10"), 80),
            super::frontend(FrontendKind::NodePort, None, 30080),
        ]
        .into(),
        cluster: [v6("[fd00:10:244::5]:8080", true), v6("[fd00:10:244:1::5]:8080", false)].into(),
        ..web()
    }
    .under(|policy| policy.affinity = Some(60));
    let all = route.cluster.clone();
    let bench = Bench::with(environment(Family::V6), [("web", route)]);
    assert_eq!(fates(&bench, ("fd00:10:244::77", Some("veth1")), "[fd00:10:96::10]:80"), to(&all, false));
    let outside = ("2001:db8::7", Some("eth0"));
    assert_eq!(fates(&bench, outside, "[fd00:10:96::10]:80"), to(&all, true));
    assert_eq!(fates(&bench, outside, "[fd00:10::1]:30080"), to(&all, true));
    assert_eq!(fates(&bench, ("::1", None), "[::1]:30080"), only(Fate::Passed), "never on ::1");
}
