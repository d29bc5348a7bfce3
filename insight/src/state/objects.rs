//! Services and EndpointSlices as API objects, with the fields that the engine keeps: `kubectl apply` takes them, and so does
//! whatever else reads a cluster. And back.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use jiff::Timestamp;
use proxy_core::{
    model::{
        Endpoint, Family, NodeHint, OPTION_PREFIX, ObjectName, Protocol, Service, ServicePort, Slice,
        SlicePort, TrafficPolicy, option,
    },
    store::share_zones,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Header;
use crate::text;

/// The API server's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// The engine knows that a hint is for another node, not for which.
const ELSEWHERE: &str = "elsewhere";

type Pairs = std::collections::BTreeMap<String, String>;

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    namespace: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    creation_timestamp: Option<Seconds>,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    labels: Pairs,
    #[serde(skip_serializing_if = "Pairs::is_empty")]
    annotations: Pairs,
}

/// A time of whole seconds.
#[derive(Debug)]
struct Seconds(i64);

impl Serialize for Seconds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Timestamp::from_second(self.0).unwrap_or(Timestamp::MAX))
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed: Result<Timestamp, _> = text.parse();
        parsed.map(|time| Self(time.as_second())).map_err(serde::de::Error::custom)
    }
}

/// A Service in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceObject {
    api_version: String,
    metadata: Metadata,
    spec: ServiceSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    status: Option<ServiceStatus>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "clusterIP")]
    cluster_ip: String,
    #[serde(rename = "clusterIPs", with = "text::list")]
    cluster_ips: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_families: Vec<String>,
    #[serde(rename = "externalIPs", with = "text::list", skip_serializing_if = "Vec::is_empty")]
    external_ips: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer_source_ranges: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    internal_traffic_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_traffic_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_affinity: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_affinity_config: Option<AffinityConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health_check_node_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allocate_load_balancer_node_ports: Option<bool>,
    ports: Vec<PortObject>,
}

#[derive(Debug, Serialize, Deserialize)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: ClientIp,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClientIp {
    timeout_seconds: u32,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PortObject {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(default = "tcp", with = "text::of_protocol")]
    protocol: Protocol,
    port: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_port: Option<u16>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancerStatus,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct LoadBalancerStatus {
    ingress: Vec<Ingress>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ingress {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_mode: Option<String>,
}

const fn tcp() -> Protocol {
    Protocol::Tcp
}

/// An EndpointSlice in a file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSliceObject {
    api_version: String,
    metadata: Metadata,
    #[serde(with = "text::of_family")]
    address_type: Family,
    ports: Vec<SlicePortObject>,
    endpoints: Vec<EndpointObject>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SlicePortObject {
    // An absent name and an empty one are the same to the engine, but not to everybody.
    #[serde(default)]
    name: String,
    #[serde(default = "tcp", with = "text::of_protocol")]
    protocol: Protocol,
    port: u16,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointObject {
    /// Only the first counts.
    addresses: Vec<IpAddr>,
    #[serde(default)]
    conditions: Conditions,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hints: Option<Hints>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Conditions {
    ready: bool,
    serving: bool,
    terminating: bool,
}

/// As the API defines conditions that are not stated.
impl Default for Conditions {
    fn default() -> Self {
        Self { ready: true, serving: true, terminating: false }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hints {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    for_zones: Vec<Named>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    for_nodes: Vec<Named>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Named {
    name: String,
}

/// What the objects that are read share.
#[derive(Debug, Default)]
pub(super) struct Reading {
    zones: Option<Arc<[Box<str>]>>,
}

impl ServiceObject {
    pub(super) fn of(service: &Service) -> Self {
        let external_local = service.external_policy == TrafficPolicy::Local;
        let external: Vec<IpAddr> =
            service.external_ips.iter().chain(&service.ignored_external_ips).copied().collect();
        let node_ports = service.ports.iter().any(|port| port.node_port.is_some());
        let balanced = !service.load_balancer_ips.is_empty()
            || service.source_ranges.is_some()
            || service.health_check_node_port.is_some()
            // Else the policy would mean nothing.
            || external_local && external.is_empty() && !node_ports;
        let kind = match (balanced, node_ports) {
            (true, _) => "LoadBalancer",
            (false, true) => "NodePort",
            (false, false) => "ClusterIP",
        };
        let ports = service.ports.iter().map(|port| PortObject {
            name: port.name.to_string(),
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port,
        });
        let policy = |policy| (policy == TrafficPolicy::Local).then(|| "Local".to_owned());
        let ranges = service.source_ranges.as_deref().map(|ranges| {
            let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            // There was a list, and nothing of it could be read.
            if texts.is_empty() { vec!["none".to_owned()] } else { texts }
        });
        let ingress = service
            .load_balancer_ips
            .iter()
            .map(|ip| Ingress { ip: Some(*ip), ip_mode: Some("VIP".to_owned()) });
        let options = service.options.iter();
        Self {
            api_version: "v1".to_owned(),
            metadata: Metadata {
                namespace: service.name.namespace().to_owned(),
                name: service.name.name().to_owned(),
                creation_timestamp: (service.created != i64::MAX).then_some(Seconds(service.created)),
                labels: Pairs::new(),
                annotations: options
                    .map(|(name, value)| (format!("{OPTION_PREFIX}{name}"), value.to_string()))
                    .collect(),
            },
            spec: ServiceSpec {
                kind: kind.to_owned(),
                cluster_ip: service.cluster_ips.first().map(ToString::to_string).unwrap_or_default(),
                cluster_ips: service.cluster_ips.to_vec(),
                ip_families: service
                    .cluster_ips
                    .iter()
                    .map(|ip| text::family(Family::of(*ip)).to_owned())
                    .collect(),
                external_ips: external,
                load_balancer_source_ranges: ranges,
                internal_traffic_policy: policy(service.internal_policy),
                external_traffic_policy: policy(service.external_policy),
                session_affinity: service.affinity.map(|_| "ClientIP".to_owned()),
                session_affinity_config: service
                    .affinity
                    .map(|timeout_seconds| AffinityConfig { client_ip: ClientIp { timeout_seconds } }),
                health_check_node_port: service.health_check_node_port,
                allocate_load_balancer_node_ports: (balanced && !node_ports).then_some(false),
                ports: ports.collect(),
            },
            status: (!service.load_balancer_ips.is_empty())
                .then(|| ServiceStatus { load_balancer: LoadBalancerStatus { ingress: ingress.collect() } }),
        }
    }

    pub(super) fn parse(self, header: &Header) -> Result<Service, String> {
        let Self { metadata, spec, status, .. } = self;
        let name = name(&metadata)?;
        let is_local = |policy: Option<&str>| {
            if policy == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
        };
        let counts = header.allow_service_external_ips;
        let external_policy = match &*spec.kind {
            "NodePort" | "LoadBalancer" => is_local(spec.external_traffic_policy.as_deref()),
            // Without node port and load balancer a Service is external by its externalIPs.
            _ if !spec.external_ips.is_empty() => is_local(spec.external_traffic_policy.as_deref()),
            _ => TrafficPolicy::Cluster,
        };
        let external: Box<[IpAddr]> = spec.external_ips.into();
        let (external_ips, ignored_external_ips) =
            if counts { (external, Box::default()) } else { (Box::default(), external) };
        let ingress = status.unwrap_or_default().load_balancer.ingress;
        let ports = spec.ports.into_iter().map(|port| ServicePort {
            name: port.name.into(),
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port,
        });
        let ranges = spec.load_balancer_source_ranges.filter(|ranges| !ranges.is_empty());
        let options = metadata.annotations.iter();
        Ok(Service {
            name,
            created: metadata.creation_timestamp.map_or(i64::MAX, |time| time.0),
            cluster_ips: spec.cluster_ips.into(),
            external_ips,
            ignored_external_ips,
            load_balancer_ips: ingress
                .into_iter()
                .filter(|ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"))
                .filter_map(|ingress| ingress.ip)
                .collect(),
            source_ranges: ranges
                .map(|ranges| ranges.iter().filter_map(|range| range.trim().parse::<IpNet>().ok()).collect()),
            internal_policy: is_local(spec.internal_traffic_policy.as_deref()),
            external_policy,
            affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
                let given = spec.session_affinity_config.map(|config| config.client_ip.timeout_seconds);
                given.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_AFFINITY_SECONDS)
            }),
            health_check_node_port: spec
                .health_check_node_port
                .filter(|_| spec.kind == "LoadBalancer" && external_policy == TrafficPolicy::Local),
            ports: ports.collect(),
            options: options
                .filter_map(|(name, value)| option(name.strip_prefix(OPTION_PREFIX)?, value))
                .collect(),
        })
    }
}

impl EndpointSliceObject {
    pub(super) fn of(slice: &Slice, node: &str) -> Self {
        let named = |name: &str| Named { name: name.to_owned() };
        let elsewhere = if node == ELSEWHERE { "elsewhere-else" } else { ELSEWHERE };
        let endpoints = slice.endpoints.iter().map(|endpoint| {
            let for_zones: Vec<Named> =
                endpoint.for_zones.iter().flat_map(|zones| zones.iter()).map(|zone| named(zone)).collect();
            let for_nodes = match endpoint.for_nodes {
                NodeHint::Absent => Vec::new(),
                NodeHint::Elsewhere => vec![named(elsewhere)],
                NodeHint::Here => vec![named(node)],
            };
            let hinted = !for_zones.is_empty() || !for_nodes.is_empty();
            EndpointObject {
                addresses: vec![endpoint.addr],
                conditions: Conditions {
                    ready: endpoint.ready,
                    serving: endpoint.serving,
                    terminating: endpoint.terminating,
                },
                node_name: endpoint.local.then(|| node.to_owned()),
                hints: hinted.then_some(Hints { for_zones, for_nodes }),
            }
        });
        let ports = slice.ports.iter().map(|port| SlicePortObject {
            name: port.name.to_string(),
            protocol: port.protocol,
            port: port.port,
        });
        let trigger = slice.trigger_time.and_then(|at| Timestamp::from_nanosecond(at.into()).ok());
        Self {
            api_version: "discovery.k8s.io/v1".to_owned(),
            metadata: Metadata {
                namespace: slice.name.namespace().to_owned(),
                name: slice.name.name().to_owned(),
                creation_timestamp: None,
                labels: Pairs::from([(SERVICE_NAME.to_owned(), slice.service.name().to_owned())]),
                annotations: trigger
                    .map(|at| (TRIGGER_TIME.to_owned(), at.to_string()))
                    .into_iter()
                    .collect(),
            },
            address_type: slice.family,
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        }
    }

    pub(super) fn parse(self, node: &str, reading: &mut Reading) -> Result<Slice, String> {
        let Self { metadata, address_type, ports, endpoints, .. } = self;
        let name = name(&metadata)?;
        let service = metadata.labels.get(SERVICE_NAME).ok_or_else(|| format!("no label {SERVICE_NAME}"))?;
        let service = ObjectName::new(&metadata.namespace, service);
        let mut all = Vec::with_capacity(endpoints.len());
        for EndpointObject { addresses, conditions, node_name, hints } in endpoints {
            let Some(addr) = addresses.first().copied() else { continue };
            if Family::of(addr) != address_type {
                return Err(format!("{addr} is not of family {address_type}"));
            }
            let hints = hints.unwrap_or_default();
            let zones: Vec<Box<str>> = hints.for_zones.into_iter().map(|zone| zone.name.into()).collect();
            let for_nodes = match &*hints.for_nodes {
                [] => NodeHint::Absent,
                nodes if nodes.iter().any(|named| named.name == node) => NodeHint::Here,
                _ => NodeHint::Elsewhere,
            };
            all.push(Endpoint {
                addr,
                ready: conditions.ready,
                serving: conditions.serving,
                terminating: conditions.terminating,
                local: node_name.as_deref() == Some(node),
                for_nodes,
                for_zones: (!zones.is_empty()).then(|| share_zones(zones, &mut reading.zones)),
            });
        }
        let ports = ports.into_iter().map(|port| SlicePort {
            name: port.name.into(),
            protocol: port.protocol,
            port: port.port,
        });
        let trigger = metadata.annotations.get(TRIGGER_TIME).and_then(|at| at.parse::<Timestamp>().ok());
        Ok(Slice {
            name,
            service,
            family: address_type,
            ports: ports.collect(),
            endpoints: all.into(),
            trigger_time: trigger.and_then(|at| i64::try_from(at.as_nanosecond()).ok()),
        })
    }
}

fn name(metadata: &Metadata) -> Result<ObjectName, String> {
    if metadata.name.is_empty() || metadata.namespace.is_empty() {
        return Err("an object without a name".to_owned());
    }
    Ok(ObjectName::new(&metadata.namespace, &metadata.name))
}

/// A Service as an API object.
pub fn service_object(service: &Service) -> Value {
    of_kind("Service", &ServiceObject::of(service))
}

/// An EndpointSlice as an API object, as the node of this name knows it.
pub fn slice_object(slice: &Slice, node: &str) -> Value {
    of_kind("EndpointSlice", &EndpointSliceObject::of(slice, node))
}

fn of_kind(kind: &str, object: &impl Serialize) -> Value {
    // What serialises into strings and numbers only cannot fail.
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["kind"] = json!(kind);
    value
}

/// The Node and the ServiceCIDRs, as far as they are known.
pub(super) fn surroundings(header: &Header) -> Vec<Value> {
    let facts = &header.facts;
    let mut labels = json!({});
    if let Some(zone) = &facts.zone {
        labels["topology.kubernetes.io/zone"] = json!(zone);
    }
    let addresses = facts.node_ips.iter().map(|ip| json!({ "type": "InternalIP", "address": ip }));
    let addresses: Vec<Value> = addresses.collect();
    let mut all = vec![json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": header.node, "labels": labels },
        "status": { "addresses": addresses },
    })];
    if !facts.service_cidrs.is_empty() {
        let cidrs: Vec<String> = facts.service_cidrs.iter().map(ToString::to_string).collect();
        all.push(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": { "name": "kubernetes" }, "spec": { "cidrs": cidrs },
        }));
    }
    all
}
