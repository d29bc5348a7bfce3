//! After any history the comparison is empty; after any damage it names the Service that was damaged, and no other.

mod rig;

use std::{collections::BTreeSet, net::IpAddr};

use backend_iptables::{Variant, cleanup, compare, removals};
use proxy_core::{
    difference::{Comparison, DifferenceKind},
    model::{Family, TrafficPolicy},
    route::{FrontendKind, Route, Target},
};
use rig::{Node, Proxy, cluster_ip, frontend, name, run, target};

const VARIANTS: [Variant; 2] = [Variant::Legacy, Variant::Nft];

fn addr(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn targets(service: u8, count: u8) -> Vec<Target> {
    (1..=count).map(|host| target(addr(&format!("10.244.{service}.{host}")), 8080, host == 1)).collect()
}

fn exposed(service: u8, count: u8) -> Route {
    let endpoints = targets(service, count);
    let mut route = cluster_ip(addr(&format!("10.96.0.{service}")), 80, &endpoints);
    route.local = endpoints.iter().copied().filter(|target| target.local).collect();
    route.endpoints = u32::from(count);
    route.frontends = [
        frontend(FrontendKind::ClusterIp, Some(addr(&format!("10.96.0.{service}"))), 80),
        frontend(FrontendKind::LoadBalancerIp, Some(addr(&format!("203.0.113.{service}"))), 80),
        frontend(FrontendKind::NodePort, None, 30_000 + u16::from(service)),
    ]
    .into();
    route.external_policy = TrafficPolicy::Local;
    route
}

fn in_both_variants(test: fn(Variant)) {
    for variant in VARIANTS {
        let result = std::thread::Builder::new().name(variant.to_string()).spawn(move || test(variant));
        result.expect("a thread").join().unwrap_or_else(|_| panic!("fails in the {variant} variant"));
    }
}

fn proxy(variant: Variant) -> Proxy {
    let node = Node::new(Family::V4);
    let mut proxy = Proxy::new(variant, node.environment());
    proxy.environment.localhost_node_ports = true;
    let mut sticky = exposed(12, 3);
    sticky.policy_mut().affinity = Some(600);
    proxy.routes = vec![
        (name("api", "http"), exposed(10, 3).into()),
        (name("gone", "http"), cluster_ip(addr("10.96.0.13"), 80, &[]).into()),
        (name("sticky", "http"), sticky.into()),
        (name("web", "http"), exposed(11, 2).into()),
    ];
    proxy.full().expect("taken");
    proxy
}

fn compared(proxy: &Proxy, variant: Variant) -> Comparison {
    compare(&proxy.routes, &proxy.environment, Some(variant)).expect("the tables can be read")
}

fn texts(comparison: &Comparison) -> Vec<String> {
    let line = |difference: &proxy_core::difference::Difference| {
        let owner = difference.owner.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
        format!("{owner}: {} {}", difference.kind, difference.what)
    };
    comparison.differences.iter().map(line).collect()
}

#[test]
fn after_any_history_nothing_differs() {
    in_both_variants(|variant| {
        let mut proxy = proxy(variant);
        assert_eq!(texts(&compared(&proxy, variant)), [""; 0]);
        for count in [1, 4, 0, 2] {
            let mut route = exposed(11, count);
            route.any_endpoint = count > 0;
            proxy.change(&name("web", "http"), Some(route)).expect("taken");
            assert_eq!(texts(&compared(&proxy, variant)), [""; 0], "with {count} endpoints");
        }
        // A cluster that becomes large: what does not change keeps its comments.
        let many: Vec<Target> = (0..1_001_u32)
            .map(|host| target(addr(&format!("10.200.{}.{}", host / 250, host % 250 + 1)), 80, false))
            .collect();
        let mut large = cluster_ip(addr("10.96.0.20"), 80, &many);
        large.endpoints = 1_001;
        proxy.change(&name("large", "http"), Some(large)).expect("taken");
        assert_eq!(texts(&compared(&proxy, variant)), [""; 0], "in a large cluster");
        proxy.change(&name("api", "http"), None).expect("taken");
        proxy.change(&name("large", "http"), None).expect("taken");
        assert_eq!(texts(&compared(&proxy, variant)), [""; 0], "in a small one again");
        // Rules of others are theirs.
        run(&format!("iptables-{variant} -w -t nat -I PREROUTING -s 10.9.9.9 -j RETURN"));
        run(&format!("iptables-{variant} -w -A FORWARD -s 10.9.9.9 -j DROP"));
        assert_eq!(texts(&compared(&proxy, variant)), [""; 0], "beside others");
        assert!(proxy.finds_all_intact(), "the process's own check is not disturbed");
    });
}

#[test]
fn every_damage_names_the_service_that_was_damaged_and_no_other() {
    in_both_variants(|variant| {
        let mut proxy = proxy(variant);
        let save = run(&format!("iptables-{variant}-save -t nat"));
        let chain = |prefix: &str, about: &str| -> String {
            let line = save
                .lines()
                .find(|line| line.starts_with(&format!("-A {prefix}")) && line.contains(about))
                .unwrap_or_else(|| panic!("{prefix} {about}: {save}"));
            line.split(' ').nth(1).expect("a name").to_owned()
        };
        let web = chain("KUBE-SVC-", "default/web:http");
        let api = chain("KUBE-EXT-", "default/api:http");
        let endpoint = chain("KUBE-SEP-", "10.244.11.1");
        let damages: Vec<(Option<&str>, DifferenceKind, String)> = vec![
            (Some("web"), DifferenceKind::Missing, format!("-t nat -F {web}")),
            (Some("web"), DifferenceKind::Missing, format!("-t nat -D {web} 1")),
            (Some("web"), DifferenceKind::Extra, format!("-t nat -A {web} -s 10.9.9.9 -j ACCEPT")),
            (Some("web"), DifferenceKind::Different, format!("-t nat -R {endpoint} 1 -s 10.9.9.9 -j RETURN")),
            (Some("api"), DifferenceKind::Missing, format!("-t nat -F {api}")),
            (Some("gone"), DifferenceKind::Missing, "-t filter -F KUBE-SERVICES".into()),
            (None, DifferenceKind::Missing, "-t nat -F KUBE-POSTROUTING".into()),
            (None, DifferenceKind::Extra, "-t filter -I KUBE-FORWARD -j DROP".into()),
            (None, DifferenceKind::Missing, "-t nat -D PREROUTING 1".into()),
            (None, DifferenceKind::Missing, "-t mangle -X KUBE-PROXY-CANARY".into()),
            (None, DifferenceKind::Extra, "-t nat -N KUBE-SVC-AAAAAAAAAAAAAAAA".into()),
            (None, DifferenceKind::Missing, "-t filter -F KUBE-FIREWALL".into()),
        ];
        for (service, kind, damage) in damages {
            run(&format!("iptables-{variant} -w {damage}"));
            let found = compared(&proxy, variant);
            let owners: BTreeSet<Option<&str>> = found
                .differences
                .iter()
                .map(|difference| difference.owner.as_ref().map(|name| name.service.name()))
                .collect();
            assert_eq!(owners, BTreeSet::from([service]), "{damage}: {:#?}", texts(&found));
            // A rule that was replaced is one that is missing and one too many.
            let kinds: BTreeSet<DifferenceKind> =
                found.differences.iter().map(|difference| difference.kind).collect();
            let replaced = BTreeSet::from([DifferenceKind::Missing, DifferenceKind::Extra]);
            let as_said = kinds.contains(&kind) || kind == DifferenceKind::Different && kinds == replaced;
            assert!(as_said, "{damage}: {:#?}", texts(&found));
            proxy.full().expect("taken");
            let mended = compared(&proxy, variant);
            assert!(mended.is_same(), "after {damage}: {:#?}", texts(&mended));
        }
    });
}

#[test]
fn nothing_is_written_and_nothing_created_by_a_look() {
    // The legacy tables exist once somebody asks for one by name.
    let node = Node::new(Family::V4);
    let environment = node.environment();
    let found = compare(&[], &environment, Some(Variant::Legacy)).expect("it can be read");
    assert!(!found.is_same(), "nothing was written");
    let names = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    assert_eq!(names, "", "a look makes no table");
    let found = compare(&[], &environment, Some(Variant::Nft)).expect("it can be read");
    assert!(!found.is_same());
    assert_eq!(run("nft list tables"), "");
}

#[test]
fn what_would_be_removed_is_what_a_cleanup_removes() {
    in_both_variants(|variant| {
        let proxy = proxy(variant);
        let removed = removals(Family::V4, variant).expect("the tables can be read");
        let owners: BTreeSet<&str> = removed.iter().filter_map(|removal| removal.owner.as_deref()).collect();
        assert_eq!(owners, BTreeSet::from(["default/api:http", "default/sticky:http", "default/web:http"]));
        let save = || run(&format!("iptables-{variant}-save"));
        let ours = |save: &str| {
            save.lines().filter(|line| line.contains("KUBE-") && !line.contains("KUBE-FIREWALL")).count()
        };
        assert!(ours(&save()) > 0);
        // Looking removed nothing.
        assert!(compared(&proxy, variant).is_same());
        cleanup(Family::V4).expect("it is removed");
        assert_eq!(ours(&save()), 0, "{}", save());
        assert_eq!(removals(Family::V4, variant).expect("the tables can be read"), []);
    });
}
