//! Two Services that claim one address: the oldest has it, and nothing flips.

use integration::lab::{
    Lab, Options, cluster_ip, external_ip, load_balancer, node_address, seen_as_node, seen_as_sent, service,
    slices,
};
use integration::network::Family;
use integration::network::Place::{Client, PodA, PodC, PodD};
use integration::network::Protocol::Tcp;
use serde_json::json;

crate::scenarios! {
    // The times of creation are chosen here.
    Options { embedded_server: true, ..Options::default() } =>
        the_oldest_claim_wins_and_the_next_takes_over,
        an_external_ip_of_the_node_goes_before_a_node_port;
}

fn the_oldest_claim_wins_and_the_next_takes_over(lab: &mut Lab) {
    let younger = || service("a-younger", 1).port("t", 80, Tcp).external_ip(1).load_balancer(1);
    let older = || service("b-older", 2).port("t", 80, Tcp).external_ip(1).load_balancer(1);
    lab.apply(slices("a-younger").port("t", 8080, Tcp).ready(&[PodA]));
    lab.apply(slices("b-older").port("t", 8081, Tcp).ready(&[PodD]));
    let claimed = [external_ip(1, Tcp, 80), load_balancer(1, Tcp, 80)];
    lab.apply(younger().created("2026-02-01T00:00:00Z"));
    for to in claimed {
        lab.expect(Client, to, &seen_as_node(&[PodA]));
    }
    lab.apply(older().created("2026-01-01T00:00:00Z"));
    for to in claimed {
        lab.expect(Client, to, &seen_as_node(&[PodD]));
    }
    // Each keeps what it alone has.
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.expect(PodC, cluster_ip(2, Tcp, 80), &seen_as_sent(&[PodD]));
    lab.sweep();
    lab.delete("Service", "b-older");
    for to in claimed {
        lab.expect(Client, to, &seen_as_node(&[PodA]));
    }
    lab.sweep();
}

fn an_external_ip_of_the_node_goes_before_a_node_port(lab: &mut Lab) {
    let mine = || {
        let addresses = Family::BOTH.map(|family| family.node_addresses()[0].to_string());
        service("a-mine", 1).port("t", 30080, Tcp).set("/spec/externalIPs", json!(addresses))
    };
    lab.apply(slices("a-mine").port("t", 8080, Tcp).ready(&[PodA]));
    lab.apply(slices("b-open").port("t", 8081, Tcp).ready(&[PodD]));
    // The one with the NodePort is older, which does not count here.
    lab.apply(service("b-open", 2).port("t", 80, Tcp).node_port(30080).created("2026-01-01T00:00:00Z"));
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodD]));
    lab.apply(mine().created("2026-02-01T00:00:00Z"));
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodA]));
    lab.sweep();
    lab.delete("Service", "a-mine");
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodD]));
    lab.sweep();
}
