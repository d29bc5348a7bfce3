//! When an endpoint sees the node instead of the client: for every way of telling local pods.

use integration::lab::{
    Detect, Lab, Mode, Options, cluster_ip, load_balancer, seen_as_node, seen_as_sent, service, slices,
};
use integration::network::Place::{Client, Node, PodA, PodB, PodC, PodD, PodE};
use integration::network::Protocol::{Sctp, Tcp, Udp};
use serde_json::{Value, json};

crate::scenarios! {
    Options { detect: Detect::ClusterCidr, ..Options::default() } =>
        by_cluster_cidr_any_pod_of_the_cluster_keeps_its_address;
    Options { detect: Detect::NodeCidr, ..Options::default() } =>
        by_node_cidr_only_pods_of_this_node_keep_their_address;
    Options { detect: Detect::InterfacePrefix, ..Options::default() } =>
        by_interface_only_pods_of_this_node_keep_their_address;
    Options { detect: Detect::Bridge, ..Options::default() } =>
        by_bridge_only_pods_of_this_node_keep_their_address;
    Options { detect: Detect::Never, ..Options::default() } =>
        without_detection_cluster_ips_are_never_masqueraded;
    Options { masquerade_all: true, ..Options::default() } =>
        everything_is_masqueraded_on_demand;
    Options::default() =>
        an_endpoint_that_asks_itself_sees_the_node,
        an_endpoint_that_asks_itself_sees_the_node_whatever_its_slice_says;
}

fn web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).port("u", 80, Udp).node_port(30080).load_balancer(1));
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 8080, Udp).ready(&[PodA, PodD]));
}

fn expect_by_detection(lab: &mut Lab, remote_pods_are_local: bool) {
    web(lab);
    for protocol in [Tcp, Udp] {
        let to = cluster_ip(1, protocol, 80);
        lab.expect(PodC, to, &seen_as_sent(&[PodA, PodD]));
        lab.expect(Client, to, &seen_as_node(&[PodA, PodD]));
        lab.expect(Node, to, &seen_as_node(&[PodA, PodD]));
        lab.expect(PodC, load_balancer(1, protocol, 80), &seen_as_node(&[PodA, PodD]));
    }
    lab.sweep();
    // A pod of the other node; only to an endpoint of this node, as the answer of another one would not come back this way.
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 8080, Udp).ready(&[PodA]));
    let remote = if remote_pods_are_local { seen_as_sent(&[PodA]) } else { seen_as_node(&[PodA]) };
    lab.expect(PodE, cluster_ip(1, Tcp, 80), &remote);
    lab.expect(PodE, cluster_ip(1, Udp, 80), &remote);
}

fn by_cluster_cidr_any_pod_of_the_cluster_keeps_its_address(lab: &mut Lab) {
    expect_by_detection(lab, true);
}

fn by_node_cidr_only_pods_of_this_node_keep_their_address(lab: &mut Lab) {
    expect_by_detection(lab, false);
}

fn by_interface_only_pods_of_this_node_keep_their_address(lab: &mut Lab) {
    expect_by_detection(lab, false);
}

fn by_bridge_only_pods_of_this_node_keep_their_address(lab: &mut Lab) {
    expect_by_detection(lab, false);
}

fn without_detection_cluster_ips_are_never_masqueraded(lab: &mut Lab) {
    web(lab);
    let (to, sent) = (cluster_ip(1, Tcp, 80), seen_as_sent(&[PodA, PodD]));
    for from in [PodC, Client] {
        lab.expect(from, to, &sent);
    }
    lab.sweep();
    // IPVS makes the cluster IP an address of the node, which may use it as its source: nobody could answer to that.
    let from_node = if lab.mode() == Mode::Ipvs { seen_as_node(&[PodA, PodD]) } else { sent };
    lab.expect(Node, to, &from_node);
}

fn everything_is_masqueraded_on_demand(lab: &mut Lab) {
    web(lab);
    for from in [PodC, Client, Node] {
        lab.expect(from, cluster_ip(1, Tcp, 80), &seen_as_node(&[PodA, PodD]));
        lab.expect(from, cluster_ip(1, Udp, 80), &seen_as_node(&[PodA, PodD]));
    }
    lab.sweep();
}

fn an_endpoint_that_asks_itself_sees_the_node(lab: &mut Lab) {
    lab.apply(
        service("self", 1)
            .port("t", 80, Tcp)
            .port("u", 80, Udp)
            .port("s", 80, Sctp)
            .load_balancer(1)
            .internal_local(),
    );
    lab.apply(slices("self").port("t", 8080, Tcp).port("u", 8080, Udp).port("s", 8080, Sctp).ready(&[PodB]));
    for protocol in [Tcp, Udp, Sctp] {
        lab.expect(PodB, cluster_ip(1, protocol, 80), &seen_as_node(&[PodB]));
        lab.expect(PodB, load_balancer(1, protocol, 80), &seen_as_node(&[PodB]));
        lab.expect(PodA, cluster_ip(1, protocol, 80), &seen_as_sent(&[PodB]));
    }
    // Without its last endpoint nothing of it may be left behind.
    lab.apply(slices("self").port("t", 8080, Tcp).port("u", 8080, Udp).port("s", 8080, Sctp).ready(&[PodA]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.sweep();
}

/// A slice made by hand says nothing of nodes, or names one that it is not on.
fn an_endpoint_that_asks_itself_sees_the_node_whatever_its_slice_says(lab: &mut Lab) {
    lab.apply(
        service("self", 1)
            .port("t", 80, Tcp)
            .port("u", 80, Udp)
            .port("s", 80, Sctp)
            .node_port(30080)
            .load_balancer(1),
    );
    for node in [Value::Null, json!("node2"), json!("nobody")] {
        let slices = slices("self").port("t", 8080, Tcp).port("u", 8080, Udp).port("s", 8080, Sctp);
        lab.apply(slices.ready(&[PodB]).said_to_be_on(node));
        for protocol in [Tcp, Udp, Sctp] {
            lab.expect(PodB, cluster_ip(1, protocol, 80), &seen_as_node(&[PodB]));
            lab.expect(PodB, load_balancer(1, protocol, 80), &seen_as_node(&[PodB]));
            lab.expect(PodA, cluster_ip(1, protocol, 80), &seen_as_sent(&[PodB]));
        }
        lab.sweep();
    }
}
