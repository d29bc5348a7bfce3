//! Features that meet in one Service: from the objects to the rules. Each snapshot holds the rules that kube-proxy 1.36.2
//! writes for the same objects, chain by chain; only the order of the shared chains is ours.

use std::sync::Arc;

use insta::assert_snapshot;
use ipnet::IpNet;
use proxy_core::{
    environment::{Environment, LocalPods},
    model::{
        Endpoint, Family, NodeHint, Protocol, Service, ServiceName, ServicePort, ServicePortName, Slice,
        SliceName, SlicePort, TrafficPolicy,
    },
    route::{self, NodeView, Policy, Route},
    store::Entry,
};

use super::{Bench, addr, environment, rules_added};

const V4: Family = Family::V4;
const V6: Family = Family::V6;

/// `shop/web`, a load balancer with node port 30080 in front of 8080, one family.
fn balanced(family: Family) -> Service {
    let (cluster_ip, vip) = match family {
        V4 => ("10.96.0.10", "203.0.113.20"),
        V6 => ("fd00:10:96::10", "2001:db8::20"),
    };
    Service {
        name: ServiceName::new("shop", "web"),
        created: 0,
        cluster_ips: [addr(cluster_ip)].into(),
        external_ips: [].into(),
        ignored_external_ips: [].into(),
        load_balancer_ips: [addr(vip)].into(),
        source_ranges: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: [port("", Protocol::Tcp, 80, Some(30080))].into(),
        options: [].into(),
    }
}

/// The same under `externalTrafficPolicy: Local`.
fn kept_local(family: Family) -> Service {
    Service { external_policy: TrafficPolicy::Local, health_check_node_port: Some(32123), ..balanced(family) }
}

/// The same on its cluster IP only.
fn internal() -> Service {
    let ports = [port("", Protocol::Tcp, 80, None)].into();
    Service { load_balancer_ips: [].into(), ports, ..balanced(V4) }
}

fn port(name: &str, protocol: Protocol, port: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port }
}

fn ranges(given: &[&str]) -> Option<Box<[IpNet]>> {
    Some(given.iter().map(|range| range.parse().expect("a network")).collect())
}

/// Endpoints written as an address and words: `remote`, `terminating` (and serving), `unready`, `zone=..`.
fn slice(name: &str, port: u16, endpoints: &[&str]) -> Slice {
    let endpoints = endpoints.iter().map(|words| endpoint(words)).collect::<Box<[_]>>();
    let family = endpoints.first().map_or(V4, |endpoint| Family::of(endpoint.addr));
    let ports = [SlicePort { name: "".into(), protocol: Protocol::Tcp, port }].into();
    let service = ServiceName::new("shop", "web");
    Slice { name: SliceName::new("shop", name), service, family, ports, endpoints, trigger_time: None }
}

fn endpoint(words: &str) -> Endpoint {
    let mut words = words.split(' ');
    let mut endpoint = Endpoint {
        addr: addr(words.next().expect("an address")),
        ready: true,
        serving: true,
        terminating: false,
        local: true,
        for_nodes: NodeHint::Absent,
        for_zones: None,
    };
    for word in words {
        match word {
            "remote" => endpoint.local = false,
            "terminating" => (endpoint.ready, endpoint.terminating) = (false, true),
            "unready" => (endpoint.ready, endpoint.serving) = (false, false),
            hint => {
                let zone = hint.strip_prefix("zone=").expect("a word that is known");
                endpoint.for_zones = Some([zone.into()].into());
            }
        }
    }
    endpoint
}

/// The routes of a Service on the node 192.168.10.1 in zone-a.
fn routes(service: &Service, slices: &[Slice], family: Family) -> Vec<(ServicePortName, Route)> {
    let node =
        NodeView { zone: Some("zone-a".into()), ips: [addr("192.168.10.1"), addr("fd00:10::1")].into() };
    let entry = Entry { service: None, slices: slices.iter().cloned().collect() };
    let endpoints = entry.endpoints(family);
    let policy = Arc::new(Policy::of(service, family, &node));
    let all = route::asked(service, family);
    let port_routes = all.chunk_by(|a, b| a.port == b.port).map(|asked| {
        let port = &service.ports[usize::from(asked[0].port)];
        let name = ServicePortName {
            service: service.name.clone(),
            port: port.name.clone(),
            protocol: port.protocol,
        };
        let (granted, lost): (Vec<route::Asked>, Vec<route::Asked>) =
            asked.iter().partition(|asked| asked.counts);
        let [granted, lost] = [granted, lost].map(|asked| asked.iter().map(|asked| asked.frontend).collect());
        (name, route::route(service, port, &policy, (granted, lost), &endpoints, &node))
    });
    port_routes.collect()
}

fn rules_in(environment: &Environment, service: &Service, slices: &[Slice]) -> String {
    rules_added(environment, routes(service, slices, environment.family))
}

fn rules(service: &Service, endpoints: &[&str]) -> String {
    let family = Family::of(service.cluster_ips[0]);
    rules_in(&environment(family), service, &[slice("web-x1", 8080, endpoints)])
}

const TWO: [&str; 2] = ["10.244.0.5", "10.244.1.5 remote"];
const TWO_V6: [&str; 2] = ["fd00:10:244::5", "fd00:10:244:1::16 remote"];

#[test]
fn policy_local_with_affinity_and_ranges_that_hold_the_node() {
    let service = Service {
        affinity: Some(120),
        source_ranges: ranges(&["198.51.100.0/24", "192.168.10.0/24"]),
        ..kept_local(V4)
    };
    assert_snapshot!(rules(&service, &["10.244.0.5", "10.244.0.6", "10.244.1.5 remote"]));
}

#[test]
fn policy_local_with_ranges_and_no_endpoint_here() {
    let service =
        Service { source_ranges: ranges(&["198.51.100.0/24", "192.168.10.0/24"]), ..kept_local(V4) };
    assert_snapshot!(rules(&service, &["10.244.1.5 remote"]));
}

#[test]
fn ranges_without_a_usable_endpoint_leave_a_refusal_only() {
    let service = Service { source_ranges: ranges(&["198.51.100.0/24"]), ..balanced(V4) };
    assert_snapshot!(rules(&service, &["10.244.0.5 unready"]));
}

#[test]
fn an_ipv6_load_balancer_with_ranges_and_policy_local() {
    let service = Service { source_ranges: ranges(&["2001:db8:1::/48", "fd00:10::/64"]), ..kept_local(V6) };
    assert_snapshot!(rules(&service, &TWO_V6));
}

#[test]
fn endpoints_that_drain_here_are_those_of_policy_local_only() {
    let service = Service { affinity: Some(5), ..kept_local(V4) };
    assert_snapshot!(rules(&service, &["10.244.0.5 terminating", "10.244.1.5 remote", "10.244.1.6 remote"]));
}

#[test]
fn hints_choose_for_policy_cluster_and_draining_endpoints_for_policy_local() {
    let endpoints =
        ["10.244.0.5 terminating zone=zone-a", "10.244.0.6 zone=zone-b", "10.244.1.5 remote zone=zone-a"];
    let service = Service { affinity: Some(77), ..kept_local(V4) };
    assert_snapshot!(rules(&service, &endpoints));
}

#[test]
fn an_endpoint_that_is_not_ready_needs_no_hint() {
    let endpoints = ["10.244.0.5 zone=zone-a", "10.244.1.5 remote zone=zone-b", "10.244.1.6 remote unready"];
    assert_snapshot!(rules(&internal(), &endpoints));
}

#[test]
fn both_policies_local_and_external_ips_that_do_not_count() {
    let service = Service {
        ignored_external_ips: [addr("203.0.113.10")].into(),
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        ..internal()
    };
    assert_snapshot!(rules(&service, &["10.244.1.5 remote"]));
}

#[test]
fn an_external_ip_that_is_the_cluster_ip() {
    let service = Service { external_ips: [addr("10.96.0.10")].into(), ..internal() };
    assert_snapshot!(rules(&service, &TWO));
}

#[test]
fn a_load_balancer_ip_given_twice() {
    let vip = addr("203.0.113.20");
    assert_snapshot!(rules(&Service { load_balancer_ips: [vip, vip].into(), ..balanced(V4) }, &TWO));
}

#[test]
fn affinity_under_internal_policy_local_with_a_node_port() {
    let service = Service {
        affinity: Some(5),
        internal_policy: TrafficPolicy::Local,
        load_balancer_ips: [].into(),
        ..balanced(V4)
    };
    assert_snapshot!(rules(&service, &["10.244.0.5", "10.244.0.6", "10.244.1.5 remote"]));
}

#[test]
fn three_protocols_on_one_port_and_one_node_port() {
    let protocols = [("sip-tcp", Protocol::Tcp), ("sip-udp", Protocol::Udp), ("sip-sctp", Protocol::Sctp)];
    let ports = protocols.map(|(name, protocol)| port(name, protocol, 5060, Some(30060)));
    let targets = protocols.map(|(name, protocol)| SlicePort { name: name.into(), protocol, port: 5060 });
    let name = ServiceName::new("shop", "mix");
    let service = Service { name: name.clone(), affinity: Some(45), ports: ports.into(), ..balanced(V4) };
    let slice = Slice { service: name, ports: targets.into(), ..slice("mix-x1", 0, &TWO) };
    assert_snapshot!(rules_in(&environment(V4), &service, &[slice]));
}

#[test]
fn slices_that_give_one_address_several_ports() {
    let slices =
        [(9, "x1"), (80, "x2"), (10, "x3")].map(|(port, name)| slice(name, port, &["10.244.1.5 remote"]));
    assert_snapshot!(rules_in(&environment(V4), &internal(), &slices));
}

#[test]
fn an_endpoint_in_two_slices_is_the_one_that_does_not_terminate() {
    let slices = [slice("x1", 8080, &["10.244.0.5"]), slice("x2", 8080, &["10.244.0.5 terminating"])];
    let service = Service { load_balancer_ips: [].into(), ..balanced(V4) };
    assert_snapshot!(rules_in(&environment(V4), &service, &slices));
}

#[test]
fn ipv6_endpoints_have_the_order_of_their_text() {
    let service = Service {
        load_balancer_ips: [].into(),
        affinity: Some(15),
        ports: [port("", Protocol::Tcp, 80, None)].into(),
        ..balanced(V6)
    };
    let endpoints = ["a", "10", "ff", "1", "1:0", "b"].map(|last| format!("fd00:10:244:1::{last} remote"));
    assert_snapshot!(rules(&service, &endpoints.each_ref().map(String::as_str)));
}

#[test]
fn masquerade_all_with_ranges_under_policy_local() {
    let environment = Environment { masquerade_all: true, ..environment(V4) };
    let service =
        Service { source_ranges: ranges(&["198.51.100.0/24", "192.168.10.0/24"]), ..kept_local(V4) };
    assert_snapshot!(rules_in(&environment, &service, &[slice("web-x1", 8080, &TWO)]));
}

#[test]
fn a_bridge_tells_local_pods_under_policy_local_with_affinity() {
    let environment = Environment { local_pods: LocalPods::Bridge("cbr0".into()), ..environment(V4) };
    let service = Service { affinity: Some(30), ..kept_local(V4) };
    assert_snapshot!(rules_in(&environment, &service, &[slice("web-x1", 8080, &TWO)]));
}

#[test]
fn every_masquerade_bit_is_written_as_the_mask_that_it_is() {
    for (bit, mask) in [(0, "0x1"), (14, "0x4000"), (31, "0x80000000")] {
        let environment = Environment { masquerade_mark: 1 << bit, ..environment(V4) };
        let rules: Vec<String> = ["KUBE-MARK-MASQ", "KUBE-POSTROUTING", "KUBE-FORWARD"]
            .into_iter()
            .flat_map(|chain| Bench::with(environment.clone(), []).rules(chain))
            .filter(|rule| rule.contains("mark"))
            .collect();
        let expected = [
            format!("-A KUBE-MARK-MASQ -j MARK --set-xmark {mask}/{mask}"),
            format!("-A KUBE-POSTROUTING -m mark ! --mark {mask}/{mask} -j RETURN"),
            format!("-A KUBE-POSTROUTING -j MARK --set-xmark {mask}/0x0"),
            format!(
                "-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark {mask}/{mask} -j ACCEPT"
            ),
        ];
        assert_eq!(rules, expected);
    }
}
