//! What the surroundings do to the program: kernel settings that cannot be made, clients that hold connections, changes of
//! the configuration that depend on the node, an API server that hangs or forbids.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::Duration;

use integration::apiserver::Faults;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::rig::{HEALTH, METRICS, NODE, Rig, balanced, endpoints, node};
use crate::{nftables, running};

#[test]
fn where_no_sysctl_can_be_set_that_is_told_and_services_and_health_go_on() {
    for mode in ["iptables", "nftables"] {
        let mut rig = Rig::new();
        rig.config(&[("/mode", json!(mode)), ("/nodePortAddresses", json!(["127.0.0.0/8", "10.0.0.0/8"]))]);
        rig.api.apply(balanced("web", 10, 32_000)).expect("a complete object");
        rig.api.apply(endpoints("web", 1, false)).expect("a complete object");
        rig.start_with_read_only_sysctls();
        rig.settle();
        rig.eventually("health", |rig| rig.code(HEALTH, "/healthz") == Some(200));
        let told = |rig: &Rig, what: &str| {
            rig.events("FailedToSetSysctl")
                .iter()
                .filter(|event| event["note"].as_str().is_some_and(|note| note.contains(what)))
                .count()
        };
        rig.eventually("an Event", |rig| told(rig, "NodePorts on 127.0.0.1 do not work") == 1);
        let rules = match mode {
            "iptables" => rig.output("sh", &["-c", "iptables-nft-save; iptables-legacy-save"]),
            _ => rig.output("nft", &["list", "ruleset"]),
        };
        assert!(rules.contains("10.96.0.10") && rules.contains("10.244.1.1"), "{mode}: {rules}");
        let log = rig.log();
        assert!(!log.contains("Sync failed"), "{log}");
        assert_eq!(log.matches("NodePorts on 127.0.0.1 do not work").count(), 1, "{log}");
    }
}

#[test]
fn thousands_of_idle_connections_leave_the_real_program_answering() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
    let mut rig = Rig::new();
    rig.config(&[nftables(), ("/metricsBindAddress", json!("0.0.0.0:10249"))]);
    rig.api.apply(balanced("web", 10, 32_000)).expect("a complete object");
    rig.api.apply(endpoints("web", 2, false)).expect("a complete object");
    rig.start_and_settle();
    rig.eventually("health", |rig| rig.code(HEALTH, "/healthz") == Some(200));
    for (port, path) in [(HEALTH, "/healthz"), (METRICS, "/metrics"), (32_000, "/")] {
        // Health check node ports answer where NodePorts do.
        let addresses: &[&str] = if port == 32_000 { &["10.0.0.1"] } else { &["127.0.0.1", "::1"] };
        for ip in addresses {
            let address = SocketAddr::new(ip.parse().expect("an address"), port);
            rig.eventually("it listens", |rig| rig.get_at(address, path).is_some());
            let idle = rig.idle_connections(address, 5_000);
            for _ in 0..20 {
                let answer = rig.get_at(address, path).expect("an answer");
                assert_eq!(answer.code, 200, "{port}{path}");
            }
            drop(idle);
        }
    }
    let text = rig.get(METRICS, "/metrics").expect("an answer").body;
    let open = text.lines().find_map(|line| line.strip_prefix("process_open_fds ")).expect("a figure");
    assert!(open.parse::<f64>().expect("a number") < 3_000.0, "{open}");
}

#[test]
fn what_node_ports_on_localhost_need_goes_when_they_are_switched_off() {
    for mode in ["iptables", "nftables"] {
        let mut rig = Rig::new();
        let addresses = |texts: &[&str]| [("/mode", json!(mode)), ("/nodePortAddresses", json!(texts))];
        let (on, off) = (addresses(&["127.0.0.0/8", "10.0.0.0/8"]), addresses(&["10.0.0.0/8"]));
        rig.config(&on);
        rig.start_and_settle();
        let setting = |rig: &Rig| rig.output("cat", &["/proc/sys/net/ipv4/conf/all/route_localnet"]);
        let guarded = |rig: &Rig| rig.output("nft", &["list", "tables"]).contains("switchyard-localnet");
        for _ in 0..2 {
            rig.eventually("open and guarded", |rig| setting(rig).trim() == "1" && guarded(rig));
            rig.config(&off);
            rig.eventually("closed", |rig| setting(rig).trim() == "0" && !guarded(rig));
            rig.config(&on);
        }
    }
}

fn local_mode(mode: &str) -> (&'static str, Value) {
    ("/detectLocalMode", json!(mode))
}

fn pod_cidrs(cidrs: &[&str]) -> Value {
    node(json!({ "podCIDRs": cidrs, "podCIDR": cidrs.first() }))
}

#[test]
fn a_change_to_the_nodes_own_networks_takes_them_from_the_node() {
    let mut rig = Rig::new();
    let cluster = ("/clusterCIDR", json!("10.244.0.0/16,fd00:244::/48"));
    rig.api.apply(pod_cidrs(&["10.244.7.0/24", "fd00:7::/64"])).expect("a complete object");
    rig.api.apply(balanced("web", 10, 32_000)).expect("a complete object");
    rig.api.apply(endpoints("web", 1, false)).expect("a complete object");
    let mut six = balanced("six", 11, 32_001);
    six["spec"]["ipFamilies"] = json!(["IPv6"]);
    (six["spec"]["clusterIP"], six["spec"]["clusterIPs"]) = (json!("fd00:96::11"), json!(["fd00:96::11"]));
    six["status"]["loadBalancer"]["ingress"] = json!([{ "ip": "fd00:cb::11" }]);
    let mut slice = endpoints("six", 1, false);
    slice["addressType"] = json!("IPv6");
    slice["endpoints"][0]["addresses"] = json!(["fd00:244:1::1"]);
    slice["endpoints"][1]["addresses"] = json!(["fd00:244:2::1"]);
    rig.api.apply(six).expect("a complete object");
    rig.api.apply(slice).expect("a complete object");
    rig.config(&[nftables(), local_mode("ClusterCIDR"), cluster.clone()]);
    rig.start_and_settle();
    // Whose packets are no strangers' is asked in each family's own table.
    let are_local = |rig: &Rig, v4: &str, v6: &str| {
        [("ip", v4), ("ip6", v6)].into_iter().all(|(family, network)| {
            let rules = rig.output("nft", &["list", "table", family, "kube-proxy"]);
            rules.contains(&format!("{family} saddr != {network}"))
        })
    };
    let of_cluster = |rig: &Rig| are_local(rig, "10.244.0.0/16", "fd00:244::/48");
    rig.eventually("the cluster's networks", of_cluster);
    rig.config(&[nftables(), local_mode("NodeCIDR"), cluster.clone()]);
    rig.eventually("the node's networks", |rig| are_local(rig, "10.244.7.0/24", "fd00:7::/64"));
    rig.config(&[nftables(), local_mode("ClusterCIDR"), cluster.clone()]);
    rig.eventually("the cluster's again", of_cluster);
    // They are nobody's business any more.
    rig.api.apply(pod_cidrs(&["10.244.8.0/24", "fd00:8::/64"])).expect("a complete object");
    rig.config(&[nftables(), local_mode("NodeCIDR"), cluster]);
    rig.eventually("the new ones", |rig| are_local(rig, "10.244.8.0/24", "fd00:8::/64"));
    rig.api.apply(pod_cidrs(&["10.244.8.0/24", "fd00:9::/64"])).expect("a complete object");
    assert!(!rig.exit().success());
    assert!(rig.log().contains("podCIDRs changed"), "{}", rig.log());
}

#[test]
fn a_change_that_this_node_cannot_follow_is_left_to_a_new_process() {
    let mut rig = running(&[nftables(), local_mode("ClusterCIDR")]);
    rig.config(&[nftables(), local_mode("NodeCIDR")]);
    assert!(!rig.exit().success());
    assert!(rig.log().contains("detectLocalMode cannot be applied without a restart"), "{}", rig.log());
}

#[test]
fn a_change_that_does_not_fit_this_node_is_not_applied() {
    let mut rig = Rig::new();
    rig.api.apply(pod_cidrs(&["fd00:7::/64"])).expect("a complete object");
    rig.config(&[nftables(), local_mode("ClusterCIDR")]);
    rig.start_and_settle();
    let in_force = |rig: &Rig| {
        let text = rig.get(METRICS, "/metrics").map(|answer| answer.body).unwrap_or_default();
        text.lines().find_map(|line| line.strip_prefix("switchyard_config_file_in_force ").map(str::to_owned))
    };
    assert_eq!(in_force(&rig).as_deref(), Some("1"));
    rig.config(&[nftables(), local_mode("NodeCIDR")]);
    rig.eventually("it is refused", |rig| in_force(rig).as_deref() == Some("0"));
    let config = rig.get(METRICS, "/configz").expect("an answer").body;
    assert!(config.contains("\"detectLocalMode\":\"ClusterCIDR\""), "{config}");
    assert!(rig.log().contains("node.spec.podCIDRs contains only IPv6 addresses"), "{}", rig.log());
    rig.config(&[nftables(), local_mode("ClusterCIDR"), ("/oomScoreAdj", json!(-998))]);
    rig.eventually("the next change counts", |rig| in_force(rig).as_deref() == Some("1"));
}

#[test]
fn an_api_server_that_hangs_does_not_keep_the_process_from_ending() {
    let mut rig = running(&[nftables()]);
    rig.api.set_faults(|faults| faults.hang = true);
    rig.config(&[nftables(), ("/ipvs/scheduler", json!("lc"))]);
    assert!(!rig.exit().success());
    assert!(rig.log().contains("ipvs.scheduler cannot be applied without a restart"), "{}", rig.log());
}

#[test]
fn an_api_server_that_is_away_at_the_start_leaves_the_process_alive() {
    let mut rig = Rig::new();
    rig.api.set_faults(|faults| faults.hang = true);
    rig.config(&[nftables()]);
    rig.start();
    rig.eventually("health is served", |rig| rig.code(HEALTH, "/livez") == Some(200));
    // A liveness probe must not end it, however long that takes: what waits is not this process's fault.
    for _ in 0..80 {
        assert_eq!(rig.code(HEALTH, "/livez"), Some(200), "{}", rig.log());
        sleep(Duration::from_secs(1));
    }
    rig.api.set_faults(|faults| *faults = Faults::default());
    rig.eventually("it begins", |rig| rig.code(HEALTH, "/healthz") == Some(200));
}

#[test]
fn without_the_right_to_read_nodes_what_is_off_and_what_to_grant_is_told() {
    let mut rig = Rig::new();
    rig.api.set_faults(|faults| {
        faults.refuse.insert("nodes".to_owned(), 403);
    });
    rig.config(&[nftables()]);
    rig.start();
    // It waits half a minute for the node before it goes on without.
    for _ in 0..100 {
        if !rig.events("NodeAddressesUnknown").is_empty() {
            break;
        }
        sleep(Duration::from_millis(500));
    }
    let events = rig.events("NodeAddressesUnknown");
    let [event] = &events[..] else { panic!("{events:?}\n{}", rig.log()) };
    let note = event["note"].as_str().expect("a note");
    assert!(
        note.contains("NodePorts stay off") && note.contains("grant it get, list and watch on nodes"),
        "{note}"
    );
    assert_eq!(event["regarding"]["name"], NODE);
    assert!(rig.log().contains("NodePorts stay off"), "{}", rig.log());
    rig.settle();
}

/// kube-proxy 1.37 does not: kubernetes/kubernetes#142183.
#[test]
fn localhost_is_served_after_a_change_of_the_addresses_and_a_restart() {
    let mut rig = Rig::new();
    let mut service = balanced("web", 10, 32_000);
    service["spec"]["clusterIP"] = json!("fd00:96::10");
    service["spec"]["clusterIPs"] = json!(["fd00:96::10"]);
    service["spec"]["ipFamilies"] = json!(["IPv6"]);
    service["spec"]["ports"][0]["nodePort"] = json!(30_080);
    let mut slice = endpoints("web", 0, false);
    slice["addressType"] = json!("IPv6");
    slice["endpoints"][0]["addresses"] = json!(["fd00:244::1"]);
    rig.api.apply(service).expect("a complete object");
    rig.api.apply(slice).expect("a complete object");
    let addresses = |texts: &[&str]| ("/nodePortAddresses", json!(texts));
    rig.config(&[nftables(), addresses(&["primary"])]);
    rig.start_and_settle();
    let listeners = |rig: &Rig| {
        let text = rig.get(METRICS, "/metrics").map(|answer| answer.body).unwrap_or_default();
        let name = "kubeproxy_nftables_localhost_nodeport_listeners{ip_family=\"IPv6\"} ";
        text.lines().find_map(|line| line.strip_prefix(name).map(str::to_owned))
    };
    assert_eq!(listeners(&rig), None, "nobody asked for them");
    rig.config(&[nftables(), addresses(&["primary", "localhost"])]);
    assert!(!rig.exit().success());
    assert!(rig.log().contains("nodePortAddresses cannot be applied without a restart"), "{}", rig.log());
    rig.start_and_settle();
    rig.eventually("a listener", |rig| listeners(rig).as_deref() == Some("1"));
    assert!(rig.output("ss", &["-Hltn"]).contains("[::1]:30080"), "{}", rig.output("ss", &["-Hltn"]));
    rig.eventually("what is refused is counted", |rig| {
        let text = rig.get(METRICS, "/metrics").map(|answer| answer.body).unwrap_or_default();
        let name = "kubeproxy_nftables_localhost_nodeport_rejected_packets_total";
        ["SCTP", "UDP"]
            .iter()
            .all(|protocol| text.contains(&format!("{name}{{ip_family=\"IPv6\",protocol=\"{protocol}\"}} 0")))
    });
    rig.api.delete("Service", "shop", "web").expect("it is there");
    rig.eventually("none", |rig| listeners(rig).as_deref() == Some("0"));
}
