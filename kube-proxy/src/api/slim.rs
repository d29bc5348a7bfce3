//! The fields of Kubernetes objects that a proxy needs.
//!
//! Decoding is lenient on purpose: values are checked in the translation into the engine's model, which can leave out a
//! part of an object and say so. Decoded objects live only until they are translated.

use serde::{Deserialize, de::DeserializeOwned};

mod metadata;
mod protobuf;
mod translation;

use crate::api::message::{Fields, Malformed};
pub(crate) use metadata::{Metadata, Names};
pub(crate) use protobuf::read;

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Service {
    pub(crate) metadata: Metadata,
    pub(crate) spec: ServiceSpec,
    pub(crate) status: ServiceStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    load_balancer_source_ranges: Option<Vec<String>>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<SessionAffinityConfig>,
    health_check_node_port: Option<i64>,
    ports: Option<Vec<ServicePort>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientIp {
    timeout_seconds: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServicePort {
    name: Option<String>,
    protocol: Option<String>,
    port: i64,
    node_port: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceStatus {
    load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LoadBalancerStatus {
    ingress: Option<Vec<Ingress>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EndpointSlice {
    pub(crate) metadata: Metadata,
    address_type: Option<String>,
    ports: Option<Vec<EndpointPort>>,
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EndpointPort {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoint {
    addresses: Option<FirstOf>,
    conditions: Option<Conditions>,
    node_name: Option<String>,
    hints: Option<Hints>,
}

/// Only the first address counts (the API says that the others are meaningless).
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(from = "Vec<String>")]
struct FirstOf(Option<String>);

impl From<Vec<String>> for FirstOf {
    fn from(all: Vec<String>) -> Self {
        Self(all.into_iter().next())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hints {
    for_zones: Option<Vec<Named>>,
    for_nodes: Option<Vec<Named>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceCidr {
    pub(crate) metadata: Metadata,
    spec: ServiceCidrSpec,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ServiceCidrSpec {
    cidrs: Option<Vec<String>>,
}

/// A kind of object that is listed and watched.
pub(crate) trait Object: DeserializeOwned + Send + 'static {
    const KIND: &'static str;
    /// Of the API group and version.
    const PREFIX: &'static str;
    const PLURAL: &'static str;

    fn metadata(&self) -> &Metadata;

    fn from_protobuf(bytes: &[u8]) -> Result<Self, Malformed>;

    /// The path of all of them, or of those in one namespace.
    fn path(namespace: &str) -> String {
        match namespace {
            "" => format!("{}/{}", Self::PREFIX, Self::PLURAL),
            namespace => format!("{}/namespaces/{namespace}/{}", Self::PREFIX, Self::PLURAL),
        }
    }
}

macro_rules! object {
    ($type:ty, $prefix:literal, $kind:literal, $plural:literal) => {
        impl Object for $type {
            const KIND: &'static str = $kind;
            const PREFIX: &'static str = $prefix;
            const PLURAL: &'static str = $plural;

            fn metadata(&self) -> &Metadata {
                &self.metadata
            }

            fn from_protobuf(bytes: &[u8]) -> Result<Self, Malformed> {
                Self::read(Fields(bytes))
            }
        }
    };
}
pub(crate) use object;

object!(Service, "/api/v1", "Service", "services");
object!(EndpointSlice, "/apis/discovery.k8s.io/v1", "EndpointSlice", "endpointslices");
object!(ServiceCidr, "/apis/networking.k8s.io/v1", "ServiceCIDR", "servicecidrs");
