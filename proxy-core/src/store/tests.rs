use std::net::IpAddr;

use super::*;
use crate::model::{Endpoint, NodeHint, Protocol, ServicePort, SlicePort, TrafficPolicy};

fn name(text: &str) -> ServiceName {
    ServiceName::new("ns", text)
}

fn service(of: &str) -> Service {
    Service {
        name: name(of),
        created: 0,
        cluster_ips: [IpAddr::from([172, 30, 0, 1])].into(),
        external_ips: [].into(),
        ignored_external_ips: [].into(),
        load_balancer_ips: [].into(),
        source_ranges: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: [ServicePort { name: "p".into(), protocol: Protocol::Udp, port: 53, node_port: None }].into(),
        options: [].into(),
    }
}

fn endpoint(last: u8) -> Endpoint {
    Endpoint {
        addr: IpAddr::from([10, 0, 0, last]),
        ready: true,
        serving: true,
        terminating: false,
        local: true,
        for_nodes: NodeHint::Absent,
        for_zones: None,
    }
}

fn slice(slice: &str, of: &str, endpoints: &[Endpoint]) -> Slice {
    Slice {
        name: name(slice),
        service: name(of),
        family: Family::V4,
        ports: [SlicePort { name: "p".into(), protocol: Protocol::Udp, port: 5353 }].into(),
        endpoints: endpoints.into(),
        trigger_time: None,
    }
}

fn touched(of: &str, family: Option<Family>) -> Touched {
    Touched { service: name(of), family }
}

#[test]
fn an_equal_object_touches_nothing() {
    let mut store = Store::default();
    assert_eq!(store.set_service(service("a")), Some(touched("a", None)));
    assert_eq!(store.set_service(service("a")), None);
    assert_eq!(store.set_slice(slice("a-1", "a", &[endpoint(1)])), [touched("a", Some(Family::V4))]);
    assert_eq!(store.set_slice(slice("a-1", "a", &[endpoint(1)])), []);
    assert_eq!(store.set_slice(slice("a-1", "a", &[endpoint(2)])), [touched("a", Some(Family::V4))]);
}

#[test]
fn a_slice_may_come_before_its_service_and_outlive_it() {
    let mut store = Store::default();
    store.set_slice(slice("a-1", "a", &[endpoint(1)]));
    assert_eq!(store.names().count(), 0);
    store.set_service(service("a"));
    let entry = store.entry(&name("a")).expect("known");
    assert_eq!(entry.endpoints(Family::V4).of("p", Protocol::Udp).len(), 1);
    assert_eq!(store.remove_service(&name("a")), Some(touched("a", None)));
    assert_eq!(store.names().count(), 0);
    assert!(store.entry(&name("a")).is_some(), "its slice is still there");
    assert_eq!(store.remove_slice(&name("a-1")), Some(touched("a", Some(Family::V4))));
    assert!(store.entry(&name("a")).is_none(), "nothing is left behind");
}

#[test]
fn a_service_without_slices_leaves_nothing_behind() {
    let mut store = Store::default();
    store.set_service(service("a"));
    store.remove_service(&name("a"));
    assert!(store.entry(&name("a")).is_none());
}

#[test]
fn what_was_never_there_cannot_go() {
    let mut store = Store::default();
    assert_eq!(store.remove_service(&name("a")), None);
    assert_eq!(store.remove_slice(&name("a-1")), None);
    store.set_slice(slice("a-1", "a", &[]));
    assert_eq!(store.remove_service(&name("a")), None);
}

#[test]
fn a_slice_that_moves_touches_both_services() {
    let mut store = Store::default();
    store.set_slice(slice("s", "a", &[endpoint(1)]));
    let moved = store.set_slice(slice("s", "b", &[endpoint(1)]));
    assert_eq!(moved, [touched("a", Some(Family::V4)), touched("b", Some(Family::V4))]);
    assert!(store.entry(&name("a")).is_none());
    assert_eq!(store.remove_slice(&name("s")), Some(touched("b", Some(Family::V4))));
}

#[test]
fn a_slice_that_changes_family_touches_both_families() {
    let mut store = Store::default();
    store.set_slice(slice("s", "a", &[]));
    let changed = store.set_slice(Slice { family: Family::V6, ..slice("s", "a", &[]) });
    assert_eq!(changed, [touched("a", Some(Family::V4)), touched("a", Some(Family::V6))]);
}

#[test]
fn it_is_complete_once_both_kinds_were_listed() {
    let mut store = Store::default();
    store.begin_listing(Kind::Service);
    store.set_service(service("a"));
    store.end_listing(Kind::Service);
    assert!(!store.is_complete());
    store.begin_listing(Kind::Slice);
    assert!(!store.is_complete());
    store.end_listing(Kind::Slice);
    assert!(store.is_complete());
    store.begin_listing(Kind::Service);
    assert!(store.is_complete(), "a new list does not make what is known less complete");
}

#[test]
fn a_new_list_removes_what_it_does_not_name() {
    let mut store = Store::default();
    for of in ["a", "b"] {
        store.set_service(service(of));
        store.set_slice(slice(&format!("{of}-1"), of, &[endpoint(1)]));
    }
    store.begin_listing(Kind::Service);
    store.set_service(service("a"));
    assert_eq!(store.names().count(), 2, "nothing goes before the list is complete");
    assert_eq!(store.end_listing(Kind::Service), [touched("b", None)]);
    store.begin_listing(Kind::Slice);
    store.set_slice(slice("b-1", "b", &[endpoint(1)]));
    assert_eq!(store.end_listing(Kind::Slice), [touched("a", Some(Family::V4))]);
    assert_eq!(store.end_listing(Kind::Slice), [], "a list that never began names nothing");
}

#[test]
fn a_list_that_begins_anew_forgets_the_broken_one() {
    let mut store = Store::default();
    store.set_service(service("a"));
    store.begin_listing(Kind::Service);
    store.set_service(service("a"));
    store.begin_listing(Kind::Service);
    assert_eq!(store.end_listing(Kind::Service), [touched("a", None)]);
}

#[test]
fn one_address_counts_once_and_the_running_endpoint_goes_before_the_terminating_one() {
    let terminating = Endpoint { ready: false, terminating: true, ..endpoint(1) };
    for (first, second) in [(&terminating, &endpoint(1)), (&endpoint(1), &terminating)] {
        let mut store = Store::default();
        store.set_slice(slice("a-1", "a", std::slice::from_ref(first)));
        store.set_slice(slice("a-2", "a", std::slice::from_ref(second)));
        let entry = store.entry(&name("a")).expect("known");
        let endpoints = entry.endpoints(Family::V4).of("p", Protocol::Udp);
        assert_eq!(endpoints.len(), 1);
        assert!(!endpoints[0].0.terminating);
    }
}

#[test]
fn the_outcome_does_not_depend_on_the_order_of_slices() {
    let unready = Endpoint { ready: false, ..endpoint(1) };
    for order in [["a-1", "a-2"], ["a-2", "a-1"]] {
        let mut store = Store::default();
        for of in order {
            let only = if of == "a-1" { unready.clone() } else { endpoint(1) };
            store.set_slice(slice(of, "a", &[only]));
        }
        let entry = store.entry(&name("a")).expect("known");
        assert!(entry.endpoints(Family::V4).of("p", Protocol::Udp)[0].0.ready);
    }
}

#[test]
fn ports_are_matched_by_name_and_protocol_over_several_slices() {
    let mut store = Store::default();
    let port = |name: &str, protocol, port| SlicePort { name: name.into(), protocol, port };
    let of = |slice_name, ports: Vec<SlicePort>, last| Slice {
        ports: ports.into(),
        ..slice(slice_name, "a", &[endpoint(last)])
    };
    store.set_slice(of("a-1", vec![port("p", Protocol::Udp, 1), port("q", Protocol::Udp, 2)], 1));
    store.set_slice(of("a-2", vec![port("p", Protocol::Udp, 3), port("p", Protocol::Tcp, 4)], 2));
    let entry = store.entry(&name("a")).expect("known");
    let ports = |name, protocol| {
        let endpoints = entry.endpoints(Family::V4).of(name, protocol);
        endpoints.iter().map(|(_, port)| *port).collect::<Vec<_>>()
    };
    assert_eq!(ports("p", Protocol::Udp), [1, 3], "one name may mean another number in another slice");
    assert_eq!(ports("q", Protocol::Udp), [2]);
    assert_eq!(ports("p", Protocol::Tcp), [4]);
    assert_eq!(ports("", Protocol::Udp), [0; 0]);
}

#[test]
fn health_checks_count_distinct_ready_addresses_of_this_node() {
    let mut store = Store::default();
    let draining = Endpoint { ready: false, terminating: true, ..endpoint(2) };
    let remote = Endpoint { local: false, ..endpoint(3) };
    store.set_slice(slice("a-1", "a", &[endpoint(1), draining, remote]));
    store.set_slice(slice("a-2", "a", &[endpoint(1)]));
    store.set_slice(Slice { ports: [].into(), ..slice("a-3", "a", &[endpoint(4)]) });
    let entry = store.entry(&name("a")).expect("known");
    assert_eq!(entry.ready_local_addresses(Family::V4), 1);
    assert_eq!(entry.ready_local_addresses(Family::V6), 0);
}

#[test]
fn equal_zone_lists_are_kept_once() {
    let mut last = None;
    let one = share_zones(vec!["a".into()], &mut last);
    let two = share_zones(vec!["a".into()], &mut last);
    let other = share_zones(vec!["b".into()], &mut last);
    assert!(Arc::ptr_eq(&one, &two));
    assert_eq!(*other, ["b".into()]);
}
