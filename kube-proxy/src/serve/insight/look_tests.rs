use std::time::Instant;

use insight::engine::{Engine, Nowhere};
use proxy_core::{
    environment::{EnvironmentSettings, LocalPods, NodePortSettings},
    model::{Endpoint, Input, Kind, NodeHint, Protocol, ServicePort, SlicePort, TrafficPolicy},
    reconciler::{Pace, Reconciler},
};

use super::*;

const SERVICES: usize = 10_000;
const ENDPOINTS: u8 = 10;

fn service(number: usize) -> Service {
    let [high, low] = u16::try_from(number).expect("small").to_be_bytes();
    Service {
        name: ServiceName::new("shop", &format!("svc-{number}")),
        created: 1,
        cluster_ips: [[10, 96, high, low].into()].into(),
        external_ips: Box::default(),
        ignored_external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }]
            .into(),
        options: Box::default(),
    }
}

fn slice(number: usize) -> Slice {
    let endpoint = |last| Endpoint {
        addr: [10, 244, 0, last].into(),
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        for_nodes: NodeHint::Absent,
        for_zones: None,
    };
    Slice {
        name: ServiceName::new("shop", &format!("svc-{number}-a")),
        service: ServiceName::new("shop", &format!("svc-{number}")),
        family: Family::V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: (1..=ENDPOINTS).map(endpoint).collect(),
        trigger_time: None,
    }
}

/// An engine that serves so many Services.
#[expect(clippy::disallowed_methods, reason = "nothing depends on the time")]
fn engine(services: usize) -> Engine {
    let now = Instant::now();
    let settings = EnvironmentSettings {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Unknown,
        node_ports: NodePortSettings::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
    };
    let mut engine = Reconciler::new(settings, Pace::default(), vec![(Family::V4, Nowhere, Nowhere)]);
    engine.handle(Input::ServiceCidrs(Box::default()), now);
    for kind in [Kind::Service, Kind::Slice] {
        engine.handle(Input::Listing(kind), now);
        for number in 0..services {
            engine.handle(
                match kind {
                    Kind::Service => Input::Service(Arc::new(service(number))),
                    Kind::Slice => Input::Slice(Arc::new(slice(number))),
                },
                now,
            );
        }
        engine.handle(Input::Listed(kind), now);
    }
    engine.sync_due(&mut || now);
    engine
}

#[test]
fn no_look_touches_more_than_a_few_hundred_objects_and_all_are_seen() {
    let engine = engine(SERVICES);
    let mut names = overview(&engine, Family::V4, &Filter::default()).names;
    assert_eq!(names.len(), SERVICES);
    names.sort_unstable();
    let (mut from, mut looks, mut services, mut endpoints) = (0, 0, 0, 0);
    while from < names.len() {
        let (seen, looked_at) = some(&engine, Family::V4, &names[from..]);
        let objects =
            |seen: &Seen| usize::from(seen.service.is_some()) + seen.slices.len() + seen.installed.len();
        let touched: usize = seen.iter().map(objects).sum();
        // The Service that makes it too many has three.
        assert!(touched < MOST_OBJECTS + 3, "{touched} objects in a look");
        assert!(looked_at > 0);
        services += seen.len();
        endpoints +=
            seen.iter().flat_map(|seen| &seen.slices).map(|slice| slice.endpoints.len()).sum::<usize>();
        from += looked_at;
        looks += 1;
    }
    assert_eq!((services, endpoints), (SERVICES, SERVICES * usize::from(ENDPOINTS)));
    assert_eq!(looks, (3 * SERVICES).div_ceil(MOST_OBJECTS + 1));
}

#[test]
fn what_was_seen_is_shared_and_not_copied() {
    let engine = engine(1);
    let name = ServiceName::new("shop", "svc-0");
    let (seen, _) = some(&engine, Family::V4, std::slice::from_ref(&name));
    let entry = engine.store().entry(&name).expect("it is there");
    assert!(Arc::ptr_eq(
        seen[0].service.as_ref().expect("a Service"),
        entry.service.as_ref().expect("a Service")
    ));
    assert!(Arc::ptr_eq(&seen[0].slices[0], entry.slices.shared().next().expect("a slice")));
    let installed = seen[0].installed(Family::V4).expect("something is in force");
    assert_eq!((installed.ports.len(), installed.ports[0].cluster, installed.waits), (1, 10, false));
    let gone = ServiceName::new("shop", "svc-1");
    assert!(some(&engine, Family::V4, &[gone]).0.is_empty());
}

#[test]
fn a_filter_chooses_by_name() {
    let engine = engine(12);
    let names = |filter: Filter| overview(&engine, Family::V4, &filter).names.len();
    let namespace = |name: &str| Filter { namespace: Some(name.to_owned()), ..Filter::default() };
    assert_eq!((names(namespace("shop")), names(namespace("other"))), (12, 0));
    let one = |name: &str| Filter { service: Some(name.to_owned()), ..Filter::default() };
    assert_eq!((names(one("shop/svc-7")), names(one("shop/svc-70")), names(one("svc-7"))), (1, 0, 0));
}

/// What stands in a file is what an API server would send: read as such, it is the same again.
#[test]
fn objects_in_a_file_are_those_of_an_api_server() {
    use crate::api::slim;
    let text = include_str!("../../../../insight/tests/data/node.ndjson");
    let state = insight::state::State::read(text.as_bytes()).expect("a state");
    let mut read = 0;
    for object in state.objects() {
        match object["kind"].as_str() {
            Some("Service") => {
                let slim: slim::Service = serde_json::from_value(object).expect("a Service");
                let translated = slim.translate(true);
                assert!(translated.complaints.is_empty(), "{:?}", translated.complaints);
                let service = translated.object.expect("one with a cluster IP");
                assert!(state.services.iter().any(|known| **known == service), "{service:?}");
            }
            Some("EndpointSlice") => {
                let slim: slim::EndpointSlice = serde_json::from_value(object).expect("a slice");
                let translated = slim.translate(&state.header.node);
                assert!(translated.complaints.is_empty(), "{:?}", translated.complaints);
                let slice = translated.object.expect("one of a Service");
                assert!(state.slices.iter().any(|known| **known == slice), "{slice:?}");
            }
            _ => continue,
        }
        read += 1;
    }
    assert_eq!(read, state.services.len() + state.slices.len());
    assert!(read > 15, "{read} objects");
}
