use serde_json::json;

use super::*;

fn service(spec: serde_json::Value) -> Translated<model::Service> {
    let object = json!({
        "metadata": {"namespace": "ns", "name": "s", "creationTimestamp": "2026-01-02T03:04:05Z",
                     "managedFields": [{"manager": "x"}]},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": [
            {"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"},
            {"ip": "198.51.100.3", "ipMode": "VIP"}, {"hostname": "lb.example"}]}},
    });
    serde_json::from_value::<Service>(object).expect("decodes").translate(true)
}

#[test]
fn headless_and_external_name_services_are_not_ours() {
    assert!(service(json!({"clusterIP": "None"})).object.is_none());
    assert!(service(json!({"clusterIP": ""})).object.is_none());
    assert!(service(json!({"type": "ExternalName", "clusterIP": "10.0.0.1"})).object.is_none());
}

#[test]
fn load_balancer_ips_are_those_in_vip_mode() {
    let parsed = service(json!({"clusterIP": "10.0.0.1", "type": "LoadBalancer"})).object.expect("ours");
    let expected: Vec<IpAddr> =
        ["198.51.100.1", "198.51.100.3"].iter().map(|ip| ip.parse().expect("literal")).collect();
    assert_eq!(*parsed.load_balancer_ips, *expected);
    assert_eq!(parsed.created, 1_767_323_045);
}

#[test]
fn a_bad_value_is_left_out_and_named_and_the_rest_stays() {
    let translated = service(json!({
        "clusterIP": "10.0.0.1", "externalIPs": ["1.2.3.4", "nonsense"],
        "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "10.0.0.0/99"],
        "ports": [{"port": 80}, {"name": "big", "port": 70000}, {"name": "odd", "port": 1, "protocol": "ICMP"}],
    }));
    let parsed = translated.object.expect("ours");
    assert_eq!(parsed.external_ips.len(), 1);
    assert_eq!(parsed.source_ranges.as_deref().map(<[IpNet]>::len), Some(1));
    assert_eq!(parsed.ports.len(), 1);
    assert_eq!(translated.complaints.len(), 4, "{:?}", translated.complaints);
    assert!(translated.complaints.contains(&"port \"odd\" (ICMP, 1) is ignored".to_owned()));
}

#[test]
fn external_ips_that_do_not_count_are_known_as_such() {
    let object = json!({
        "metadata": {"namespace": "ns", "name": "s"},
        "spec": {"clusterIP": "10.0.0.1", "externalIPs": ["1.2.3.4"], "externalTrafficPolicy": "Local"},
    });
    let object: Service = serde_json::from_value(object).expect("decodes");
    for (count, expected) in [(true, (1, 0)), (false, (0, 1))] {
        let parsed = object.translate(count).object.expect("ours");
        assert_eq!((parsed.external_ips.len(), parsed.ignored_external_ips.len()), expected);
        assert_eq!(parsed.external_policy, TrafficPolicy::Local);
    }
}

#[test]
fn affinity_defaults_to_three_hours() {
    let parsed =
        service(json!({"clusterIP": "10.0.0.1", "sessionAffinity": "ClientIP"})).object.expect("ours");
    assert_eq!(parsed.affinity, Some(10_800));
    let parsed = service(json!({"clusterIP": "10.0.0.1", "sessionAffinity": "ClientIP",
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}));
    assert_eq!(parsed.object.expect("ours").affinity, Some(7));
}

#[test]
fn a_health_check_node_port_needs_a_load_balancer_with_policy_local() {
    let spec = |kind, policy| json!({"clusterIP": "10.0.0.1", "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": 32000});
    let port = |kind, policy| service(spec(kind, policy)).object.expect("ours").health_check_node_port;
    assert_eq!(port("LoadBalancer", "Local"), Some(32000));
    assert_eq!(port("LoadBalancer", "Cluster"), None);
    assert_eq!(port("NodePort", "Local"), None);
}

#[test]
fn absent_conditions_have_their_defaults_and_only_the_first_address_counts() {
    let slice = json!({
        "metadata": {"namespace": "ns", "name": "s-1", "labels": {"kubernetes.io/service-name": "s"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-02T03:04:05.5Z"}},
        "addressType": "IPv4", "ports": [{"name": "", "port": 8080}, {"name": "none"}],
        "endpoints": [
            {"addresses": ["10.1.0.1", "10.1.0.2"], "nodeName": "here"},
            {"addresses": ["10.1.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["fd00::1"]},
            {"addresses": ["010.001.0.4"], "hints": {"forNodes": [{"name": "here"}], "forZones": [{"name": "a"}]}},
        ],
    });
    let translated = serde_json::from_value::<EndpointSlice>(slice).expect("decodes").translate("here");
    let parsed = translated.object.expect("ours");
    assert_eq!(parsed.trigger_time, Some(1_767_323_045_500_000_000));
    assert_eq!(parsed.ports.len(), 1);
    assert_eq!(parsed.endpoints.len(), 3);
    assert!(parsed.endpoints[0].ready && parsed.endpoints[0].serving && !parsed.endpoints[0].terminating);
    assert!(parsed.endpoints[0].local);
    assert!(!parsed.endpoints[1].ready && parsed.endpoints[1].serving && parsed.endpoints[1].terminating);
    assert_eq!(parsed.endpoints[2].addr.to_string(), "10.1.0.4");
    assert_eq!(parsed.endpoints[2].for_nodes, NodeHint::Here);
    assert_eq!(translated.complaints.len(), 2, "{:?}", translated.complaints);
}
