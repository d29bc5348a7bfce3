//! UDP flows that outlive what they were translated by.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use integration::lab::{
    Lab, Options, cluster_ip, directly, external_ip, load_balancer, node_address, service, slices,
};
use integration::network::Place::{Client, Node, Node2, PodA, PodB, PodC, PodD};
use integration::network::Protocol::Udp;
use integration::network::{ALWAYS, BRIEF, Family, Outcome, PATIENT, Place, UdpFlow};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        a_flow_older_than_its_service_reaches_it,
        a_flow_leaves_an_endpoint_that_goes,
        a_flow_recovers_after_all_endpoints_went,
        a_flow_stays_with_an_endpoint_that_terminates,
        flows_of_others_are_left_alone,
        flows_by_every_way_in_leave_an_endpoint_that_goes,
        flows_by_every_way_in_stay_with_an_endpoint_that_still_serves;
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
            let outcome = flow.ask_until(ALWAYS, BRIEF, |outcome| answered_by(outcome).is_some());
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
            assert_eq!(answered_by(&flow.ask(PATIENT)), Some("pod-a"), "{family:?}");
        }
        lab.apply(endpoints().ready(&[PodD]));
        lab.settle();
        let moved = flow.ask_until(ALWAYS, BRIEF, |outcome| answered_by(outcome) == Some("pod-d"));
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
        assert_eq!(answered_by(&flow.ask(PATIENT)), Some("pod-a"), "{family:?}");
        lab.apply(endpoints());
        lab.settle();
        let cut = flow.ask_until(ALWAYS, BRIEF, |outcome| answered_by(outcome).is_none());
        assert_eq!(answered_by(&cut), None, "{family:?}: the endpoint is gone, yet {cut}");
        lab.apply(endpoints().ready(&[PodD]));
        lab.settle();
        let back = flow.ask_until(ALWAYS, BRIEF, |outcome| answered_by(outcome) == Some("pod-d"));
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
        assert_eq!(answered_by(&flow.ask(PATIENT)), Some("pod-a"), "{family:?}");
        lab.apply(slices("dns").port("u", 53, Udp).ready(&[PodD]).terminating(&[PodA]));
        lab.settle();
        for _ in 0..8 {
            assert_eq!(answered_by(&flow.ask(PATIENT)), Some("pod-a"), "{family:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// The numbers by which the kernel knows the node's UDP flows to an address and port; a flow that was forgotten and seen
/// again has another.
fn flows(lab: &Lab, to: SocketAddr) -> Vec<String> {
    let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
    let mut command = Command::new("conntrack");
    command.args(["-L", "-f", family, "-p", "udp", "-o", "id", "-d", &to.ip().to_string()]);
    command.args(["--dport", &to.port().to_string()]);
    let output = lab.network.namespace(Node).output(&mut command).expect("conntrack lists");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().filter(|word| word.starts_with("id=")).map(str::to_owned).collect()
}

fn flows_of_others_are_left_alone(lab: &mut Lab) {
    lab.apply(service("changing", 1).port("u", 53, Udp).node_port(9090));
    lab.apply(slices("changing").port("u", 53, Udp).ready(&[PodA]));
    lab.apply(service("steady", 2).port("u", 9090, Udp));
    lab.apply(slices("steady").port("u", 9090, Udp).ready(&[PodD]));
    lab.settle();
    for family in Family::BOTH {
        lab.apply(slices("changing").port("u", 53, Udp).ready(&[PodA]));
        lab.settle();
        // To another machine, on a port with the number of a node port; and through another Service.
        let others = [directly(Node2, Udp, 9090), cluster_ip(2, Udp, 9090)].map(|to| to.address(family));
        let asked: Vec<_> = others
            .iter()
            .map(|to| {
                let flow = lab.network.udp_flow(PodB, *to).expect("a socket");
                assert!(answered_by(&flow.ask(PATIENT)).is_some(), "{to}");
                flow
            })
            .collect();
        let changing = lab.network.udp_flow(PodB, cluster_ip(1, Udp, 53).address(family)).expect("a socket");
        assert_eq!(answered_by(&changing.ask(PATIENT)), Some("pod-a"));
        let before = others.map(|to| flows(lab, to));
        assert!(before.iter().all(|flows| flows.len() == 1), "{before:?}");
        lab.apply(slices("changing").port("u", 53, Udp).ready(&[PodD]));
        lab.settle();
        let moved = changing.ask_until(ALWAYS, BRIEF, |outcome| answered_by(outcome) == Some("pod-d"));
        assert_eq!(answered_by(&moved), Some("pod-d"), "{family:?}: {moved}");
        assert_eq!(others.map(|to| flows(lab, to)), before, "{family:?}");
        drop(asked);
    }
}

fn flows_by_every_way_in_leave_an_endpoint_that_goes(lab: &mut Lab) {
    let dns = || service("dns", 1).port("u", 53, Udp).node_port(30053).load_balancer(1).external_ip(1);
    let endpoints = || slices("dns").port("u", 53, Udp);
    for web in [dns(), dns().external_local()] {
        lab.apply(web);
        for family in Family::BOTH {
            lab.apply(endpoints().ready(&[PodA]));
            lab.settle();
            let ways = [node_address(0, Udp, 30053), load_balancer(1, Udp, 53), external_ip(1, Udp, 53)];
            let flows = ways.map(|to| {
                let flow = lab.network.udp_flow(Client, to.address(family)).expect("a socket");
                for _ in 0..3 {
                    assert_eq!(answered_by(&flow.ask(PATIENT)), Some("pod-a"), "{to:?}");
                }
                flow
            });
            lab.apply(endpoints().ready(&[PodB]));
            lab.settle();
            for (flow, to) in flows.iter().zip(ways) {
                let moved = flow.ask_until(ALWAYS, BRIEF, |outcome| answered_by(outcome) == Some("pod-b"));
                assert_eq!(answered_by(&moved), Some("pod-b"), "{family:?} {to:?}: {moved}");
            }
        }
    }
}

/// Whoever is terminating and still serves keeps its flows and gets no new ones: through a restart as well, until it
/// does not serve any more.
fn flows_by_every_way_in_stay_with_an_endpoint_that_still_serves(lab: &mut Lab) {
    let dns = || service("dns", 1).port("u", 53, Udp).node_port(30053).load_balancer(1).external_ip(1);
    let endpoints = || slices("dns").port("u", 53, Udp);
    let ways = [
        cluster_ip(1, Udp, 53),
        node_address(0, Udp, 30053),
        load_balancer(1, Udp, 53),
        external_ip(1, Udp, 53),
    ];
    let sources = [Client, PodB, Node];
    for web in [dns(), dns().external_local(), dns().affinity(600)] {
        lab.apply(web);
        lab.apply(endpoints().ready(&[PodA]));
        lab.settle();
        let begun: Vec<(Place, SocketAddr, UdpFlow)> = sources
            .into_iter()
            .flat_map(|from| ways.into_iter().map(move |to| (from, to)))
            .flat_map(|(from, to)| Family::BOTH.map(|family| (from, to.address(family))))
            .map(|(from, to)| {
                let flow = lab.network.udp_flow(from, to).expect("a socket");
                for _ in 0..3 {
                    assert_eq!(answered_by(&flow.ask(PATIENT)), Some("pod-a"), "{from:?} {to}");
                }
                (from, to, flow)
            })
            .collect();
        let stay = |lab: &Lab, when: &str| {
            for (from, to, flow) in &begun {
                for _ in 0..3 {
                    let outcome = flow.ask(PATIENT);
                    assert_eq!(
                        answered_by(&outcome),
                        Some("pod-a"),
                        "{when}: {from:?} {to}: {outcome}\n{}",
                        lab.log()
                    );
                }
                let new = lab.network.udp_flow(*from, *to).expect("a socket").ask(PATIENT);
                assert_eq!(
                    answered_by(&new),
                    Some("pod-c"),
                    "{when}: a new flow, {from:?} {to}: {new}\n{}",
                    lab.log()
                );
            }
        };
        lab.apply(endpoints().ready(&[PodC]).terminating(&[PodA]));
        lab.settle();
        stay(lab, "terminating");
        lab.stop_proxy().expect("it runs");
        lab.start_proxy().expect("it starts again");
        lab.settle();
        stay(lab, "after a restart");
        let ended = json!({"ready": false, "serving": false, "terminating": true});
        lab.apply(endpoints().ready(&[PodC]).endpoint(PodA, ended));
        lab.settle();
        for (from, to, flow) in &begun {
            let moved = flow.ask_until(ALWAYS, BRIEF, |outcome| answered_by(outcome) == Some("pod-c"));
            assert_eq!(answered_by(&moved), Some("pod-c"), "{from:?} {to}: {moved}\n{}", lab.log());
        }
    }
}
