//! Session affinity by client address.

use std::collections::BTreeSet;
use std::thread::sleep;
use std::time::Duration;

use integration::lab::{
    FAR_CLIENT, Lab, Mode, Options, Origin, To, cluster_ip, load_balancer, node_address, seen_as_node,
    service, slices,
};
use integration::network::Place::{Client, PodA, PodB, PodC, PodD, PodE};
use integration::network::Protocol::{Tcp, Udp};
use integration::network::{Family, Outcome, Place};

crate::scenarios! {
    Options::default() =>
        a_client_stays_with_its_endpoint,
        clients_are_spread,
        an_endpoint_that_goes_loses_its_clients,
        stickiness_ends_when_idle_and_is_renewed_by_use,
        a_client_that_had_to_move_stays_where_it_went,
        stickiness_keeps_to_local_endpoints,
        a_stuck_client_leaves_an_endpoint_that_terminates,
        every_port_has_stickiness_of_its_own;
}

const ALL: [Place; 5] = [PodA, PodB, PodC, PodD, PodE];

fn answered(lab: &mut Lab, from: impl Into<Origin>, to: To, family: Family) -> String {
    match lab.ask(from, to, family) {
        Outcome::Answered { answer, .. } => answer.by,
        other => panic!("{family:?}: {other}\n{}", lab.log()),
    }
}

fn sticky(lab: &mut Lab, seconds: u32) {
    lab.apply(
        service("web", 1)
            .port("t", 80, Tcp)
            .port("u", 53, Udp)
            .node_port(30053)
            .load_balancer(1)
            .affinity(seconds),
    );
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&ALL));
}

fn a_client_stays_with_its_endpoint(lab: &mut Lab) {
    sticky(lab, 600);
    for family in Family::BOTH {
        for protocol_port in [(Tcp, 80), (Udp, 53)] {
            for from in [Origin::from(Client), FAR_CLIENT, Origin::from(PodC)] {
                let to = cluster_ip(1, protocol_port.0, protocol_port.1);
                let first = answered(lab, from, to, family);
                for _ in 0..12 {
                    assert_eq!(
                        answered(lab, from, to, family),
                        first,
                        "{family:?} {from:?} {protocol_port:?}"
                    );
                }
                // With IPVS each address of a Service port remembers its own clients.
                if from == Origin::from(Client) && lab.mode() != Mode::Ipvs {
                    let other_way = load_balancer(1, protocol_port.0, protocol_port.1);
                    assert_eq!(answered(lab, from, other_way, family), first, "whichever address it uses");
                }
            }
        }
    }
    lab.sweep();
}

fn clients_are_spread(lab: &mut Lab) {
    // One Service port after another is a fresh draw for the same client: with 48 draws from 5, two missing would be a
    // chance of 1 in 4,000,000,000.
    let mut service = service("many", 1).affinity(600);
    let mut slices = slices("many");
    for port in 0..48 {
        service = service.port(&format!("p{port}"), 100 + port, Tcp);
        slices = slices.port(&format!("p{port}"), 8080, Tcp);
    }
    lab.apply(service);
    lab.apply(slices.ready(&ALL));
    for family in Family::BOTH {
        let mut seen = BTreeSet::new();
        if lab.mode() == Mode::Ipvs {
            // Round robin begins each Service port at the same endpoint: its clients are spread, one after another.
            for from in
                [Origin::from(Client), FAR_CLIENT, Origin::from(PodA), Origin::from(PodB), Origin::from(PodC)]
            {
                seen.insert(answered(lab, from, cluster_ip(1, Tcp, 100), family));
            }
        } else {
            seen.extend((0..48).map(|port| answered(lab, Client, cluster_ip(1, Tcp, 100 + port), family)));
        }
        assert!(seen.len() >= 4, "{family:?}: {seen:?}");
    }
}

fn an_endpoint_that_goes_loses_its_clients(lab: &mut Lab) {
    sticky(lab, 600);
    let to = cluster_ip(1, Tcp, 80);
    lab.settle();
    for family in Family::BOTH {
        lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&ALL));
        let first = answered(lab, Client, to, family);
        let left: Vec<_> = ALL.into_iter().filter(|place| place.name() != first).collect();
        lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&left));
        let second = answered(lab, Client, to, family);
        assert_ne!(second, first);
        for _ in 0..8 {
            assert_eq!(answered(lab, Client, to, family), second);
        }
    }
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodD]));
    lab.expect(Client, to, &seen_as_node(&[PodD]));
}

fn stickiness_ends_when_idle_and_is_renewed_by_use(lab: &mut Lab) {
    const TIMEOUT: Duration = Duration::from_secs(4);
    sticky(lab, TIMEOUT.as_secs() as u32);
    let to = cluster_ip(1, Tcp, 80);
    let clients = [Origin::from(Client), FAR_CLIENT, Origin::from(PodC)];
    let draw = |lab: &mut Lab| clients.map(|from| answered(lab, from, to, Family::V4));
    // Used twice within each timeout, it outlives two of them. A machine that was too busy to use it in time has shown
    // nothing, and is asked again.
    let used = |lab: &mut Lab| {
        let mut before = crate::now();
        let first = draw(lab);
        for _ in 0..4 {
            sleep(TIMEOUT / 2);
            let begun = crate::now();
            let again = draw(lab);
            if before.elapsed() > TIMEOUT - TIMEOUT / 8 {
                return None;
            }
            assert_eq!(again, first);
            before = begun;
        }
        Some(first)
    };
    let first = (0..20).find_map(|_| used(lab)).expect("a machine that does something within four seconds");
    if lab.mode() == Mode::Ipvs {
        // The kernel keeps the choice for as long as it remembers a connection under it, which is minutes.
        return;
    }
    // Left alone, clients are drawn anew: all three the same three times in a row is a chance of 1 in two million.
    let mut same = 0;
    for _ in 0..3 {
        sleep(TIMEOUT + TIMEOUT / 2);
        same += usize::from(draw(lab) == first);
    }
    assert!(same < 3, "nobody ever left {first:?}");
}

fn a_client_that_had_to_move_stays_where_it_went(lab: &mut Lab) {
    sticky(lab, 600);
    let to = cluster_ip(1, Tcp, 80);
    for family in Family::BOTH {
        let endpoints = || slices("web").port("t", 8080, Tcp).port("u", 53, Udp);
        lab.apply(endpoints().ready(&ALL));
        let first = answered(lab, Client, to, family);
        let (gone, left): (Vec<Place>, Vec<Place>) = ALL.into_iter().partition(|place| place.name() == first);
        lab.apply(endpoints().ready(&left).unready(&gone));
        let second = answered(lab, Client, to, family);
        assert_ne!(second, first);
        // The first one is ready again.
        lab.apply(endpoints().ready(&ALL));
        for _ in 0..8 {
            assert_eq!(answered(lab, Client, to, family), second, "{family:?}");
        }
    }
}

fn stickiness_keeps_to_local_endpoints(lab: &mut Lab) {
    let web = service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1).affinity(600);
    lab.apply(web.external_local().internal_local());
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodB, PodD, PodE]));
    for family in Family::BOTH {
        for to in [node_address(0, Tcp, 30080), load_balancer(1, Tcp, 80), cluster_ip(1, Tcp, 80)] {
            for from in [Origin::from(Client), FAR_CLIENT, Origin::from(PodC)] {
                let first = answered(lab, from, to, family);
                for _ in 0..8 {
                    assert_eq!(answered(lab, from, to, family), first, "{family:?} {from:?} {to:?}");
                }
            }
        }
        assert!(
            ["pod-a", "pod-b"].contains(&answered(lab, Client, load_balancer(1, Tcp, 80), family).as_str())
        );
    }
    lab.sweep();
}

fn a_stuck_client_leaves_an_endpoint_that_terminates(lab: &mut Lab) {
    sticky(lab, 600);
    let to = cluster_ip(1, Tcp, 80);
    for family in Family::BOTH {
        let endpoints = || slices("web").port("t", 8080, Tcp).port("u", 53, Udp);
        lab.apply(endpoints().ready(&ALL));
        let first = answered(lab, Client, to, family);
        let (leaving, left): (Vec<Place>, Vec<Place>) =
            ALL.into_iter().partition(|place| place.name() == first);
        lab.apply(endpoints().ready(&left).terminating(&leaving));
        assert_ne!(answered(lab, Client, to, family), first, "{family:?}");
        // With nobody else left it serves again.
        lab.apply(endpoints().terminating(&leaving));
        assert_eq!(answered(lab, Client, to, family), first, "{family:?}");
    }
}

fn every_port_has_stickiness_of_its_own(lab: &mut Lab) {
    let mut web = service("web", 1).affinity(600);
    let mut endpoints = slices("web");
    for port in 0..12 {
        web = web.port(&format!("p{port}"), 100 + port, Tcp);
        endpoints = endpoints.port(&format!("p{port}"), 8080, Tcp);
    }
    lab.apply(web);
    lab.apply(endpoints.ready(&ALL));
    for family in Family::BOTH {
        let draw = |lab: &mut Lab| -> Vec<String> {
            (0..12).map(|port| answered(lab, Client, cluster_ip(1, Tcp, 100 + port), family)).collect()
        };
        let first = draw(lab);
        assert_eq!(draw(lab), first, "{family:?}");
    }
}
