//! After any history the comparison is empty; after any damage it names the Service that was damaged, and no other.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use backend_ipvs::{Binding, Settings, compare};
use proxy_core::{
    difference::{Comparison, DifferenceKind},
    model::{Family, Protocol, TrafficPolicy},
    route::AllowedSources,
};
use vm_test::{run, with_ipvs};

use crate::{
    driver::{Driver, exposed, route},
    rig::{self, CLIENT, ask, connect},
};

fn compared(driver: &Driver, settings: &Settings) -> Comparison {
    let found = compare(&driver.routes(), &driver.environment, settings, driver.now()).expect("readable");
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

fn filled(driver: &mut Driver) {
    driver.set("web", route(Protocol::Tcp, "10.96.0.1", &["10.1.0.2", "10.1.1.2"]));
    let local = route(Protocol::Tcp, "10.96.0.2", &["10.1.0.2", "10.2.0.2"]);
    driver.set("local", exposed(local, "203.0.113.2", TrafficPolicy::Local));
    driver.set("dns", route(Protocol::Udp, "10.96.0.3", &["10.1.0.2"]));
    driver.set("empty", route(Protocol::Tcp, "10.96.0.4", &[]));
    let mut sticky = route(Protocol::Tcp, "10.96.0.5", &["10.1.1.2", "10.2.0.2"]);
    sticky.policy_mut().affinity = Some(600);
    driver.set("sticky", sticky);
    let mut restricted = route(Protocol::Tcp, "10.96.0.6", &["10.2.0.2"]);
    let mut frontends = restricted.frontends.into_vec();
    frontends.push(crate::driver::frontend(
        proxy_core::route::FrontendKind::LoadBalancerIp,
        Some("203.0.113.6"),
        80,
    ));
    restricted.frontends = frontends.into();
    restricted.policy_mut().sources = Some(Arc::new(AllowedSources {
        ranges: ["192.0.2.0/24".parse().expect("a network")].into(),
        own_vips: Box::default(),
    }));
    driver.set("restricted", restricted);
}

#[test]
fn after_any_history_nothing_differs_but_what_drains() {
    with_ipvs(|| {
        rig::build();
        for binding in [Binding::Routes, Binding::Addresses] {
            let settings = Settings { binding, ..Settings::default() };
            let mut driver = Driver::start(Family::V4, settings.clone());
            assert_eq!(texts(&compared(&driver, &settings)), [""; 0], "nothing is wanted");
            filled(&mut driver);
            assert_eq!(texts(&compared(&driver, &settings)), [""; 0]);
            let held: Vec<_> = (0..4)
                .map(|_| {
                    let mut connection = connect(CLIENT, "10.96.0.1:80").expect("connected");
                    ask(&mut connection).expect("an answer");
                    connection
                })
                .collect();
            for endpoints in [&["10.1.1.2"][..], &["10.2.0.2"], &["10.1.0.2", "10.2.0.2"]] {
                driver.set("web", route(Protocol::Tcp, "10.96.0.1", endpoints));
                assert_eq!(texts(&compared(&driver, &settings)), [""; 0], "{endpoints:?}");
            }
            // One that still serves keeps its flows of UDP.
            let mut leaves = route(Protocol::Udp, "10.96.0.3", &["10.2.0.2"]);
            leaves.kept = route(Protocol::Udp, "10.96.0.3", &["10.1.0.2"]).cluster;
            driver.set("dns", leaves);
            let found = compared(&driver, &settings);
            assert_eq!(texts(&found), [""; 0], "it is there for its flows");
            assert!(!found.owed.is_empty(), "and that is owed");
            driver.set("dns", route(Protocol::Udp, "10.96.0.3", &["10.2.0.2"]));
            assert_eq!(texts(&compared(&driver, &settings)), [""; 0], "it serves no more, and is gone");
            driver.remove("web", Protocol::Tcp);
            let found = compared(&driver, &settings);
            assert_eq!(texts(&found), [""; 0], "its connections keep a virtual server");
            assert!(!found.owed.is_empty(), "and that is owed");
            driver.remove("sticky", Protocol::Tcp);
            driver.remove("dns", Protocol::Udp);
            assert_eq!(texts(&compared(&driver, &settings)), [""; 0]);
            driver.restart(settings.clone());
            assert_eq!(texts(&compared(&driver, &settings)), [""; 0], "after a restart");
            drop(held);
            for _ in 0..8 {
                driver.pass(Duration::from_secs(120));
            }
            assert_eq!(texts(&compared(&driver, &settings)), [""; 0]);
            assert!(driver.is_intact(), "the process's own check is not disturbed");
        }
    });
}

#[test]
fn every_damage_names_the_service_that_was_damaged_and_no_other() {
    with_ipvs(|| {
        rig::build();
        let settings = Settings::default();
        let mut driver = Driver::start(Family::V4, settings.clone());
        filled(&mut driver);
        assert_eq!(texts(&compared(&driver, &settings)), [""; 0]);
        let damages = [
            (Some("web"), DifferenceKind::Missing, "ipvsadm -D -t 10.96.0.1:80"),
            (Some("web"), DifferenceKind::Missing, "ipvsadm -d -t 10.96.0.1:80 -r 10.1.1.2:8080"),
            (Some("web"), DifferenceKind::Extra, "ipvsadm -a -t 10.96.0.1:80 -r 10.9.9.9:8080 -m"),
            (Some("web"), DifferenceKind::Different, "ipvsadm -e -t 10.96.0.1:80 -r 10.1.1.2:8080 -m -w 0"),
            (
                Some("web"),
                DifferenceKind::Extra,
                "ipvsadm -A -t 10.96.0.1:8443 -s rr && ip addr add 10.96.0.1/32 dev kube-ipvs0",
            ),
            (Some("sticky"), DifferenceKind::Different, "ipvsadm -E -t 10.96.0.5:80 -s rr -p 60"),
            (Some("dns"), DifferenceKind::Missing, "ip route del local 10.96.0.3 dev kube-ipvs0 table local"),
            (
                Some("empty"),
                DifferenceKind::Missing,
                "nft delete element ip kube-proxy-ipvs ipvs-refused { 10.96.0.4 . tcp . 80 }",
            ),
            (
                Some("local"),
                DifferenceKind::Missing,
                "nft delete element ip kube-proxy-ipvs ipvs-cluster-ips { 10.96.0.2 }",
            ),
            (
                Some("restricted"),
                DifferenceKind::Missing,
                "nft delete element ip kube-proxy-ipvs ipvs-restricted { 203.0.113.6 . tcp . 80 }",
            ),
            (
                Some("restricted"),
                DifferenceKind::Extra,
                "nft add element ip kube-proxy-ipvs ipvs-allowed { 203.0.113.6 . tcp . 80 . 198.51.100.0/24 }",
            ),
            (None, DifferenceKind::Different, "nft insert rule ip kube-proxy-ipvs filter-input drop"),
            (None, DifferenceKind::Different, "nft flush chain ip kube-proxy-ipvs nat-postrouting"),
            (None, DifferenceKind::Extra, "nft add chain ip kube-proxy-ipvs somebody-elses"),
            (None, DifferenceKind::Missing, "ipvsadm -D -f $((0x53000000))"),
            (None, DifferenceKind::Different, "sysctl -w net.ipv4.vs.conntrack=0"),
        ];
        for (service, kind, damage) in damages {
            run(damage);
            let found = compared(&driver, &settings);
            let owners: BTreeSet<Option<&str>> = found
                .differences
                .iter()
                .map(|difference| difference.owner.as_ref().map(|name| name.service.name()))
                .collect();
            assert_eq!(owners, BTreeSet::from([service]), "{damage}: {:#?}", texts(&found));
            assert!(found.differences.iter().any(|one| one.kind == kind), "{damage}: {:#?}", texts(&found));
            driver.full();
            // What was taken for an endpoint that drains goes when its time comes.
            driver.pass(Duration::from_secs(3600));
            let mended = compared(&driver, &settings);
            assert!(mended.is_same(), "after {damage}: {:#?}", texts(&mended));
        }
    });
}
