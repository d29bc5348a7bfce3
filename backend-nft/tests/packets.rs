//! Real connections through network namespaces: where they go, what source they show, what is refused.

mod support;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use proxy_core::{
    backend::Executor as _,
    environment::{LocalPods, NodePortAddresses},
    model::{Family, Protocol, TrafficPolicy},
    route::{Route, Target},
};
use support::{
    Host, Saw, enter_node,
    flood::counted,
    load, outside, pod,
    routes::{Build, Proxy, ip, name, named, route},
    run, serve, tcp, udp,
};

/// Three pods with servers on this node, one elsewhere (behind an interface of its own), and a client outside.
struct World {
    family: Family,
    pods: Vec<Host>,
    outside: Host,
}

impl World {
    fn new(family: Family) -> Self {
        enter_node();
        let pods: Vec<Host> = (1..=4).map(pod).collect();
        for pod in &pods {
            serve(pod, 8080);
        }
        Self { family, pods, outside: outside(50) }
    }

    fn of(&self, host: &Host) -> std::net::IpAddr {
        if self.family == Family::V4 { host.v4 } else { host.v6 }
    }

    /// The pod of this index as an endpoint elsewhere.
    fn remote(&self, index: usize) -> Target {
        Target { addr: self.of(&self.pods[index]), port: 8080, local: false }
    }

    /// The pod of this index as an endpoint on this node.
    fn local(&self, index: usize) -> Target {
        Target { local: true, ..self.remote(index) }
    }

    /// `172.30.0.N` or its like.
    fn vip(&self, number: u8) -> String {
        if self.family == Family::V4 { format!("172.30.0.{number}") } else { format!("fd99::{number}") }
    }

    /// A load balancer's address.
    fn external(&self, number: u8) -> String {
        if self.family == Family::V4 { format!("198.51.100.{number}") } else { format!("fd98::{number}") }
    }

    /// The node's address towards the client outside.
    fn node(&self) -> &'static str {
        if self.family == Family::V4 { "192.168.50.254" } else { "fd55:50::fe" }
    }

    fn outside_addr(&self) -> std::net::IpAddr {
        self.of(&self.outside)
    }
}

const OUTSIDE: Option<&str> = Some("out50");
const POD1: Option<&str> = Some("pod1");
const NODE: Option<&str> = None;

fn to(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(addr), port)
}

/// Who answers in many tries.
fn answering(from: Option<&str>, at: SocketAddr) -> BTreeSet<String> {
    (0..30).map(|_| tcp(from, at).name().to_owned()).collect()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn local_policy(mut route: Route) -> Route {
    route.external_policy = TrafficPolicy::Local;
    route
}

macro_rules! in_both_families {
    ($($name:ident => $v4:ident, $v6:ident;)*) => { $(
        #[test]
        fn $v4() { $name(World::new(Family::V4)); }
        #[test]
        fn $v6() { $name(World::new(Family::V6)); }
    )* };
}

in_both_families! {
    cluster_ips => a_cluster_ip_reaches_every_endpoint, a_cluster_ip_reaches_every_endpoint_by_ipv6;
    external => external_traffic_is_masqueraded_under_policy_cluster, external_traffic_is_masqueraded_under_policy_cluster_by_ipv6;
    external_local => policy_local_keeps_the_source_and_the_node, policy_local_keeps_the_source_and_the_node_by_ipv6;
    nothing_here => without_a_local_endpoint_only_the_outside_is_dropped, without_a_local_endpoint_only_the_outside_is_dropped_by_ipv6;
    internal_local => internal_policy_local_uses_local_endpoints_or_drops, internal_policy_local_uses_local_endpoints_or_drops_by_ipv6;
    without_endpoints => a_service_without_endpoints_refuses, a_service_without_endpoints_refuses_by_ipv6;
    source_ranges => source_ranges_let_in_whom_they_name, source_ranges_let_in_whom_they_name_by_ipv6;
    hairpin => a_pod_reaches_itself_through_its_service, a_pod_reaches_itself_through_its_service_by_ipv6;
    sticky => a_client_stays_with_its_endpoint, a_client_stays_with_its_endpoint_by_ipv6;
    by_udp => datagrams_are_balanced_too, datagrams_are_balanced_too_by_ipv6;
    changing => a_change_takes_effect_at_once, a_change_takes_effect_at_once_by_ipv6;
    foreign_priority => the_priority_that_others_set_survives, the_priority_that_others_set_survives_by_ipv6;
    out_of_window => a_stray_packet_of_an_endpoint_does_not_cost_the_connection, a_stray_packet_of_an_endpoint_does_not_cost_the_connection_by_ipv6;
    priority => no_packet_leaves_with_our_priority, no_packet_leaves_with_our_priority_by_ipv6;
}

fn cluster_ips(world: World) {
    let mut proxy = Proxy::new(world.family);
    let targets = [world.remote(1), world.remote(2), world.remote(3)];
    proxy.full(vec![(name("web"), route(&targets).cluster_ip(&world.vip(1)))]);
    let web = to(&world.vip(1), 80);
    for from in [POD1, NODE, OUTSIDE] {
        assert_eq!(answering(from, web), names(&["pod2", "pod3", "pod4"]));
    }
    // A pod of this node is not masqueraded, others are.
    assert_eq!(tcp(POD1, web).source(), world.of(&world.pods[0]));
    assert_ne!(tcp(OUTSIDE, web).source(), world.outside_addr());
    for from in [POD1, NODE] {
        assert_eq!(tcp(from, to(&world.vip(1), 81)), Saw::Refused, "an unknown port");
        assert_eq!(tcp(from, to(&world.vip(9), 80)), Saw::Silence, "an address that nobody has");
    }
}

fn external(world: World) {
    let mut proxy = Proxy::new(world.family);
    let web = route(&[world.remote(1), world.local(2)])
        .cluster_ip(&world.vip(1))
        .load_balancer(&world.external(10))
        .node_port(30080);
    proxy.full(vec![(name("web"), web)]);
    for at in [to(&world.external(10), 80), to(world.node(), 30080)] {
        for from in [OUTSIDE, POD1, NODE] {
            assert_eq!(answering(from, at), names(&["pod2", "pod3"]), "{at}");
            let source = tcp(from, at).source();
            assert!(![world.outside_addr(), world.of(&world.pods[0])].contains(&source), "{source}");
        }
    }
    // NodePorts do not answer on loopback.
    let loopback = if world.family == Family::V4 { "127.0.0.1" } else { "::1" };
    assert_eq!(tcp(NODE, to(loopback, 30080)), Saw::Refused);
}

fn external_local(world: World) {
    let mut proxy = Proxy::new(world.family);
    let web = local_policy(route(&[world.remote(1), world.local(2)]))
        .cluster_ip(&world.vip(1))
        .load_balancer(&world.external(10))
        .node_port(30080);
    proxy.full(vec![(name("web"), web)]);
    for at in [to(&world.external(10), 80), to(world.node(), 30080)] {
        assert_eq!(answering(OUTSIDE, at), names(&["pod3"]), "{at}");
        assert_eq!(tcp(OUTSIDE, at).source(), world.outside_addr());
        assert_eq!(answering(POD1, at), names(&["pod2", "pod3"]), "pods go anywhere: {at}");
        assert_eq!(tcp(POD1, at).source(), world.of(&world.pods[0]), "and are not masqueraded");
        assert_eq!(answering(NODE, at), names(&["pod2", "pod3"]), "so does the node: {at}");
    }
    assert_eq!(answering(POD1, to(&world.vip(1), 80)), names(&["pod2", "pod3"]));
}

fn nothing_here(world: World) {
    let mut proxy = Proxy::new(world.family);
    let web = local_policy(route(&[world.remote(1)]))
        .cluster_ip(&world.vip(1))
        .load_balancer(&world.external(10))
        .node_port(30080);
    let mut sticky = web.clone();
    sticky.policy_mut().affinity = Some(60);
    for web in [web, sticky] {
        proxy.full(vec![(name("web"), web)]);
        for at in [to(&world.external(10), 80), to(world.node(), 30080)] {
            assert_eq!(tcp(OUTSIDE, at), Saw::Silence, "{at}");
            assert_eq!(tcp(POD1, at).name(), "pod2", "{at}");
            assert_eq!(tcp(NODE, at).name(), "pod2", "{at}");
        }
        assert_eq!(tcp(OUTSIDE, to(&world.vip(1), 80)).name(), "pod2");
    }
}

fn internal_local(world: World) {
    let mut proxy = Proxy::new(world.family);
    for affinity in [None, Some(60)] {
        let internal = |targets: &[Target], number| {
            let mut route =
                route(targets).cluster_ip(&world.vip(number)).load_balancer(&world.external(number));
            route.policy_mut().internal = TrafficPolicy::Local;
            route.policy_mut().affinity = affinity;
            route
        };
        proxy.full(vec![
            (name("both"), internal(&[world.remote(1), world.local(2)], 1)),
            (name("elsewhere"), internal(&[world.remote(1)], 2)),
        ]);
        assert_eq!(answering(POD1, to(&world.vip(1), 80)), names(&["pod3"]));
        for from in [POD1, NODE] {
            assert_eq!(tcp(from, to(&world.vip(2), 80)), Saw::Silence);
        }
        let external = answering(OUTSIDE, to(&world.external(1), 80));
        if affinity.is_none() {
            assert_eq!(external, names(&["pod2", "pod3"]));
        } else {
            assert_eq!(external.len(), 1);
        }
    }
}

fn without_endpoints(world: World) {
    let mut proxy = Proxy::new(world.family);
    let empty = route(&[]).cluster_ip(&world.vip(1)).load_balancer(&world.external(10)).node_port(30080);
    proxy.full(vec![(name("empty"), empty)]);
    for at in [to(&world.vip(1), 80), to(&world.external(10), 80), to(world.node(), 30080)] {
        for from in [POD1, OUTSIDE, NODE] {
            assert_eq!(tcp(from, at), Saw::Refused, "{from:?} {at}");
        }
    }
}

fn source_ranges(world: World) {
    let mut proxy = Proxy::new(world.family);
    let (yes, no) = match world.family {
        Family::V4 => (["192.168.50.0/24", "192.168.50.0/25"], "203.0.113.0/24"),
        Family::V6 => (["fd55:50::/64", "fd55:50::/96"], "fd77::/64"),
    };
    let web = |addr: u8, ranges: &[&str]| {
        route(&[world.remote(1)]).restricted(&world.external(addr), ranges).node_port(30080 + u16::from(addr))
    };
    proxy.full(vec![
        (name("open"), web(1, &yes)),
        (name("closed"), web(2, &[no])),
        (name("nobody"), web(3, &[])),
    ]);
    assert_eq!(tcp(OUTSIDE, to(&world.external(1), 80)).name(), "pod2");
    for from in [OUTSIDE, POD1] {
        assert_eq!(tcp(from, to(&world.external(2), 80)), Saw::Silence);
        assert_eq!(tcp(from, to(&world.external(3), 80)), Saw::Silence);
    }
    // Ranges are for load balancer addresses only.
    assert_eq!(tcp(OUTSIDE, to(world.node(), 30082)).name(), "pod2");
    proxy.change(&name("closed"), Some(web(2, &[no, yes[0]])));
    assert_eq!(tcp(OUTSIDE, to(&world.external(2), 80)).name(), "pod2");
    proxy.change(&name("open"), Some(web(1, &[no])));
    assert_eq!(tcp(OUTSIDE, to(&world.external(1), 80)), Saw::Silence);
}

fn hairpin(world: World) {
    let mut proxy = Proxy::new(world.family);
    // Whatever its slice says of where it is (B8): another node, or none.
    for endpoint in [world.local(0), world.remote(0)] {
        proxy.full(vec![(name("self"), route(&[endpoint]).cluster_ip(&world.vip(1)).node_port(30080))]);
        for at in [to(&world.vip(1), 80), to(world.node(), 30080)] {
            let saw = tcp(POD1, at);
            assert_eq!(saw.name(), "pod1");
            assert_ne!(saw.source(), world.of(&world.pods[0]), "it answers to the node");
        }
    }
}

fn sticky(world: World) {
    let mut proxy = Proxy::new(world.family);
    let web = |targets: &[Target]| {
        let mut route =
            route(targets).cluster_ip(&world.vip(1)).load_balancer(&world.external(10)).node_port(30080);
        route.policy_mut().affinity = Some(600);
        route
    };
    let all = [world.remote(1), world.local(2), world.remote(3)];
    proxy.full(vec![(name("web"), web(&all))]);
    let addresses = [to(&world.vip(1), 80), to(&world.external(10), 80), to(world.node(), 30080)];
    let mut kept = std::collections::BTreeMap::new();
    for from in [POD1, OUTSIDE] {
        let seen: BTreeSet<_> = addresses.iter().flat_map(|at| answering(from, *at)).collect();
        assert_eq!(seen.len(), 1, "one endpoint whichever address: {seen:?}");
        kept.extend(seen.into_iter().map(|endpoint| (from, endpoint)));
    }
    // A start over keeps clients where they are, and so does a new process.
    proxy.start_over();
    let routes = proxy.routes.iter().map(|(name, route)| (name.clone(), (**route).clone())).collect();
    let mut proxy = Proxy::new(world.family);
    proxy.full(routes);
    for (from, endpoint) in &kept {
        assert_eq!(answering(*from, addresses[0]), BTreeSet::from([endpoint.clone()]));
    }
    // An endpoint that goes is left at once, for one that stays.
    let gone = &kept[&POD1];
    let rest: Vec<_> =
        (1..4).filter(|index| world.pods[*index].name != *gone).map(|index| all[index - 1]).collect();
    proxy.change(&name("web"), Some(web(&rest)));
    let next = answering(POD1, addresses[0]);
    assert_eq!(next.len(), 1);
    assert!(!next.contains(gone));
    // And the client does not go back when it returns.
    proxy.change(&name("web"), Some(web(&all)));
    assert_eq!(answering(POD1, addresses[1]), next);
    // Nor when another policy leaves its endpoint usable.
    proxy.change(&name("web"), Some(local_policy(web(&all))));
    assert_eq!(answering(POD1, addresses[0]), next);
    assert_eq!(answering(OUTSIDE, addresses[1]), names(&["pod3"]));
    assert_eq!(answering(OUTSIDE, addresses[0]), names(&["pod3"]), "one endpoint for both policies");
}

fn by_udp(world: World) {
    let mut proxy = Proxy::new(world.family);
    let mut dns = route(&[world.remote(1), world.remote(2)]).cluster_ip(&world.vip(1)).node_port(30053);
    dns.protocol = Protocol::Udp;
    let mut empty = route(&[]).cluster_ip(&world.vip(2));
    empty.protocol = Protocol::Udp;
    proxy.full(vec![(named("dns", Protocol::Udp), dns), (named("empty", Protocol::Udp), empty)]);
    let seen: BTreeSet<_> = (0..30).map(|_| udp(POD1, to(&world.vip(1), 80)).name().to_owned()).collect();
    assert_eq!(seen, names(&["pod2", "pod3"]));
    assert!(matches!(udp(OUTSIDE, to(world.node(), 30053)), Saw::Answer { .. }));
    assert_eq!(udp(POD1, to(&world.vip(2), 80)), Saw::Refused);
    assert_eq!(tcp(POD1, to(&world.vip(1), 80)), Saw::Refused, "the other protocol of the same port");
}

fn changing(world: World) {
    let mut proxy = Proxy::new(world.family);
    let web = |targets: &[Target]| route(targets).cluster_ip(&world.vip(1));
    proxy.full(vec![]);
    let at = to(&world.vip(1), 80);
    assert_eq!(tcp(POD1, at), Saw::Silence);
    proxy.change(&name("web"), Some(web(&[])));
    assert_eq!(tcp(POD1, at), Saw::Refused);
    proxy.change(&name("web"), Some(web(&[world.remote(1)])));
    assert_eq!(answering(POD1, at), names(&["pod2"]));
    proxy.change(&name("web"), Some(web(&[world.remote(1), world.remote(2), world.remote(3)])));
    assert_eq!(answering(POD1, at), names(&["pod2", "pod3", "pod4"]));
    proxy.change(&name("web"), Some(web(&[world.remote(2), world.remote(3)])));
    assert_eq!(answering(POD1, at), names(&["pod3", "pod4"]));
    let mut sticky = web(&[world.remote(2), world.remote(3)]);
    sticky.policy_mut().affinity = Some(60);
    proxy.change(&name("web"), Some(sticky));
    assert_eq!(answering(POD1, at).len(), 1);
    proxy.change(&name("web"), Some(local_policy(web(&[world.remote(1)])).load_balancer(&world.external(1))));
    assert_eq!(answering(POD1, at), names(&["pod2"]));
    proxy.change(&name("web"), None);
    assert_eq!(tcp(POD1, at), Saw::Silence);
    proxy.upkeep(Duration::from_secs(300));
    assert!(!run("nft list ruleset").contains("chain lb-"), "unused chains are gone");
    proxy.change(&name("web"), Some(web(&[world.remote(1)])));
    assert_eq!(answering(POD1, at), names(&["pod2"]));
}

/// Counts packets by their priority after all of our chains.
fn priority(world: World) {
    let family = if world.family == Family::V4 { "ip" } else { "ip6" };
    let count = "meta l4proto tcp meta priority != 0 counter";
    let watch = format!(
        "table {family} watch {{
            chain out {{ type filter hook postrouting priority 500; tcp flags & syn == syn counter; {count}; }}
            chain in {{ type filter hook input priority 500; {count}; }}
        }}"
    );
    load("nft", &watch).expect("nft takes it");
    let mut proxy = Proxy::new(world.family);
    let mut sticky = route(&[world.remote(1), world.remote(2)]).cluster_ip(&world.vip(2)).node_port(30081);
    sticky.policy_mut().affinity = Some(60);
    proxy.full(vec![
        (name("web"), route(&[world.remote(1), world.remote(2)]).cluster_ip(&world.vip(1)).node_port(30080)),
        (name("sticky"), sticky),
        (name("local"), local_policy(route(&[world.local(2)])).node_port(30082)),
    ]);
    for at in [
        to(&world.vip(1), 80),
        to(&world.vip(2), 80),
        to(world.node(), 30080),
        to(world.node(), 30081),
        to(world.node(), 30082),
        to(&world.of(&world.pods[3]).to_string(), 8080),
    ] {
        for from in [POD1, NODE, OUTSIDE] {
            let _ = tcp(from, at).name();
        }
    }
    let listing = run(&format!("nft list table {family} watch"));
    let lines: Vec<&str> = listing.lines().filter(|line| line.contains("priority !=")).collect();
    assert_eq!(lines.len(), 2);
    for line in lines {
        assert!(line.contains("packets 0 "), "{listing}");
    }
    assert!(!listing.contains("syn counter packets 0 "), "{listing}");
}

#[test]
fn node_ports_answer_only_at_the_addresses_they_are_given() {
    let world = World::new(Family::V4);
    let mut environment = support::routes::environment(Family::V4);
    environment.node_ports = NodePortAddresses::Only(Box::new([ip("192.168.50.254")]));
    let mut proxy = Proxy::with(environment.clone());
    proxy.full(vec![(name("web"), route(&[world.remote(1)]).node_port(30080))]);
    assert_eq!(tcp(OUTSIDE, to("192.168.50.254", 30080)).name(), "pod2");
    assert_eq!(tcp(OUTSIDE, to("203.0.113.254", 30080)), Saw::Refused);
    // Addresses are followed without a start over.
    environment.node_ports = NodePortAddresses::Only(Box::new([ip("203.0.113.254")]));
    proxy.environment = environment;
    proxy.change(&name("web"), Some(route(&[world.remote(2)]).node_port(30080)));
    assert_eq!(tcp(OUTSIDE, to("203.0.113.254", 30080)).name(), "pod3");
    assert_eq!(tcp(OUTSIDE, to("192.168.50.254", 30080)), Saw::Refused);
}

#[test]
fn node_ports_on_localhost_are_for_the_node_alone() {
    let world = World::new(Family::V4);
    serve_on_loopback();
    let mut environment = support::routes::environment(Family::V4);
    environment.localhost_node_ports = true;
    let mut proxy = Proxy::with(environment);
    let empty = route(&[]).node_port(30081);
    let web = route(&[world.remote(1)]).node_port(30080);
    let local = local_policy(route(&[world.remote(1), world.local(2)])).node_port(30082);
    proxy.full(vec![(name("web"), web), (name("empty"), empty), (name("local"), local)]);
    assert_eq!(tcp(NODE, to("127.0.0.1", 30080)).name(), "pod2");
    assert_eq!(answering(NODE, to("127.0.0.1", 30082)), names(&["pod2", "pod3"]));
    assert_eq!(tcp(NODE, to("127.0.0.1", 30081)), Saw::Refused);
    assert_eq!(run("cat /proc/sys/net/ipv4/conf/all/route_localnet").trim(), "1");
    // Without the guard this would reach a server on the node's loopback address.
    assert_eq!(tcp(NODE, to("127.0.0.1", 9999)).name(), "loopback");
    run("ip -n out50 addr del 127.0.0.1/8 dev lo");
    run("ip -n out50 route add 127.0.0.0/8 via 192.168.50.254 src 192.168.50.1 table 100");
    run("ip -n out50 rule add pref 0 to 127.0.0.0/8 table 100");
    support::within(OUTSIDE, || {
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").expect("it can be written");
    });
    for port in [9999, 30080] {
        assert_eq!(tcp(OUTSIDE, to("127.0.0.1", port)), Saw::Silence);
    }
    assert!(intact(&mut proxy));
    run("nft flush chain ip switchyard-localnet guard");
    assert_eq!(tcp(OUTSIDE, to("127.0.0.1", 9999)).name(), "loopback", "the guard is what keeps it out");
    assert!(!intact(&mut proxy), "its loss is noticed (C2)");
    proxy.start_over();
    assert_eq!(tcp(OUTSIDE, to("127.0.0.1", 9999)), Saw::Silence);
    // Whoever takes over the table, or removes it, leaves the guard alone (B3).
    run("nft delete table ip kube-proxy");
    assert_eq!(tcp(OUTSIDE, to("127.0.0.1", 9999)), Saw::Silence);
    // Another process with other settings, as after a crash: it knows from the guard that the setting was 0.
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(vec![(name("web"), route(&[world.remote(1)]).node_port(30080))]);
    assert_eq!(run("cat /proc/sys/net/ipv4/conf/all/route_localnet").trim(), "0");
    assert!(!run("nft list tables").contains("localnet"));
    assert!(intact(&mut proxy));
}

#[test]
fn what_nobody_serves_on_ipv6_localhost_is_refused_and_counted() {
    let world = World::new(Family::V6);
    // Somebody else's program on the very ports.
    for port in [30053, 30054, 9999] {
        support::serve_in(None, "loopback", port);
    }
    let udp_route = |targets: &[Target]| Route { protocol: Protocol::Udp, ..route(targets) };
    let routes = || {
        vec![
            (named("web", Protocol::Udp), udp_route(&[world.remote(1)]).node_port(30053)),
            (named("empty", Protocol::Udp), udp_route(&[]).node_port(30054)),
            (name("web"), route(&[world.remote(1)]).node_port(30053)),
        ]
    };
    let mut environment = support::routes::environment(Family::V6);
    let mut proxy = Proxy::with(environment.clone());
    proxy.full(routes());
    assert_eq!(udp(NODE, to("::1", 30053)).name(), "loopback", "nobody asked for it");
    environment.refused_on_localhost = Box::new([Protocol::Udp, Protocol::Sctp]);
    let mut proxy = Proxy::with(environment);
    proxy.full(routes());
    for port in [30053, 30054] {
        assert_eq!(udp(NODE, to("::1", port)), Saw::Refused, "{port}");
    }
    assert_eq!(udp(NODE, to("::1", 9999)).name(), "loopback", "no NodePort");
    assert_eq!(tcp(NODE, to("::1", 30053)).name(), "loopback", "TCP has a listener of its own");
    assert_eq!(udp(OUTSIDE, to(world.node(), 30053)).name(), "pod2");
    assert_eq!(refused(&mut proxy), [(Protocol::Udp, 2), (Protocol::Sctp, 0)]);
    proxy.start_over();
    assert_eq!(udp(NODE, to("::1", 30053)), Saw::Refused);
    assert_eq!(refused(&mut proxy), [(Protocol::Udp, 3), (Protocol::Sctp, 0)], "other rules go on counting");
}

/// Counters are read once in some checks.
fn refused(proxy: &mut Proxy) -> Vec<(Protocol, u64)> {
    for _ in 0..20 {
        assert!(intact(proxy));
    }
    proxy.executor.figures().refused_on_localhost
}

/// Why NodePorts on ::1 are not translated: `rt6_need_strict` in net/ipv6/route.c. The answer comes in by the pod's
/// interface, and ::1 is not an address of that one.
#[test]
fn the_kernel_has_no_way_back_for_what_is_translated_from_ipv6_loopback() {
    let world = World::new(Family::V6);
    let endpoint = world.of(&world.pods[0]);
    let rules = format!(
        "table ip6 try {{\n\
         chain out {{ type nat hook output priority -100; ip6 daddr ::1 udp dport 30053 dnat to [{endpoint}]:8080; }}\n\
         chain post {{ type nat hook postrouting priority 100; ip6 daddr {endpoint} masquerade; }}\n\
         }}"
    );
    load("nft", &rules).expect("rules");
    let without_route = || -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").expect("counters");
        let line = text.lines().find(|line| line.starts_with("Ip6InNoRoutes")).expect("a counter");
        line.split_whitespace().nth(1).and_then(|count| count.parse().ok()).expect("a number")
    };
    let before = without_route();
    assert_eq!(udp(NODE, to("::1", 30053)), Saw::Silence);
    assert_eq!(without_route(), before + 1, "the answer arrived, and led nowhere");
    // What it would take, for each interface by which an endpoint may answer.
    run("ip -6 route add local ::1 dev vpod1 table local");
    assert_eq!(udp(NODE, to("::1", 30053)).name(), "pod1");
}

fn intact(proxy: &mut Proxy) -> bool {
    proxy.executor.intact().expect("the kernel answers")
}

fn serve_on_loopback() {
    support::serve_in(None, "loopback", 9999);
}

#[test]
fn pods_are_told_by_their_interface_where_so_configured() {
    let world = World::new(Family::V4);
    let web = local_policy(route(&[world.remote(1)])).cluster_ip("172.30.0.1").load_balancer("198.51.100.1");
    for pods in [LocalPods::Bridge("vpod1".into()), LocalPods::InterfacePrefix("vpod".into())] {
        let mut environment = support::routes::environment(Family::V4);
        environment.local_pods = pods;
        let mut proxy = Proxy::with(environment);
        proxy.full(vec![(name("web"), web.clone())]);
        assert_eq!(tcp(POD1, to("172.30.0.1", 80)).source(), world.pods[0].v4);
        assert_eq!(tcp(POD1, to("198.51.100.1", 80)).source(), world.pods[0].v4);
        assert_ne!(tcp(OUTSIDE, to("172.30.0.1", 80)).source(), world.outside_addr());
        assert_eq!(tcp(OUTSIDE, to("198.51.100.1", 80)), Saw::Silence);
    }
    let mut environment = support::routes::environment(Family::V4);
    environment.local_pods = LocalPods::Unknown;
    let mut proxy = Proxy::with(environment.clone());
    proxy.full(vec![(name("web"), web.clone())]);
    assert_eq!(tcp(OUTSIDE, to("172.30.0.1", 80)).source(), world.outside_addr());
    environment.masquerade_all = true;
    let mut proxy = Proxy::with(environment);
    proxy.full(vec![(name("web"), web)]);
    assert_ne!(tcp(POD1, to("172.30.0.1", 80)).source(), world.pods[0].v4);
}

/// An endpoint's packet that lies outside its connection's window: conntrack takes it for INVALID and does not
/// translate it back, so that the client would answer an address unknown to it with a reset, which kills the connection.
fn out_of_window(world: World) {
    let mut proxy = Proxy::new(world.family);
    proxy.full(vec![(name("web"), route(&[world.remote(1)]).cluster_ip(&world.vip(1)))]);
    let port = 8081;
    let mut other = route(&[Target { port, ..world.remote(1) }]).cluster_ip(&world.vip(2));
    other.frontends[0].port = port;
    proxy.change(&name("held"), Some(other));
    let family = if world.family == Family::V4 { "ip" } else { "ip6" };
    let watch = |at: &str| {
        format!(
            "add table {family} watch
             add chain {family} watch {at} {{ type filter hook {at} priority 400; }}
             add rule {family} watch {at} tcp flags & rst == rst tcp dport {port} counter comment \"resets\""
        )
    };
    for (from, hook) in [(POD1, "forward"), (NODE, "output")] {
        load("nft", &watch(hook)).expect("nft takes it");
        let survives = || {
            support::stray::connection_survives(
                from,
                to(&world.vip(2), port),
                "pod2",
                SocketAddr::new(world.of(&world.pods[1]), port),
            )
        };
        assert!(survives(), "{hook}");
        assert_eq!(counted("resets"), 0, "{hook}");
        // Without the rule the client does answer with a reset, so the test can tell.
        let chain = if hook == "forward" { "filter-forward" } else { "filter-input" };
        let listing = run(&format!("nft -a list chain {family} kube-proxy {chain}"));
        let rule = listing.lines().find(|line| line.contains("ct state invalid")).expect("the rule");
        let handle = rule.rsplit_once("handle ").expect("a handle").1;
        run(&format!("nft delete rule {family} kube-proxy {chain} handle {handle}"));
        assert!(!survives(), "{hook}");
        assert!(counted("resets") > 0, "{hook}");
        run(&format!("nft delete table {family} watch"));
    }
}

#[test]
fn a_full_map_of_clients_is_counted_and_its_new_clients_go_by_their_address() {
    let world = World::new(Family::V4);
    let mut proxy = Proxy::new(Family::V4);
    proxy.planner = backend_nft::Planner::new(Family::V4).remember_clients(2);
    let mut web = route(&[world.local(1), world.local(2), world.local(3)]).cluster_ip("172.30.0.1");
    web.policy_mut().affinity = Some(600);
    proxy.full(vec![(name("web"), web)]);
    let at = to("172.30.0.1", 80);
    for known in [POD1, OUTSIDE] {
        assert_eq!(answering(known, at).len(), 1);
    }
    let lost = |proxy: &mut Proxy| {
        for _ in 0..20 {
            assert!(proxy.executor.intact().expect("the kernel answers"));
        }
        proxy.executor.figures().affinity_lost
    };
    assert_eq!(lost(&mut proxy), 0);
    let chosen = answering(Some("pod2"), at);
    assert_eq!(chosen.len(), 1, "the same every time");
    assert_eq!(answering(POD1, at).len(), 1, "who is known stays so");
    assert_eq!(lost(&mut proxy), 30);
    proxy.start_over();
    assert_eq!(answering(POD1, at).len(), 1, "nor does a start over change that");
    assert_eq!(names(&[tcp(Some("pod2"), at).name()]), chosen);
    assert_eq!(lost(&mut proxy), 31, "a start over keeps the count");
}

/// Somebody else's priority on traffic that is none of ours: forwarded (IPv4 forwarding sets it anew anyway) and sent
/// by the node.
fn foreign_priority(world: World) {
    let family = if world.family == Family::V4 { "ip" } else { "ip6" };
    let watch = format!(
        "add table {family} watch
         add chain {family} watch early {{ type filter hook prerouting priority -150; }}
         add rule {family} watch early tcp dport 8080 meta priority set 1:7
         add chain {family} watch sent {{ type filter hook output priority -150; }}
         add rule {family} watch sent tcp dport 8080 meta priority set 1:7
         add chain {family} watch late {{ type filter hook postrouting priority 400; }}
         add rule {family} watch late tcp flags & (syn | ack) == syn meta priority 1:7 counter comment \"kept\""
    );
    load("nft", &watch).expect("nft takes it");
    let mut proxy = Proxy::new(world.family);
    let web = route(&[world.remote(1)]).cluster_ip(&world.vip(1)).node_port(30080);
    proxy.full(vec![(name("web"), web)]);
    let pod = to(&world.of(&world.pods[1]).to_string(), 8080);
    assert_eq!(tcp(NODE, pod).name(), "pod2");
    assert_eq!(counted("kept"), 1);
    assert_eq!(tcp(POD1, pod).name(), "pod2");
    assert_eq!(counted("kept"), if world.family == Family::V6 { 2 } else { 1 });
}
