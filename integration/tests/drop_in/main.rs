//! What surrounds the data plane, asked of the real program in the shape in which kubeadm runs it: health, metrics,
//! configuration changes, Events and exit codes.

mod edges;
mod privileges;
mod rig;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use integration::lab::program;
use rig::{HEALTH, METRICS, NODE, Rig, balanced, endpoints, node};
use serde_json::{Value, json};

fn nftables() -> (&'static str, Value) {
    ("/mode", json!("nftables"))
}

fn running(changes: &[(&str, Value)]) -> Rig {
    let mut rig = Rig::new();
    rig.config(changes);
    rig.start_and_settle();
    rig
}

#[test]
fn it_runs_with_the_files_and_the_command_line_of_kubeadm() {
    let mut rig = running(&[]);
    // kubeadm's mode "" is iptables.
    let mode = rig.get(METRICS, "/proxyMode").expect("an answer");
    assert_eq!((mode.code, mode.body.as_str()), (200, "iptables"));
    assert!(rig.log().contains("\"Using iptables Proxier\""), "{}", rig.log());
    let config = rig.get(METRICS, "/configz").expect("an answer");
    let config: Value = serde_json::from_str(&config.body).expect("JSON");
    let config = &config["kubeproxy.config.k8s.io"];
    assert_eq!(config["clusterCIDR"], "10.244.0.0/16");
    assert_eq!(config["hostnameOverride"], "worker-1");
    assert_eq!(config["conntrack"]["maxPerCore"], 32768);
    rig.eventually("health", |rig| rig.code(HEALTH, "/healthz") == Some(200));
    let health: Value =
        serde_json::from_str(&rig.get(HEALTH, "/healthz").expect("an answer").body).expect("JSON");
    assert_eq!(health["nodeEligible"], true);
    for family in ["IPv4", "IPv6"] {
        assert_eq!(health["status"][family]["healthy"], true, "{health}");
    }
    rig.eventually("the Event Starting", |rig| !rig.events("Starting").is_empty());
    let event = rig.events("Starting").remove(0);
    assert_eq!(event["regarding"]["name"], NODE);
    assert_eq!(event["reportingController"], "kube-proxy");
    assert_eq!(event["reportingInstance"], "kube-proxy-worker-1");
    rig.eventually("the Event about the mode", |rig| rig.events("ProxyModeDefaulted").len() == 1);
    assert!(rig.log().contains("No mode is configured"), "{}", rig.log());
}

#[test]
fn a_node_that_is_being_deleted_gets_no_new_traffic_but_the_process_is_well() {
    let mut rig = running(&[nftables()]);
    let codes = |rig: &Rig| (rig.code(HEALTH, "/healthz"), rig.code(HEALTH, "/livez"));
    rig.eventually("health", |rig| codes(rig) == (Some(200), Some(200)));
    let taint = json!({ "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] });
    rig.api.apply(node(taint)).expect("a complete object");
    rig.eventually("the taint", |rig| codes(rig) == (Some(503), Some(200)));
    let body: Value =
        serde_json::from_str(&rig.get(HEALTH, "/healthz").expect("an answer").body).expect("JSON");
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&json!(false), &json!(true)));
    rig.api.apply(node(json!({}))).expect("a complete object");
    rig.eventually("the taint is gone", |rig| codes(rig) == (Some(200), Some(200)));
    // A kubelet may register its Node again; until then nothing is known against it.
    rig.api.delete("Node", "", NODE).expect("it is there");
    for _ in 0..10 {
        sleep(Duration::from_millis(50));
        assert_eq!(codes(&rig), (Some(200), Some(200)));
    }
}

#[test]
fn a_node_without_rules_gets_no_traffic_though_the_process_is_well() {
    let mut rig = Rig::new();
    rig.api.set_faults(|faults| {
        faults.refuse.insert("services".into(), 500);
    });
    rig.config(&[nftables()]);
    rig.start();
    let codes = |rig: &Rig| (rig.code(HEALTH, "/healthz"), rig.code(HEALTH, "/livez"));
    rig.eventually("the health server", |rig| codes(rig) == (Some(503), Some(200)));
    sleep(Duration::from_secs(1));
    assert_eq!(codes(&rig), (Some(503), Some(200)));
    rig.api.set_faults(|faults| faults.refuse.clear());
    rig.eventually("the first sync", |rig| codes(rig) == (Some(200), Some(200)));
}

#[test]
fn health_check_node_ports_follow_the_endpoints_of_this_node() {
    let mut rig = running(&[nftables(), ("/nodePortAddresses", json!(["all"]))]);
    rig.api.load([balanced("web", 10, 30999), endpoints("web", 2, false)]).expect("complete objects");
    rig.eventually("two endpoints", |rig| rig.code(30999, "/") == Some(200));
    let answer = rig.get(30999, "/any/path").expect("an answer");
    assert!(answer.head.contains("x-load-balancing-endpoint-weight: 2"), "{}", answer.head);
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(
        body,
        json!({ "service": { "namespace": "shop", "name": "web" }, "localEndpoints": 2, "serviceProxyHealthy": true })
    );
    rig.api.apply(endpoints("web", 2, true)).expect("a complete object");
    rig.eventually("terminating ones do not count", |rig| rig.code(30999, "/") == Some(503));
    rig.api.apply(endpoints("web", 1, false)).expect("a complete object");
    rig.eventually("one endpoint", |rig| rig.code(30999, "/") == Some(200));
    rig.api.delete("Service", "shop", "web").expect("it is there");
    rig.eventually("it is closed", |rig| rig.code(30999, "/").is_none());
}

#[test]
fn a_taken_health_check_port_is_an_event_on_the_service_and_is_tried_again() {
    let mut rig = running(&[nftables(), ("/nodePortAddresses", json!(["all"]))]);
    let held = rig.hold(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 30998);
    rig.api.load([balanced("web", 10, 30998), endpoints("web", 1, false)]).expect("complete objects");
    rig.eventually("the Event", |rig| !rig.events("FailedToStartServiceHealthcheck").is_empty());
    let event = rig.events("FailedToStartServiceHealthcheck").remove(0);
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["regarding"]["kind"], "Service");
    assert_eq!(
        (&event["regarding"]["namespace"], &event["regarding"]["name"]),
        (&json!("shop"), &json!("web"))
    );
    drop(held);
    rig.eventually("it is served", |rig| rig.code(30998, "/") == Some(200));
}

#[test]
fn a_change_of_the_configmap_is_applied_or_ends_the_process_with_the_reason() {
    let mut rig = running(&[nftables()]);
    let verbosity = |rig: &Rig| {
        let answer = rig.get(METRICS, "/configz").expect("an answer");
        let config: Value = serde_json::from_str(&answer.body).expect("JSON");
        config["kubeproxy.config.k8s.io"]["logging"]["verbosity"].clone()
    };
    assert_eq!(verbosity(&rig), json!(0));
    rig.config(&[nftables(), ("/logging/verbosity", json!(4)), ("/nodePortAddresses", json!(["all"]))]);
    rig.eventually("the verbosity", |rig| verbosity(rig) == json!(4));
    rig.raw_config("mode: [");
    rig.eventually("the mistake", |rig| rig.log().contains("is not applied"));
    assert_eq!(verbosity(&rig), json!(4));
    rig.config(&[("/mode", json!("iptables"))]);
    let status = rig.exit();
    assert_eq!(status.code(), Some(1));
    let log = rig.log();
    assert!(log.contains("content of the proxy server's configuration file was updated"), "{log}");
    assert!(log.contains("mode"), "{log}");
}

#[test]
fn addresses_of_node_ports_follow_the_configuration_and_the_node_without_a_restart() {
    let mut rig = running(&[nftables()]);
    rig.api.load([balanced("web", 10, 30996), endpoints("web", 1, false)]).expect("complete objects");
    let answers = |rig: &Rig, address: [u8; 4]| {
        rig.get_at(SocketAddr::from((address, 30996)), "/").is_some_and(|answer| answer.code == 200)
    };
    let (first, second, loopback) = ([10, 0, 0, 1], [10, 0, 0, 2], [127, 0, 0, 1]);
    // In nftables mode, no list means the primary addresses.
    rig.eventually("the primary address", |rig| answers(rig, first));
    assert!(!answers(&rig, loopback));
    rig.ip("address add 10.0.0.2/24 dev pods\n");
    let mut moved = node(json!({}));
    moved["status"]["addresses"][0]["address"] = json!("10.0.0.2");
    rig.api.apply(moved).expect("a complete object");
    rig.eventually("the new primary address", |rig| answers(rig, second) && !answers(rig, first));
    rig.config(&[nftables(), ("/nodePortAddresses", json!(["all"]))]);
    rig.eventually("all addresses", |rig| {
        [first, second, loopback].iter().all(|address| answers(rig, *address))
    });
}

#[test]
fn a_taken_port_is_tried_again_or_ends_the_process() {
    let mut rig = Rig::new();
    let held = rig.hold(IpAddr::V4(Ipv4Addr::UNSPECIFIED), HEALTH);
    rig.config(&[nftables()]);
    rig.start_and_settle();
    assert!(rig.log().contains("proxy healthz"), "{}", rig.log());
    drop(held);
    rig.eventually("health is served", |rig| rig.code(HEALTH, "/livez") == Some(200));

    let mut rig = Rig::new();
    let _held = rig.hold(IpAddr::V4(Ipv4Addr::UNSPECIFIED), HEALTH);
    rig.config(&[nftables(), ("/bindAddressHardFail", json!(true))]);
    rig.start();
    assert_eq!(rig.exit().code(), Some(1));
    assert!(rig.log().contains("failed to start proxy healthz on 0.0.0.0:10256"), "{}", rig.log());
    assert_eq!(rig.events("FailedToStartProxierHealthcheck").len(), 1);
}

#[test]
fn a_change_of_the_nodes_pod_cidrs_ends_the_process_where_they_matter() {
    let mut rig = Rig::new();
    let cidrs = |third: u8| {
        let v4 = format!("10.244.{third}.0/24");
        node(json!({ "podCIDR": v4, "podCIDRs": [v4, "fd00:244::/64"] }))
    };
    rig.api.apply(cidrs(1)).expect("a complete object");
    rig.config(&[nftables(), ("/detectLocalMode", json!("NodeCIDR")), ("/clusterCIDR", json!(""))]);
    rig.start_and_settle();
    rig.api.apply(cidrs(2)).expect("a complete object");
    assert_eq!(rig.exit().code(), Some(1));
    assert!(rig.log().contains("podCIDRs changed"), "{}", rig.log());
}

/// The series that kube-proxy shows after its first sync, with the values of their labels.
fn shows_what_kube_proxy_shows(mode: &str) {
    let mut rig = running(&[("/mode", json!(mode))]);
    rig.api.load([balanced("web", 10, 30997), endpoints("web", 1, false)]).expect("complete objects");
    let series = |rig: &Rig, name: &str, labels: &str| {
        let text = rig.get(METRICS, "/metrics").map(|answer| answer.body).unwrap_or_default();
        let wanted: Vec<String> = labels
            .split(';')
            .filter(|label| !label.is_empty())
            .map(|label| {
                let (key, value) = label.split_once('=').expect("a label and its value");
                format!("{key}=\"{value}\"")
            })
            .collect();
        text.lines().any(|line| {
            let rest = line.strip_prefix(name).unwrap_or_default();
            rest.starts_with(['{', ' ']) && wanted.iter().all(|label| rest.contains(label))
        })
    };
    let mut expected = vec![
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", ""),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", ""),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", ""),
        ("kubeproxy_sync_proxy_rules_service_changes_total", ""),
    ];
    for family in ["ip_family=IPv4", "ip_family=IPv6"] {
        expected.extend([
            ("kubeproxy_sync_full_proxy_rules_duration_seconds_bucket", family),
            ("kubeproxy_sync_proxy_rules_duration_seconds_bucket", family),
            ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", family),
            ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", family),
        ]);
    }
    for labels in ["ip_family=IPv4;traffic_policy=external", "ip_family=IPv6;traffic_policy=internal"] {
        expected.push(("kubeproxy_sync_proxy_rules_no_local_endpoints_total", labels));
    }
    if mode == "iptables" {
        for labels in ["ip_family=IPv4;table=nat", "ip_family=IPv6;table=filter"] {
            expected.push(("kubeproxy_sync_proxy_rules_iptables_total", labels));
            expected.push(("kubeproxy_sync_proxy_rules_iptables_last", labels));
        }
    }
    for (name, labels) in expected {
        rig.eventually(&format!("{name} {labels}"), |rig| series(rig, name, labels));
    }
    let text = rig.get(METRICS, "/metrics").expect("an answer").body;
    assert!(
        text.contains("rest_client_requests_total{code=\"200\",host=\"127.0.0.1:6443\",method=\"GET\"}"),
        "{text}"
    );
    for name in
        ["process_resident_memory_bytes", "kubernetes_build_info", "rest_client_request_duration_seconds"]
    {
        assert!(text.contains(&format!("\n{name}")), "{name}");
    }
}

#[test]
fn metrics_of_nftables_mode_are_those_of_kube_proxy() {
    shows_what_kube_proxy_shows("nftables");
}

/// An API server of known slowness, so that it is known where the time of the first sync goes.
#[test]
fn a_first_sync_that_waits_for_the_api_server_says_so_and_tells_all_its_phases() {
    const DELAY: f64 = 0.7;
    for mode in ["nftables", "iptables"] {
        let mut rig = Rig::new();
        rig.api.load([balanced("web", 10, 30997), endpoints("web", 1, false)]).expect("complete objects");
        rig.api.set_faults(|faults| faults.delay = Duration::from_secs_f64(DELAY));
        rig.config(&[("/mode", json!(mode))]);
        let begun = rig::now();
        rig.start_and_settle();
        let all = begun.elapsed().as_secs_f64();
        let text = rig.get(METRICS, "/metrics").expect("an answer").body;
        let phase = |name: &str| -> f64 {
            let family = if ["list", "decode"].contains(&name) { "" } else { "ip_family=\"IPv4\"," };
            let series = format!("switchyard_first_sync_seconds{{{family}phase=\"{name}\"}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&*series));
            value.unwrap_or_else(|| panic!("{mode}: {name} is not told")).parse().expect("a number")
        };
        assert!(phase("list") >= DELAY, "{mode}: {} s for lists", phase("list"));
        let mut sum = phase("list");
        for name in ["decode", "plan", "encode", "kernel"] {
            assert!(phase(name) > 0.0, "{mode}: {} s of {name}", phase(name));
            sum += phase(name);
        }
        // However busy the machine is, no second is told twice.
        assert!(sum <= all, "{mode}: the phases are {sum} s, all of it {all} s");
    }
}

#[test]
fn metrics_of_iptables_mode_are_those_of_kube_proxy() {
    shows_what_kube_proxy_shows("iptables");
}

#[test]
fn metrics_are_for_the_node_only_unless_asked_for_otherwise() {
    let rig = running(&[nftables()]);
    let outside = SocketAddr::from(([10, 0, 0, 1], METRICS));
    assert!(rig.get_at(outside, "/metrics").is_none());
    assert_eq!(
        rig.get_at(SocketAddr::from(([10, 0, 0, 1], HEALTH)), "/livez").map(|answer| answer.code),
        Some(200)
    );
}

#[test]
fn wrong_arguments_and_configurations_end_with_one_and_say_why() {
    let run = |arguments: &[&str]| {
        let output =
            Command::new(program().expect("kube-proxy was built")).args(arguments).output().expect("it runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (arguments, reason) in [
        (&["--no-such-flag"][..], "unknown flag: --no-such-flag"),
        (&["run"], "does not take any arguments"),
        (&["--config=/no/such/file"], "cannot read the configuration file /no/such/file"),
        (
            &["--proxy-mode=userspace"],
            "mode: Invalid value: \"userspace\": must be iptables, ipvs, nftables or blank",
        ),
        (&["--feature-gates=NoSuchGate=true"], "unrecognized feature gate: NoSuchGate"),
    ] {
        let (code, stderr) = run(arguments);
        assert_eq!(code, Some(1), "{arguments:?}");
        assert!(stderr.contains(reason), "{arguments:?}: {stderr}");
    }
    let version = Command::new(program().expect("built")).arg("--version").output().expect("it runs");
    assert_eq!(String::from_utf8_lossy(&version.stdout), "Kubernetes v1.36.2\n");
}

#[test]
fn events_that_are_forbidden_disturb_nothing() {
    let mut rig = Rig::new();
    rig.api.set_faults(|faults| {
        faults.refuse.insert("events".into(), 403);
    });
    rig.config(&[nftables()]);
    rig.start_and_settle();
    rig.eventually("health", |rig| rig.code(HEALTH, "/healthz") == Some(200));
    sleep(Duration::from_millis(300));
    assert!(rig.ended().is_none());
    let dropped = |rig: &Rig| {
        let text = rig.get(METRICS, "/metrics").map(|answer| answer.body).unwrap_or_default();
        text.contains("switchyard_events_dropped_total{reason=\"forbidden\"}")
    };
    rig.eventually("the count", dropped);
}
