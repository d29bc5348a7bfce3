//! UDP flows that outlive what they were translated by.

use std::time::Duration;

use integration::lab::{Lab, Mode, Options, cluster_ip, node_address, service, slices};
use integration::network::Place::{Client, PodA, PodB, PodD};
use integration::network::Protocol::Udp;
use integration::network::{BRIEF, Family, Outcome};

crate::scenarios! {
    Options::default() =>
        a_flow_older_than_its_service_reaches_it,
        a_flow_leaves_an_endpoint_that_goes,
        a_flow_recovers_after_all_endpoints_went,
        a_flow_stays_with_an_endpoint_that_terminates;
}

fn answered_by(outcome: &Outcome) -> Option<&str> {
    match outcome {
        Outcome::Answered { answer, .. } => Some(&answer.by),
        _ => None,
    }
}

fn a_flow_older_than_its_service_reaches_it(lab: &mut Lab) {
    lab.settle();
    for family in Family::BOTH {
        for to in [cluster_ip(1, Udp, 53), node_address(0, Udp, 30053)] {
            let name = "late";
            let flow = lab.network.udp_flow(Client, to.address(family)).expect("a socket");
            // Three datagrams, so that the flow counts as a stream and lasts longer.
            for _ in 0..3 {
                assert_eq!(answered_by(&flow.ask(BRIEF)), None);
            }
            lab.apply(slices(name).port("u", 53, Udp).ready(&[PodA]));
            lab.apply(service(name, 1).port("u", 53, Udp).node_port(30053));
            lab.settle();
            let outcome =
                flow.ask_until(20, Duration::from_millis(250), |outcome| answered_by(outcome).is_some());
            assert_eq!(answered_by(&outcome), Some("pod-a"), "{family:?} {to:?}: {outcome}\n{}", lab.log());
            lab.delete("Service", name);
            lab.settle();
        }
    }
}

fn a_flow_leaves_an_endpoint_that_goes(lab: &mut Lab) {
    lab.apply(service("dns", 1).port("u", 53, Udp));
    let endpoints = || slices("dns").port("u", 53, Udp);
    for family in Family::BOTH {
        lab.apply(endpoints().ready(&[PodA]));
        lab.settle();
        let flow = lab.network.udp_flow(PodB, cluster_ip(1, Udp, 53).address(family)).expect("a socket");
        for _ in 0..3 {
            assert_eq!(answered_by(&flow.ask(Duration::from_secs(2))), Some("pod-a"), "{family:?}");
        }
        lab.apply(endpoints().ready(&[PodD]));
        lab.settle();
        let moved =
            flow.ask_until(20, Duration::from_millis(250), |outcome| answered_by(outcome) == Some("pod-d"));
        assert_eq!(answered_by(&moved), Some("pod-d"), "{family:?}: {moved}");
    }
}

fn a_flow_recovers_after_all_endpoints_went(lab: &mut Lab) {
    lab.apply(service("dns", 1).port("u", 53, Udp));
    let endpoints = || slices("dns").port("u", 53, Udp);
    for family in Family::BOTH {
        lab.apply(endpoints().ready(&[PodA]));
        lab.settle();
        let flow = lab.network.udp_flow(PodB, cluster_ip(1, Udp, 53).address(family)).expect("a socket");
        assert_eq!(answered_by(&flow.ask(Duration::from_secs(2))), Some("pod-a"), "{family:?}");
        lab.apply(endpoints());
        lab.settle();
        let cut = flow.ask_until(20, Duration::from_millis(250), |outcome| answered_by(outcome).is_none());
        assert_eq!(answered_by(&cut), None, "{family:?}: the endpoint is gone, yet {cut}");
        lab.apply(endpoints().ready(&[PodD]));
        lab.settle();
        let back =
            flow.ask_until(20, Duration::from_millis(250), |outcome| answered_by(outcome) == Some("pod-d"));
        assert_eq!(answered_by(&back), Some("pod-d"), "{family:?}: {back}");
    }
}

fn a_flow_stays_with_an_endpoint_that_terminates(lab: &mut Lab) {
    lab.apply(service("dns", 1).port("u", 53, Udp));
    lab.apply(slices("dns").port("u", 53, Udp).ready(&[PodA]));
    lab.settle();
    for family in Family::BOTH {
        lab.apply(slices("dns").port("u", 53, Udp).ready(&[PodA]));
        lab.settle();
        let flow = lab.network.udp_flow(PodB, cluster_ip(1, Udp, 53).address(family)).expect("a socket");
        assert_eq!(answered_by(&flow.ask(Duration::from_secs(2))), Some("pod-a"), "{family:?}");
        lab.apply(slices("dns").port("u", 53, Udp).ready(&[PodD]).terminating(&[PodA]));
        lab.settle();
        if lab.mode() == Mode::Ipvs {
            // As kube-proxy: in this mode a UDP endpoint goes at once, and the flow moves on.
            let moved = flow
                .ask_until(20, Duration::from_millis(250), |outcome| answered_by(outcome) == Some("pod-d"));
            assert_eq!(answered_by(&moved), Some("pod-d"), "{family:?}: {moved}");
            continue;
        }
        for _ in 0..8 {
            assert_eq!(answered_by(&flow.ask(Duration::from_secs(2))), Some("pod-a"), "{family:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
