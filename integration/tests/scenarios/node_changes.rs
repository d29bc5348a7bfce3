//! The node's addresses change while the proxy runs.

use std::net::SocketAddr;

use integration::lab::{Expect, Lab, Options, node, node_address, seen_as_node, service, slices};
use integration::network::Place::{Client, Node, PodA, PodD};
use integration::network::Protocol::{Tcp, Udp};
use integration::network::{BRIEF, Family, Outcome, Probe};
use serde_json::json;

crate::scenarios! {
    Options { node_port_addresses: vec!["192.168.70.0/24".to_owned(), "fd00:70::/64".to_owned()], ..Options::default() } =>
        node_ports_follow_the_interfaces;
    Options { node_port_addresses: vec!["primary".to_owned()], ..Options::default() } =>
        primary_follows_the_node_object;
}

fn web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).port("u", 53, Udp).node_port(30053));
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA, PodD]));
}

fn node_ports_follow_the_interfaces(lab: &mut Lab) {
    web(lab);
    lab.expect(Client, node_address(1, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    let fresh: [SocketAddr; 2] =
        ["192.168.70.9:30080", "[fd00:70::9]:30080"].map(|at| at.parse().expect("an address"));
    let answers = |lab: &Lab| {
        fresh.map(|to| {
            let probe = Probe::new(Tcp, to).patience(BRIEF);
            matches!(lab.network.probe_one(Client, probe).expect("a socket"), Outcome::Answered { .. })
        })
    };
    assert_eq!(answers(lab), [false, false]);
    let on_node =
        |lab: &Lab, batch: &str| lab.network.namespace(Node).ip(batch, &[]).expect("the address changes");
    on_node(lab, "addr add 192.168.70.9/24 dev ext0\naddr add fd00:70::9/64 dev ext0 nodad\n");
    crate::eventually(|| answers(lab) == [true, true]);
    // An address that comes back later is followed again.
    on_node(lab, "addr del 192.168.70.9/24 dev ext0\naddr del fd00:70::9/64 dev ext0\n");
    on_node(lab, "addr add 192.168.70.9/24 dev ext0\naddr add fd00:70::9/64 dev ext0 nodad\n");
    crate::eventually(|| answers(lab) == [true, true]);
    lab.expect(Client, node_address(1, Udp, 30053), &seen_as_node(&[PodA, PodD]));
}

fn primary_follows_the_node_object(lab: &mut Lab) {
    web(lab);
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    lab.expect(Client, node_address(1, Tcp, 30080), &Expect::NotTranslated);
    let mut moved = node(Node, "a");
    let addresses =
        Family::BOTH.map(|family| json!({"type": "InternalIP", "address": family.node_addresses()[1]}));
    moved["status"]["addresses"] = json!(addresses);
    lab.apply(moved);
    lab.expect(Client, node_address(1, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    lab.expect(Client, node_address(0, Tcp, 30080), &Expect::NotTranslated);
    lab.sweep();
}
