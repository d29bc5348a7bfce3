//! Every pair of traffic policies with every state that endpoints can be in, and every way in from every kind of source.

use integration::lab::{Detect, Lab, Options, Service, Slices, service, slices};
use integration::network::Place::{Node, Node2, PodA, PodB, PodD, PodE};
use integration::network::Protocol::{Sctp, Tcp, Udp};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        policies_and_endpoints_by_tcp_and_udp,
        policies_and_endpoints_by_sctp,
        policies_and_stickiness;
    Options { detect: Detect::InterfacePrefix, masquerade_all: true, ..Options::default() } =>
        policies_and_endpoints_with_everything_masqueraded;
}

/// Ready, terminating and unready endpoints here and elsewhere, pods and hosts.
fn states(ports: &Slices) -> Vec<Slices> {
    let ports = || ports.clone();
    let gone = json!({"ready": false, "serving": false, "terminating": true});
    vec![
        ports().ready(&[PodA, PodB, PodD]),
        ports().ready(&[PodD, PodE]),
        ports().ready(&[Node, Node2]),
        ports().ready(&[PodD]).terminating(&[PodA]),
        ports().ready(&[PodA]).terminating(&[PodB, PodD]),
        ports().terminating(&[PodB, PodD]),
        ports().terminating(&[PodD]).unready(&[PodA]),
        ports().endpoint(PodA, gone.clone()).ready(&[PodE]),
        ports().endpoint(PodA, gone).unready(&[PodD]),
        ports(),
    ]
}

fn sweep_all(lab: &mut Lab, web: impl Fn() -> Service, ports: &Slices) {
    for service in
        [web(), web().external_local(), web().internal_local(), web().external_local().internal_local()]
    {
        lab.apply(service);
        for state in states(ports) {
            lab.apply(state);
            lab.sweep();
        }
    }
}

fn tcp_and_udp(lab: &mut Lab, change: fn(Service) -> Service) {
    let web = || {
        let web = service("web", 1).port("t", 80, Tcp).node_port(30080).port("u", 53, Udp).node_port(30053);
        change(web.load_balancer(1).external_ip(1))
    };
    sweep_all(lab, web, &slices("web").port("t", 8080, Tcp).port("u", 53, Udp));
}

fn policies_and_endpoints_by_tcp_and_udp(lab: &mut Lab) {
    tcp_and_udp(lab, |web| web);
}

fn policies_and_endpoints_with_everything_masqueraded(lab: &mut Lab) {
    tcp_and_udp(lab, |web| web);
}

fn policies_and_stickiness(lab: &mut Lab) {
    tcp_and_udp(lab, |web| web.affinity(600));
}

fn policies_and_endpoints_by_sctp(lab: &mut Lab) {
    let web = || service("web", 1).port("s", 80, Sctp).node_port(30080).load_balancer(1);
    sweep_all(lab, web, &slices("web").port("s", 8080, Sctp));
}
