//! After any history the comparison is empty; after any damage it names the Service that was damaged, and no other.

mod support;

use std::{collections::BTreeSet, time::Duration};

use backend_nft::{cleanup, compare, standing};
use proxy_core::{
    backend::Executor as _,
    difference::{Comparison, DifferenceKind},
    model::{Family, ServicePortName, TrafficPolicy},
    route::Route,
};
use support::{
    enter_node,
    routes::{Build, Proxy, local, name, now, route, target},
    run,
};

/// Routes that fill every set, each Service with endpoints and addresses of its own.
fn some_routes(v6: bool) -> Vec<(ServicePortName, Route)> {
    let ip = |service: u32, host: u32| {
        if v6 { format!("fd00:{service}::{host}") } else { format!("10.0.{service}.{host}") }
    };
    let vip = |host: u32| if v6 { format!("fd99::{host}") } else { format!("172.30.0.{host}") };
    let lb = |host: u32| if v6 { format!("fd44::{host}") } else { format!("198.51.100.{host}") };
    let three = |service: u32| [local(&ip(service, 1)), target(&ip(service, 2)), target(&ip(service, 3))];
    let ranges: [&str; 2] =
        if v6 { ["fd55::/64", "fd66::9/128"] } else { ["192.0.2.0/24", "203.0.113.9/32"] };
    let mut sticky = route(&three(2)).cluster_ip(&vip(2)).load_balancer(&lb(2));
    sticky.policy_mut().affinity = Some(60);
    sticky.external_policy = TrafficPolicy::Local;
    let mut external = route(&three(3)).cluster_ip(&vip(3)).load_balancer(&lb(3));
    external.external_policy = TrafficPolicy::Local;
    let mut elsewhere = route(&[target(&ip(5, 1))]).load_balancer(&lb(5)).node_port(30085);
    elsewhere.external_policy = TrafficPolicy::Local;
    let mut dropped = route(&[target(&ip(8, 1))]).cluster_ip(&vip(8));
    dropped.policy_mut().internal = TrafficPolicy::Local;
    vec![
        (name("dropped"), dropped),
        (name("plain"), route(&three(1)).cluster_ip(&vip(1)).node_port(30080)),
        (name("sticky"), sticky),
        (name("external"), external),
        (name("refused"), route(&[]).cluster_ip(&vip(4)).node_port(30084)),
        (name("elsewhere"), elsewhere),
        (name("restricted"), route(&three(7)).cluster_ip(&vip(7)).restricted(&lb(7), &ranges)),
    ]
}

fn compared(proxy: &Proxy) -> Comparison {
    let found = compare(&proxy.routes, &proxy.environment, now()).expect("the kernel can be read");
    assert_eq!(found.unseen, [""; 0], "tests run as root");
    found
}

fn texts(comparison: &Comparison) -> Vec<String> {
    let line = |difference: &proxy_core::difference::Difference| {
        let owner = difference.owner.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        format!("{owner}: {} {}", difference.kind, difference.what)
    };
    comparison.differences.iter().map(line).collect()
}

fn assert_same(proxy: &Proxy, when: &str) {
    let found = compared(proxy);
    assert!(found.is_same(), "{when}: {:#?}", texts(&found));
    assert!(found.compared > 100, "{when}: {}", found.compared);
}

fn family_word(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

fn generation(family: Family) -> String {
    let listing = run(&format!("nft list chain {} kube-proxy nat-prerouting", family_word(family)));
    let (_, rest) = listing.split_once("to-class-").expect("it is there");
    rest.split_whitespace().next().expect("a number").to_owned()
}

#[test]
fn after_any_history_nothing_differs_but_what_is_owed() {
    enter_node();
    for family in Family::BOTH {
        let v6 = family == Family::V6;
        let mut proxy = Proxy::new(family);
        proxy.full(vec![]);
        assert_same_empty(&proxy);
        proxy.full(some_routes(v6));
        assert_same(&proxy, "a full sync");
        let endpoint = |host: u32| if v6 { format!("fd00:9::{host}") } else { format!("10.0.9.{host}") };
        let vip = |host: u32| if v6 { format!("fd99::{host}") } else { format!("172.30.0.{host}") };
        // Lists grow, shrink and are reordered, across size classes; Services come, go, become sticky and stop to be so.
        for (round, count) in [1, 3, 2, 70, 5, 0, 4, 130, 129].into_iter().enumerate() {
            let targets: Vec<_> = (0..count).map(|host| target(&endpoint(host + round as u32 + 1))).collect();
            proxy.change(&name("plain"), Some(route(&targets).cluster_ip(&vip(1)).node_port(30080)));
            let mut sticky = route(&targets).cluster_ip(&vip(2)).node_port(30082);
            sticky.policy_mut().affinity = (round % 4 != 3).then_some(60 + 60 * (round as u32 % 2));
            proxy.change(&name("sticky"), Some(sticky));
            assert_same(&proxy, &format!("round {round} in {family}"));
            if round % 3 == 1 {
                proxy.upkeep(Duration::from_secs(if round == 4 { 100 } else { 2 }));
                assert_same(&proxy, &format!("round {round} in {family}, after upkeep"));
            }
        }
        proxy.start_over();
        assert_same(&proxy, "another full sync");
        for name in ["sticky", "restricted", "external", "plain", "refused"].map(name) {
            proxy.change(&name, None);
            assert_same(&proxy, &format!("without {name}"));
        }
        assert!(!compared(&proxy).owed.is_empty(), "lists that nothing leads to are owed, not different");
        proxy.upkeep(Duration::from_secs(2));
        proxy.upkeep(Duration::from_secs(100));
        let found = compared(&proxy);
        assert!(found.is_same() && found.owed.is_empty(), "{found:#?}");
    }
}

fn assert_same_empty(proxy: &Proxy) {
    let found = compared(proxy);
    assert!(found.is_same(), "{:#?}", texts(&found));
}

/// Elements of a map or set as lines.
fn elements(family: Family, set: &str) -> Vec<String> {
    let listing = ["map", "set"]
        .into_iter()
        .find_map(|kind| {
            let output = std::process::Command::new("nft")
                .args([
                    "list",
                    kind,
                    family_word(family),
                    "kube-proxy",
                    &format!("{set}-{}", generation(family)),
                ])
                .output()
                .expect("nft is installed");
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
        })
        .expect("there is such a set");
    let Some((_, rest)) = listing.split_once("elements = {") else { return Vec::new() };
    let inside = rest.split('}').next().expect("it ends");
    inside.split(',').map(|element| element.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn every_damage_names_the_service_that_was_damaged_and_no_other() {
    enter_node();
    for family in Family::BOTH {
        let v6 = family == Family::V6;
        let word = family_word(family);
        let mut proxy = Proxy::new(family);
        proxy.full(some_routes(v6));
        let vip = |host: u32| if v6 { format!("fd99::{host}") } else { format!("172.30.0.{host}") };
        let lb = |host: u32| if v6 { format!("fd44::{host}") } else { format!("198.51.100.{host}") };
        let ip = |service: u32, host: u32| {
            if v6 { format!("fd00:{service}::{host}") } else { format!("10.0.{service}.{host}") }
        };
        let of = |set: &str, about: &str| -> String {
            let all = elements(family, set);
            let found = all.iter().find(|element| element.contains(about));
            found.unwrap_or_else(|| panic!("{about} in {set}: {all:?}")).clone()
        };
        let key = |element: &str| {
            element.split(" : ").next().expect("a key").split(" comment").next().expect("a key").to_owned()
        };
        let value = |element: &str| element.rsplit(" : ").next().expect("a value").to_owned();
        let other_value = value(&of("vips", &format!("{} . tcp . 80", vip(3))));
        let plain_vip = format!("{} . tcp . 80", vip(1));
        let endpoint = of("endpoints", &ip(1, 2));
        let local_endpoint = of("endpoints", &ip(3, 1));
        let slot = of("sticky-slots", "");
        let damages: Vec<(Option<&str>, DifferenceKind, String)> = vec![
            (
                Some("plain"),
                DifferenceKind::Missing,
                format!("delete element {word} kube-proxy vips-GENERATION {{ {plain_vip} }}"),
            ),
            (
                Some("plain"),
                DifferenceKind::Missing,
                "delete element WORD kube-proxy nodeports-GENERATION { tcp . 30080 }".into(),
            ),
            (
                Some("plain"),
                DifferenceKind::Missing,
                format!("delete element {word} kube-proxy endpoints-GENERATION {{ {} }}", key(&endpoint)),
            ),
            (
                Some("plain"),
                DifferenceKind::Extra,
                format!(
                    "delete element {word} kube-proxy vips-GENERATION {{ {plain_vip} }}\nadd element {word} kube-proxy vips-GENERATION {{ {plain_vip} : {other_value} }}"
                ),
            ),
            (
                Some("plain"),
                DifferenceKind::Extra,
                format!(
                    "delete element {word} kube-proxy endpoints-GENERATION {{ {0} }}\nadd element {word} kube-proxy endpoints-GENERATION {{ {0} : {1} . 8080 }}",
                    key(&endpoint),
                    ip(66, 6)
                ),
            ),
            (
                Some("external"),
                DifferenceKind::Missing,
                format!(
                    "delete element {word} kube-proxy endpoints-GENERATION {{ {} }}",
                    key(&local_endpoint)
                ),
            ),
            (
                Some("external"),
                DifferenceKind::Missing,
                format!("delete element {word} kube-proxy clusterips-GENERATION {{ {} }}", vip(3)),
            ),
            (
                Some("external"),
                DifferenceKind::Missing,
                format!("delete element {word} kube-proxy outside-vips-GENERATION {{ {} }}", lb(3)),
            ),
            (
                Some("external"),
                DifferenceKind::Extra,
                format!(
                    "add element {word} kube-proxy vips-GENERATION {{ {} . tcp . 8443 : {other_value} }}",
                    lb(3)
                ),
            ),
            (
                Some("refused"),
                DifferenceKind::Missing,
                format!(
                    "delete element {word} kube-proxy refuse-vips-GENERATION {{ {} . tcp . 80 }}",
                    vip(4)
                ),
            ),
            (
                Some("refused"),
                DifferenceKind::Missing,
                "delete element WORD kube-proxy refuse-nodeports-GENERATION { tcp . 30084 }".into(),
            ),
            (
                Some("plain"),
                DifferenceKind::Extra,
                format!("add element {word} kube-proxy refuse-vips-GENERATION {{ {plain_vip} }}"),
            ),
            (
                Some("dropped"),
                DifferenceKind::Missing,
                format!("delete element {word} kube-proxy drop-vips-GENERATION {{ {} . tcp . 80 }}", vip(8)),
            ),
            (
                Some("sticky"),
                DifferenceKind::Missing,
                format!("delete element {word} kube-proxy sticky-slots-GENERATION {{ {} }}", key(&slot)),
            ),
            (
                Some("sticky"),
                DifferenceKind::Missing,
                format!(
                    "delete element {word} kube-proxy sticky-endpoints-GENERATION {{ {} }}",
                    key(&of("sticky-endpoints", &ip(2, 2)))
                ),
            ),
            (
                Some("restricted"),
                DifferenceKind::Missing,
                format!(
                    "delete element {word} kube-proxy endpoint-ports-GENERATION {{ {0} . {0} . 8080 }}",
                    ip(7, 2)
                ),
            ),
            (
                Some("restricted"),
                DifferenceKind::Extra,
                format!(
                    "add element {word} kube-proxy allowed-{}-GENERATION {{ {} . tcp . 80 . {} }}",
                    if v6 { 128 } else { 32 },
                    lb(7),
                    if v6 { "fd66::10" } else { "203.0.113.10" }
                ),
            ),
            (None, DifferenceKind::Different, "insert rule WORD kube-proxy nat-prerouting drop".into()),
            (None, DifferenceKind::Different, "add rule WORD kube-proxy lb-3-GENERATION accept".into()),
            (None, DifferenceKind::Different, "flush chain WORD kube-proxy to-class-GENERATION".into()),
            (
                None,
                DifferenceKind::Different,
                "add chain WORD kube-proxy filter-forward { policy drop; }".into(),
            ),
            (None, DifferenceKind::Extra, "add chain WORD kube-proxy somebody-elses".into()),
            (
                None,
                DifferenceKind::Extra,
                "add set WORD kube-proxy somebody-elses { type ipv4_addr; }".into(),
            ),
            (None, DifferenceKind::Different, "add table WORD kube-proxy { flags dormant; }".into()),
        ];
        let whole = texts(&compared(&proxy));
        assert_eq!(whole, [""; 0]);
        for (service, kind, commands) in damages {
            let commands = commands.replace("WORD", word).replace("GENERATION", &generation(family));
            support::load("nft", &commands).expect(&commands);
            let found = compared(&proxy);
            let owners: BTreeSet<Option<String>> = found
                .differences
                .iter()
                .map(|difference| difference.owner.as_ref().map(|name| name.service.name().to_owned()))
                .collect();
            let wanted = BTreeSet::from([service.map(str::to_owned)]);
            assert_eq!(owners, wanted, "{commands}: {:#?}", texts(&found));
            assert!(
                found.differences.iter().any(|difference| difference.kind == kind),
                "{commands}: {:#?}",
                texts(&found)
            );
            proxy.start_over();
            assert_same(&proxy, &format!("mended after {commands}"));
        }
    }
}

#[test]
fn a_table_that_is_gone_misses_every_service_and_a_reading_changes_nothing() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes(false));
    let before = run("nft -s list ruleset");
    assert_same(&proxy, "a full sync");
    assert_eq!(run("nft -s list ruleset"), before);
    assert!(proxy.executor.intact().expect("the kernel answers"), "the process's own check is not disturbed");
    run("nft flush ruleset");
    let found = compared(&proxy);
    let owners: BTreeSet<&str> = found
        .differences
        .iter()
        .filter_map(|difference| Some(difference.owner.as_ref()?.service.name()))
        .collect();
    assert_eq!(owners.len(), some_routes(false).len(), "{:#?}", texts(&found));
}

#[test]
fn what_stands_is_told_with_who_wrote_it() {
    enter_node();
    assert_eq!(standing(Family::V4).expect("readable"), None);
    support::load("nft", &support::kube_proxy_rules("172.30.0.1", "tcp", &["10.0.1.1", "10.0.1.2"]))
        .expect("nft takes it");
    let theirs = standing(Family::V4).expect("readable").expect("there is a table");
    assert!(!theirs.ours && theirs.chains >= 8 && theirs.rules >= 15 && theirs.sets >= 5, "{theirs:?}");
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes(false));
    let ours = standing(Family::V4).expect("readable").expect("there is a table");
    assert!(ours.ours, "{ours:?}");
    cleanup(Family::V4).expect("it is removed");
    assert_eq!(standing(Family::V4).expect("readable"), None);
}
