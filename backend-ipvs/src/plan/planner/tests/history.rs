//! Whatever happened before, packets go where the routes say, and the kernel ends up as after a fresh start.

use proptest::prelude::*;

use proxy_core::route::Answer;

use super::*;
use crate::model::{Fate, Origin, Packet};

/// One of a few dozen routes of a Service whose address is its own, or shared with the other Services, or the node's.
fn a_route(service: usize) -> impl Strategy<Value = Route> {
    let endpoints =
        proptest::collection::btree_set((1..5_u8, any::<bool>(), proptest::bool::weighted(0.3)), 0..5);
    let policies = prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    (
        endpoints,
        policies.clone(),
        policies,
        any::<[bool; 4]>(),
        prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)],
        0..3_u8,
    )
        .prop_map(move |(endpoints, internal_policy, external_policy, has, protocol, ranges)| {
            let mut all: Vec<(Target, bool)> = endpoints
                .into_iter()
                .map(|(last, local, kept)| {
                    (target(&format!("10.{}.0.{last}", if local { 1 } else { 2 }), local), kept)
                })
                .collect();
            all.sort_unstable();
            all.dedup_by_key(|(target, _)| *target);
            // Some serve, and get nothing new.
            let may_keep = protocol == Protocol::Udp;
            let kept = all.iter().filter(|(_, kept)| *kept && may_keep).map(|(target, _)| *target).collect();
            let all: Vec<Target> =
                all.into_iter().filter(|(_, kept)| !(*kept && may_keep)).map(|(target, _)| target).collect();
            let local: Vec<Target> = all.iter().copied().filter(|target| target.local).collect();
            let own = format!("10.96.0.{}", service + 1);
            let mut frontends = vec![frontend(FrontendKind::ClusterIp, Some(&own), 80)];
            if has[0] {
                let port = 1000 + service as u16;
                frontends.push(frontend(FrontendKind::LoadBalancerIp, Some("198.51.100.1"), port));
            }
            let sources = |range: &str| AllowedSources {
                ranges: [range.parse().expect("a network")].into(),
                own_vips: Box::default(),
            };
            let policy = Policy {
                internal: internal_policy,
                affinity: has[2].then_some(600),
                sources: match ranges {
                    0 => None,
                    1 => Some(Arc::new(sources("203.0.0.0/16"))),
                    _ => Some(Arc::new(sources("203.0.113.0/24"))),
                },
                ..Policy::default()
            };
            if has[3] {
                // The node's own address, where another Service may have its NodePort.
                let port = 30000 + (service as u16 + 1) % 3;
                frontends.push(frontend(FrontendKind::ExternalIp, Some("192.168.7.1"), port));
            }
            if has[1] {
                frontends.push(frontend(FrontendKind::NodePort, None, 30000 + service as u16));
            }
            Route {
                policy: policy.into(),
                protocol,
                frontends: frontends.into(),
                external_policy: if has[0] || has[1] || has[3] {
                    external_policy
                } else {
                    TrafficPolicy::Cluster
                },
                any_endpoint: !all.is_empty(),
                cluster: all.into(),
                local: local.into(),
                lost: Box::default(),
                endpoints: 0,
                kept,
            }
        })
}

#[derive(Debug, Clone)]
enum Event {
    Route(usize, Option<Box<Route>>),
    /// The kernel refuses what comes next.
    Refusal,
    /// Upkeep some seconds later.
    Upkeep(u64),
    /// The node's addresses, beside loopback, are 192.168.7 and these.
    Addresses(Vec<u8>),
    /// A new process starts over what there is.
    Restart,
}

fn an_event() -> impl Strategy<Value = Event> {
    let route = (0..3_usize).prop_flat_map(|service| {
        proptest::option::weighted(0.8, a_route(service).prop_map(Box::new))
            .prop_map(move |route| Event::Route(service, route))
    });
    let addresses = proptest::collection::btree_set(1..4_u8, 0..3)
        .prop_map(|last| Event::Addresses(Vec::from_iter(last)));
    prop_oneof![6 => route, 2 => addresses, 1 => Just(Event::Refusal), 1 => (1..2000_u64).prop_map(Event::Upkeep), 1 => Just(Event::Restart)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_history_ends_where_a_fresh_start_begins(events in proptest::collection::vec(an_event(), 1..14)) {
        let mut now = start();
        let mut planner = IpvsPlanner::alone(Settings::default());
        let mut model = Model::default();
        let first = planner.plan_full(&[], &environment(), Found::default(), now);
        model.apply(&first).expect("an empty start");
        planner.settle(Effect::Applied);
        let mut installed: [Option<Route>; 3] = [None, None, None];
        let mut environment = environment();
        let mut refuse = false;
        for event in events {
            now += Duration::from_secs(1);
            match event {
                Event::Refusal => refuse = true,
                Event::Upkeep(seconds) => {
                    now += Duration::from_secs(seconds);
                    if let Some(plan) = planner.plan_upkeep(now) {
                        prop_assert_eq!(model.apply(&plan), Ok(()));
                        for reaped in reaped(&plan) {
                            if let Some(key) = planner.state.drains.reaped(&reaped)
                                && let Some(addr) = planner.state.held.get(&key).copied()
                            {
                                planner.state.held.set(key, None);
                                planner.state.released.push(addr);
                            }
                        }
                        planner.settle(Effect::Applied);
                    }
                }
                Event::Addresses(last) => {
                    let mut addresses = vec![ip("127.0.0.1")];
                    addresses.extend(last.iter().map(|last| ip(&format!("192.168.7.{last}"))));
                    environment.interface_addresses = addresses.into();
                    let plan = match planner.plan(&[], &environment, now) {
                        Planned::Plan(plan) => plan,
                        Planned::StartOver(_) => {
                            planner.plan_full(&routes(&installed), &environment, model.found(Binding::Routes), now)
                        }
                    };
                    prop_assert_eq!(model.apply(&plan), Ok(()), "{}", plan);
                    planner.settle(Effect::Applied);
                }
                Event::Restart => {
                    planner = IpvsPlanner::alone(Settings::default());
                    let routes = routes(&installed);
                    let plan = planner.plan_full(&routes, &environment, model.found(Binding::Routes), now);
                    let before = model.settled();
                    prop_assert_eq!(model.apply(&plan), Ok(()));
                    prop_assert_eq!(model.settled(), before, "a restart changes nothing");
                    planner.settle(Effect::Applied);
                }
                Event::Route(service, after) => {
                    let before = installed[service].clone();
                    let after = after.map(|route| *route);
                    if before == after {
                        continue;
                    }
                    let names = ["a", "b", "c"];
                    let plan = plan_in(&mut planner, &[(names[service], before.as_ref(), after.as_ref())], &environment, now);
                    if mem::take(&mut refuse) {
                        planner.settle(Effect::Nothing);
                        continue;
                    }
                    prop_assert_eq!(model.apply(&plan), Ok(()), "{}", plan);
                    planner.settle(Effect::Applied);
                    installed[service] = after;
                }
            }
            for packet in packets(&installed, &environment) {
                let (fate, due) = (model.fate(&packet), due(&installed, &environment, &packet));
                prop_assert!(due.allows(&fate), "{:?}: {:?} where {:?} is due", packet, fate, due);
            }
            for target in installed.iter().flatten().flat_map(|route| &route.cluster) {
                let of_pod = !environment.interface_addresses.contains(&target.addr);
                prop_assert_eq!(model.is_hairpin(target.addr), of_pod, "{:?}", target);
            }
        }
        // A flow of UDP has nobody else to go to once its endpoint does not serve.
        let serves = |to: (IpAddr, u16)| {
            installed.iter().flatten().filter(|route| route.protocol == Protocol::Udp).any(|route| {
                let mut serving = route.cluster.iter().chain(&route.local).chain(&route.kept);
                serving.any(|target| (target.addr, target.port) == to)
            })
        };
        prop_assert_eq!(model.of_udp().find(|to| !serves(*to)), None);
        let mut fresh = IpvsPlanner::alone(Settings::default());
        let mut wanted = Model::default();
        let plan = fresh.plan_full(&routes(&installed), &environment, Found::default(), now);
        wanted.apply(&plan).expect("an empty start");
        prop_assert_eq!(model.settled(), wanted.settled());
        prop_assert!(wanted.bound().is_subset(model.bound()));
        for addr in model.bound() {
            prop_assert_eq!(model.is_guarded(*addr), !environment.interface_addresses.contains(addr), "{}", addr);
            // What the last upkeep released goes with the next.
            let owed = model.drains(*addr) || planner.state.released.contains(addr);
            prop_assert!(wanted.bound().contains(addr) || owed, "{} is bound for nothing", addr);
        }
    }
}

/// Everybody asks for everything that a Service could be found at.
fn packets(installed: &[Option<Route>; 3], environment: &Environment) -> Vec<Packet<'static>> {
    let mut spots = Vec::new();
    for frontend in installed.iter().flatten().flat_map(|route| &route.frontends) {
        let named = frontend.at.into_iter();
        let of_node = environment.interface_addresses.iter().copied().filter(|addr| !addr.is_loopback());
        spots.extend(named.chain(of_node).map(|addr| (addr, frontend.port)));
    }
    let mut packets = Vec::new();
    for (destination, port) in spots {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let from = |source: IpAddr, origin| Packet { source, origin, destination, protocol, port };
            packets.extend(
                ["203.0.113.9", "203.0.9.9", "198.18.0.1", "10.1.0.9"]
                    .map(|source| from(ip(source), Origin::Interface("veth"))),
            );
            // The kernel takes the virtual IP itself as the source of what the node sends to it.
            packets.push(from(destination, Origin::Node));
        }
    }
    packets
}

/// What the routes say becomes of a packet.
#[derive(Debug)]
enum Due {
    Exactly(Fate),
    /// Nobody answers, however that is said.
    Nobody,
}

impl Due {
    fn allows(&self, fate: &Fate) -> bool {
        match self {
            Self::Exactly(due) => due == fate,
            Self::Nobody => matches!(fate, Fate::Refused | Fate::Passed),
        }
    }
}

fn due(installed: &[Option<Route>; 3], environment: &Environment, packet: &Packet<'_>) -> Due {
    let on_node = environment.interface_addresses.contains(&packet.destination);
    let find = |by_name: bool| {
        installed.iter().flatten().filter(|route| route.protocol == packet.protocol).find_map(|route| {
            let is_it = |frontend: &&Frontend| {
                frontend.port == packet.port
                    && match frontend.at {
                        Some(addr) => by_name && addr == packet.destination,
                        None => !by_name && on_node,
                    }
            };
            Some((route, route.frontends.iter().find(is_it)?))
        })
    };
    let Some((route, frontend)) = find(true).or_else(|| find(false)) else { return Due::Nobody };
    let barred = |sources: &AllowedSources| !sources.ranges.iter().any(|net| net.contains(&packet.source));
    if route.sources(frontend).is_some_and(barred) {
        return Due::Exactly(Fate::Dropped);
    }
    let node = packet.origin == Origin::Node;
    let pod = packet.source.to_string().starts_with("10.1.");
    let to = |targets: &[Target], masquerade| {
        let targets = targets.iter().map(|target| (target.addr, target.port)).collect();
        Due::Exactly(Fate::To { targets, masquerade })
    };
    match route.answer(frontend) {
        Answer::To(targets) if frontend.kind == FrontendKind::ClusterIp => to(targets, node || !pod),
        Answer::To(targets) => to(targets, true),
        Answer::Local { anywhere, .. } if node || pod => to(anywhere, node),
        Answer::Local { here: [], .. } | Answer::Drop => Due::Exactly(Fate::Dropped),
        Answer::Local { here, .. } => to(here, false),
        Answer::Reject if on_node => Due::Nobody,
        Answer::Reject => Due::Exactly(Fate::Refused),
    }
}

fn routes(installed: &[Option<Route>; 3]) -> Vec<(ServicePortName, Arc<Route>)> {
    let named = ["a", "b", "c"].into_iter().zip(installed);
    named.filter_map(|(service, route)| Some((name(service), Arc::new(route.clone()?)))).collect()
}

/// What the executor would report: nothing has connections.
fn reaped(plan: &Plan<Op>) -> Vec<Reaped> {
    let mut all = Vec::new();
    for owned in plan.steps.iter().flat_map(|step| &step.ops) {
        if let Op::Reap { key, destinations, server, .. } = &owned.op {
            all.extend(destinations.iter().map(|(addr, port)| Reaped::Destination(*key, *addr, *port)));
            if *server {
                all.push(Reaped::Server(*key));
            }
        }
    }
    all
}
