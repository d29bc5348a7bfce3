//! Objects that are wrong, or at the limits of what Kubernetes allows, harm nothing else.

use integration::lab::{Expect, Lab, Objects, Options, cluster_ip, seen_as_sent, service, slices};
use integration::network::Family;
use integration::network::Place::{PodA, PodB, PodC, PodD};
use integration::network::Protocol::{Tcp, Udp};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        names_as_long_as_allowed_work_and_lose_their_endpoints;
    Options { embedded_server: true, ..Options::default() } =>
        names_may_begin_with_a_digit,
        nonsense_is_left_out_and_the_rest_goes_on,
        addresses_of_the_wrong_family_are_ignored;
}

fn names_as_long_as_allowed_work_and_lose_their_endpoints(lab: &mut Lab) {
    let (name, port) = ("n".repeat(63), "p".repeat(15));
    lab.apply(service(&name, 1).port(&port, 80, Tcp).node_port(30080).load_balancer(1));
    lab.apply(slices(&name).port(&port, 8080, Tcp).ready(&[PodA, PodD]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.apply(slices(&name).port(&port, 8080, Tcp));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &Expect::Refused);
    lab.apply(service("other", 2).port("t", 80, Tcp));
    lab.apply(slices("other").port("t", 8080, Tcp).ready(&[PodC]));
    lab.expect(PodB, cluster_ip(2, Tcp, 80), &seen_as_sent(&[PodC]));
    lab.sweep();
}

/// KEP-5311: from Kubernetes 1.37 on for every Service.
fn names_may_begin_with_a_digit(lab: &mut Lab) {
    for (number, name) in [(1, "1web"), (2, "0"), (3, "9-9")] {
        lab.apply(service(name, number).port("t", 80, Tcp).node_port(30080 + u16::from(number)));
        lab.apply(slices(name).port("t", 8080, Tcp).ready(&[PodA, PodD]));
        lab.expect(PodB, cluster_ip(number, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    }
    lab.apply(slices("1web").port("t", 8080, Tcp));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &Expect::Refused);
    lab.sweep();
}

fn nonsense_is_left_out_and_the_rest_goes_on(lab: &mut Lab) {
    let bad = || service("bad", 1).port("t", 80, Tcp);
    let nonsense = [
        bad()
            .set("/spec/clusterIP", json!("not-an-address"))
            .set("/spec/clusterIPs", json!(["not-an-address"])),
        bad().set("/spec/ports/0/protocol", json!("DCCP")),
        bad().set("/spec/ports", json!(null)),
        bad().set("/spec/externalIPs", json!(["300.1.2.3", ""])),
        bad().set("/spec/loadBalancerSourceRanges", json!(["everywhere"])),
        bad().set(
            "/status",
            json!({"loadBalancer": {"ingress": [{"ip": "x"}, {"hostname": "example.org"}, {}]}}),
        ),
        bad()
            .set("/spec/sessionAffinity", json!("ClientIP"))
            .set("/spec/sessionAffinityConfig", json!({"clientIP": null})),
    ];
    for (index, object) in nonsense.into_iter().enumerate() {
        lab.apply(object);
        lab.apply(slices("good").port("t", 8080, Tcp).ready(&[[PodA], [PodD]][index % 2]));
        lab.apply(service("good", 2).port("t", 80, Tcp));
        lab.expect(PodB, cluster_ip(2, Tcp, 80), &seen_as_sent(&[[PodA], [PodD]][index % 2]));
    }
    let mut strange = slices("good").named("strange").port("t", 8080, Tcp).ready(&[PodC]).objects();
    for slice in &mut strange {
        slice["endpoints"] = json!([
            {"addresses": ["example.org"], "conditions": {"ready": true}},
            {"addresses": [], "conditions": {"ready": true}},
            {"addresses": ["10.0.1.999"], "conditions": null, "nodeName": null},
        ]);
    }
    for slice in strange {
        lab.apply(slice);
    }
    lab.apply(slices("good").port("t", 8080, Tcp).ready(&[PodA, PodC]));
    lab.expect(PodB, cluster_ip(2, Tcp, 80), &seen_as_sent(&[PodA, PodC]));
}

fn addresses_of_the_wrong_family_are_ignored(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).port("u", 53, Udp));
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA]));
    for (kind, family) in [("IPv4", Family::V6), ("IPv6", Family::V4), ("FQDN", Family::V4)] {
        let mut slice =
            slices("web").named(&kind.to_lowercase()).port("t", 8080, Tcp).ready(&[PodD]).of(family);
        slice["addressType"] = json!(kind);
        lab.apply(slice);
    }
    // The oracle would find the pod's address in the slice of the wrong family; packets of that family cannot go there.
    lab.settle();
    for family in Family::BOTH {
        let to = cluster_ip(1, Tcp, 80).address(family);
        for _ in 0..16 {
            let probe = integration::network::Probe::new(Tcp, to);
            let outcome = lab.network.probe_one(PodB, probe).expect("a socket");
            let integration::network::Outcome::Answered { answer, .. } = outcome else {
                panic!("{family:?}: {outcome}")
            };
            assert_eq!(answer.by, "pod-a", "{family:?}");
        }
    }
}
