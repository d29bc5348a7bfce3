//! Cluster IPs: which Services exist, and which endpoints they lead to.

use integration::lab::{Expect, Lab, Options, cluster_ip, seen_as_node, seen_as_sent, service, slices};
use integration::network::Place::{Client, Node, Node2, PodA, PodB, PodC, PodD, PodE};
use integration::network::Protocol::{Sctp, Tcp, Udp};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        all_protocols_reach_every_endpoint,
        endpoints_on_host_networks_answer,
        named_ports_come_from_several_slices,
        endpoints_come_and_go,
        a_service_without_endpoints_refuses,
        a_port_that_no_service_has_is_treated_as_the_mode_does,
        services_of_other_kinds_do_not_exist,
        a_deleted_service_is_gone;
}

fn all_protocols_reach_every_endpoint(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).port("u", 80, Udp).port("s", 80, Sctp));
    let endpoints = slices("web").port("t", 8080, Tcp).port("u", 8081, Udp).port("s", 9090, Sctp);
    lab.apply(endpoints.ready(&[PodA, PodB, PodD]));
    for protocol in [Tcp, Udp, Sctp] {
        let web = cluster_ip(1, protocol, 80);
        lab.expect(PodC, web, &seen_as_sent(&[PodA, PodB, PodD]));
        lab.expect(Client, web, &seen_as_node(&[PodA, PodB, PodD]));
        lab.expect(Node, web, &seen_as_node(&[PodA, PodB, PodD]));
        lab.expect(PodA, web, &seen_as_sent(&[PodA, PodB, PodD]));
    }
    lab.sweep();
}

fn endpoints_on_host_networks_answer(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).port("u", 53, Udp));
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[Node, Node2]));
    for to in [cluster_ip(1, Tcp, 80), cluster_ip(1, Udp, 53)] {
        lab.expect(PodA, to, &seen_as_sent(&[Node, Node2]));
        lab.expect(Client, to, &seen_as_node(&[Node, Node2]));
    }
    lab.sweep();
}

fn named_ports_come_from_several_slices(lab: &mut Lab) {
    lab.apply(service("web", 1).port("http", 80, Tcp).port("admin", 81, Tcp));
    lab.apply(slices("web").named("old").port("http", 8080, Tcp).port("admin", 9090, Tcp).ready(&[PodA]));
    lab.apply(slices("web").named("new").port("http", 8081, Tcp).ready(&[PodB, PodD]));
    // The same endpoint twice counts once.
    lab.apply(slices("web").named("twice").port("http", 8081, Tcp).ready(&[PodD]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodB, PodD]));
    lab.expect(PodC, cluster_ip(1, Tcp, 81), &seen_as_sent(&[PodA]));
    lab.delete_slices("web", "old");
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodB, PodD]));
    lab.expect(PodC, cluster_ip(1, Tcp, 81), &Expect::Refused);
    lab.sweep();
}

fn endpoints_come_and_go(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    let all = [PodA, PodB, PodC, PodD, PodE];
    for count in [1, 3, 5, 2, 4, 0, 1] {
        lab.apply(slices("web").port("t", 8080, Tcp).ready(&all[..count]));
        let expect = if count == 0 { Expect::Refused } else { seen_as_node(&all[..count]) };
        lab.expect(Client, cluster_ip(1, Tcp, 80), &expect);
    }
    lab.apply(slices("web").port("t", 9090, Tcp).ready(&all[3..]));
    lab.expect(Client, cluster_ip(1, Tcp, 80), &seen_as_node(&all[3..]));
}

fn a_service_without_endpoints_refuses(lab: &mut Lab) {
    lab.apply(service("empty", 1).port("t", 80, Tcp).port("u", 80, Udp).node_port(30080).load_balancer(1));
    lab.apply(slices("empty").port("t", 8080, Tcp).port("u", 8080, Udp).unready(&[PodA]));
    for from in [Client, Node, PodA, PodD] {
        lab.expect(from, cluster_ip(1, Tcp, 80), &Expect::Refused);
        lab.expect(from, cluster_ip(1, Udp, 80), &Expect::Refused);
    }
    lab.sweep();
}

fn a_port_that_no_service_has_is_treated_as_the_mode_does(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    // The sweep asks for the port beside each, and for an address that no Service has.
    lab.sweep();
}

fn services_of_other_kinds_do_not_exist(lab: &mut Lab) {
    let web = || service("web", 1).port("t", 80, Tcp).external_ip(1);
    let endpoints = || slices("web").port("t", 8080, Tcp);
    lab.apply(endpoints().ready(&[PodA]));
    lab.apply(web());
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));

    lab.apply(web().label("service.kubernetes.io/service-proxy-name", "somebody-else"));
    let gone = |lab: &mut Lab| {
        let oracle = lab.oracle();
        assert!(!oracle.frontends(integration::network::Family::V4).iter().any(|(_, at)| at.port() == 80));
        lab.settle();
        // A service that is gone leaves what the mode does with an address of the service network.
        let expect = match lab.mode() {
            integration::lab::Mode::Nftables => Expect::Dropped,
            _ => Expect::NotTranslated,
        };
        lab.expect(PodB, cluster_ip(1, Tcp, 80), &expect);
        lab.expect(PodB, integration::lab::external_ip(1, Tcp, 80), &Expect::NotTranslated);
    };
    gone(lab);
    lab.apply(web());
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.apply(web().set("/spec/type", json!("ExternalName")).set("/spec/externalName", json!("example.org")));
    gone(lab);
    lab.apply(web());
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.apply(web().set("/spec/clusterIP", json!("None")).set("/spec/clusterIPs", json!(["None"])));
    gone(lab);

    lab.apply(web());
    lab.apply(endpoints().label("service.kubernetes.io/headless", "").ready(&[PodA]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &Expect::Refused);
}

fn a_deleted_service_is_gone(lab: &mut Lab) {
    for number in 1..=3 {
        let name = format!("web-{number}");
        lab.apply(
            service(&name, number)
                .port("t", 80, Tcp)
                .node_port(30080 + u16::from(number))
                .load_balancer(number),
        );
        lab.apply(slices(&name).port("t", 8080, Tcp).ready(&[PodA, PodD]));
    }
    lab.sweep();
    lab.delete("Service", "web-2");
    lab.sweep();
    lab.delete_slices("web-1", "1");
    lab.sweep();
    let expect = match lab.mode() {
        integration::lab::Mode::Nftables => Expect::Dropped,
        _ => Expect::NotTranslated,
    };
    lab.expect(PodB, cluster_ip(2, Tcp, 80), &expect);
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &Expect::Refused);
    lab.expect(PodB, cluster_ip(3, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
}
