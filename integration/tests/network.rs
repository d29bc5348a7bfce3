//! The network itself: without any proxy, and against rules written by hand.

use std::net::SocketAddr;

use integration::network::{BRIEF, Family, Network, Outcome, Place, Probe, Protocol, Wiring};

const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

fn answered_by(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Answered { answer, .. } => &answer.by,
        other => panic!("no answer: {other}"),
    }
}

fn network(wiring: Wiring) -> Network {
    Network::build(wiring).expect("root, and a kernel with namespaces")
}

fn every_place_is_reached(wiring: Wiring) {
    let network = network(wiring);
    for from in Place::ALL {
        let mut expected = Vec::new();
        let mut probes = Vec::new();
        for family in Family::BOTH {
            for to in Place::ALL.into_iter().filter(|to| *to != Place::Client && *to != from) {
                for protocol in PROTOCOLS {
                    probes.push(Probe::new(protocol, SocketAddr::new(to.address(family), 8080)));
                    expected.push((to, family, protocol));
                }
            }
        }
        let outcomes = network.probe(from, &probes).expect("sockets can be made");
        for ((to, family, protocol), outcome) in expected.iter().zip(&outcomes) {
            let Outcome::Answered { answer, sent_from } = outcome else {
                panic!("{from:?} -> {to:?} {family:?} {protocol}: {outcome}");
            };
            assert_eq!(answer.by, to.name(), "{from:?} -> {to:?} {family:?} {protocol}");
            assert_eq!(answer.seen_source.ip(), sent_from.ip(), "nothing translates the source");
        }
    }
}

#[test]
fn every_place_reaches_every_other_over_routed_links() {
    every_place_is_reached(Wiring::Routed);
}

#[test]
fn every_place_reaches_every_other_over_a_bridge() {
    every_place_is_reached(Wiring::Bridged);
}

#[test]
fn a_closed_port_refuses_and_an_unknown_address_is_silent() {
    let network = network(Wiring::Routed);
    for family in Family::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let closed = Probe::new(protocol, SocketAddr::new(Place::PodA.address(family), 7));
            assert_eq!(
                network.probe_one(Place::Client, closed).expect("a socket"),
                Outcome::Refused,
                "{family:?} {protocol}"
            );
        }
        let nowhere = PROTOCOLS
            .map(|protocol| Probe::new(protocol, SocketAddr::new(family.service(1), 80)).patience(BRIEF));
        for from in [Place::Client, Place::Node, Place::PodA, Place::PodD] {
            let outcomes = network.probe(from, &nowhere).expect("sockets");
            assert_eq!(outcomes, [Outcome::Silent, Outcome::Silent, Outcome::Silent], "{from:?} {family:?}");
        }
    }
}

/// Translation by hand-written rules is seen as it happens, for all protocols and both families.
#[test]
fn translation_masquerading_refusal_and_dropping_are_told_apart() {
    let network = network(Wiring::Routed);
    for (table, ip, family) in [("ip", "ip", Family::V4), ("ip6", "ip6", Family::V6)] {
        let vip = family.service(1);
        let (pod, far) = (Place::PodA.address(family), Place::PodD.address(family));
        let target = |address: std::net::IpAddr, port: u16| SocketAddr::new(address, port).to_string();
        let rules = format!(
            "table {table} by-hand {{
                chain pre {{ type nat hook prerouting priority -100; jump services; }}
                chain out {{ type nat hook output priority -100; jump services; }}
                chain services {{
                    {ip} daddr {vip} meta l4proto {{ tcp, udp, sctp }} th dport 80 dnat to {near}
                    {ip} daddr {vip} meta l4proto {{ tcp, udp, sctp }} th dport 81 meta mark set 1 dnat to {away}
                }}
                chain post {{ type nat hook postrouting priority 100; meta mark 1 masquerade; }}
                chain filter-forward {{ type filter hook forward priority 0; jump refuse; }}
                chain filter-output {{ type filter hook output priority 0; jump refuse; }}
                chain refuse {{
                    {ip} daddr {vip} meta l4proto {{ tcp, udp, sctp }} th dport 82 reject
                    {ip} daddr {vip} meta l4proto {{ tcp, udp, sctp }} th dport 83 drop
                }}
            }}",
            near = target(pod, 8080),
            away = target(far, 8081),
        );
        network.namespace(Place::Node).nft(&rules).expect("valid rules");
        for from in [Place::Client, Place::Node, Place::PodB, Place::PodD, Place::Node2] {
            for protocol in PROTOCOLS {
                let what = format!("{from:?} {family:?} {protocol}");
                let to = |port: u16| Probe::new(protocol, SocketAddr::new(vip, port));
                let probes = [to(80), to(81), to(82), to(83).patience(BRIEF)];
                let outcomes = network.probe(from, &probes).expect("sockets");
                assert_eq!(answered_by(&outcomes[0]), "pod-a", "{what}");
                assert_eq!(answered_by(&outcomes[1]), "pod-d", "{what}");
                for (outcome, place) in outcomes.iter().zip([Place::PodA, Place::PodD]) {
                    let Outcome::Answered { answer, sent_from } = outcome else {
                        panic!("{what}: {outcome}")
                    };
                    let wanted = match place {
                        Place::PodD => place.masqueraded_source(family).expect("it leaves the node"),
                        _ => sent_from.ip(),
                    };
                    assert_eq!(answer.seen_source.ip(), wanted, "{what}");
                }
                assert_eq!(outcomes[2], Outcome::Refused, "{what}");
                assert_eq!(outcomes[3], Outcome::Silent, "{what}");
            }
        }
    }
}

#[test]
fn the_client_sends_from_any_of_its_addresses() {
    let network = network(Wiring::Routed);
    for family in Family::BOTH {
        for protocol in PROTOCOLS {
            let probe = Probe::new(protocol, SocketAddr::new(Place::PodC.address(family), 9090))
                .from_address(family.far_client());
            let outcome = network.probe_one(Place::Client, probe).expect("a socket");
            let Outcome::Answered { answer, .. } = outcome else {
                panic!("{family:?} {protocol}: {outcome}")
            };
            assert_eq!((answer.port, answer.seen_source.ip()), (9090, family.far_client()));
        }
    }
}

#[test]
fn a_udp_flow_keeps_its_source_port() {
    let network = network(Wiring::Routed);
    let to = SocketAddr::new(Place::PodA.address(Family::V4), 53);
    let flow = network.udp_flow(Place::Client, to).expect("a socket");
    let port = |outcome: &Outcome| match outcome {
        Outcome::Answered { answer, .. } => answer.seen_source.port(),
        other => panic!("{other}"),
    };
    let first = flow.ask(integration::network::PATIENT);
    let second = flow.ask(integration::network::PATIENT);
    assert_eq!(port(&first), port(&second));
}
