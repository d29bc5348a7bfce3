//! On which addresses node ports answer.

use integration::lab::{Expect, Lab, Mode, Options, loopback, node_address, seen_as_node, service, slices};
use integration::network::Family;
use integration::network::Place::{Client, Node, PodA, PodD};
use integration::network::Protocol::{Tcp, Udp};

crate::scenarios! {
    Options::default() =>
        the_default_is_that_of_the_mode;
    Options { node_port_addresses: vec!["primary".to_owned()], ..Options::default() } =>
        primary_means_the_addresses_kubernetes_knows;
    Options { node_port_addresses: vec!["192.168.70.0/24".to_owned(), "fd00:70::/64".to_owned()], ..Options::default() } =>
        networks_choose_the_addresses_within;
    Options {
        node_port_addresses: ["127.0.0.0/8", "192.168.50.0/24", "fd00:50::/64"].map(str::to_owned).to_vec(),
        ..Options::default()
    } =>
        loopback_among_the_networks_serves_the_node_itself;
}

fn web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).port("u", 53, Udp).node_port(30053));
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA, PodD]));
}

fn the_default_is_that_of_the_mode(lab: &mut Lab) {
    web(lab);
    let reached = seen_as_node(&[PodA, PodD]);
    lab.expect(Client, node_address(0, Tcp, 30080), &reached);
    let elsewhere = if lab.mode() == Mode::Nftables { Expect::NotTranslated } else { reached.clone() };
    lab.expect(Client, node_address(1, Tcp, 30080), &elsewhere);
    lab.expect(Client, node_address(2, Udp, 30053), &elsewhere);
    lab.sweep();
    lab.only(&[Family::V4]);
    if matches!(lab.mode(), Mode::IptablesLegacy | Mode::IptablesNft) {
        lab.expect(Node, loopback(Tcp, 30080), &reached);
    } else {
        lab.expect(Node, loopback(Tcp, 30080), &Expect::NotTranslated);
    }
}

fn primary_means_the_addresses_kubernetes_knows(lab: &mut Lab) {
    web(lab);
    lab.expect(Client, node_address(0, Udp, 30053), &seen_as_node(&[PodA, PodD]));
    lab.expect(Client, node_address(1, Tcp, 30080), &Expect::NotTranslated);
    lab.sweep();
}

fn networks_choose_the_addresses_within(lab: &mut Lab) {
    web(lab);
    lab.expect(Client, node_address(0, Tcp, 30080), &Expect::NotTranslated);
    lab.expect(Client, node_address(1, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    lab.expect(Client, node_address(2, Tcp, 30080), &Expect::NotTranslated);
    lab.sweep();
}

fn loopback_among_the_networks_serves_the_node_itself(lab: &mut Lab) {
    web(lab);
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    lab.sweep();
    lab.only(&[Family::V4]);
    // IPVS has no virtual servers on loopback addresses.
    let expect = if lab.mode() == Mode::Ipvs { Expect::NotTranslated } else { seen_as_node(&[PodA, PodD]) };
    lab.expect(Node, loopback(Tcp, 30080), &expect);
    lab.expect(Node, loopback(Udp, 30053), &expect);
}
