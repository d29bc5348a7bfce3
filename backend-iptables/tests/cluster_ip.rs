//! Cluster IPs, with real TCP through the rules.

mod rig;

use std::{collections::BTreeSet, io, net::IpAddr};

use backend_iptables::Variant;
use proxy_core::model::Family;
use rig::{Node, Proxy, cluster_ip, name, target};

fn cluster_ip_works(family: Family, variant: Variant) {
    let node = Node::new(family);
    let [a, b] = &node.servers;
    a.serve("a", 8080);
    b.serve("b", 8080);
    let vip: IpAddr = match family {
        Family::V4 => "10.96.0.10".parse(),
        Family::V6 => "fd00:96::10".parse(),
    }
    .expect("an address");
    let web = name("web", "http");

    let mut proxy = Proxy::new(variant, node.environment());
    proxy.routes = vec![(web.clone(), cluster_ip(vip, 80, &[target(a.addr, 8080, false)]).into())];
    proxy.full().expect("the kernel takes the rules");
    let answer = node.client.connect(vip, 80).expect("the Service answers");
    assert_eq!((answer.server.as_str(), answer.source), ("a", node.client.addr), "a pod keeps its address");
    let answer = node.outside.connect(vip, 80).expect("the Service answers");
    assert_eq!(answer.source, a.gateway, "a source outside the cluster is masqueraded");

    let text = proxy
        .change(&web, Some(cluster_ip(vip, 80, &[target(a.addr, 8080, false), target(b.addr, 8080, false)])))
        .expect("the kernel takes the change");
    assert!(!text.contains("KUBE-SERVICES"), "the dispatch chain is not written again:\n{text}");
    let answers: BTreeSet<String> =
        (0..40).map(|_| node.client.connect(vip, 80).expect("the Service answers").server).collect();
    assert_eq!(answers, BTreeSet::from(["a".to_owned(), "b".to_owned()]));

    proxy.change(&web, Some(cluster_ip(vip, 80, &[]))).expect("the kernel takes the change");
    let refused = node.client.connect(vip, 80).expect_err("no endpoint is left");
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);

    proxy.change(&web, Some(cluster_ip(vip, 80, &[target(b.addr, 8080, false)]))).expect("taken");
    assert_eq!(node.client.connect(vip, 80).expect("the Service answers").server, "b");
    assert!(proxy.finds_all_intact());

    proxy.change(&web, None).expect("the kernel takes the change");
    let saved = rig::run(&format!(
        "{}-{variant}-save -t nat",
        if family == Family::V4 { "iptables" } else { "ip6tables" }
    ));
    assert!(!saved.contains("KUBE-SVC-") && !saved.contains("KUBE-SEP-"), "nothing of it is left:\n{saved}");
}

#[test]
fn a_cluster_ip_follows_its_endpoints_in_legacy_ipv4() {
    cluster_ip_works(Family::V4, Variant::Legacy);
}

#[test]
fn a_cluster_ip_follows_its_endpoints_in_nft_ipv4() {
    cluster_ip_works(Family::V4, Variant::Nft);
}

#[test]
fn a_cluster_ip_follows_its_endpoints_in_legacy_ipv6() {
    cluster_ip_works(Family::V6, Variant::Legacy);
}

#[test]
fn a_cluster_ip_follows_its_endpoints_in_nft_ipv6() {
    cluster_ip_works(Family::V6, Variant::Nft);
}
