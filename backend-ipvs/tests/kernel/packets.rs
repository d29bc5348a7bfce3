//! Cluster IPs, node ports and load balancer IPs under policy Cluster.

use std::{collections::BTreeSet, sync::Arc};

use backend_ipvs::{Binding, Settings};
use proxy_core::{
    environment::{LocalPods, NodePortAddresses},
    model::{Family, Protocol, TrafficPolicy},
    route::{AllowedSources, FrontendKind},
};
use vm_test::{run, with_ipvs};

use crate::{
    driver::{Driver, exposed, frontend, ip, route},
    rig::{self, CLIENT, NEIGHBOUR, NODE, POD, REMOTE, Reply, tcp, udp},
};

/// Addresses of one family.
struct Plan {
    family: Family,
    vip: &'static str,
    balancer: &'static str,
    node: &'static str,
    pods: [&'static str; 3],
    client: &'static str,
}

const V4: Plan = Plan {
    family: Family::V4,
    vip: "10.96.0.1",
    balancer: "198.51.100.1",
    node: "192.168.7.1",
    pods: ["10.1.0.2", "10.1.1.2", "10.2.0.2"],
    client: "192.168.7.2",
};

const V6: Plan = Plan {
    family: Family::V6,
    vip: "fd96::1",
    balancer: "2001:db8::1",
    node: "fd07:0:0:1::1",
    pods: ["fd01:0:0:1::2", "fd01:0:0:2::2", "fd02:0:0:1::2"],
    client: "fd07:0:0:1::2",
};

fn at(addr: &str, port: u16) -> String {
    std::net::SocketAddr::new(ip(addr), port).to_string()
}

/// Everybody who answers within some tries.
fn answering(ask: fn(&'static str, &str) -> Reply, from: &'static str, to: &str) -> BTreeSet<String> {
    (0..6).map(|_| ask(from, to).who().to_owned()).collect()
}

fn names(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|name| (*name).to_owned()).collect()
}

fn policy_cluster(plan: &Plan) {
    rig::build();
    let mut driver = Driver::start(plan.family, Settings::default());
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let of = route(protocol, plan.vip, &plan.pods);
        driver.set("web", exposed(of, plan.balancer, TrafficPolicy::Cluster));
    }
    let everybody = names(&[NEIGHBOUR, POD, REMOTE]);
    for ask in [tcp, udp] {
        for from in [POD, CLIENT, NODE] {
            assert_eq!(answering(ask, from, &at(plan.vip, 80)), everybody, "cluster IP from {from}");
            assert_eq!(
                answering(ask, from, &at(plan.balancer, 80)),
                everybody,
                "load balancer IP from {from}"
            );
            assert_eq!(answering(ask, from, &at(plan.node, 30080)), everybody, "node port from {from}");
        }
        // A pod keeps its address inside the cluster (but not towards itself); all others get the node's.
        for _ in 0..6 {
            let reply = ask(POD, &at(plan.vip, 80));
            if reply.who() == POD {
                assert_ne!(reply.source(), ip(plan.pods[0]), "hairpin");
            } else {
                assert_eq!(reply.source(), ip(plan.pods[0]));
            }
        }
        assert_ne!(ask(CLIENT, &at(plan.vip, 80)).source(), ip(plan.client));
        assert_ne!(ask(CLIENT, &at(plan.balancer, 80)).source(), ip(plan.client));
        assert_ne!(ask(NODE, &at(plan.vip, 80)).source(), ip(plan.vip), "no answer could come back to that");
    }
}

#[test]
fn every_endpoint_answers_under_policy_cluster_over_ipv4() {
    with_ipvs(|| policy_cluster(&V4));
}

#[test]
fn every_endpoint_answers_under_policy_cluster_over_ipv6() {
    with_ipvs(|| policy_cluster(&V6));
}

#[test]
fn the_address_form_of_binding_works_too() {
    with_ipvs(|| {
        rig::build();
        let settings = Settings { binding: Binding::Addresses, ..Settings::default() };
        let mut driver = Driver::start(Family::V4, settings);
        driver.set("web", route(Protocol::Tcp, V4.vip, &V4.pods));
        assert!(run("ip -4 addr show dev kube-ipvs0").contains("inet 10.96.0.1/32 "));
        for from in [POD, CLIENT, NODE] {
            tcp(from, "10.96.0.1:80").who();
        }
        // From one form to the other and back, without an address left behind.
        driver.restart(Settings::default());
        assert!(!run("ip -4 addr show dev kube-ipvs0").contains("inet "));
        tcp(CLIENT, "10.96.0.1:80").who();
        driver.restart(Settings { binding: Binding::Addresses, ..Settings::default() });
        assert_eq!(run("ip -4 route show table local proto 89"), "");
        tcp(CLIENT, "10.96.0.1:80").who();
    });
}

#[test]
fn nobody_reaches_a_host_port_through_a_virtual_ip() {
    with_ipvs(|| {
        rig::build();
        rig::serve(NODE, 9999);
        for plan in [&V4, &V6] {
            let mut driver = Driver::start(plan.family, Settings::default());
            let of = route(Protocol::Tcp, plan.vip, &plan.pods);
            driver.set("web", exposed(of, plan.balancer, TrafficPolicy::Cluster));
            assert_eq!(tcp(CLIENT, &at(plan.node, 9999)).who(), NODE, "the server does serve");
            for from in [POD, CLIENT, NODE] {
                for vip in [plan.vip, plan.balancer] {
                    for port in [9999, 30080, 8080] {
                        assert_eq!(tcp(from, &at(vip, port)), Reply::Refused, "{vip} {port} from {from}");
                        assert_eq!(udp(from, &at(vip, port)), Reply::Refused, "{vip} {port} from {from}");
                    }
                }
            }
            // Not even when somebody clears the table of virtual servers.
            run("ipvsadm -C");
            rig::serve(NODE, if plan.family == Family::V4 { 80 } else { 81 });
            assert_eq!(tcp(CLIENT, &at(plan.vip, 80)), Reply::Refused);
            driver.full();
            assert_ne!(tcp(CLIENT, &at(plan.vip, 80)).who(), NODE);
        }
    });
}

#[test]
fn a_sticky_service_on_the_port_of_ftp_opens_no_other_port() {
    with_ipvs(|| {
        rig::build();
        rig::serve(POD, 9999);
        let mut driver = Driver::start(Family::V4, Settings::default());
        for affinity in [None, Some(600)] {
            let mut of = route(Protocol::Tcp, V4.vip, &V4.pods[..1]);
            of.frontends = [frontend(FrontendKind::ClusterIp, Some(V4.vip), 21)].into();
            of.policy_mut().affinity = affinity;
            driver.set("ftp", of);
            assert_eq!(tcp(CLIENT, "10.96.0.1:21").who(), POD);
            assert_eq!(tcp(CLIENT, "10.96.0.1:9999"), Reply::Refused);
        }
        // Sticky it is nevertheless.
        let mut of = route(Protocol::Tcp, V4.vip, &V4.pods);
        of.frontends = [frontend(FrontendKind::ClusterIp, Some(V4.vip), 21)].into();
        of.policy_mut().affinity = Some(600);
        driver.set("ftp", of);
        assert_eq!(answering(tcp, CLIENT, "10.96.0.1:21").len(), 1);
    });
}

#[test]
fn node_ports_answer_on_the_chosen_addresses_only_and_follow_them() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        driver.environment.node_ports = NodePortAddresses::Only([ip("192.168.7.1")].into());
        driver
            .set("web", exposed(route(Protocol::Tcp, V4.vip, &V4.pods), V4.balancer, TrafficPolicy::Cluster));
        tcp(CLIENT, "192.168.7.1:30080").who();
        assert_eq!(tcp(CLIENT, "10.1.0.1:30080"), Reply::Refused);
        assert_eq!(tcp(NODE, "127.0.0.1:30080"), Reply::Refused);
        // The node gets another address.
        run("ip addr add 192.168.7.77/24 dev to-client");
        driver.environment.node_ports = NodePortAddresses::Only([ip("192.168.7.77")].into());
        driver.incremental(&[]);
        tcp(CLIENT, "192.168.7.77:30080").who();
        assert_eq!(tcp(CLIENT, "192.168.7.1:30080"), Reply::Refused);
    });
}

#[test]
fn an_external_ip_that_is_the_nodes_own_leaves_its_other_ports_alone() {
    with_ipvs(|| {
        rig::build();
        rig::serve(NODE, 9999);
        let mut driver = Driver::start(Family::V4, Settings::default());
        let mut of = route(Protocol::Tcp, V4.vip, &V4.pods);
        of.frontends = [of.frontends[0], frontend(FrontendKind::ExternalIp, Some("192.168.7.1"), 443)].into();
        driver.set("web", of);
        assert_ne!(tcp(CLIENT, "192.168.7.1:443").who(), NODE);
        assert_eq!(tcp(CLIENT, "192.168.7.1:9999").who(), NODE);
        driver.remove("web", Protocol::Tcp);
        assert_eq!(tcp(CLIENT, "192.168.7.1:9999").who(), NODE);
    });
}

#[test]
fn source_ranges_are_enforced_before_the_first_packet_and_followed() {
    with_ipvs(|| {
        rig::build();
        for plan in [&V4, &V6] {
            let mut driver = Driver::start(plan.family, Settings::default());
            let restricted = |range: &str| {
                let sources = AllowedSources {
                    ranges: [range.parse().expect("a network")].into(),
                    own_vips: [ip(plan.balancer)].into(),
                };
                let mut of = exposed(
                    route(Protocol::Tcp, plan.vip, &plan.pods),
                    plan.balancer,
                    TrafficPolicy::Cluster,
                );
                of.policy_mut().sources = Some(Arc::new(sources));
                of
            };
            let (ours, wider, others) = match plan.family {
                Family::V4 => ("192.168.7.0/24", "192.168.0.0/16", "203.0.113.0/24"),
                Family::V6 => ("fd07:0:0:1::/64", "fd07::/16", "2001:db8:1::/48"),
            };
            driver.set("web", restricted(others));
            assert_eq!(tcp(CLIENT, &at(plan.balancer, 80)), Reply::Silence);
            assert_eq!(tcp(POD, &at(plan.balancer, 80)), Reply::Silence);
            // Neither the cluster IP nor the node port is restricted.
            tcp(CLIENT, &at(plan.vip, 80)).who();
            tcp(CLIENT, &at(plan.node, 30080)).who();
            for range in [ours, wider, ours] {
                driver.set("web", restricted(range));
                tcp(CLIENT, &at(plan.balancer, 80)).who();
                assert_eq!(tcp(POD, &at(plan.balancer, 80)), Reply::Silence, "{range}");
            }
            driver.set("web", restricted(others));
            assert_eq!(tcp(CLIENT, &at(plan.balancer, 80)), Reply::Silence);
            driver.set(
                "web",
                exposed(route(Protocol::Tcp, plan.vip, &plan.pods), plan.balancer, TrafficPolicy::Cluster),
            );
            tcp(POD, &at(plan.balancer, 80)).who();
            driver.remove("web", Protocol::Tcp);
        }
    });
}

#[test]
fn every_way_to_tell_local_pods_masquerades_the_others() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        driver.set("web", route(Protocol::Tcp, V4.vip, &["10.2.0.2"]));
        let ways = [
            (
                LocalPods::Cidrs(
                    ["10.1.0.0/24", "10.1.1.0/24"].map(|net| net.parse().expect("a network")).into(),
                ),
                false,
                true,
            ),
            (LocalPods::Bridge("to-pod".into()), false, true),
            (LocalPods::InterfacePrefix("to-p".into()), false, true),
            // Nobody is known: nobody is masqueraded but the node, whose packets could not come back.
            (LocalPods::Unknown, false, false),
        ];
        for (local_pods, pod, client) in ways {
            driver.environment.local_pods = local_pods.clone();
            driver.incremental(&[]);
            assert_eq!(tcp(POD, "10.96.0.1:80").source() != ip("10.1.0.2"), pod, "{local_pods:?}");
            assert_eq!(tcp(CLIENT, "10.96.0.1:80").source() != ip("192.168.7.2"), client, "{local_pods:?}");
            assert_eq!(tcp(NODE, "10.96.0.1:80").who(), REMOTE, "{local_pods:?}");
        }
        driver.environment.masquerade_all = true;
        driver.incremental(&[]);
        assert_ne!(tcp(POD, "10.96.0.1:80").source(), ip("10.1.0.2"));
    });
}
