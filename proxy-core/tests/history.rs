//! Whatever happened before, the engine ends where a fresh start over the same cluster would begin.

mod support;

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use proptest::{collection::vec, prelude::*};
use proxy_core::{
    instance::Counts,
    model::{
        Endpoint, Family, Input, Kind, NodeHint, Protocol, Service, ServiceName, ServicePort, Slice,
        SliceName, SlicePort, TrafficPolicy,
    },
};
use support::{Faults, Rig, endpoint, ip, name};

/// One thing that happens.
#[derive(Debug, Clone)]
enum Event {
    Service(Service),
    ServiceGone(ServiceName),
    Slice(Slice),
    SliceGone(SliceName),
    /// A new list that names only every n-th of what is known.
    Relist(Kind, usize),
    Zone(Option<Box<str>>),
    NodeIps(Box<[IpAddr]>),
    Faults(Family, Faults),
    Damage(Family),
    Pass(Duration),
}

fn service_name() -> impl Strategy<Value = ServiceName> {
    (0..5u8).prop_map(|number| name(&format!("svc{number}")))
}

fn slice_name() -> impl Strategy<Value = SliceName> {
    (0..6u8).prop_map(|number| name(&format!("slice{number}")))
}

/// Few addresses, so that Services compete for them.
fn external_ips() -> impl Strategy<Value = Box<[IpAddr]>> {
    let some = prop::sample::subsequence(
        vec!["203.0.113.1", "203.0.113.2", "2001:db8::1", "172.30.0.1", "172.30.0.2"],
        0..3,
    );
    some.prop_map(|all| all.into_iter().map(ip).collect())
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

fn ports() -> impl Strategy<Value = Box<[ServicePort]>> {
    let all = [("p", Protocol::Tcp, 80), ("q", Protocol::Udp, 80), ("r", Protocol::Tcp, 81)];
    let some = prop::sample::subsequence(all.to_vec(), 1..=3);
    (some, prop::option::of(30000..30003u16)).prop_map(|(some, node_port)| {
        let port = |(at, (name, protocol, port)): (usize, (&str, Protocol, u16))| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port: node_port.map(|node_port| node_port + at as u16),
        };
        some.into_iter().enumerate().map(port).collect()
    })
}

fn service() -> impl Strategy<Value = Service> {
    let cluster_ips = (1..4u8, 0..3u8).prop_map(|(number, families)| -> Box<[IpAddr]> {
        let v4 = IpAddr::from([172, 30, 0, number]);
        let v6 = ip(&format!("fd00::{number}"));
        match families {
            0 => [v4].into(),
            1 => [v6].into(),
            _ => [v4, v6].into(),
        }
    });
    let ranges = prop::option::of(prop::sample::select(vec!["10.0.0.0/8", "192.168.0.0/16", "::/0"]));
    let addresses = (cluster_ips, external_ips(), external_ips(), ranges);
    (service_name(), 0..4i64, addresses, policy(), policy(), ports()).prop_map(
        |(name, created, addresses, internal_policy, external_policy, ports)| Service {
            name,
            created,
            cluster_ips: addresses.0,
            external_ips: addresses.1,
            ignored_external_ips: [].into(),
            load_balancer_ips: addresses.2,
            source_ranges: addresses.3.map(|range| [range.parse().expect("a network")].into()),
            internal_policy,
            external_policy,
            affinity: None,
            health_check_node_port: None,
            ports,
            options: [].into(),
        },
    )
}

fn endpoint_of(family: Family) -> impl Strategy<Value = Endpoint> {
    let zones = prop::sample::subsequence(vec!["east", "west"], 0..=2);
    (1..5u8, any::<[bool; 4]>(), zones).prop_map(
        move |(last, [ready, serving, terminating, local], zones)| {
            let addr = match family {
                Family::V4 => IpAddr::from([10, 0, 0, last]),
                Family::V6 => ip(&format!("fd01::{last}")),
            };
            let zones: Vec<Box<str>> = zones.into_iter().map(Into::into).collect();
            Endpoint {
                ready,
                serving: ready || serving,
                terminating: terminating && !ready,
                local,
                for_nodes: NodeHint::Absent,
                for_zones: (!zones.is_empty()).then(|| Arc::from(zones)),
                ..endpoint(addr)
            }
        },
    )
}

fn slice() -> impl Strategy<Value = Slice> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6)];
    let endpoints = family.prop_flat_map(|family| (Just(family), vec(endpoint_of(family), 0..4)));
    let all = [("p", Protocol::Tcp, 8080), ("q", Protocol::Udp, 8080), ("r", Protocol::Tcp, 8081)];
    (slice_name(), service_name(), endpoints, prop::sample::subsequence(all.to_vec(), 0..=3)).prop_map(
        |(name, service, (family, endpoints), ports)| Slice {
            name,
            service,
            family,
            ports: ports
                .into_iter()
                .map(|(name, protocol, port)| SlicePort { name: name.into(), protocol, port })
                .collect(),
            endpoints: endpoints.into(),
            trigger_time: None,
        },
    )
}

fn faults() -> impl Strategy<Value = Faults> {
    let names = || prop::collection::btree_set(service_name(), 0..3);
    let lost = vec(any::<bool>(), 0..2);
    (names(), names(), 0..3u32, lost).prop_map(|(refuse, reject, busy, lost)| Faults {
        refuse,
        reject,
        busy,
        lost,
        silent: 0,
    })
}

fn event() -> impl Strategy<Value = Event> {
    let family = || prop_oneof![Just(Family::V4), Just(Family::V6)];
    let kind = prop_oneof![Just(Kind::Service), Just(Kind::Slice)];
    let zone = prop::option::of(prop_oneof![Just("east"), Just("west")]);
    prop_oneof![
        6 => service().prop_map(Event::Service),
        2 => service_name().prop_map(Event::ServiceGone),
        6 => slice().prop_map(Event::Slice),
        2 => slice_name().prop_map(Event::SliceGone),
        1 => (kind, 1..3usize).prop_map(|(kind, every)| Event::Relist(kind, every)),
        1 => zone.prop_map(|zone| Event::Zone(zone.map(Into::into))),
        1 => external_ips().prop_map(Event::NodeIps),
        2 => (family(), faults()).prop_map(|(family, faults)| Event::Faults(family, faults)),
        1 => family().prop_map(Event::Damage),
        8 => (0..4000u64).prop_map(|millis| Event::Pass(Duration::from_millis(millis))),
    ]
}

/// What exists after all, kept apart from the engine.
#[derive(Debug, Default)]
struct Cluster {
    services: BTreeMap<ServiceName, Service>,
    slices: BTreeMap<SliceName, Slice>,
    zone: Option<Box<str>>,
    node_ips: Box<[IpAddr]>,
}

impl Cluster {
    fn inputs(&self) -> Vec<Input> {
        let mut inputs = vec![Input::Zone(self.zone.clone()), Input::NodeIps(self.node_ips.clone())];
        inputs.extend(self.services.values().cloned().map(|object| Input::Service(object.into())));
        inputs.extend(self.slices.values().cloned().map(|object| Input::Slice(object.into())));
        inputs
    }

    fn apply(&mut self, event: Event, rig: &mut Rig) {
        match event {
            Event::Service(service) => {
                self.services.insert(service.name.clone(), service.clone());
                rig.put(Input::Service(service.into()));
            }
            Event::ServiceGone(name) => {
                self.services.remove(&name);
                rig.put(Input::ServiceGone(name));
            }
            Event::Slice(slice) => {
                self.slices.insert(slice.name.clone(), slice.clone());
                rig.put(Input::Slice(slice.into()));
            }
            Event::SliceGone(name) => {
                self.slices.remove(&name);
                rig.put(Input::SliceGone(name));
            }
            Event::Relist(kind, every) => {
                rig.put(Input::Listing(kind));
                let mut at = 0;
                let mut named = || {
                    at += 1;
                    (at - 1) % every == 0
                };
                match kind {
                    Kind::Service => {
                        self.services.retain(|_, _| named());
                        self.services
                            .values()
                            .cloned()
                            .map(|object| Input::Service(object.into()))
                            .for_each(|input| rig.put(input));
                    }
                    Kind::Slice => {
                        self.slices.retain(|_, _| named());
                        self.slices
                            .values()
                            .cloned()
                            .map(|object| Input::Slice(object.into()))
                            .for_each(|input| rig.put(input));
                    }
                }
                rig.put(Input::Listed(kind));
            }
            Event::Zone(zone) => {
                self.zone.clone_from(&zone);
                rig.put(Input::Zone(zone));
            }
            Event::NodeIps(ips) => {
                self.node_ips.clone_from(&ips);
                rig.put(Input::NodeIps(ips));
            }
            Event::Faults(family, faults) => rig.kernels[&family].borrow_mut().faults = faults,
            Event::Damage(family) => {
                let mut kernel = rig.kernels[&family].borrow_mut();
                kernel.routes.clear();
                kernel.damaged = true;
            }
            Event::Pass(time) => {
                rig.engine.check_drift(rig.now);
                rig.run_for(time);
            }
        }
    }
}

fn counts(rig: &Rig) -> Vec<Counts> {
    rig.engine.instances().iter().map(|instance| instance.counts()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_where_a_fresh_start_begins(events in vec(event(), 1..60)) {
        let mut cluster = Cluster::default();
        let mut rig = Rig::running([]);
        for event in events {
            cluster.apply(event, &mut rig);
        }
        for kernel in rig.kernels.values() {
            kernel.borrow_mut().faults = Faults::default();
        }
        rig.engine.check_drift(rig.now);
        rig.settle();
        let fresh = Rig::running(cluster.inputs());
        for family in Family::BOTH {
            let (now, anew) = (rig.kernels[&family].borrow(), fresh.kernels[&family].borrow());
            prop_assert_eq!(&now.routes, &anew.routes, "{}", family);
            prop_assert_eq!(&now.environment, &anew.environment, "{}", family);
        }
        prop_assert_eq!(counts(&rig), counts(&fresh));
        for instance in rig.engine.instances() {
            prop_assert_eq!(instance.set_aside_names().count(), 0);
            prop_assert_eq!(instance.queued_since(), None);
            let kernel = rig.kernels[&instance.family()].borrow();
            let installed: BTreeMap<_, _> = instance.all_installed().cloned().collect();
            prop_assert_eq!(&installed, &kernel.routes);
        }
    }
}
