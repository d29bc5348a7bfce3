//! Plans as text: one change each, on top of a small cluster.

mod support;

use std::{sync::Arc, time::Duration};

use backend_nft::{Found, Op, Planner};
use proxy_core::{
    backend::{Change, Effect, Plan, Planned, Planner as _},
    model::{Family, ServicePortName, TrafficPolicy},
    route::Route,
};
use support::routes::{Build, environment, local, name, now, route, target};

fn web() -> Route {
    route(&[target("10.0.2.1"), target("10.0.3.1")]).cluster_ip("172.30.0.1").node_port(30080)
}

fn installed(routes: &[(ServicePortName, Route)]) -> Planner {
    let routes: Vec<_> = routes.iter().map(|(name, route)| (name.clone(), Arc::new(route.clone()))).collect();
    let mut planner = Planner::new(Family::V4);
    planner.plan_full(&routes, &environment(Family::V4), Found::default(), now());
    planner.settle(Effect::Applied);
    planner
}

fn plan(planner: &mut Planner, before: Option<Route>, after: Option<Route>) -> Plan<Op> {
    let change = Change { name: name("web"), before: before.map(Arc::new), after: after.map(Arc::new) };
    match planner.plan(&[change], &environment(Family::V4), now()) {
        Planned::Plan(plan) => plan,
        Planned::StartOver(reason) => panic!("{reason}"),
    }
}

fn from_to(before: Option<Route>, after: Option<Route>) -> String {
    let routes: Vec<_> = before.iter().map(|route| (name("web"), route.clone())).collect();
    plan(&mut installed(&routes), before, after).to_string()
}

fn sticky(mut route: Route) -> Route {
    route.policy_mut().affinity = Some(10_800);
    route
}

#[test]
fn a_first_service_makes_its_chains_then_its_elements() {
    insta::assert_snapshot!(from_to(None, Some(web())));
}

#[test]
fn an_endpoint_that_cannot_be_used_writes_nothing() {
    for before in [web(), sticky(web())] {
        assert_eq!(from_to(Some(before.clone()), Some(Route { endpoints: 3, ..before })), "");
    }
}

#[test]
fn an_endpoint_in_place_of_another_takes_its_slot() {
    let mut after = web();
    after.cluster = route(&[target("10.0.2.1"), target("10.0.4.1")]).cluster;
    insta::assert_snapshot!(from_to(Some(web()), Some(after)), @r"
    delete element endpoints-1 { fff0:1 . tcp . 1 : 10.0.3.1 . 8080 }
    delete element endpoint-ports-1 { 10.0.3.1 . 10.0.3.1 . 8080 }
    add element endpoints-1 { fff0:1 . tcp . 1 : 10.0.4.1 . 8080 }
    add element endpoint-ports-1 { 10.0.4.1 . 10.0.4.1 . 8080 }
    ");
}

#[test]
fn an_endpoint_more_changes_the_size_of_every_address() {
    let mut after = web();
    after.cluster = route(&[target("10.0.2.1"), target("10.0.3.1"), local("10.0.4.1")]).cluster;
    insta::assert_snapshot!(from_to(Some(web()), Some(after)));
}

#[test]
fn the_last_member_fills_the_hole_that_another_leaves() {
    let before =
        route(&[target("10.0.2.1"), target("10.0.3.1"), target("10.0.4.1")]).cluster_ip("172.30.0.1");
    let after = route(&[target("10.0.3.1"), target("10.0.4.1")]).cluster_ip("172.30.0.1");
    insta::assert_snapshot!(from_to(Some(before), Some(after)));
}

#[test]
fn without_endpoints_its_addresses_refuse() {
    let after = route(&[]).cluster_ip("172.30.0.1").node_port(30080);
    insta::assert_snapshot!(from_to(Some(web()), Some(after)));
}

#[test]
fn policy_local_adds_a_list_and_the_way_to_it() {
    let before = route(&[target("10.0.2.1"), local("10.0.3.1")]).node_port(30080);
    let mut after = before.clone();
    after.external_policy = TrafficPolicy::Local;
    insta::assert_snapshot!(from_to(Some(before), Some(after)));
}

#[test]
fn source_ranges_are_added_and_taken_one_by_one() {
    let restricted = |ranges: &[&str]| route(&[target("10.0.2.1")]).restricted("198.51.100.1", ranges);
    let before = restricted(&["192.168.0.0/16", "192.168.1.0/24", "203.0.113.0/24"]);
    insta::assert_snapshot!(from_to(Some(before), Some(restricted(&["192.168.0.0/16", "203.0.113.7/32"]))), @r"
    add set allowed-32-1
    add chain source-check-1
    flush chain source-check-1
    add rule source-check-1 ip daddr . meta l4proto . th dport . ip saddr & /16 @allowed-16-1 return
    add rule source-check-1 ip daddr . meta l4proto . th dport . ip saddr & /24 @allowed-24-1 return
    add rule source-check-1 ip daddr . meta l4proto . th dport . ip saddr & /32 @allowed-32-1 return
    add rule source-check-1 drop

    add element allowed-32-1 { 198.51.100.1 . tcp . 80 . 203.0.113.7/32 }

    delete element allowed-24-1 { 198.51.100.1 . tcp . 80 . 203.0.113.0/24 }
    ");
}

#[test]
fn a_sticky_endpoint_that_goes_is_one_element_less_to_choose_from_and_one_that_is_known() {
    let before =
        sticky(route(&[target("10.0.2.1"), target("10.0.3.1"), target("10.0.4.1")]).cluster_ip("172.30.0.1"));
    let after = sticky(route(&[target("10.0.2.1"), target("10.0.3.1")]).cluster_ip("172.30.0.1"));
    insta::assert_snapshot!(from_to(Some(before), Some(after)));
}

#[test]
fn affinity_switched_on_leaves_the_plain_list_to_packets_on_their_way() {
    let before = route(&[target("10.0.2.1")]).cluster_ip("172.30.0.1");
    let mut planner = installed(&[(name("web"), before.clone())]);
    let plan = plan(&mut planner, Some(before.clone()), Some(sticky(before)));
    planner.settle(Effect::Applied);
    let upkeep = planner.plan_upkeep(now() + Duration::from_secs(2)).expect("something is owed");
    insta::assert_snapshot!(format!("{plan}\n--- a moment later\n{upkeep}"));
}

#[test]
fn chains_that_nobody_uses_are_taken_down_after_a_while() {
    let mut planner = installed(&[(name("web"), web())]);
    plan(&mut planner, Some(web()), None);
    planner.settle(Effect::Applied);
    assert!(planner.next_upkeep().is_some());
    let upkeep = planner.plan_upkeep(now() + Duration::from_secs(61)).expect("something is owed");
    insta::assert_snapshot!(upkeep.to_string());
}

#[test]
fn a_map_that_would_be_nearly_full_means_to_start_over() {
    let targets = |count: u32| -> Vec<_> {
        (0..count).map(|number| target(&format!("10.1.{}.{}", number / 250, number % 250))).collect()
    };
    let small = route(&targets(1)).cluster_ip("172.30.0.1");
    let mut planner = installed(&[(name("web"), small.clone())]);
    let change = |after: u32| Change {
        name: name("web"),
        before: Some(Arc::new(small.clone())),
        after: Some(Arc::new(route(&targets(after)).cluster_ip("172.30.0.1"))),
    };
    let environment = environment(Family::V4);
    assert!(matches!(planner.plan(&[change(600)], &environment, now()), Planned::Plan(_)));
    planner.settle(Effect::Nothing);
    assert!(matches!(planner.plan(&[change(700)], &environment, now()), Planned::StartOver(_)));
    // And the planner stands where it stood.
    assert!(matches!(planner.plan(&[change(600)], &environment, now()), Planned::Plan(_)));
}

#[test]
fn a_planner_that_installed_nothing_wants_to_start_over() {
    let mut planner = Planner::new(Family::V4);
    assert!(matches!(planner.plan(&[], &environment(Family::V4), now()), Planned::StartOver(_)));
}

#[test]
fn a_change_and_its_reverse_leave_nothing_behind() {
    let mut planner = installed(&[(name("web"), web())]);
    let mut after = web();
    after.cluster = route(&[target("10.0.2.1"), target("10.0.4.1")]).cluster;
    plan(&mut planner, Some(web()), Some(after.clone()));
    planner.settle(Effect::Applied);
    let back = plan(&mut planner, Some(after), Some(web())).to_string();
    planner.settle(Effect::Applied);
    assert!(back.contains("add element endpoints-1 { fff0:1 . tcp . 1 : 10.0.3.1 . 8080 }"), "{back}");
    assert_eq!(planner.next_upkeep(), None);
}

#[test]
fn a_plan_that_had_no_effect_is_made_again_the_same() {
    let mut local = route(&[target("10.0.2.1"), local("10.0.3.1")]).cluster_ip("172.30.0.2").node_port(30081);
    local.external_policy = TrafficPolicy::Local;
    for after in [web(), sticky(local.clone()), local] {
        let mut planner = installed(&[(name("other"), web())]);
        let first = plan(&mut planner, None, Some(after.clone())).to_string();
        for _ in 0..3 {
            planner.settle(Effect::Nothing);
            assert_eq!(plan(&mut planner, None, Some(after.clone())).to_string(), first);
        }
    }
}
