//! Ways in from outside: node ports, load balancer addresses, external IPs.

use integration::lab::{
    Expect, FAR_CLIENT, Lab, Options, cluster_ip, external_ip, load_balancer, node_address, seen_as_node,
    seen_as_sent, service, slices,
};
use integration::network::Place::{Client, Node, PodA, PodB, PodC, PodD};
use integration::network::Protocol::{Sctp, Tcp, Udp};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        every_way_in_reaches_all_endpoints_masqueraded,
        sctp_and_udp_come_in_too,
        a_load_balancer_that_proxies_is_not_short_cut,
        a_load_balancer_service_needs_no_node_port,
        ways_in_come_and_go;
}

fn every_way_in_reaches_all_endpoints_masqueraded(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1).external_ip(1));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    for to in [node_address(0, Tcp, 30080), load_balancer(1, Tcp, 80), external_ip(1, Tcp, 80)] {
        lab.expect(Client, to, &seen_as_node(&[PodA, PodD]));
        lab.expect(FAR_CLIENT, to, &seen_as_node(&[PodA, PodD]));
        lab.expect(PodC, to, &seen_as_node(&[PodA, PodD]));
        lab.expect(Node, to, &seen_as_node(&[PodA, PodD]));
    }
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.sweep();
}

fn sctp_and_udp_come_in_too(lab: &mut Lab) {
    lab.apply(
        service("dns", 1)
            .port("u", 53, Udp)
            .node_port(30053)
            .port("s", 53, Sctp)
            .node_port(30054)
            .load_balancer(1),
    );
    lab.apply(slices("dns").port("u", 53, Udp).port("s", 9090, Sctp).ready(&[PodB, PodD]));
    for (protocol, node_port) in [(Udp, 30053), (Sctp, 30054)] {
        for to in [node_address(0, protocol, node_port), load_balancer(1, protocol, 53)] {
            lab.expect(Client, to, &seen_as_node(&[PodB, PodD]));
            lab.expect(Node, to, &seen_as_node(&[PodB, PodD]));
        }
    }
    lab.sweep();
}

fn a_load_balancer_that_proxies_is_not_short_cut(lab: &mut Lab) {
    let web = service("web", 1).port("t", 80, Tcp).node_port(30080);
    lab.apply(web.load_balancer_with(1, json!("Proxy")).load_balancer_with(2, json!("VIP")));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    lab.expect(PodB, load_balancer(1, Tcp, 80), &Expect::NotTranslated);
    lab.expect(PodB, load_balancer(2, Tcp, 80), &seen_as_node(&[PodA]));
    lab.sweep();
}

fn a_load_balancer_service_needs_no_node_port(lab: &mut Lab) {
    let web = service("web", 1).port("t", 80, Tcp).load_balancer(1);
    lab.apply(web.set("/spec/allocateLoadBalancerNodePorts", json!(false)));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_node(&[PodA]));
    lab.sweep();
}

fn ways_in_come_and_go(lab: &mut Lab) {
    let web = || service("web", 1).port("t", 80, Tcp);
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodB]));
    lab.apply(web().node_port(30080));
    lab.sweep();
    lab.apply(web().node_port(30081).load_balancer(1));
    lab.sweep();
    lab.expect(Client, node_address(0, Tcp, 30080), &Expect::NotTranslated);
    lab.apply(web().external_ip(2));
    lab.sweep();
    lab.expect(Client, node_address(0, Tcp, 30081), &Expect::NotTranslated);
    lab.expect(PodC, load_balancer(1, Tcp, 80), &Expect::NotTranslated);
}
