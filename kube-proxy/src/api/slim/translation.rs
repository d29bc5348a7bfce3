//! From decoded objects to the engine's model: what is of use, and what had to be left out.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use proxy_core::{
    model::{self, Family, NodeHint, Protocol, TrafficPolicy},
    store::share_zones,
};

use super::{
    Conditions, Endpoint, EndpointSlice, Service, ServiceCidr, ServicePort,
    metadata::{ANNOTATION_TRIGGER_TIME, OPTION_PREFIX},
};
use crate::api::cluster_size;

const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
const LABEL_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// The API server's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// A translation: what the engine is to remember (`None`: nothing, the object is not ours), and what had to be left
/// out, for the log.
pub(crate) struct Translated<T> {
    pub(crate) object: Option<T>,
    pub(crate) complaints: Vec<String>,
}

impl Service {
    /// `external_ips`: whether `spec.externalIPs` counts (gate AllowServiceExternalIPs).
    pub(crate) fn translate(&self, external_ips: bool) -> Translated<model::Service> {
        let mut complaints = Vec::new();
        let object = self.parse(external_ips, &mut complaints);
        Translated { object, complaints }
    }

    fn parse(&self, use_external_ips: bool, complaints: &mut Vec<String>) -> Option<model::Service> {
        let spec = &self.spec;
        let kind = spec.kind.as_deref().unwrap_or("ClusterIP");
        let main = spec.cluster_ip.as_deref().unwrap_or_default();
        let is_served_by_another = self.metadata.labels.contains(LABEL_PROXY_NAME);
        if kind == "ExternalName" || main.is_empty() || main == "None" || is_served_by_another {
            return None;
        }
        let given = spec.cluster_ips.as_deref().filter(|ips| !ips.is_empty());
        let cluster_ips = match given {
            Some(ips) => addresses("clusterIPs", ips, complaints),
            None => addresses("clusterIP", &[main.to_owned()], complaints),
        };
        let given = addresses("externalIPs", spec.external_ips.as_deref().unwrap_or_default(), complaints);
        let is_external = !given.is_empty();
        let (external_ips, ignored_external_ips) =
            if use_external_ips { (given, Box::default()) } else { (Box::default(), given) };
        let ingress = self.status.load_balancer.iter().flat_map(|status| status.ingress.iter().flatten());
        let vips: Vec<String> = ingress
            .filter(|ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"))
            .filter_map(|ingress| ingress.ip.clone().filter(|ip| !ip.is_empty()))
            .collect();
        let load_balancer_ips = addresses("status.loadBalancer.ingress", &vips, complaints);
        let ranges = spec.load_balancer_source_ranges.as_deref().filter(|ranges| !ranges.is_empty());
        let external_policy = match (kind, spec.external_traffic_policy.as_deref()) {
            ("NodePort" | "LoadBalancer", Some("Local")) => TrafficPolicy::Local,
            // Without node port and load balancer a Service is external by its externalIPs.
            (_, Some("Local")) if is_external => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        let internal_policy = match spec.internal_traffic_policy.as_deref() {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let given = spec
                .session_affinity_config
                .as_ref()
                .and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
            given
                .and_then(|seconds| u32::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .unwrap_or(DEFAULT_AFFINITY_SECONDS)
        });
        let checked = kind == "LoadBalancer" && external_policy == TrafficPolicy::Local;
        let health_check_node_port = spec.health_check_node_port.filter(|_| checked).and_then(port_number);
        Some(model::Service {
            name: self.metadata.name(),
            created: self.metadata.created.unwrap_or(i64::MAX),
            cluster_ips,
            external_ips,
            ignored_external_ips,
            load_balancer_ips,
            source_ranges: ranges.map(|ranges| networks("loadBalancerSourceRanges", ranges, complaints)),
            internal_policy,
            external_policy,
            affinity,
            health_check_node_port,
            ports: spec.ports.iter().flatten().filter_map(|port| port.parse(complaints)).collect(),
            options: self.options(),
        })
    }

    fn options(&self) -> Box<[(Box<str>, Box<str>)]> {
        let all = self.metadata.annotations.iter();
        // Backends know them without the prefix.
        all.filter_map(|(key, value)| model::option(key.strip_prefix(OPTION_PREFIX)?, value)).collect()
    }
}

impl ServicePort {
    fn parse(&self, complaints: &mut Vec<String>) -> Option<model::ServicePort> {
        let port = port_number(self.port);
        let protocol = protocol(self.protocol.as_deref());
        let (Some(port), Some(protocol)) = (port, protocol) else {
            complaints.push(ignored_port(self.name.as_deref(), Some(self.port), self.protocol.as_deref()));
            return None;
        };
        Some(model::ServicePort {
            name: self.name.as_deref().unwrap_or_default().into(),
            protocol,
            port,
            node_port: self.node_port.and_then(port_number),
        })
    }
}

impl EndpointSlice {
    /// `node`: this node's name.
    pub(crate) fn translate(&self, node: &str) -> Translated<model::Slice> {
        let mut complaints = Vec::new();
        let object = self.parse(node, &mut complaints);
        Translated { object, complaints }
    }

    fn parse(&self, node: &str, complaints: &mut Vec<String>) -> Option<model::Slice> {
        let family = match self.address_type.as_deref() {
            Some("IPv4") => Family::V4,
            Some("IPv6") => Family::V6,
            _ => return None,
        };
        let labels = &self.metadata.labels;
        if labels.contains(LABEL_HEADLESS) {
            return None;
        }
        let Some(service) = labels.get(LABEL_SERVICE_NAME).filter(|name| !name.is_empty()) else {
            complaints.push(format!("no label {LABEL_SERVICE_NAME}"));
            return None;
        };
        let ports = self.ports.iter().flatten().filter_map(|port| {
            let (Some(number), Some(protocol)) =
                (port.port.and_then(port_number), protocol(port.protocol.as_deref()))
            else {
                complaints.push(ignored_port(port.name.as_deref(), port.port, port.protocol.as_deref()));
                return None;
            };
            Some(model::SlicePort {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol,
                port: number,
            })
        });
        let ports = ports.collect();
        let object = self.metadata.name();
        let mut last_zones = None;
        let endpoints = self.endpoints.iter().flatten();
        let endpoints = endpoints
            .filter_map(|endpoint| endpoint.parse(family, node, &mut last_zones, complaints))
            .collect();
        let trigger_time = self
            .metadata
            .annotations
            .get(ANNOTATION_TRIGGER_TIME)
            .and_then(|time| time.parse::<jiff::Timestamp>().ok())
            .and_then(|time| i64::try_from(time.as_nanosecond()).ok());
        Some(model::Slice {
            service: model::ObjectName::new(object.namespace(), service),
            name: object,
            family,
            ports,
            endpoints,
            trigger_time,
        })
    }
}

impl Endpoint {
    fn parse(
        &self,
        family: Family,
        node: &str,
        last_zones: &mut Option<Arc<[Box<str>]>>,
        complaints: &mut Vec<String>,
    ) -> Option<model::Endpoint> {
        let text = self.addresses.as_ref()?.0.as_deref()?;
        let Some(addr) = address(text).filter(|addr| Family::of(*addr) == family) else {
            complaints.push(format!("endpoint address {text:?} is not of family {family}, ignored"));
            return None;
        };
        let conditions = self.conditions.as_ref();
        let condition = |select: fn(&Conditions) -> Option<bool>| conditions.and_then(select);
        let hints = self.hints.as_ref();
        let for_nodes = match hints.and_then(|hints| hints.for_nodes.as_deref()).unwrap_or_default() {
            [] => NodeHint::Absent,
            nodes if nodes.iter().any(|named| named.name == node) => NodeHint::Here,
            _ => NodeHint::Elsewhere,
        };
        let zones = hints.and_then(|hints| hints.for_zones.as_deref()).unwrap_or_default();
        let for_zones = (!zones.is_empty())
            .then(|| share_zones(zones.iter().map(|named| named.name.as_str().into()).collect(), last_zones));
        Some(model::Endpoint {
            addr,
            ready: condition(|conditions| conditions.ready).unwrap_or(true),
            serving: condition(|conditions| conditions.serving).unwrap_or(true),
            terminating: condition(|conditions| conditions.terminating).unwrap_or(false),
            local: self.node_name.as_deref().is_some_and(|name| {
                cluster_size::SEEN.saw(name);
                name == node
            }),
            for_nodes,
            for_zones,
        })
    }
}

impl ServiceCidr {
    pub(crate) fn networks(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.spec
            .cidrs
            .iter()
            .flatten()
            .filter_map(|text| text.trim().parse::<IpNet>().ok())
            .map(|net| net.trunc())
    }
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// As Kubernetes reads addresses: leading zeros in IPv4 octets are decimal, and IPv4-mapped IPv6 is IPv4.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let parsed = text.parse::<IpAddr>().ok().or_else(|| {
        let octets: Vec<u8> = text
            .split('.')
            .map(|octet| {
                (octet.len() <= 10 && octet.bytes().all(|b| b.is_ascii_digit()))
                    .then(|| octet.parse().ok())?
            })
            .collect::<Option<_>>()?;
        let octets: [u8; 4] = octets.try_into().ok()?;
        Some(IpAddr::from(octets))
    })?;
    Some(parsed.to_canonical())
}

fn ignored_port(name: Option<&str>, number: Option<i64>, protocol: Option<&str>) -> String {
    let number = number.map_or_else(|| "without a number".to_owned(), |number| number.to_string());
    format!("port {:?} ({}, {number}) is ignored", name.unwrap_or_default(), protocol.unwrap_or("TCP"))
}

fn addresses(field: &str, texts: &[String], complaints: &mut Vec<String>) -> Box<[IpAddr]> {
    let parse = |text: &String| {
        let parsed = address(text);
        if parsed.is_none() {
            complaints.push(format!("{field}: {text:?} is not an IP address, ignored"));
        }
        parsed
    };
    texts.iter().filter_map(parse).collect()
}

fn networks(field: &str, texts: &[String], complaints: &mut Vec<String>) -> Box<[IpNet]> {
    let parse = |text: &String| {
        let parsed = network(text);
        if parsed.is_none() {
            complaints.push(format!("{field}: {text:?} is not a CIDR, ignored"));
        }
        parsed
    };
    texts.iter().filter_map(parse).collect()
}

fn network(text: &str) -> Option<IpNet> {
    let (addr, prefix) = text.trim().split_once('/')?;
    IpNet::new(address(addr)?, prefix.parse().ok()?).ok().map(|net| net.trunc())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
