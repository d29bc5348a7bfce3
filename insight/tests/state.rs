//! A state is the same after it was written and read, a file that was cut is known as such, and other names change no answer.

use std::{
    hash::{BuildHasherDefault, DefaultHasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use insight::{
    anonymise::anonymise,
    decision::{Decider, Source, SourceKind, Verdict},
    digest,
    engine::{Engine, engine, routes},
    state::{
        API_VERSION, Facts, Filter, Header, Installed, InstalledPort, LocalPods, Mode, NodePorts, ReadError,
        Served, Settings, State, Versions,
    },
    text::Time,
};
use proptest::prelude::*;
use proxy_core::model::{
    Endpoint, Family, NodeHint, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort, TrafficPolicy,
};

#[expect(clippy::disallowed_methods, reason = "nothing depends on the time")]
fn now() -> Instant {
    Instant::now()
}

fn header() -> Header {
    let parse = |text: &str| text.parse::<IpAddr>().expect("an address");
    Header {
        api_version: API_VERSION.to_owned(),
        node: "worker".to_owned(),
        taken: Time::from_micros(1_764_587_347_000_000),
        mode: Mode::Nftables,
        versions: Versions { switchyard: "0.2.0".to_owned(), kubernetes: "v1.36.2".to_owned() },
        facts: Facts {
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a network")],
            node_ips: vec![parse("192.168.0.1"), parse("fd00::1")],
            interface_addresses: ["127.0.0.1", "::1", "192.168.0.1", "fd00::1", "10.244.0.1"]
                .map(parse)
                .to_vec(),
            zone: Some("b".to_owned()),
        },
        allow_service_external_ips: true,
        environment: Settings {
            masquerade_mark: 0x4000,
            masquerade_all: false,
            local_pods: LocalPods::Cidrs(vec!["10.244.0.0/16".parse().expect("a network")]),
            node_ports: NodePorts::Any,
            localhost_node_ports: false,
            refused_on_localhost: Vec::new(),
        },
        localhost_v6_node_ports: false,
        ipvs: None,
        configuration: serde_json::json!({ "mode": "nftables" }),
        families: Family::BOTH
            .map(|family| Served {
                family,
                waiting: 0,
                queued_since: None,
                full_sync_owed: None,
                failures: 0,
            })
            .to_vec(),
        filter: Filter::default(),
        anonymised: false,
    }
}

fn protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)]
}

/// A few addresses, so that they meet.
fn addresses(kind: u8) -> impl Strategy<Value = Vec<IpAddr>> {
    let v4 = (0..4u8).prop_map(move |last| IpAddr::from([10, 96 + kind, 0, last]));
    let v6 = (0..4u16).prop_map(move |last| IpAddr::from([0xfd00, u16::from(kind), 0, 0, 0, 0, 0, last]));
    prop::collection::vec(prop_oneof![v4, v6], 0..3)
}

prop_compose! {
    fn service()(
        name in 0..4u8,
        created in prop_oneof![Just(i64::MAX), 0..3i64],
        v4 in 0..6u8, v6 in prop::option::of(0..6u16),
        external in addresses(1), balancer in addresses(2),
        ranges in prop::option::of(prop::collection::vec((0..4u8, 8..=32u8), 0..3)),
        (internal, outside) in (any::<bool>(), any::<bool>()),
        affinity in prop::option::of(1..1000u32),
        ports in prop::collection::vec((0..3u8, protocol(), 1..4u16, prop::option::of(30_000..30_003u16)), 1..4),
        scheduler in any::<bool>(),
    ) -> Service {
        let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        let mut cluster_ips = vec![IpAddr::from([10, 96, 0, v4])];
        cluster_ips.extend(v6.map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])));
        let ranges = ranges.map(|ranges| ranges.into_iter().map(|(second, length)| {
            ipnet::IpNet::new([10, 100 + second, 3, 1].into(), length).expect("a length").trunc()
        }).collect());
        let is_balanced = !balancer.is_empty();
        Service {
            name: ObjectName::new(if name < 2 { "a" } else { "a-b" }, &format!("svc{}", name % 2)),
            created,
            cluster_ips: cluster_ips.into(),
            external_ips: external.into(),
            ignored_external_ips: Box::default(),
            load_balancer_ips: balancer.into(),
            source_ranges: ranges,
            internal_policy: policy(internal),
            external_policy: policy(outside),
            affinity,
            health_check_node_port: (outside && is_balanced).then_some(30_500),
            ports: ports.into_iter().map(|(name, protocol, port, node_port)| ServicePort {
                name: if name == 0 { "".into() } else { format!("p{name}").into() }, protocol, port, node_port,
            }).collect(),
            options: if scheduler { [("ipvs-scheduler".into(), "lc".into())].into() } else { Box::default() },
        }
    }
}

prop_compose! {
    fn slice()(
        name in 0..4u8, number in 0..3u8, v4 in any::<bool>(),
        ports in prop::collection::vec((0..3u8, protocol(), 1..4u16), 0..4),
        endpoints in prop::collection::vec(
            (0..6u8, any::<[bool; 4]>(), 0..3u8, prop::option::of(prop::collection::vec(0..3u8, 1..3))), 0..6),
        trigger in prop::option::of(0..1_000_000_000_000_000_000i64),
    ) -> Slice {
        let endpoints = endpoints.into_iter().map(|(last, [ready, serving, terminating, local], hint, zones)| Endpoint {
            addr: if v4 { [10, 244, 1, last].into() } else { [0xfd00, 0x244, 0, 0, 0, 0, 0, u16::from(last)].into() },
            ready, serving, terminating, local,
            for_nodes: [NodeHint::Absent, NodeHint::Here, NodeHint::Elsewhere][usize::from(hint)],
            for_zones: zones.map(|zones| zones.iter().map(|zone| ["a", "b", "c"][usize::from(*zone)].into()).collect()),
        });
        let namespace = if name < 2 { "a" } else { "a-b" };
        let service = format!("svc{}", name % 2);
        Slice {
            name: ObjectName::new(namespace, &format!("{service}-{number}-{}", if v4 { "v4" } else { "v6" })),
            service: ObjectName::new(namespace, &service),
            family: if v4 { Family::V4 } else { Family::V6 },
            ports: ports.into_iter().map(|(name, protocol, port)| SlicePort {
                name: if name == 0 { "".into() } else { format!("p{name}").into() }, protocol, port,
            }).collect(),
            endpoints: endpoints.collect(),
            trigger_time: trigger,
        }
    }
}

/// A cluster of a few objects, each name once.
fn state() -> impl Strategy<Value = State> {
    let all = (prop::collection::vec(service(), 0..6), prop::collection::vec(slice(), 0..8));
    all.prop_map(|(services, slices)| {
        let mut state = State::new(header());
        let services: std::collections::BTreeMap<_, _> =
            services.into_iter().map(|service| (service.name.clone(), Arc::new(service))).collect();
        let slices: std::collections::BTreeMap<_, _> = slices
            .into_iter()
            .map(|slice| ((slice.service.clone(), slice.name.clone()), Arc::new(slice)))
            .collect();
        state.services = services.into_values().collect();
        state.slices = slices.into_values().collect();
        let engine = engine(&state, now());
        for service in &state.services {
            for family in Family::BOTH {
                state.installed.extend(installed(&engine, family, &service.name));
            }
        }
        state
    })
}

fn installed(engine: &Engine, family: Family, name: &ObjectName) -> Option<Installed> {
    let routes = engine.instance(family).expect("served").installed(name);
    let ports = routes.iter().map(|(name, route)| InstalledPort {
        port: name.port.to_string(),
        protocol: name.protocol,
        digest: digest::of_route(route),
        frontends: route.frontends.len(),
        cluster: route.cluster.len(),
        local: route.local.len(),
    });
    (!routes.is_empty()).then(|| Installed {
        family,
        service: name.to_string(),
        waits: false,
        ports: ports.collect(),
    })
}

fn written(state: &State) -> Vec<u8> {
    state.write(Vec::new()).expect("memory")
}

proptest! {
    #[test]
    fn what_is_written_is_read(state in state()) {
        let read = State::read(&written(&state)[..]).expect("a state");
        prop_assert_eq!(read, state);
    }

    #[test]
    fn other_names_and_addresses_change_no_answer(state in state()) {
        let key = BuildHasherDefault::<DefaultHasher>::default();
        let other = anonymise(&state, &key, now());
        let text = String::from_utf8(written(&other)).expect("text");
        for name in ["svc0", "svc1", "\"a\"", "a-b", "worker", "10.96.0.", "10.244.1."] {
            prop_assert!(!text.contains(name), "{} in {}", name, text);
        }
        let (before, after) = (engine(&state, now()), engine(&other, now()));
        for family in Family::BOTH {
            // Everything that was in force is, under its new name.
            let count = |engine: &Engine| routes(engine, family).len();
            prop_assert_eq!(count(&before), count(&after));
            for installed in other.installed.iter().filter(|installed| installed.family == family) {
                let (namespace, name) = installed.service.split_once('/').expect("a name");
                let again = self::installed(&after, family, &ObjectName::new(namespace, name));
                prop_assert_eq!(again.as_ref(), Some(installed));
            }
        }
        let answers = |engine: &Engine, state: &State| {
            let decider = Decider::new(engine, state.header.mode, false);
            let mut all = Vec::new();
            for service in &state.services {
                let ips = service.cluster_ips.iter().chain(&service.load_balancer_ips).chain(&service.external_ips);
                for ip in ips.chain(&state.header.facts.node_ips) {
                    for port in [1, 2, 3, 30_000, 30_001] {
                        let source = Source { kind: SourceKind::Node, address: state.header.facts.node_ips[usize::from(ip.is_ipv6())] };
                        for protocol in [Protocol::Tcp, Protocol::Udp] {
                            let decision = decider.decide(source, protocol, SocketAddr::new(*ip, port));
                            all.push(match decision.verdict {
                                Verdict::To(chosen) => {
                                    let mut kinds: Vec<_> = chosen.iter().map(|one| (one.target.port, one.target.local, one.masqueraded)).collect();
                                    kinds.sort_unstable();
                                    format!("{kinds:?}")
                                }
                                other => format!("{other:?}"),
                            });
                        }
                    }
                }
            }
            all
        };
        prop_assert_eq!(answers(&before, &state), answers(&after, &other));
    }
}

#[test]
fn what_was_cut_or_is_something_else_is_known_as_such() {
    let mut state = State::new(header());
    state.services.push(Arc::new(Service {
        name: ObjectName::new("a", "b"),
        created: 7,
        cluster_ips: [IpAddr::from([10, 96, 0, 1])].into(),
        external_ips: Box::default(),
        ignored_external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: Box::default(),
        options: Box::default(),
    }));
    let text = String::from_utf8(written(&state)).expect("text");
    assert!(State::read(text.as_bytes()).is_ok());
    let lines: Vec<&str> = text.lines().collect();
    let read = |text: String| State::read(text.as_bytes()).expect_err("a refusal");
    for length in [1, text.len() / 2, text.len() - 1] {
        let refusal = read(text[..length].to_owned());
        assert!(matches!(refusal, ReadError::Cut(_) | ReadError::NoState), "{length}: {refusal}");
    }
    let without = format!("{}\n{}\n", lines[0], lines[2]);
    assert_eq!(read(without).to_string(), "it is incomplete: the end names 1 services, and there are 0");
    assert!(matches!(read("{}\n".to_owned()), ReadError::NoState));
    assert!(matches!(read(String::new()), ReadError::NoState));
    let newer = text.replace("switchyard.dev/v1", "switchyard.dev/v2");
    assert!(matches!(read(newer), ReadError::Version(_)));
    let odd = text.replace("10.96.0.1", "10.96.0.999");
    assert!(read(odd).to_string().starts_with("line 2: "), "the line is named");
    // What a later version adds.
    let more = format!("{}\n{{\"kind\":\"Later\",\"x\":1}}\n{}\n{}\n", lines[0], lines[1], lines[2]);
    assert_eq!(State::read(more.as_bytes()).expect("a state"), state);
    let failed = "{\"kind\":\"Failed\",\"error\":\"busy\"}\n".to_owned();
    assert_eq!(read(failed).to_string(), "the node gave up: busy");
}
