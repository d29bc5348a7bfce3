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
        stickiness_is_taken_away_again,
        a_service_changes_its_type_back_and_forth,
        a_service_of_ipv6_only_and_one_of_ipv6_first,
        a_slice_is_hidden_and_shown_by_its_labels,
        a_service_is_deleted_and_made_anew_while_its_slices_stay;
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

fn a_service_changes_its_type_back_and_forth(lab: &mut Lab) {
    let plain = || service("web", 1).port("t", 80, Tcp).port("u", 53, Udp);
    let node_port =
        || service("web", 1).port("t", 80, Tcp).node_port(30080).port("u", 53, Udp).node_port(30053);
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA, PodD]));
    for service in [
        plain(),
        node_port(),
        node_port().load_balancer(1),
        plain().load_balancer(1).set("/spec/allocateLoadBalancerNodePorts", json!(false)),
        node_port().external_local(),
        plain().external_ip(1),
        node_port().load_balancer(2).external_ip(1).external_local().internal_local(),
        plain(),
    ] {
        lab.apply(service);
        lab.sweep();
    }
    for to in [node_address(0, Tcp, 30080), load_balancer(1, Tcp, 80), load_balancer(2, Tcp, 80)] {
        lab.expect(Client, to, &Expect::NotTranslated);
    }
}

fn a_service_of_ipv6_only_and_one_of_ipv6_first(lab: &mut Lab) {
    let [v4, v6] = [Family::V4, Family::V6].map(|family| json!(family.service(1)));
    let only = || {
        service("web", 1)
            .port("t", 80, Tcp)
            .node_port(30080)
            .set("/spec/clusterIP", v6.clone())
            .set("/spec/clusterIPs", json!([v6]))
            .set("/spec/ipFamilies", json!(["IPv6"]))
            .set("/spec/ipFamilyPolicy", json!("SingleStack"))
    };
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.apply(only());
    lab.only(&[Family::V6]);
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    lab.only(&[Family::V4]);
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &unallocated(lab));
    lab.expect(Client, node_address(0, Tcp, 30080), &Expect::NotTranslated);
    lab.only(&Family::BOTH);
    let first = only()
        .set("/spec/clusterIPs", json!([v6, v4]))
        .set("/spec/ipFamilies", json!(["IPv6", "IPv4"]))
        .set("/spec/ipFamilyPolicy", json!("PreferDualStack"));
    lab.apply(first);
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    lab.sweep();
}

fn a_slice_is_hidden_and_shown_by_its_labels(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    let shown = || slices("web").port("t", 8080, Tcp).ready(&[PodA]);
    lab.apply(slices("web").named("other").port("t", 8080, Tcp).ready(&[PodD]));
    for _ in 0..2 {
        lab.apply(shown());
        lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
        lab.apply(shown().label("service.kubernetes.io/headless", ""));
        lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodD]));
    }
}

fn a_service_is_deleted_and_made_anew_while_its_slices_stay(lab: &mut Lab) {
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    for number in [1, 2, 1] {
        lab.apply(service("web", number).port("t", 80, Tcp).node_port(30080).load_balancer(number));
        lab.expect(PodB, cluster_ip(number, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
        lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
        lab.delete("Service", "web");
        lab.expect(PodB, cluster_ip(number, Tcp, 80), &unallocated(lab));
        lab.expect(Client, node_address(0, Tcp, 30080), &Expect::NotTranslated);
        lab.expect(Client, load_balancer(number, Tcp, 80), &Expect::NotTranslated);
    }
}
