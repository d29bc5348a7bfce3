//! The oracle against tables worked out by hand from Kubernetes' documentation.

use super::*;
use serde_json::json;

const CLIENT: Source =
    Source { kind: SourceKind::Elsewhere, address: IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 70, 100)) };
const NODE: Source =
    Source { kind: SourceKind::Node, address: IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 70, 1)) };
const POD: Source =
    Source { kind: SourceKind::LocalPod, address: IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 11)) };
const VIP: &str = "172.30.0.1:80";
const LB: &str = "198.51.100.1:80";
const NODE_PORT: &str = "192.168.50.1:30080";

fn settings() -> Settings {
    Settings {
        mode: Mode::Nftables,
        node_name: "node".to_owned(),
        detect_local: DetectLocal::Networks(vec!["10.0.0.0/16".parse().expect("a CIDR")]),
        masquerade_all: false,
        node_ports: NodePorts::Primary,
        localhost_node_ports: false,
        localhost_v6_node_ports: false,
        local_addresses: ["192.168.50.1", "192.168.70.1"].map(|a| a.parse().expect("an address")).to_vec(),
    }
}

fn service() -> Value {
    json!({
        "kind": "Service", "metadata": {"namespace": "d", "name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "LoadBalancer", "clusterIP": "172.30.0.1", "clusterIPs": ["172.30.0.1"],
                 "ports": [{"name": "http", "port": 80, "protocol": "TCP", "nodePort": 30080}]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}},
    })
}

fn endpoint(address: &str, node: &str, conditions: Value) -> Value {
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}

fn slice(endpoints: Vec<Value>) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "d", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints,
    })
}

fn here_and_there() -> Value {
    slice(vec![endpoint("10.0.1.11", "node", json!({})), endpoint("10.0.2.11", "node2", json!({}))])
}

fn objects(extra: &[Value]) -> Vec<Value> {
    let node = json!({
        "kind": "Node", "metadata": {"name": "node", "labels": {"topology.kubernetes.io/zone": "a"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.50.1"}]},
    });
    let cidr = json!({"kind": "ServiceCIDR", "spec": {"cidrs": ["172.30.0.0/16"]}});
    extra.iter().cloned().chain([node, cidr]).collect()
}

fn says(settings: Settings, extra: &[Value], source: Source, to: &str) -> String {
    let oracle = Oracle::new(settings, &objects(extra));
    oracle.verdict(source, Protocol::Tcp, to.parse().expect("address:port")).to_string()
}

fn with(mut object: Value, path: &str, value: Value) -> Value {
    *object.pointer_mut(path).expect("the path's parent exists") = value;
    object
}

#[test]
fn traffic_of_policy_cluster_goes_anywhere_and_is_masqueraded_unless_a_pod_uses_the_cluster_ip() {
    let world = [service(), here_and_there()];
    let masqueraded = "to one of 10.0.1.11:8080 (masqueraded) 10.0.2.11:8080 (masqueraded)";
    for to in [VIP, LB, NODE_PORT] {
        assert_eq!(says(settings(), &world, CLIENT, to), masqueraded, "{to}");
        assert_eq!(says(settings(), &world, NODE, to), masqueraded, "{to}");
    }
    let hairpin_only = "to one of 10.0.1.11:8080 (masqueraded) 10.0.2.11:8080";
    assert_eq!(says(settings(), &world, POD, VIP), hairpin_only);
    assert_eq!(says(settings(), &world, POD, NODE_PORT), masqueraded);
}

#[test]
fn external_policy_local_keeps_the_source_and_lets_pods_and_node_go_anywhere() {
    let mut local = service();
    local["spec"]["externalTrafficPolicy"] = json!("Local");
    let world = [local.clone(), here_and_there()];
    for to in [LB, NODE_PORT] {
        assert_eq!(says(settings(), &world, CLIENT, to), "to one of 10.0.1.11:8080");
        assert_eq!(
            says(settings(), &world, NODE, to),
            "to one of 10.0.1.11:8080 (masqueraded) 10.0.2.11:8080 (masqueraded)"
        );
        assert_eq!(
            says(settings(), &world, POD, to),
            "to one of 10.0.1.11:8080 (masqueraded) 10.0.2.11:8080"
        );
    }
    let elsewhere = [local, slice(vec![endpoint("10.0.2.11", "node2", json!({}))])];
    assert_eq!(says(settings(), &elsewhere, CLIENT, LB), "dropped");
    assert_eq!(says(settings(), &elsewhere, CLIENT, VIP), "to one of 10.0.2.11:8080 (masqueraded)");
    assert_eq!(says(settings(), &elsewhere, POD, LB), "to one of 10.0.2.11:8080");
    let blind = Settings { detect_local: DetectLocal::Never, ..settings() };
    assert_eq!(says(blind.clone(), &elsewhere, POD, LB), "dropped");
    assert_eq!(says(blind, &elsewhere, CLIENT, VIP), "to one of 10.0.2.11:8080");
}

#[test]
fn internal_policy_local_drops_without_a_local_endpoint_and_refuses_without_any() {
    let mut local = service();
    local["spec"]["internalTrafficPolicy"] = json!("Local");
    let elsewhere = slice(vec![endpoint("10.0.2.11", "node2", json!({}))]);
    assert_eq!(says(settings(), &[local.clone(), elsewhere], POD, VIP), "dropped");
    assert_eq!(says(settings(), &[local.clone(), slice(vec![])], POD, VIP), "refused");
    assert_eq!(
        says(settings(), &[local, here_and_there()], CLIENT, VIP),
        "to one of 10.0.1.11:8080 (masqueraded)"
    );
}

#[test]
fn terminating_endpoints_serve_only_while_none_is_ready() {
    let leaving = json!({"ready": false, "serving": true, "terminating": true});
    let gone = json!({"ready": false, "serving": false, "terminating": true});
    let unready = json!({"ready": false, "serving": false, "terminating": false});
    let mixed = |first: Value| {
        slice(vec![endpoint("10.0.1.11", "node", first), endpoint("10.0.2.11", "node2", leaving.clone())])
    };
    assert_eq!(
        says(settings(), &[service(), mixed(json!({}))], CLIENT, VIP),
        "to one of 10.0.1.11:8080 (masqueraded)"
    );
    assert_eq!(
        says(settings(), &[service(), mixed(gone.clone())], CLIENT, VIP),
        "to one of 10.0.2.11:8080 (masqueraded)"
    );
    let none = slice(vec![endpoint("10.0.1.11", "node", gone), endpoint("10.0.2.11", "node2", unready)]);
    assert_eq!(says(settings(), &[service(), none], CLIENT, VIP), "refused");
}

#[test]
fn hints_narrow_only_when_every_ready_endpoint_has_them_and_one_is_ours() {
    let hinted = |first: Value, second: Value| {
        let mut slice = here_and_there();
        slice["endpoints"][0]["hints"] = first;
        slice["endpoints"][1]["hints"] = second;
        slice
    };
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let says = |slice: Value| says(settings(), &[service(), slice], CLIENT, VIP);
    let both = "to one of 10.0.1.11:8080 (masqueraded) 10.0.2.11:8080 (masqueraded)";
    assert_eq!(says(hinted(zone("b"), zone("a"))), "to one of 10.0.2.11:8080 (masqueraded)");
    assert_eq!(says(hinted(zone("b"), zone("c"))), both);
    assert_eq!(says(hinted(zone("a"), Value::Null)), both);
    let node = |name: &str| json!({"forNodes": [{"name": name}], "forZones": [{"name": "a"}]});
    assert_eq!(says(hinted(node("node"), node("node2"))), "to one of 10.0.1.11:8080 (masqueraded)");
    assert_eq!(says(hinted(node("x"), node("y"))), both);
}

#[test]
fn source_ranges_close_the_load_balancer_address_only() {
    let mut restricted = service();
    restricted["spec"]["loadBalancerSourceRanges"] = json!([" 203.0.113.0/24", "nonsense"]);
    let world = [restricted.clone(), here_and_there()];
    assert_eq!(says(settings(), &world, CLIENT, LB), "dropped");
    assert!(says(settings(), &world, CLIENT, NODE_PORT).starts_with("to one of"));
    let far = Source { address: "203.0.113.9".parse().expect("an address"), ..CLIENT };
    assert!(says(settings(), &world, far, LB).starts_with("to one of"));
    let open =
        with(restricted.clone(), "/spec/loadBalancerSourceRanges", json!(["203.0.113.0/24", "0.0.0.0/0"]));
    assert!(says(settings(), &[open, here_and_there()], CLIENT, LB).starts_with("to one of"));
    let only_v6 = with(restricted.clone(), "/spec/loadBalancerSourceRanges", json!(["fd00::/8"]));
    assert!(says(settings(), &[only_v6, here_and_there()], CLIENT, LB).starts_with("to one of"));
    let iptables = Settings { mode: Mode::Iptables, ..settings() };
    assert_eq!(says(settings(), &[restricted.clone()], CLIENT, LB), "dropped");
    assert_eq!(says(iptables, &[restricted], CLIENT, LB), "refused");
}

#[test]
fn the_oldest_claim_to_an_address_wins() {
    let mut younger = service();
    younger["metadata"]["name"] = json!("api");
    younger["metadata"]["creationTimestamp"] = json!("2026-02-01T00:00:00Z");
    younger["spec"]["clusterIP"] = json!("172.30.0.2");
    younger["spec"]["clusterIPs"] = json!(["172.30.0.2"]);
    let mut theirs = slice(vec![endpoint("10.0.2.12", "node2", json!({}))]);
    theirs["metadata"]["labels"]["kubernetes.io/service-name"] = json!("api");
    let world = [younger, theirs, service(), here_and_there()];
    assert!(says(settings(), &world, CLIENT, LB).contains("10.0.1.11"));
    assert_eq!(says(settings(), &world, CLIENT, "172.30.0.2:80"), "to one of 10.0.2.12:8080 (masqueraded)");
    assert_eq!(says(settings(), &world[..2], CLIENT, LB), "to one of 10.0.2.12:8080 (masqueraded)");
}

#[test]
fn what_no_service_has_is_treated_as_the_mode_does() {
    let in_mode = |mode| Settings { mode, ..settings() };
    for (mode, port, address, vip) in [
        (Mode::Nftables, "refused", "dropped", "not translated"),
        (Mode::Iptables, "not translated", "not translated", "not translated"),
        (Mode::Ipvs, "refused", "not translated", "refused"),
    ] {
        let world = [service(), here_and_there()];
        assert_eq!(says(in_mode(mode), &world, CLIENT, "172.30.0.1:81"), port, "{mode:?}");
        assert_eq!(says(in_mode(mode), &world, CLIENT, "172.30.0.9:80"), address, "{mode:?}");
        assert_eq!(says(in_mode(mode), &world, CLIENT, "198.51.100.1:81"), vip, "{mode:?}");
    }
}

#[test]
fn services_of_others_and_headless_ones_do_not_exist() {
    let mut foreign = service();
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "x"});
    let external_name =
        with(with(service(), "/spec/type", json!("ExternalName")), "/spec/clusterIPs", json!([]));
    let headless =
        with(with(service(), "/spec/clusterIP", json!("None")), "/spec/clusterIPs", json!(["None"]));
    let external_name = with(external_name, "/spec/clusterIP", json!(""));
    for absent in [foreign, external_name, headless] {
        assert_eq!(says(settings(), &[absent, here_and_there()], CLIENT, LB), "not translated");
    }
    let mut hidden = here_and_there();
    hidden["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    assert_eq!(says(settings(), &[service(), hidden], CLIENT, VIP), "refused");
}

#[test]
fn node_ports_answer_on_the_chosen_addresses() {
    let world = [service(), here_and_there()];
    let other = "192.168.70.1:30080";
    assert_eq!(says(settings(), &world, CLIENT, other), "not translated");
    let everywhere = Settings { node_ports: NodePorts::Everywhere, localhost_node_ports: true, ..settings() };
    assert!(says(everywhere.clone(), &world, CLIENT, other).starts_with("to one of"));
    assert!(says(everywhere.clone(), &world, NODE, "127.0.0.1:30080").starts_with("to one of"));
    assert_eq!(says(everywhere, &world, CLIENT, "127.0.0.1:30080"), "not translated");
    let within = NodePorts::Within(vec!["192.168.70.0/24".parse().expect("a CIDR")]);
    let within = Settings { node_ports: within, ..settings() };
    assert_eq!(says(within.clone(), &world, CLIENT, NODE_PORT), "not translated");
    assert!(says(within, &world, CLIENT, other).starts_with("to one of"));
}
