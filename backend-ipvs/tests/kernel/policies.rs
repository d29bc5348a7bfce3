//! Traffic policies and Services without endpoints.

use std::time::Duration;

use backend_ipvs::Settings;
use proxy_core::{
    environment::LocalPods,
    model::{Family, Protocol, TrafficPolicy},
    route::Route,
};
use vm_test::with_ipvs;

use crate::{
    driver::{Driver, exposed, ip, route},
    rig::{self, CLIENT, NEIGHBOUR, NODE, POD, REMOTE, Reply, tcp, udp},
};

const VIP: &str = "10.96.0.1:80";
const BALANCER: &str = "198.51.100.1:80";
const NODE_PORT: &str = "192.168.7.1:30080";

fn external_local(protocol: Protocol, endpoints: &[&str]) -> Route {
    exposed(route(protocol, "10.96.0.1", endpoints), "198.51.100.1", TrafficPolicy::Local)
}

fn who(from: &'static str, to: &str) -> Vec<String> {
    let mut all: Vec<String> = (0..6).map(|_| tcp(from, to).who().to_owned()).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn external_policy_local_keeps_the_source_and_stays_here_but_for_pods_and_the_node() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            driver.set("web", external_local(protocol, &["10.1.0.2", "10.2.0.2"]));
        }
        for to in [BALANCER, NODE_PORT] {
            assert_eq!(who(CLIENT, to), [POD]);
            assert_eq!(tcp(CLIENT, to).source(), ip("192.168.7.2"));
            assert_eq!(udp(CLIENT, to).source(), ip("192.168.7.2"));
            assert_eq!(who(NEIGHBOUR, to), [POD, REMOTE]);
            assert_eq!(tcp(NEIGHBOUR, to).source(), ip("10.1.1.2"), "a pod keeps its address");
            assert_eq!(who(NODE, to), [POD, REMOTE]);
            // A pod elsewhere is an outsider.
            assert_eq!(who(REMOTE, to), [POD]);
        }
        assert_eq!(who(CLIENT, VIP), [POD, REMOTE]);
    });
}

#[test]
fn external_policy_local_without_an_endpoint_here_drops_but_serves_pods_and_the_node() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            driver.set("web", external_local(protocol, &["10.2.0.2"]));
        }
        for to in [BALANCER, NODE_PORT] {
            assert_eq!(tcp(CLIENT, to), Reply::Silence, "{to}");
            assert_eq!(udp(CLIENT, to), Reply::Silence, "{to}");
            assert_eq!(who(POD, to), [REMOTE]);
            assert_eq!(tcp(POD, to).source(), ip("10.1.0.2"));
            assert_eq!(who(NODE, to), [REMOTE]);
            assert_eq!(udp(NODE, to).who(), REMOTE);
        }
        // Without a way to tell pods, they are outsiders.
        driver.environment.local_pods = LocalPods::Unknown;
        driver.incremental(&[]);
        assert_eq!(tcp(POD, BALANCER), Reply::Silence);
        assert_eq!(who(NODE, BALANCER), [REMOTE]);
        // The first endpoint here opens it to all.
        driver.set("web", external_local(Protocol::Tcp, &["10.1.0.2", "10.2.0.2"]));
        assert_eq!(who(CLIENT, BALANCER), [POD]);
        driver.set("web", external_local(Protocol::Tcp, &["10.2.0.2"]));
        assert_eq!(tcp(CLIENT, BALANCER), Reply::Silence);
    });
}

#[test]
fn affinity_holds_for_pods_and_the_node_under_external_policy_local_too() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        let sticky = |endpoints: &[&str]| {
            external_local(Protocol::Tcp, endpoints).under(|policy| policy.affinity = Some(600))
        };
        let all = ["10.1.0.2", "10.1.1.2", "10.2.0.2"];
        driver.set("web", sticky(&all));
        for from in [POD, NODE, CLIENT] {
            let [first] = who(from, BALANCER).try_into().expect("one endpoint only");
            // Others come and go, and it stays.
            let others = [POD, NEIGHBOUR, REMOTE].into_iter().zip(all).filter(|(name, _)| *name != first);
            for (_, other) in others {
                let fewer: Vec<&str> = all.into_iter().filter(|addr| *addr != other).collect();
                driver.set("web", sticky(&fewer));
                driver.pass(Duration::from_secs(3600));
                assert_eq!(who(from, BALANCER), std::slice::from_ref(&first), "{from} without {other}");
                driver.set("web", sticky(&all));
                assert_eq!(who(from, BALANCER), std::slice::from_ref(&first), "{from} with {other} again");
            }
            let others: Vec<&str> = [POD, NEIGHBOUR, REMOTE]
                .into_iter()
                .zip(all)
                .filter(|(name, _)| *name != first)
                .map(|(_, addr)| addr)
                .collect();
            driver.set("web", sticky(&others));
            let [second] = who(from, BALANCER).try_into().expect("one endpoint only");
            assert_ne!(second, first);
            driver.set("web", sticky(&all));
        }
    });
}

#[test]
fn the_marks_of_others_survive_a_short_circuit() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        driver.set("web", external_local(Protocol::Tcp, &["10.2.0.2"]));
        // A network plugin that marks what comes from pods, and counts on the mark behind the proxy.
        vm_test::run(
            "nft -f - <<'X'
table ip plugin {
    chain early { type filter hook prerouting priority -150; iifname \"to-pod\" meta mark set 0x12340000; }
    chain accepted { type filter hook input priority 0; iifname \"to-pod\" meta mark set meta mark | 0x10000; }
    chain late { type filter hook postrouting priority 50; oifname \"to-remote\" meta mark 0x12350000 counter comment \"kept\"
        meta mark and 0xff000000 == 0x53000000 counter comment \"ours\"; }
}
X",
        );
        assert_eq!(who(POD, BALANCER), [REMOTE]);
        let listing = vm_test::run("nft list chain ip plugin late");
        let packets = |comment: &str| {
            let line = listing.lines().find(|line| line.contains(comment)).expect("the rule");
            line.split("packets ")
                .nth(1)
                .expect("a counter")
                .split(' ')
                .next()
                .expect("a number")
                .parse::<u32>()
                .expect("a number")
        };
        assert!(packets("kept") >= 6, "{listing}");
        assert_eq!(packets("ours"), 0, "{listing}");
    });
}

#[test]
fn internal_policy_local_stays_here_and_drops_without_an_endpoint_here() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        let internal = |endpoints: &[&str]| {
            exposed(route(Protocol::Tcp, "10.96.0.1", endpoints), "198.51.100.1", TrafficPolicy::Cluster)
                .under(|policy| policy.internal = TrafficPolicy::Local)
        };
        driver.set("web", internal(&["10.1.0.2", "10.2.0.2"]));
        for from in [POD, NODE, CLIENT] {
            assert_eq!(who(from, VIP), [POD], "from {from}");
        }
        assert_eq!(who(CLIENT, BALANCER), [POD, REMOTE]);
        driver.set("web", internal(&["10.2.0.2"]));
        for from in [POD, NODE, CLIENT] {
            assert_eq!(tcp(from, VIP), Reply::Silence, "from {from}: nothing leaks to endpoints elsewhere");
        }
        assert_eq!(who(CLIENT, BALANCER), [REMOTE]);
    });
}

#[test]
fn a_service_without_endpoints_refuses() {
    with_ipvs(|| {
        rig::build();
        let mut driver = Driver::start(Family::V4, Settings::default());
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                driver.set("web", exposed(route(protocol, "10.96.0.1", &[]), "198.51.100.1", policy));
            }
            for from in [POD, NODE, CLIENT] {
                for to in [VIP, BALANCER, NODE_PORT] {
                    assert_eq!(tcp(from, to), Reply::Refused, "{to} from {from}");
                    assert_eq!(udp(from, to), Reply::Refused, "{to} from {from}");
                }
            }
        }
        // Also when it had endpoints, and while they drain.
        driver.set(
            "web",
            exposed(route(Protocol::Tcp, "10.96.0.1", &["10.1.0.2"]), "198.51.100.1", TrafficPolicy::Cluster),
        );
        tcp(CLIENT, VIP).who();
        driver.set(
            "web",
            exposed(route(Protocol::Tcp, "10.96.0.1", &[]), "198.51.100.1", TrafficPolicy::Cluster),
        );
        for from in [POD, NODE, CLIENT] {
            for to in [VIP, BALANCER, NODE_PORT] {
                assert_eq!(tcp(from, to), Reply::Refused, "{to} from {from} while it drains");
            }
        }
    });
}
