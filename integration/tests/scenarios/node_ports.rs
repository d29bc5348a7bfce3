//! On which addresses node ports answer.

use integration::lab::{
    Expect, Lab, Mode, Options, load_balancer, loopback, node_address, seen_as_node, service, slices,
};
use integration::network::Family;
use integration::network::Place::{Client, Node, PodA, PodD};
use integration::network::Protocol::{Sctp, Tcp, Udp};
use serde_json::json;

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
    Options { node_port_addresses: ["primary", "192.168.70.0/24"].map(str::to_owned).to_vec(), ..Options::default() } =>
        the_primary_address_and_a_network_count_together;
    Options { node_port_addresses: ["primary", "localhost"].map(str::to_owned).to_vec(), ..Options::default() } =>
        the_primary_address_and_localhost_count_together;
    Options {
        node_port_addresses: ["primary", "localhost"].map(str::to_owned).to_vec(),
        config: vec![("/featureGates", json!({"KubeProxyNFTablesLocalhostNodePorts": false}))],
        ..Options::default()
    } =>
        the_gate_switches_localhost_off_in_nftables_mode;
    Options { node_port_addresses: ["all", "127.0.0.0/8"].map(str::to_owned).to_vec(), ..Options::default() } =>
        every_address_and_loopback_count_together;
    Options { node_port_addresses: ["primary", "all"].map(str::to_owned).to_vec(), ..Options::default() } =>
        the_primary_address_and_all_are_all;
    Options { node_port_addresses: vec!["fd00:70::/64".to_owned()], ..Options::default() } =>
        networks_of_one_family_leave_the_other_open;
    Options { node_port_addresses: vec!["0.0.0.0/0".to_owned(), "fd00:50::/64".to_owned()], ..Options::default() } =>
        the_network_of_everything_means_every_address;
    Options { node_port_addresses: vec!["198.18.0.0/15".to_owned(), "fd00:99::/64".to_owned()], ..Options::default() } =>
        networks_that_the_node_is_not_in_leave_no_address;
    Options::default() =>
        one_number_serves_two_protocols,
        a_node_port_of_one_service_is_the_port_of_another;
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

fn the_primary_address_and_a_network_count_together(lab: &mut Lab) {
    web(lab);
    let reached = seen_as_node(&[PodA, PodD]);
    lab.expect(Client, node_address(0, Tcp, 30080), &reached);
    lab.expect(Client, node_address(2, Tcp, 30080), &Expect::NotTranslated);
    lab.sweep();
    lab.only(&[Family::V4]);
    lab.expect(Client, node_address(1, Udp, 30053), &reached);
    lab.only(&[Family::V6]);
    lab.expect(Client, node_address(1, Udp, 30053), &Expect::NotTranslated);
}

fn the_primary_address_and_localhost_count_together(lab: &mut Lab) {
    web(lab);
    let reached = seen_as_node(&[PodA, PodD]);
    lab.expect(Client, node_address(0, Tcp, 30080), &reached);
    lab.expect(Client, node_address(1, Tcp, 30080), &Expect::NotTranslated);
    lab.sweep();
    lab.only(&[Family::V4]);
    if lab.mode() != Mode::Ipvs {
        lab.expect(Node, loopback(Tcp, 30080), &reached);
        lab.expect(Node, loopback(Udp, 30053), &reached);
    }
    lab.only(&[Family::V6]);
    if lab.mode() == Mode::Nftables {
        lab.expect(Node, loopback(Tcp, 30080), &reached);
        lab.expect(Node, loopback(Udp, 30053), &Expect::NotTranslated);
        // Endpoints are followed there too.
        lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodD]));
        lab.expect(Node, loopback(Tcp, 30080), &seen_as_node(&[PodD]));
    }
}

fn the_gate_switches_localhost_off_in_nftables_mode(lab: &mut Lab) {
    web(lab);
    let reached = seen_as_node(&[PodA, PodD]);
    lab.expect(Client, node_address(0, Tcp, 30080), &reached);
    lab.sweep();
    lab.only(&[Family::V4]);
    let iptables = matches!(lab.mode(), Mode::IptablesLegacy | Mode::IptablesNft);
    let expect = if iptables { reached } else { Expect::NotTranslated };
    lab.expect(Node, loopback(Tcp, 30080), &expect);
    lab.expect(Node, loopback(Udp, 30053), &expect);
    lab.only(&[Family::V6]);
    lab.expect(Node, loopback(Tcp, 30080), &Expect::NotTranslated);
}

fn every_address_and_loopback_count_together(lab: &mut Lab) {
    web(lab);
    let reached = seen_as_node(&[PodA, PodD]);
    for address in 0..3 {
        lab.expect(Client, node_address(address, Tcp, 30080), &reached);
    }
    lab.sweep();
    lab.only(&[Family::V4]);
    if lab.mode() != Mode::Ipvs {
        lab.expect(Node, loopback(Tcp, 30080), &reached);
    }
}

fn the_primary_address_and_all_are_all(lab: &mut Lab) {
    web(lab);
    for address in 0..3 {
        lab.expect(Client, node_address(address, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    }
    lab.sweep();
}

fn networks_of_one_family_leave_the_other_open(lab: &mut Lab) {
    web(lab);
    let reached = seen_as_node(&[PodA, PodD]);
    lab.only(&[Family::V6]);
    lab.expect(Client, node_address(0, Tcp, 30080), &Expect::NotTranslated);
    lab.expect(Client, node_address(1, Tcp, 30080), &reached);
    lab.only(&[Family::V4]);
    for address in 0..3 {
        lab.expect(Client, node_address(address, Tcp, 30080), &reached);
        lab.expect(Client, node_address(address, Udp, 30053), &reached);
    }
    lab.only(&Family::BOTH);
    lab.sweep();
}

fn the_network_of_everything_means_every_address(lab: &mut Lab) {
    web(lab);
    let reached = seen_as_node(&[PodA, PodD]);
    lab.sweep();
    lab.only(&[Family::V4]);
    for address in 0..3 {
        lab.expect(Client, node_address(address, Tcp, 30080), &reached);
    }
    if matches!(lab.mode(), Mode::IptablesLegacy | Mode::IptablesNft) {
        lab.expect(Node, loopback(Tcp, 30080), &reached);
    }
}

fn networks_that_the_node_is_not_in_leave_no_address(lab: &mut Lab) {
    web(lab);
    for address in 0..3 {
        lab.expect(Client, node_address(address, Tcp, 30080), &Expect::NotTranslated);
    }
    lab.sweep();
}

fn one_number_serves_two_protocols(lab: &mut Lab) {
    let dns = service("dns", 1).port("t", 53, Tcp).node_port(30053).port("u", 53, Udp).node_port(30053);
    lab.apply(dns.port("s", 53, Sctp).node_port(30053).load_balancer(1));
    let endpoints = || slices("dns").port("u", 53, Udp).port("s", 53, Sctp);
    lab.apply(endpoints().port("t", 8080, Tcp).ready(&[PodA, PodD]));
    for protocol in [Tcp, Udp, Sctp] {
        lab.expect(Client, node_address(0, protocol, 30053), &seen_as_node(&[PodA, PodD]));
    }
    lab.sweep();
    // One of them loses its endpoints.
    lab.apply(endpoints().ready(&[PodA]));
    lab.expect(Client, node_address(0, Tcp, 30053), &Expect::Refused);
    lab.expect(Client, node_address(0, Udp, 30053), &seen_as_node(&[PodA]));
    lab.sweep();
}

fn a_node_port_of_one_service_is_the_port_of_another(lab: &mut Lab) {
    lab.apply(service("one", 1).port("t", 80, Tcp).node_port(30080));
    lab.apply(service("two", 2).port("t", 30080, Tcp).node_port(30081).load_balancer(2));
    lab.apply(slices("one").port("t", 8080, Tcp).ready(&[PodA]));
    lab.apply(slices("two").port("t", 8081, Tcp).ready(&[PodD]));
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodA]));
    lab.expect(Client, load_balancer(2, Tcp, 30080), &seen_as_node(&[PodD]));
    lab.sweep();
}
