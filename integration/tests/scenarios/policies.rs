//! Traffic policies Local, inside and outside, with their short circuits.

use integration::lab::{
    Detect, Expect, Lab, Options, cluster_ip, external_ip, load_balancer, node_address, seen_as_node,
    seen_as_sent, service, slices,
};
use integration::network::Place::{Client, Node, Node2, PodA, PodB, PodC, PodD, PodE};
use integration::network::Protocol::{Tcp, Udp};

crate::scenarios! {
    Options::default() =>
        internal_policy_local_stays_on_the_node,
        external_policy_local_keeps_the_source,
        external_policy_local_without_local_endpoints_drops_strangers_only,
        policies_change_on_a_living_service,
        both_policies_are_local,
        by_cluster_cidr_pods_of_other_nodes_are_no_strangers;
    Options { detect: Detect::NodeCidr, ..Options::default() } =>
        another_node_and_its_pods_are_strangers;
    Options { detect: Detect::Never, ..Options::default() } =>
        without_detection_pods_are_strangers;
}

fn internal_policy_local_stays_on_the_node(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).internal_local());
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodB, PodD]));
    let web = cluster_ip(1, Tcp, 80);
    lab.expect(PodC, web, &seen_as_sent(&[PodA, PodB]));
    lab.expect(Node, web, &seen_as_node(&[PodA, PodB]));
    lab.expect(Client, web, &seen_as_node(&[PodA, PodB]));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodD, PodE]));
    for from in [PodC, Node, Client] {
        lab.expect(from, web, &Expect::Dropped);
    }
    lab.apply(slices("web").port("t", 8080, Tcp));
    lab.expect(PodC, web, &Expect::Refused);
    lab.sweep();
}

fn external_policy_local_keeps_the_source(lab: &mut Lab) {
    let web = service("web", 1).port("t", 80, Tcp).node_port(30080).port("u", 53, Udp).node_port(30053);
    lab.apply(web.load_balancer(1).external_ip(1).external_local());
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA, PodB, PodD]));
    for (protocol, port, node_port) in [(Tcp, 80, 30080), (Udp, 53, 30053)] {
        for to in [
            node_address(0, protocol, node_port),
            load_balancer(1, protocol, port),
            external_ip(1, protocol, port),
        ] {
            lab.expect(Client, to, &seen_as_sent(&[PodA, PodB]));
            lab.expect(PodC, to, &seen_as_sent(&[PodA, PodB, PodD]));
            lab.expect(Node, to, &seen_as_node(&[PodA, PodB, PodD]));
        }
        lab.expect(Client, cluster_ip(1, protocol, port), &seen_as_node(&[PodA, PodB, PodD]));
    }
    lab.sweep();
}

fn external_policy_local_without_local_endpoints_drops_strangers_only(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1).external_local());
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodD, PodE]));
    for to in [node_address(0, Tcp, 30080), load_balancer(1, Tcp, 80)] {
        lab.expect(Client, to, &Expect::Dropped);
        lab.expect(PodA, to, &seen_as_sent(&[PodD, PodE]));
        lab.expect(Node, to, &seen_as_node(&[PodD, PodE]));
    }
    lab.apply(slices("web").port("t", 8080, Tcp));
    lab.expect(Client, load_balancer(1, Tcp, 80), &Expect::Refused);
    lab.sweep();
}

fn policies_change_on_a_living_service(lab: &mut Lab) {
    let web = || service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1);
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    for service in [
        web(),
        web().external_local(),
        web().external_local().internal_local(),
        web().internal_local(),
        web(),
    ] {
        lab.apply(service);
        lab.sweep();
    }
}

fn both_policies_are_local(lab: &mut Lab) {
    lab.apply(
        service("web", 1)
            .port("t", 80, Tcp)
            .node_port(30080)
            .load_balancer(1)
            .external_local()
            .internal_local(),
    );
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodB, PodD]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodB]));
    lab.expect(PodC, load_balancer(1, Tcp, 80), &seen_as_sent(&[PodB, PodD]));
    lab.sweep();
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodD]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &Expect::Dropped);
    lab.expect(PodC, load_balancer(1, Tcp, 80), &seen_as_sent(&[PodD]));
    lab.sweep();
}

fn without_detection_pods_are_strangers(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1).external_local());
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.expect(PodC, load_balancer(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.expect(Node, load_balancer(1, Tcp, 80), &seen_as_node(&[PodA, PodD]));
    lab.expect(Client, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.sweep();
}

fn local_outside(lab: &mut Lab) {
    let web = service("web", 1).port("t", 80, Tcp).node_port(30080).port("u", 53, Udp).node_port(30053);
    lab.apply(web.load_balancer(1).external_ip(1).external_local());
}

fn another_node_and_its_pods_are_strangers(lab: &mut Lab) {
    local_outside(lab);
    let ways = [node_address(0, Tcp, 30080), load_balancer(1, Udp, 53), external_ip(1, Tcp, 80)];
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA, PodD]));
    for to in ways {
        for from in [Node2, PodE] {
            lab.expect(from, to, &seen_as_sent(&[PodA]));
        }
    }
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodD]));
    for to in ways {
        for from in [Node2, PodE] {
            lab.expect(from, to, &Expect::Dropped);
        }
        lab.expect(PodC, to, &seen_as_sent(&[PodD]));
    }
}

fn by_cluster_cidr_pods_of_other_nodes_are_no_strangers(lab: &mut Lab) {
    local_outside(lab);
    // Here only: what an endpoint elsewhere answers would not come back by this node.
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA]));
    for to in [node_address(0, Tcp, 30080), load_balancer(1, Udp, 53), external_ip(1, Tcp, 80)] {
        lab.expect(PodE, to, &seen_as_sent(&[PodA]));
        lab.expect(Node2, to, &seen_as_sent(&[PodA]));
    }
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodD]));
    lab.expect(Node2, load_balancer(1, Tcp, 80), &Expect::Dropped);
}
