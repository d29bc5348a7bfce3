//! Objects of the API as the workload has them.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use super::{ENDPOINT_PORT, NAMESPACE, NODE};

/// 10.64.0.0/11, for endpoints.
const ENDPOINTS: u32 = 0x0a40_0000;

pub(super) fn canary_name(index: usize) -> String {
    format!("canary-{index:02}")
}

pub(super) fn endpoint_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(ENDPOINTS + 1 + u32::try_from(index).expect("checked against the range"))
}

/// One endpoint in twenty is on the node itself.
pub(super) fn endpoint_object(index: usize) -> Value {
    let node = if index.is_multiple_of(20) { NODE.to_owned() } else { format!("node-{}", index % 20) };
    json!({
        "addresses": [endpoint_address(index).to_string()],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": node,
        "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": format!("pod-{index}")},
    })
}

pub(super) fn node_object() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "uid": "5ca1e000-0000-0000-0000-000000000000"},
        "spec": {"podCIDR": "10.96.0.0/24", "podCIDRs": ["10.96.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.50.1"}]},
    })
}

pub(super) fn cluster_ip_service(name: &str, address: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": name}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address.ip().to_string(), "clusterIPs": [address.ip().to_string()],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "selector": {"app": name},
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "main", "port": address.port(), "targetPort": ENDPOINT_PORT, "protocol": "TCP"}],
        },
    })
}

pub(super) fn slice_object(service: &str, number: usize, endpoints: Vec<Value>) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-{number}"), "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "scale"}},
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": ENDPOINT_PORT, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}
