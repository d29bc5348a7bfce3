//! The API objects as the oracle reads them: straight from JSON, lenient, and unlike the engine's own reading.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde_json::Value;

use crate::network::{Family, Protocol};

/// A Service that a kube-proxy is responsible for.
#[derive(Debug, Clone)]
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) created: String,
    pub(super) cluster_ips: Vec<IpAddr>,
    pub(super) external_ips: Vec<IpAddr>,
    pub(super) load_balancer_ips: Vec<IpAddr>,
    pub(super) source_ranges: Option<Vec<IpNet>>,
    pub(super) internal_local: bool,
    /// Set only where there is any way in from outside.
    pub(super) external_local: bool,
    pub(super) ports: Vec<Port>,
}

#[derive(Debug, Clone)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    pub(super) node_port: Option<u16>,
}

/// One endpoint of one slice port.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub(super) at: SocketAddr,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) node: String,
    pub(super) hinted_zones: Vec<String>,
    pub(super) hinted_nodes: Vec<String>,
}

pub(super) fn service(object: &Value) -> Option<Service> {
    let (metadata, spec) = (&object["metadata"], &object["spec"]);
    let foreign = metadata["labels"].get("service.kubernetes.io/service-proxy-name").is_some();
    let mut cluster_ips = addresses(&spec["clusterIPs"]);
    if cluster_ips.is_empty() {
        cluster_ips.extend(address(&spec["clusterIP"]));
    }
    if foreign || spec["type"] == "ExternalName" || cluster_ips.is_empty() || spec["clusterIP"] == "None" {
        return None;
    }
    let ingress = items(&object["status"]["loadBalancer"]["ingress"]);
    let load_balancer_ips: Vec<IpAddr> = ingress
        .iter()
        .filter(|entry| entry["ipMode"].is_null() || entry["ipMode"] == "VIP")
        .filter_map(|entry| address(&entry["ip"]))
        .collect();
    let external_ips = addresses(&spec["externalIPs"]);
    let ports: Vec<Port> = items(&spec["ports"])
        .iter()
        .filter_map(|port| {
            Some(Port {
                name: text(&port["name"]),
                protocol: protocol(&port["protocol"])?,
                port: number(&port["port"])?,
                node_port: number(&port["nodePort"]),
            })
        })
        .collect();
    let from_outside = !load_balancer_ips.is_empty()
        || !external_ips.is_empty()
        || ports.iter().any(|port| port.node_port.is_some());
    let ranges = items(&spec["loadBalancerSourceRanges"]);
    Some(Service {
        namespace: text(&metadata["namespace"]),
        name: text(&metadata["name"]),
        created: text(&metadata["creationTimestamp"]),
        cluster_ips,
        external_ips,
        load_balancer_ips,
        source_ranges: (!ranges.is_empty())
            .then(|| ranges.iter().filter_map(|range| text(range).trim().parse().ok()).collect()),
        internal_local: spec["internalTrafficPolicy"] == "Local",
        external_local: from_outside && spec["externalTrafficPolicy"] == "Local",
        ports,
    })
}

/// The endpoints that a slice gives a Service port, if it belongs to that Service and family.
pub(super) fn endpoints(slice: &Value, service: &Service, port: &Port, family: Family) -> Vec<Endpoint> {
    let labels = &slice["metadata"]["labels"];
    let belongs = labels["kubernetes.io/service-name"] == service.name.as_str()
        && slice["metadata"]["namespace"] == service.namespace.as_str()
        && labels.get("service.kubernetes.io/headless").is_none();
    let wanted_type = if family == Family::V4 { "IPv4" } else { "IPv6" };
    if !belongs || slice["addressType"] != wanted_type {
        return Vec::new();
    }
    let target_ports = items(&slice["ports"]).iter().filter(|slice_port| {
        slice_port["name"].as_str() == Some(&port.name)
            && protocol(&slice_port["protocol"]) == Some(port.protocol)
    });
    let target_ports: Vec<u16> = target_ports.filter_map(|slice_port| number(&slice_port["port"])).collect();
    let mut found = Vec::new();
    for endpoint in items(&slice["endpoints"]) {
        let Some(address) = endpoint["addresses"].get(0).and_then(address) else { continue };
        let condition = |name: &str, unset: bool| endpoint["conditions"][name].as_bool().unwrap_or(unset);
        let hinted =
            |key: &str| items(&endpoint["hints"][key]).iter().map(|hint| text(&hint["name"])).collect();
        found.extend(target_ports.iter().map(|port| Endpoint {
            at: SocketAddr::new(address, *port),
            ready: condition("ready", true),
            serving: condition("serving", true),
            terminating: condition("terminating", false),
            node: text(&endpoint["nodeName"]),
            hinted_zones: hinted("forZones"),
            hinted_nodes: hinted("forNodes"),
        }));
    }
    found
}

pub(super) fn networks(list: &Value) -> Vec<IpNet> {
    items(list).iter().filter_map(|network| text(network).parse().ok()).collect()
}

/// The addresses by which Kubernetes knows a node: one per family, internal ones first.
pub(super) fn node_addresses(node: &Value) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for entry in items(&node["status"]["addresses"]).iter().filter(|entry| entry["type"] == wanted) {
            if let Some(address) = address(&entry["address"])
                && found.iter().all(|known| known.is_ipv4() != address.is_ipv4())
            {
                found.push(address);
            }
        }
    }
    found
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn address(value: &Value) -> Option<IpAddr> {
    value.as_str()?.parse().ok()
}

fn addresses(value: &Value) -> Vec<IpAddr> {
    items(value).iter().filter_map(address).collect()
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

fn protocol(value: &Value) -> Option<Protocol> {
    match value.as_str() {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}
