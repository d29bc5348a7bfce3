//! loadBalancerSourceRanges: who may use a load balancer's address.

use integration::lab::{
    Expect, FAR_CLIENT, Lab, Mode, Options, cluster_ip, external_ip, load_balancer, node_address,
    seen_as_node, service, slices,
};
use integration::network::Family;
use integration::network::Place::{Client, Node, PodA, PodB, PodD};
use integration::network::Protocol::{Tcp, Udp};

crate::scenarios! {
    Options::default() =>
        only_listed_sources_may_use_the_load_balancer_address,
        a_range_of_one_family_leaves_the_other_open,
        ranges_change_on_a_living_service,
        everybody_may_come_where_a_range_is_everything,
        an_allowed_source_is_refused_where_there_are_no_endpoints;
}

/// The client and the node; with IPVS the node's own connections count as the node's address.
const NEAR: [&str; 4] = ["192.168.70.0/24", "192.168.50.1/32", "fd00:70::/64", "fd00:50::1/128"];
const FAR: [&str; 2] = ["203.0.113.0/24", "2001:db8:113::/64"];

fn only_listed_sources_may_use_the_load_balancer_address(lab: &mut Lab) {
    let web = service("web", 1)
        .port("t", 80, Tcp)
        .node_port(30080)
        .port("u", 81, Udp)
        .load_balancer(1)
        .external_ip(1);
    lab.apply(web.source_ranges(&[FAR[0], " 2001:db8:113::/64 "]));
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 8080, Udp).ready(&[PodA, PodD]));
    for to in [load_balancer(1, Tcp, 80), load_balancer(1, Udp, 81)] {
        lab.expect(FAR_CLIENT, to, &seen_as_node(&[PodA, PodD]));
        lab.expect(Client, to, &Expect::Dropped);
        lab.expect(PodB, to, &Expect::Dropped);
        lab.expect(Node, to, &Expect::Dropped);
    }
    for to in [external_ip(1, Tcp, 80), node_address(0, Tcp, 30080), cluster_ip(1, Tcp, 80)] {
        lab.expect(Client, to, &seen_as_node(&[PodA, PodD]));
    }
    lab.sweep();
}

fn a_range_of_one_family_leaves_the_other_open(lab: &mut Lab) {
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 8080, Udp).ready(&[PodA]));
    for (range, restricted, open) in [(FAR[0], Family::V4, Family::V6), (FAR[1], Family::V6, Family::V4)] {
        let web = service("web", 1).port("t", 80, Tcp).port("u", 81, Udp).load_balancer(1);
        lab.apply(web.source_ranges(&[range]));
        for to in [load_balancer(1, Tcp, 80), load_balancer(1, Udp, 81)] {
            lab.only(&[restricted]);
            lab.expect(Client, to, &Expect::Dropped);
            lab.expect(FAR_CLIENT, to, &seen_as_node(&[PodA]));
            lab.only(&[open]);
            lab.expect(Client, to, &seen_as_node(&[PodA]));
        }
        let name = if open == Family::V4 { "IPv4" } else { "IPv6" };
        let told = format!("ipFamily=\"{name}\"");
        let tells =
            |line: &str| line.contains("loadBalancerSourceRanges names no network") && line.contains(&told);
        crate::eventually(|| lab.log().lines().any(tells));
    }
    lab.only(&Family::BOTH);
    lab.sweep();
}

fn ranges_change_on_a_living_service(lab: &mut Lab) {
    let web = || service("web", 1).port("t", 80, Tcp).load_balancer(1);
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    let to = load_balancer(1, Tcp, 80);
    lab.apply(web());
    lab.expect(Client, to, &seen_as_node(&[PodA]));
    lab.apply(web().source_ranges(&FAR));
    lab.expect(Client, to, &Expect::Dropped);
    lab.apply(web().source_ranges(&[&FAR[..], &NEAR[..]].concat()));
    lab.expect(Client, to, &seen_as_node(&[PodA]));
    lab.expect(FAR_CLIENT, to, &seen_as_node(&[PodA]));
    lab.apply(web().source_ranges(&NEAR));
    lab.expect(FAR_CLIENT, to, &Expect::Dropped);
    lab.expect(Node, to, &seen_as_node(&[PodA]));
    lab.apply(web());
    lab.expect(FAR_CLIENT, to, &seen_as_node(&[PodA]));
    lab.sweep();
}

fn everybody_may_come_where_a_range_is_everything(lab: &mut Lab) {
    let web = service("web", 1).port("t", 80, Tcp).load_balancer(1);
    lab.apply(web.source_ranges(&["0.0.0.0/0", "::/0", FAR[0], FAR[1]]));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_node(&[PodA]));
    lab.sweep();
}

fn an_allowed_source_is_refused_where_there_are_no_endpoints(lab: &mut Lab) {
    let web = service("web", 1).port("t", 80, Tcp).port("u", 81, Udp).load_balancer(1);
    lab.apply(web.source_ranges(&NEAR));
    let of_the_node = match lab.mode() {
        // The chain that refuses is not reached from the node's own output.
        Mode::IptablesLegacy | Mode::IptablesNft => Expect::NotTranslated,
        Mode::Nftables | Mode::Ipvs => Expect::Refused,
    };
    for to in [load_balancer(1, Tcp, 80), load_balancer(1, Udp, 81)] {
        lab.expect(Client, to, &Expect::Refused);
        lab.expect(Node, to, &of_the_node);
    }
    lab.sweep();
    // The node's other addresses are not in the range: what it sends to itself is judged by the source it was sent from.
    lab.only(&[Family::V6]);
    let web = service("web", 1).port("t", 80, Tcp).port("u", 81, Udp).load_balancer(1);
    lab.apply(web.source_ranges(&["fd00:70::/64"]));
    for to in [load_balancer(1, Tcp, 80), load_balancer(1, Udp, 81)] {
        lab.expect(Node, to, &of_the_node);
    }
}
