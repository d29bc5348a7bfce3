//! Objects that turn into something else while they are in use: names, numbers, families and owners move.

use integration::lab::{
    Expect, Lab, Mode, Options, cluster_ip, load_balancer, node_address, seen_as_node, seen_as_sent, service,
    slices,
};
use integration::network::Family;
use integration::network::Place::{Client, PodA, PodB, PodD, PodE};
use integration::network::Protocol::{Tcp, Udp};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        a_port_changes_its_name_and_its_protocol,
        a_node_port_and_a_cluster_ip_pass_to_another_service,
        a_service_gains_and_loses_a_family,
        a_slice_passes_to_another_service,
        an_endpoint_listed_twice_lives_as_long_as_either,
        stickiness_is_taken_away_again;
}

fn unallocated(lab: &Lab) -> Expect {
    if lab.mode() == Mode::Nftables { Expect::Dropped } else { Expect::NotTranslated }
}

fn a_port_changes_its_name_and_its_protocol(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    // Between the two writes of a rename nothing fits.
    lab.apply(service("web", 1).port("renamed", 80, Tcp));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &Expect::Refused);
    lab.apply(slices("web").port("renamed", 8081, Tcp).ready(&[PodD]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodD]));
    lab.apply(service("web", 1).port("renamed", 80, Udp));
    lab.expect(PodB, cluster_ip(1, Udp, 80), &Expect::Refused);
    lab.apply(slices("web").port("renamed", 53, Udp).ready(&[PodA]));
    lab.expect(PodB, cluster_ip(1, Udp, 80), &seen_as_sent(&[PodA]));
    lab.sweep();
}

fn a_node_port_and_a_cluster_ip_pass_to_another_service(lab: &mut Lab) {
    lab.apply(service("one", 1).port("t", 80, Tcp).node_port(30081));
    lab.apply(service("two", 2).port("t", 80, Tcp).node_port(30082));
    lab.apply(slices("one").port("t", 8080, Tcp).ready(&[PodA]));
    lab.apply(slices("two").port("t", 8080, Tcp).ready(&[PodD]));
    lab.expect(Client, node_address(0, Tcp, 30081), &seen_as_node(&[PodA]));
    lab.apply(service("one", 1).port("t", 80, Tcp).node_port(30083));
    lab.apply(service("two", 2).port("t", 80, Tcp).node_port(30081));
    lab.expect(Client, node_address(0, Tcp, 30081), &seen_as_node(&[PodD]));
    lab.expect(Client, node_address(0, Tcp, 30083), &seen_as_node(&[PodA]));
    lab.delete("Service", "one");
    lab.apply(service("three", 1).port("t", 80, Tcp));
    lab.apply(slices("three").port("t", 8080, Tcp).ready(&[PodE]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodE]));
    lab.expect(Client, node_address(0, Tcp, 30083), &Expect::NotTranslated);
    lab.sweep();
}

fn a_service_gains_and_loses_a_family(lab: &mut Lab) {
    let dual = || service("web", 1).port("t", 80, Tcp).load_balancer(1);
    let single = || {
        dual()
            .set("/spec/clusterIPs", json!([Family::V4.service(1)]))
            .set("/spec/ipFamilies", json!(["IPv4"]))
            .set("/spec/ipFamilyPolicy", json!("SingleStack"))
            .set("/status/loadBalancer/ingress", json!([{"ip": Family::V4.load_balancer(1)}]))
    };
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    for _ in 0..2 {
        lab.apply(single());
        lab.only(&[Family::V4]);
        lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
        lab.only(&[Family::V6]);
        let gone = unallocated(lab);
        lab.expect(PodB, cluster_ip(1, Tcp, 80), &gone);
        lab.only(&Family::BOTH);
        lab.apply(dual());
        lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
        lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_node(&[PodA, PodD]));
    }
}

fn a_slice_passes_to_another_service(lab: &mut Lab) {
    lab.apply(service("one", 1).port("t", 80, Tcp));
    lab.apply(service("two", 2).port("t", 80, Tcp));
    let passing = |owner: &str| {
        slices("one").label("kubernetes.io/service-name", owner).port("t", 8080, Tcp).ready(&[PodA])
    };
    for (owner, with, without) in [("one", 1, 2), ("two", 2, 1), ("one", 1, 2)] {
        lab.apply(passing(owner));
        lab.expect(PodB, cluster_ip(with, Tcp, 80), &seen_as_sent(&[PodA]));
        lab.expect(PodB, cluster_ip(without, Tcp, 80), &Expect::Refused);
    }
}

fn an_endpoint_listed_twice_lives_as_long_as_either(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    lab.apply(slices("web").named("again").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.apply(slices("web").port("t", 8080, Tcp).terminating(&[PodA]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.delete_slices("web", "again");
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.sweep();
}

fn stickiness_is_taken_away_again(lab: &mut Lab) {
    let web = || service("web", 1).port("t", 80, Tcp);
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    for seconds in [600, 60] {
        lab.apply(web().affinity(seconds));
        let to = cluster_ip(1, Tcp, 80);
        for family in Family::BOTH {
            let first = lab.ask(Client, to, family).to_string();
            for _ in 0..8 {
                assert_eq!(lab.ask(Client, to, family).to_string(), first, "{family:?}, {seconds} s");
            }
        }
        lab.apply(web());
        lab.expect(PodB, to, &seen_as_sent(&[PodA, PodD]));
    }
}
