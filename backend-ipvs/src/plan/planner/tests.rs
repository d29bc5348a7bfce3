use std::{net::IpAddr, time::Duration};

use ipvs_netlink::Destination;
use proxy_core::{
    environment::LocalPods,
    model::{ObjectName, Protocol, TrafficPolicy},
    route::{AllowedSources, Frontend, FrontendKind, Policy, Target},
};

use super::*;
use crate::{model::Model, schema::found::FoundServer};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn name(service: &str) -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("default", service),
        port: "http".into(),
        protocol: Protocol::Tcp,
    }
}

fn environment() -> Environment {
    Environment {
        family: Family::V4,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs(["10.1.0.0/16".parse().expect("a network")].into()),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
        loopback_node_ports: Box::default(),
        service_cidrs: Box::default(),
        node_ips: [ip("192.168.7.1")].into(),
        interface_addresses: [ip("127.0.0.1"), ip("192.168.7.1")].into(),
    }
}

fn frontend(kind: FrontendKind, at: Option<&str>, port: u16) -> Frontend {
    Frontend { kind, at: at.map(ip), port }
}

fn target(addr: &str, local: bool) -> Target {
    Target { addr: ip(addr), port: 8080, local }
}

/// A cluster IP with one endpoint here and one elsewhere.
fn route() -> Route {
    Route {
        policy: Arc::default(),
        protocol: Protocol::Tcp,
        frontends: [frontend(FrontendKind::ClusterIp, Some("10.96.0.1"), 80)].into(),
        external_policy: TrafficPolicy::Cluster,
        cluster: [target("10.1.0.2", true), target("10.2.0.2", false)].into(),
        local: Box::default(),
        any_endpoint: true,
        lost: Box::default(),
        endpoints: 0,
        kept: Box::default(),
    }
}

fn route_at(cluster_ip: &str) -> Route {
    Route { frontends: [frontend(FrontendKind::ClusterIp, Some(cluster_ip), 80)].into(), ..route() }
}

/// A load balancer under external policy Local.
fn load_balancer() -> Route {
    Route {
        frontends: [
            frontend(FrontendKind::ClusterIp, Some("10.96.0.1"), 80),
            frontend(FrontendKind::LoadBalancerIp, Some("198.51.100.1"), 80),
            frontend(FrontendKind::NodePort, None, 30080),
        ]
        .into(),
        external_policy: TrafficPolicy::Local,
        local: [target("10.1.0.2", true)].into(),
        ..route()
    }
}

#[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
fn start() -> Instant {
    Instant::now()
}

/// A planner whose kernel holds `routes`.
fn planner(routes: &[(&str, &Route)]) -> IpvsPlanner {
    let mut planner = IpvsPlanner::alone(Settings::default());
    let mut routes: Vec<_> =
        routes.iter().map(|(service, route)| (name(service), Arc::new((*route).clone()))).collect();
    routes.sort_by(|a, b| a.0.cmp(&b.0));
    planner.plan_full(&routes, &environment(), Found::default(), start());
    planner.settle(Effect::Applied);
    planner
}

fn plan(planner: &mut IpvsPlanner, changes: &[(&str, Option<&Route>, Option<&Route>)]) -> Plan<Op> {
    plan_at(planner, changes, start())
}

fn plan_at(
    planner: &mut IpvsPlanner,
    changes: &[(&str, Option<&Route>, Option<&Route>)],
    now: Instant,
) -> Plan<Op> {
    plan_in(planner, changes, &environment(), now)
}

fn plan_in(
    planner: &mut IpvsPlanner,
    changes: &[(&str, Option<&Route>, Option<&Route>)],
    environment: &Environment,
    now: Instant,
) -> Plan<Op> {
    let changes: Vec<_> = changes
        .iter()
        .map(|(service, before, after)| Change {
            name: name(service),
            before: before.map(|route| Arc::new(route.clone())),
            after: after.map(|route| Arc::new(route.clone())),
        })
        .collect();
    match planner.plan(&changes, environment, now) {
        Planned::Plan(plan) => plan,
        Planned::StartOver(reason) => panic!("started over: {reason}"),
    }
}

fn full(routes: &[(&str, &Route)], settings: Settings, found: Found) -> Plan<Op> {
    let mut planner = IpvsPlanner::alone(settings);
    let routes: Vec<_> =
        routes.iter().map(|(service, route)| (name(service), Arc::new((*route).clone()))).collect();
    planner.plan_full(&routes, &environment(), found, start())
}

/// What the kernel holds after a plan on an empty one, as a survey would find it.
fn found_after(plan: &Plan<Op>) -> Found {
    let mut found = Found::default();
    for owned in plan.steps.iter().flat_map(|step| &step.ops) {
        match &owned.op {
            Op::NewServer(service, destinations) => {
                found.servers.push(FoundServer { service: *service, destinations: destinations.to_vec() });
            }
            Op::Bind(addr) => {
                found.routes.insert(*addr);
            }
            _ => {}
        }
    }
    found
}

#[test]
fn a_cluster_ip_is_added() {
    insta::assert_snapshot!(plan(&mut planner(&[]), &[("web", None, Some(&route()))]));
}

#[test]
fn a_service_that_is_deleted_drains_and_keeps_its_address_meanwhile() {
    let mut planner = planner(&[("web", &route())]);
    insta::assert_snapshot!(plan(&mut planner, &[("web", Some(&route()), None)]));
}

#[test]
fn a_udp_service_that_is_deleted_goes_at_once() {
    let udp = Route { protocol: Protocol::Udp, ..route() };
    let mut planner = planner(&[("dns", &udp)]);
    insta::assert_snapshot!(plan(&mut planner, &[("dns", Some(&udp), None)]));
}

#[test]
fn one_endpoint_more_and_one_less_are_two_operations() {
    let after = Route { cluster: [target("10.2.0.2", false), target("10.2.0.3", false)].into(), ..route() };
    let mut planner = planner(&[("web", &route())]);
    insta::assert_snapshot!(plan(&mut planner, &[("web", Some(&route()), Some(&after))]));
}

#[test]
fn an_endpoint_that_cannot_be_used_writes_nothing() {
    let before = load_balancer();
    let after = Route { endpoints: 3, ..before.clone() };
    let mut planner = planner(&[("a", &before)]);
    assert!(plan(&mut planner, &[("a", Some(&before), Some(&after))]).is_empty());
}

#[test]
fn an_endpoint_that_returns_while_it_drains_is_restored() {
    let less = Route { cluster: [target("10.2.0.2", false)].into(), ..route() };
    let mut planner = planner(&[("web", &route())]);
    plan(&mut planner, &[("web", Some(&route()), Some(&less))]);
    planner.settle(Effect::Applied);
    insta::assert_snapshot!(plan(&mut planner, &[("web", Some(&less), Some(&route()))]));
}

#[test]
fn a_service_that_returns_while_it_drains_is_restored() {
    let mut planner = planner(&[("web", &route())]);
    plan(&mut planner, &[("web", Some(&route()), None)]);
    planner.settle(Effect::Applied);
    insta::assert_snapshot!(plan(&mut planner, &[("web", None, Some(&route()))]));
}

#[test]
fn an_external_load_balancer_under_policy_cluster_is_masqueraded_and_restricted() {
    let ranges = ["203.0.113.0/24", "203.0.113.128/25"].map(|range| range.parse().expect("a network"));
    let sources = AllowedSources { ranges: ranges.into(), own_vips: [ip("198.51.100.1")].into() };
    let mut restricted = Route { external_policy: TrafficPolicy::Cluster, ..load_balancer() };
    restricted.policy_mut().sources = Some(Arc::new(sources));
    insta::assert_snapshot!(plan(&mut planner(&[]), &[("web", None, Some(&restricted))]));
}

#[test]
fn source_ranges_are_exchanged_in_one_step() {
    let with = |range: &str| {
        let sources =
            AllowedSources { ranges: [range.parse().expect("a network")].into(), own_vips: Box::default() };
        let mut route = Route { external_policy: TrafficPolicy::Cluster, ..load_balancer() };
        route.policy_mut().sources = Some(Arc::new(sources));
        route
    };
    let (before, after) = (with("203.0.0.0/16"), with("203.0.113.0/24"));
    let mut planner = planner(&[("web", &before)]);
    insta::assert_snapshot!(plan(&mut planner, &[("web", Some(&before), Some(&after))]));
}

/// A UDP port with a NodePort, whose flows are at 10.1.0.2.
fn dns(scheduler: &str) -> Route {
    let own = |options: &mut Policy| options.options = [("ipvs-scheduler".into(), scheduler.into())].into();
    Route { protocol: Protocol::Udp, cluster: [target("10.1.0.2", true)].into(), ..route() }.under(own)
}

#[test]
fn udp_endpoints_that_still_serve_keep_their_flows_and_no_longer() {
    let other = || [target("10.2.0.2", false)].into();
    let first = || [target("10.1.0.2", true)].into();
    let shown = |plan: Plan<Op>| plan.to_string();
    for scheduler in ["rr", "mh"] {
        let before = dns(scheduler);
        let leaves = Route { cluster: other(), kept: first(), ..before.clone() };
        let gone = Route { kept: Box::default(), ..leaves.clone() };
        let mut planner = planner(&[("dns", &before)]);
        let text = shown(plan(&mut planner, &[("dns", Some(&before), Some(&leaves))]));
        planner.settle(Effect::Applied);
        assert!(text.contains("set destination udp 10.96.0.1:80 -> 10.1.0.2:8080 weight 0"), "{text}");
        // It is looked at as any other that drains.
        let look = planner.plan_upkeep(start() + Duration::from_secs(6)).expect("due").to_string();
        planner.settle(Effect::Applied);
        assert!(look.contains("reap udp 10.96.0.1:80 -> 10.1.0.2:8080"), "{look}");
        // Ready once more, and away again.
        let text = shown(plan(&mut planner, &[("dns", Some(&leaves), Some(&before))]));
        planner.settle(Effect::Applied);
        assert!(text.contains("set destination udp 10.96.0.1:80 -> 10.1.0.2:8080 weight 1"), "{text}");
        let text = shown(plan(&mut planner, &[("dns", Some(&before), Some(&leaves))]));
        planner.settle(Effect::Applied);
        assert!(text.contains("10.1.0.2:8080 weight 0"), "{text}");
        // Refused once: it is still to be deleted.
        for effect in [Effect::Nothing, Effect::Applied] {
            let text = shown(plan(&mut planner, &[("dns", Some(&leaves), Some(&gone))]));
            planner.settle(effect);
            assert!(text.contains("delete destination udp 10.96.0.1:80 -> 10.1.0.2:8080"), "{text}");
        }
        assert_eq!(planner.next_upkeep().and_then(|at| planner.plan_upkeep(at)), None, "nothing drains");
    }
}

#[test]
fn a_restart_keeps_flows_of_udp_endpoints_that_still_serve_only() {
    let before = dns("rr");
    let leaves = Route {
        cluster: [target("10.2.0.2", false)].into(),
        kept: [target("10.1.0.2", true)].into(),
        ..before.clone()
    };
    let gone = Route { kept: Box::default(), ..leaves.clone() };
    let first = full(&[("dns", &before)], Settings::default(), Found::default());
    let kept = full(&[("dns", &leaves)], Settings::default(), found_after(&first)).to_string();
    assert!(kept.contains("-> 10.1.0.2:8080 weight 0") && !kept.contains("delete destination"), "{kept}");
    let deleted = full(&[("dns", &gone)], Settings::default(), found_after(&first)).to_string();
    assert!(deleted.contains("delete destination udp 10.96.0.1:80 -> 10.1.0.2:8080"), "{deleted}");
}

/// With `dh` one of weight 0 would refuse its share of new flows.
#[test]
fn with_a_scheduler_that_knows_no_way_around_flows_move_on_at_once() {
    let before = dns("dh");
    let leaves = Route {
        cluster: [target("10.2.0.2", false)].into(),
        kept: [target("10.1.0.2", true)].into(),
        ..before.clone()
    };
    let mut planner = planner(&[("dns", &before)]);
    let text = plan(&mut planner, &[("dns", Some(&before), Some(&leaves))]).to_string();
    assert!(text.contains("delete destination udp 10.96.0.1:80 -> 10.1.0.2:8080"), "{text}");
}

/// A virtual server of a mark does not say of which protocol it is.
#[test]
fn udp_endpoints_of_a_mark_leave_at_once_too() {
    let before = Route { protocol: Protocol::Udp, ..load_balancer() };
    let after = Route { cluster: [target("10.1.0.2", true)].into(), ..before.clone() };
    let mut planner = planner(&[("dns", &before)]);
    let text = plan(&mut planner, &[("dns", Some(&before), Some(&after))]).to_string();
    let of_mark = text.lines().any(|line| line.contains("delete destination") && line.contains("mark"));
    assert!(of_mark, "{text}");
}

#[test]
fn external_policy_local_splits_by_mark() {
    insta::assert_snapshot!(plan(&mut planner(&[]), &[("web", None, Some(&load_balancer()))]));
}

#[test]
fn external_policy_local_without_an_endpoint_here_drops_outsiders_only() {
    let elsewhere =
        Route { local: Box::default(), cluster: [target("10.2.0.2", false)].into(), ..load_balancer() };
    let mut planner = planner(&[("web", &load_balancer())]);
    insta::assert_snapshot!(plan(&mut planner, &[("web", Some(&load_balancer()), Some(&elsewhere))]));
}

#[test]
fn internal_policy_local_without_an_endpoint_here_drops() {
    let here = Route { local: [target("10.1.0.2", true)].into(), ..route() }
        .under(|policy| policy.internal = TrafficPolicy::Local);
    let nowhere = Route { local: Box::default(), ..here.clone() };
    let mut planner = planner(&[("web", &here)]);
    insta::assert_snapshot!(plan(&mut planner, &[("web", Some(&here), Some(&nowhere))]));
}

#[test]
fn a_service_without_endpoints_has_no_server_and_refuses() {
    let none = Route { cluster: Box::default(), any_endpoint: false, ..route() };
    insta::assert_snapshot!(plan(&mut planner(&[]), &[("web", None, Some(&none))]));
}

#[test]
fn affinity_scheduler_and_weights_are_options_of_the_server() {
    let annotations = [("ipvs-scheduler", "mh"), ("ipvs-weight", "2"), ("ipvs-local-weight", "5")]
        .map(|(k, v)| (k.into(), v.into()));
    let after = route().under(|policy| {
        policy.affinity = Some(10800);
        policy.options = annotations.into();
    });
    let mut planner = planner(&[("web", &route())]);
    insta::assert_snapshot!(plan(&mut planner, &[("web", Some(&route()), Some(&after))]));
}

#[test]
fn an_address_that_one_service_gives_and_another_takes_is_handed_over() {
    let other = Route { cluster: [target("10.2.0.9", false)].into(), ..route() };
    let mut planner = planner(&[("old", &route())]);
    let plan = plan(&mut planner, &[("new", None, Some(&other)), ("old", Some(&route()), None)]);
    insta::assert_snapshot!(plan);
}

#[test]
fn a_host_network_endpoint_needs_no_hairpin_and_an_external_ip_of_the_node_no_guard() {
    let mut at_home = Route { cluster: [target("192.168.7.1", true)].into(), ..route() };
    at_home.frontends = [frontend(FrontendKind::ExternalIp, Some("192.168.7.1"), 443)].into();
    insta::assert_snapshot!(plan(&mut planner(&[]), &[("web", None, Some(&at_home))]));
}

#[test]
fn a_start_on_an_empty_kernel_writes_everything() {
    insta::assert_snapshot!(full(&[("web", &load_balancer())], Settings::default(), Found::default()));
}

#[test]
fn a_restart_over_the_same_state_changes_no_server_and_no_route() {
    let routes = [("web", &load_balancer())];
    let first = full(&routes, Settings::default(), Found::default());
    insta::assert_snapshot!(full(&routes, Settings::default(), found_after(&first)));
}

#[test]
fn a_restart_repairs_what_differs_and_drains_what_is_left_over() {
    let first = full(&[("gone", &route()), ("web", &load_balancer())], Settings::default(), Found::default());
    let mut found = found_after(&first);
    // Somebody else's server, one of ours with a wrong weight, and an endpoint that drained before the restart.
    let foreign = ServiceKey::new(ip("10.96.0.77"), 80, ipvs_netlink::Protocol::Tcp);
    found
        .servers
        .push(FoundServer { service: Service::new(foreign, Scheduler::WLC), destinations: Vec::new() });
    found.servers[1].destinations[0].weight = 9;
    found.servers[1].destinations.push(Destination::new(ip("10.2.0.99"), 8080, 0));
    let external = Route { frontends: load_balancer().frontends[1..].into(), ..load_balancer() };
    insta::assert_snapshot!(full(&[("web", &external)], Settings::default(), found));
}

#[test]
fn kube_proxys_addresses_and_servers_are_taken_over() {
    let key = |addr: &str| ServiceKey::new(ip(addr), 80, ipvs_netlink::Protocol::Tcp);
    let server = |addr: &str, to: &str| FoundServer {
        service: Service::new(key(addr), Scheduler::RR),
        destinations: vec![Destination::new(ip(to), 8080, 1)],
    };
    let found = Found {
        servers: vec![
            server("10.96.0.1", "10.1.0.2"),
            server("10.96.0.9", "10.1.0.9"),
            server("203.0.113.5", "10.1.0.8"),
        ],
        addresses: [ip("10.96.0.1"), ip("10.96.0.9")].into(),
        ..Found::default()
    };
    insta::assert_snapshot!(full(&[("web", &route())], Settings::default(), found));
}

#[test]
fn rules_that_translate_go_once_the_virtual_servers_can_be_reached() {
    let found = Found { translated: true, ..Found::default() };
    let plan = full(&[("web", &route())], Settings::default(), found).to_string();
    let line = |word: &str| {
        let at = plan.lines().position(|line| line.starts_with(word));
        at.unwrap_or_else(|| panic!("no line begins with {word:?} in\n{plan}"))
    };
    assert!(line("bind") < line("rebuild"), "{plan}");
    let plan = full(&[("web", &route())], Settings::default(), Found::default()).to_string();
    let line = |word: &str| plan.lines().position(|line| line.starts_with(word));
    assert!(line("rebuild") < line("bind"), "else the guards come first: {plan}");
}

#[test]
fn in_excluded_networks_only_what_a_service_wants_is_touched() {
    let key = |addr: &str| ServiceKey::new(ip(addr), 80, ipvs_netlink::Protocol::Tcp);
    let foreign = |addr: &str| FoundServer {
        service: Service::new(key(addr), Scheduler::WLC),
        destinations: Vec::new(),
    };
    let found = Found {
        servers: vec![foreign("10.96.0.1"), foreign("10.96.0.9")],
        addresses: [ip("10.96.0.9")].into(),
        ..Found::default()
    };
    let exclude_cidrs = ["10.96.0.0/24".parse().expect("a network")].into();
    let plan = full(&[("web", &route())], Settings { exclude_cidrs, ..Settings::default() }, found);
    insta::assert_snapshot!(plan);
}

#[test]
fn a_plan_that_did_not_take_effect_is_forgotten() {
    let mut tried = planner(&[("web", &load_balancer())]);
    plan(&mut tried, &[("web", Some(&load_balancer()), None), ("other", None, Some(&route()))]);
    tried.settle(Effect::Nothing);
    let mut untouched = planner(&[("web", &load_balancer())]);
    let now = start();
    let (before, after) = (load_balancer(), route());
    let changes = [("web", Some(&before), Some(&after))];
    assert_eq!(plan_at(&mut tried, &changes, now), plan_at(&mut untouched, &changes, now));
}

#[test]
fn a_new_environment_rewrites_the_rules() {
    let mut planner = planner(&[("web", &route())]);
    let all = Environment { masquerade_all: true, ..environment() };
    assert_eq!(plan_in(&mut planner, &[], &all, start()).to_string(), "rewrite rules\n");
}

/// The node has one address more and one less.
fn moved() -> Environment {
    Environment { interface_addresses: [ip("127.0.0.1"), ip("192.168.7.2")].into(), ..environment() }
}

#[test]
fn node_ports_follow_the_nodes_addresses_and_nothing_else_is_touched() {
    let mut planner = planner(&[("a", &load_balancer()), ("b", &route_at("10.96.0.2"))]);
    insta::assert_snapshot!(plan_in(&mut planner, &[], &moved(), start()));
    planner.settle(Effect::Applied);
    assert!(plan_in(&mut planner, &[], &moved(), start()).is_empty());
}

#[test]
fn an_address_that_services_use_otherwise_is_planned_in_full() {
    let external =
        Route { frontends: [frontend(FrontendKind::ExternalIp, Some("192.168.7.2"), 443)].into(), ..route() };
    let of_host = Route { cluster: [target("192.168.7.1", true)].into(), ..route() };
    let of_pod = Route { cluster: [target("192.168.7.2", true)].into(), ..route() };
    for (what, route) in [("an external IP", external), ("on the host", of_host), ("a pod", of_pod)] {
        let mut planner = planner(&[("web", &route)]);
        assert!(matches!(planner.plan(&[], &moved(), start()), Planned::StartOver(_)), "{what}");
    }
}

/// An external IP that is the node's own, with the number of the NodePort of [`load_balancer`].
fn claiming_a_node_port() -> Route {
    Route {
        frontends: [frontend(FrontendKind::ExternalIp, Some("192.168.7.1"), 30080)].into(),
        cluster: [target("10.2.0.7", false)].into(),
        ..route()
    }
}

#[test]
fn an_external_ip_of_the_node_goes_before_a_node_port_whichever_comes_first() {
    let (balancer, claiming) = (load_balancer(), claiming_a_node_port());
    let first = full(&[("a", &claiming), ("b", &balancer)], Settings::default(), Found::default());
    let mut together = Model::default();
    together.apply(&first).expect("an empty start");
    for order in [["a", "b"], ["b", "a"]] {
        let (mut planner, mut model) = (IpvsPlanner::alone(Settings::default()), Model::default());
        let start_plan = planner.plan_full(&[], &environment(), Found::default(), start());
        model.apply(&start_plan).expect("an empty start");
        planner.settle(Effect::Applied);
        for service in order {
            let route = if service == "a" { &claiming } else { &balancer };
            let plan = plan(&mut planner, &[(service, None, Some(route))]);
            model.apply(&plan).expect("accepted");
            planner.settle(Effect::Applied);
        }
        assert_eq!(model.settled(), together.settled(), "{order:?}");
    }
}

#[test]
fn a_node_port_answers_again_when_the_external_ip_goes() {
    let mut planner = planner(&[("a", &claiming_a_node_port()), ("b", &load_balancer())]);
    insta::assert_snapshot!(plan(&mut planner, &[("a", Some(&claiming_a_node_port()), None)]));
}

#[test]
fn the_link_local_addresses_of_pods_links_concern_nobody() {
    let mut planner = planner(&[("web", &route())]);
    let mut more = environment();
    more.interface_addresses = [&*more.interface_addresses, &[ip("fe80::1234")]].concat().into();
    match planner.plan(&[], &more, start()) {
        Planned::Plan(plan) => assert!(plan.is_empty(), "{plan}"),
        Planned::StartOver(reason) => panic!("{reason}"),
    }
}

#[test]
fn upkeep_reaps_and_lets_the_address_go_with_the_last_connection() {
    let (reports, receiver) = mpsc::channel();
    let mut planner = IpvsPlanner::new(Settings::default(), receiver);
    let begin = start();
    planner.plan_full(&[(name("web"), Arc::new(route()))], &environment(), Found::default(), begin);
    planner.settle(Effect::Applied);
    plan_at(&mut planner, &[("web", Some(&route()), None)], begin);
    planner.settle(Effect::Applied);

    assert_eq!(planner.next_upkeep(), Some(begin + Duration::from_secs(1)));
    assert_eq!(planner.plan_upkeep(begin + Duration::from_millis(900)), None);
    let plan = planner.plan_upkeep(begin + Duration::from_secs(1)).expect("due");
    assert_eq!(plan.to_string(), "reap tcp 10.96.0.1:80 -> 10.1.0.2:8080 10.2.0.2:8080, then the server\n");
    planner.settle(Effect::Applied);

    let key = ServiceKey::new(ip("10.96.0.1"), 80, ipvs_netlink::Protocol::Tcp);
    reports.send(Reaped::Server(key)).expect("the planner listens");
    let plan = planner.plan_upkeep(begin + Duration::from_secs(15)).expect("the address is left");
    assert_eq!(plan.to_string(), "unbind 10.96.0.1\n\ndelete vip 10.96.0.1\n");
    planner.settle(Effect::Nothing);
    // It was not let go of: it is tried again.
    let plan = planner.plan_upkeep(begin + Duration::from_secs(16)).expect("owed");
    assert_eq!(plan.to_string(), "unbind 10.96.0.1\n\ndelete vip 10.96.0.1\n");
    planner.settle(Effect::Applied);
    assert_eq!(planner.plan_upkeep(begin + Duration::from_secs(17)), None);
}

mod history;
