//! Addresses of the service network that no Service has.

use integration::lab::{
    Expect, Lab, Mode, Options, cluster_ip, directly, seen_as_sent, service, service_cidr, slices,
};
use integration::network::Place::{Client, Node, PodA, PodB};
use integration::network::Protocol::{Tcp, Udp};
use integration::network::{BRIEF, Family, Outcome, Probe};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        unallocated_addresses_are_treated_as_the_mode_does,
        ranges_are_followed_at_once;
    Options { embedded_server: true, ..Options::default() } =>
        a_server_without_service_cidrs_is_no_obstacle;
}

fn unallocated_addresses_are_treated_as_the_mode_does(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    let expect = if lab.mode() == Mode::Nftables { Expect::Dropped } else { Expect::NotTranslated };
    for from in [Client, Node, PodB] {
        lab.expect(from, cluster_ip(77, Tcp, 80), &expect);
        lab.expect(from, cluster_ip(77, Udp, 53), &expect);
    }
}

fn ranges_are_followed_at_once(lab: &mut Lab) {
    // The address of a pod, so that dropping can be told from passing.
    let mut cidr = service_cidr();
    cidr["metadata"]["name"] = json!("odd");
    cidr["spec"]["cidrs"] = json!(["10.0.1.12/32", "fd00:10:1::12/128"]);
    lab.settle();
    let answers = |lab: &Lab| {
        Family::BOTH.map(|family| {
            let to = directly(PodB, Tcp, 8080).address(family);
            let probe = Probe::new(Tcp, to).patience(BRIEF);
            matches!(lab.network.probe_one(Client, probe).expect("a socket"), Outcome::Answered { .. })
        })
    };
    crate::eventually(|| answers(lab) == [true, true]);
    lab.apply(cidr);
    let expect = lab.mode() != Mode::Nftables;
    crate::eventually(|| answers(lab) == [expect, expect]);
    lab.delete_global("ServiceCIDR", "odd");
    crate::eventually(|| answers(lab) == [true, true]);
}

fn a_server_without_service_cidrs_is_no_obstacle(lab: &mut Lab) {
    lab.stop_proxy().expect("it runs");
    lab.api.set_faults(|faults| {
        faults.refuse.insert("servicecidrs".to_owned(), 404);
    });
    lab.start_proxy().expect("it starts");
    lab.apply(service("web", 1).port("t", 80, Tcp));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
}
