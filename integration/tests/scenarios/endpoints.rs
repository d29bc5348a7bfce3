//! Which endpoints may be used: readiness, termination, topology.

use integration::lab::{
    Expect, Lab, Options, cluster_ip, load_balancer, node, seen_as_node, seen_as_sent, service, slices,
};
use integration::network::Place::{Client, Node, PodA, PodB, PodC, PodD, PodE};
use integration::network::Protocol::{Tcp, Udp};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        terminating_endpoints_serve_while_none_is_ready,
        terminating_local_endpoints_serve_while_no_local_one_is_ready,
        unready_endpoints_that_are_published_count,
        unset_conditions_mean_ready,
        zone_hints_are_followed_where_all_have_them,
        node_hints_come_before_zone_hints,
        hints_of_endpoints_that_are_not_ready_do_not_matter,
        terminating_endpoints_serve_whatever_their_hints,
        a_node_without_a_zone_follows_no_zone_hints,
        hints_count_inside_and_outside_but_not_for_policy_local,
        a_single_port_needs_no_name,
        a_port_without_its_endpoints_port_refuses;
}

fn terminating_endpoints_serve_while_none_is_ready(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).load_balancer(1));
    let web = cluster_ip(1, Tcp, 80);
    let endpoints = || slices("web").port("t", 8080, Tcp);
    lab.apply(endpoints().ready(&[PodA]).terminating(&[PodB, PodD]).unready(&[PodE]));
    lab.expect(PodC, web, &seen_as_sent(&[PodA]));
    lab.apply(endpoints().terminating(&[PodB, PodD]).unready(&[PodA, PodE]));
    lab.expect(PodC, web, &seen_as_sent(&[PodB, PodD]));
    let gone = json!({"ready": false, "serving": false, "terminating": true});
    lab.apply(endpoints().endpoint(PodB, gone.clone()).terminating(&[PodD]));
    lab.expect(PodC, web, &seen_as_sent(&[PodD]));
    lab.apply(endpoints().endpoint(PodB, gone.clone()).endpoint(PodD, gone));
    lab.expect(PodC, web, &Expect::Refused);
    lab.sweep();
}

fn terminating_local_endpoints_serve_while_no_local_one_is_ready(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1).external_local());
    let endpoints = || slices("web").port("t", 8080, Tcp);
    lab.apply(endpoints().ready(&[PodD]).terminating(&[PodB]));
    lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_sent(&[PodB]));
    lab.expect(Client, cluster_ip(1, Tcp, 80), &seen_as_node(&[PodD]));
    lab.apply(endpoints().ready(&[PodD, PodA]).terminating(&[PodB]));
    lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.sweep();
}

fn unready_endpoints_that_are_published_count(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).set("/spec/publishNotReadyAddresses", json!(true)));
    // What the slice controller writes for such a Service.
    let published = json!({"ready": true, "serving": false, "terminating": false});
    let leaving = json!({"ready": true, "serving": true, "terminating": true});
    lab.apply(slices("web").port("t", 8080, Tcp).endpoint(PodA, published).endpoint(PodD, leaving));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
}

fn unset_conditions_mean_ready(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    lab.apply(
        slices("web").port("t", 8080, Tcp).endpoint(PodA, json!({})).endpoint(PodB, json!({"ready": false})),
    );
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
}

fn zone_hints_are_followed_where_all_have_them(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1));
    let ready = json!({"ready": true});
    let hinted = |second: &[&str]| {
        let slices =
            slices("web").port("t", 8080, Tcp).endpoint(PodA, json!({"ready": true})).hinted(&["a"], &[]);
        let slices = slices.endpoint(PodD, json!({"ready": true}));
        if second.is_empty() { slices } else { slices.hinted(second, &[]) }
    };
    let web = cluster_ip(1, Tcp, 80);
    lab.apply(hinted(&["b"]));
    lab.expect(PodC, web, &seen_as_sent(&[PodA]));
    lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_node(&[PodA]));
    lab.apply(hinted(&[]));
    lab.expect(PodC, web, &seen_as_sent(&[PodA, PodD]));
    lab.apply(hinted(&["b"]));
    lab.expect(PodC, web, &seen_as_sent(&[PodA]));
    lab.apply(node(Node, "b"));
    lab.expect(PodC, web, &seen_as_sent(&[PodD]));
    // The node moves where no endpoint is meant for.
    lab.apply(node(Node, "c"));
    lab.expect(PodC, web, &seen_as_sent(&[PodA, PodD]));
    // Local endpoints are not narrowed by hints.
    lab.apply(service("web", 1).port("t", 80, Tcp).internal_local());
    lab.apply(
        slices("web")
            .port("t", 8080, Tcp)
            .endpoint(PodA, ready.clone())
            .hinted(&["b"], &[])
            .endpoint(PodB, ready)
            .hinted(&["c"], &[]),
    );
    lab.expect(PodC, web, &seen_as_sent(&[PodA, PodB]));
}

fn node_hints_come_before_zone_hints(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    let ready = || json!({"ready": true});
    let web = cluster_ip(1, Tcp, 80);
    let two = |first: &str| {
        slices("web")
            .port("t", 8080, Tcp)
            .endpoint(PodA, ready())
            .hinted(&["b"], &[first])
            .endpoint(PodD, ready())
            .hinted(&["a"], &["node2"])
    };
    lab.apply(two("node"));
    lab.expect(PodC, web, &seen_as_sent(&[PodA]));
    lab.apply(two("node3"));
    lab.expect(PodC, web, &seen_as_sent(&[PodD]));
}

fn hints_of_endpoints_that_are_not_ready_do_not_matter(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    let ready = || json!({"ready": true});
    let endpoints = || {
        let endpoints = slices("web").port("t", 8080, Tcp).endpoint(PodA, ready()).hinted(&["a"], &[]);
        endpoints.endpoint(PodD, ready()).hinted(&["b"], &[])
    };
    // Neither of the others has a hint.
    lab.apply(endpoints().unready(&[PodB]).terminating(&[PodE]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.apply(endpoints().ready(&[PodB]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodB, PodD]));
    lab.sweep();
}

fn terminating_endpoints_serve_whatever_their_hints(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).load_balancer(1));
    let leaving = || json!({"ready": false, "serving": true, "terminating": true});
    let endpoints = || {
        let endpoints =
            slices("web").port("t", 8080, Tcp).endpoint(PodD, leaving()).hinted(&["b"], &["node2"]);
        endpoints.endpoint(PodB, leaving()).hinted(&["a"], &["node"])
    };
    lab.apply(endpoints());
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodB, PodD]));
    lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_node(&[PodB, PodD]));
    // A single ready one, wherever it is meant to serve, ends that.
    lab.apply(endpoints().endpoint(PodE, json!({"ready": true})).hinted(&["b"], &["node2"]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodE]));
    lab.sweep();
}

fn a_node_without_a_zone_follows_no_zone_hints(lab: &mut Lab) {
    let mut nowhere = node(Node, "a");
    nowhere["metadata"]["labels"] = json!({"kubernetes.io/hostname": "node"});
    lab.apply(nowhere);
    lab.apply(service("web", 1).port("t", 80, Tcp));
    let ready = || json!({"ready": true});
    let endpoints = slices("web").port("t", 8080, Tcp).endpoint(PodA, ready()).hinted(&["a"], &[]);
    lab.apply(endpoints.endpoint(PodD, ready()).hinted(&["b"], &[]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.apply(node(Node, "b"));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodD]));
}

fn hints_count_inside_and_outside_but_not_for_policy_local(lab: &mut Lab) {
    let web = || service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1).external_ip(1);
    let ready = || json!({"ready": true});
    for node_hints in [["node", "node2"], ["node2", "node"], ["node2", "node2"]] {
        let endpoints =
            slices("web").port("t", 8080, Tcp).endpoint(PodA, ready()).hinted(&["a"], &node_hints[..1]);
        let endpoints = endpoints.endpoint(PodB, ready()).hinted(&["b"], &["node3"]);
        lab.apply(endpoints.endpoint(PodD, ready()).hinted(&["b"], &node_hints[1..]));
        for service in [web(), web().external_local(), web().internal_local()] {
            lab.apply(service);
            lab.sweep();
        }
    }
    lab.apply(web().external_local());
    // The pods of the node take the short cut to all endpoints of the cluster, as far as hints let them.
    lab.expect(PodC, load_balancer(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_sent(&[PodA, PodB]));
}

fn a_single_port_needs_no_name(lab: &mut Lab) {
    lab.apply(service("web", 1).port("", 80, Tcp).node_port(30080));
    lab.apply(slices("web").port("", 8080, Tcp).ready(&[PodA, PodD]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    // A named port is another one.
    lab.apply(slices("web").port("http", 8080, Tcp).ready(&[PodA]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &Expect::Refused);
    lab.sweep();
}

fn a_port_without_its_endpoints_port_refuses(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).port("u", 80, Udp).node_port(30080));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.expect(PodC, cluster_ip(1, Udp, 80), &Expect::Refused);
    // The name fits, the protocol does not.
    lab.apply(slices("web").port("t", 8080, Udp).port("u", 53, Udp).ready(&[PodD]));
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &Expect::Refused);
    lab.expect(PodC, cluster_ip(1, Udp, 80), &seen_as_sent(&[PodD]));
    lab.sweep();
}
