//! What one node's engine was told and what it did. `docs/insight.md` has the schema of the file.
//!
//! [`State`] is all of it in memory; [`Writer`] writes it object by object, so that nobody who writes needs to hold more than
//! one; [`State::read`] knows a file that was cut as such.

mod environment;
mod lines;
mod objects;

use std::sync::Arc;

use ipnet::IpNet;
use proxy_core::{
    environment::NodeFacts,
    model::{Family, Input, Kind, Protocol, Service, ServiceName, Slice},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use environment::{LocalPods, NodePorts, Settings};
pub use lines::{ReadError, Writer};
pub use objects::{service_object, slice_object};

use crate::text::{self, Time};

/// The schema that this version reads and writes. Fields are added to it without a change; what changes the meaning of
/// one changes the number.
pub const API_VERSION: &str = "insight.switchyard.dev/v1";

/// What one node's engine was told and what it did.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Everything that is not about a single object.
    pub header: Header,
    /// Services, sorted by name.
    pub services: Vec<Arc<Service>>,
    /// EndpointSlices, sorted by Service and name.
    pub slices: Vec<Arc<Slice>>,
    /// What the last successful syncs put into the kernel, sorted by Service.
    pub installed: Vec<Installed>,
    /// Services that are not in the kernel as they ask to be.
    pub asides: Vec<Aside>,
    /// Addresses that Services ask for in vain.
    pub conflicts: Vec<Conflict>,
    /// The last syncs, oldest first.
    pub syncs: Vec<Sync>,
}

/// The first line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// [`API_VERSION`].
    pub api_version: String,
    /// The name of the Node.
    pub node: String,
    /// When it was taken.
    pub taken: Time,
    /// The mode of the proxy.
    pub mode: Mode,
    /// Which programs.
    pub versions: Versions,
    /// What the node is.
    pub facts: Facts,
    /// Whether `spec.externalIPs` counts (gate AllowServiceExternalIPs).
    pub allow_service_external_ips: bool,
    /// What backends and routes are made by.
    pub environment: Settings,
    /// NodePorts of TCP answer on ::1, where a program listens for them.
    #[serde(default, rename = "localhostV6NodePorts")]
    pub localhost_v6_node_ports: bool,
    /// Only in ipvs mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipvs: Option<Ipvs>,
    /// The KubeProxyConfiguration in force; `null` where it is left out.
    #[serde(default)]
    pub configuration: Value,
    /// The families that the node serves.
    pub families: Vec<Served>,
    /// What was asked for, where it was not everything: a state of some Services says nothing about others.
    #[serde(default, skip_serializing_if = "Filter::is_everything")]
    pub filter: Filter,
    /// Names and addresses are replaced.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anonymised: bool,
}

/// The mode of a proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// `--proxy-mode=nftables`.
    Nftables,
    /// `--proxy-mode=iptables`.
    Iptables,
    /// `--proxy-mode=ipvs`.
    Ipvs,
}

impl Mode {
    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

/// Which programs a state is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// Our own release.
    pub switchyard: String,
    /// The release of kube-proxy that it stands in for.
    pub kubernetes: String,
}

/// What the node is found to be.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Of the cluster.
    #[serde(default, rename = "serviceCIDRs", with = "text::list")]
    pub service_cidrs: Vec<IpNet>,
    /// Of the Node object, the primary one of each family.
    #[serde(default, rename = "nodeIPs", with = "text::list")]
    pub node_ips: Vec<std::net::IpAddr>,
    /// Of all interfaces.
    #[serde(default, with = "text::list")]
    pub interface_addresses: Vec<std::net::IpAddr>,
    /// `topology.kubernetes.io/zone`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

/// What the configuration says about IPVS, as the backend takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ipvs {
    /// `rr`, say.
    pub scheduler: String,
    /// See the flag `--ipvs-strict-arp`.
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    /// Networks whose virtual servers are left alone.
    #[serde(rename = "excludeCIDRs", with = "text::list")]
    pub exclude_cidrs: Vec<IpNet>,
    /// `routes` or `addresses`.
    pub vip_binding: String,
    /// In seconds; absent: for as long as connections last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_limit_seconds: Option<u64>,
    /// Which packet marks select virtual servers, `VALUE/MASK`; absent: those of always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub marks: Option<String>,
}

/// One family that the node serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Served {
    /// Which.
    #[serde(with = "text::of_family")]
    pub family: Family,
    /// How many Services wait for the next sync.
    #[serde(default)]
    pub waiting: usize,
    /// Since when something has been waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_since: Option<Time>,
    /// Why the next sync writes everything, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full_sync_owed: Option<String>,
    /// Syncs in a row that failed.
    #[serde(default)]
    pub failures: u32,
}

/// What of a state is wanted. What several fields ask for must all hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Services of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The Service of this name (with its namespace), and those that have addresses that it asks for too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Services that ask for this address, or have an endpoint there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
}

impl Filter {
    /// Nothing is left out.
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// By the name alone.
    pub fn wants_name(&self, name: &ServiceName) -> bool {
        self.namespace.as_deref().is_none_or(|namespace| namespace == name.namespace())
            && self.service.as_deref().is_none_or(|wanted| wanted == name.to_string())
    }

    /// By the addresses.
    pub fn wants<'a>(
        &self,
        service: Option<&Service>,
        slices: impl IntoIterator<Item = &'a Arc<Slice>>,
    ) -> bool {
        let Some(address) = self.address else { return true };
        let asks = service.is_some_and(|service| {
            let all = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips];
            all.into_iter().any(|addresses| addresses.contains(&address))
                || service.ignored_external_ips.contains(&address)
        });
        asks || slices.into_iter().any(|slice| slice.endpoints.iter().any(|at| at.addr == address))
    }
}

/// What is in the kernel for one Service, in one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Installed {
    /// Which half.
    #[serde(with = "text::of_family")]
    pub family: Family,
    /// `namespace/name`.
    pub service: String,
    /// A change of it waits for the next sync.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
    /// Its ports, sorted by name and protocol.
    pub ports: Vec<InstalledPort>,
}

/// What is in the kernel for one port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstalledPort {
    /// The name of the Service's port; empty for one without.
    pub port: String,
    /// Of the port.
    #[serde(with = "text::of_protocol")]
    pub protocol: Protocol,
    /// See [`digest`](crate::digest).
    pub digest: String,
    /// Addresses with ports at which it answers.
    pub frontends: usize,
    /// Endpoints for traffic under policy Cluster.
    pub cluster: usize,
    /// Endpoints for traffic under policy Local.
    pub local: usize,
}

/// A Service that is not in the kernel as it asks to be: refused by the kernel, or asking for too much.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Aside {
    /// Which half.
    #[serde(with = "text::of_family")]
    pub family: Family,
    /// `namespace/name`.
    pub service: String,
    /// Since when.
    pub since: Time,
    /// What the kernel said, or what there is too much of.
    pub reason: String,
    /// When it is tried again at the earliest; absent: when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<Time>,
}

/// Addresses that a Service asks for and another has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Conflict {
    /// Which half.
    #[serde(with = "text::of_family")]
    pub family: Family,
    /// The one that goes without, `namespace/name`.
    pub service: String,
    /// The one that has them, `namespace/name`.
    pub winner: String,
    /// One of them: its protocol,
    #[serde(with = "text::of_protocol")]
    pub protocol: Protocol,
    /// its address; absent for a node port,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
    /// and its port.
    pub port: u16,
    /// How many there are.
    pub count: usize,
}

/// What one sync did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sync {
    /// Which half.
    #[serde(with = "text::of_family")]
    pub family: Family,
    /// When it ended.
    pub ended: Time,
    /// How long it took, in microseconds.
    pub took_micros: u64,
    /// Why it wrote everything, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<String>,
    /// Services that were looked at.
    pub services: usize,
    /// Service ports that changed.
    pub changes: usize,
    /// Some of the Services that changed, `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<String>,
    /// Services that the kernel refused, `namespace/name`; at most some.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set_aside: Vec<String>,
    /// Why nothing took effect, if so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl State {
    /// One that holds nothing yet.
    pub fn new(header: Header) -> Self {
        Self {
            header,
            services: Vec::new(),
            slices: Vec::new(),
            installed: Vec::new(),
            asides: Vec::new(),
            conflicts: Vec::new(),
            syncs: Vec::new(),
        }
    }

    /// The families that the node serves.
    pub fn families(&self) -> impl Iterator<Item = Family> {
        self.header.families.iter().map(|served| served.family)
    }

    /// Everything that the engine is told, in an order that makes it complete: [`engine`](crate::engine::engine) takes
    /// it.
    pub fn inputs(&self) -> Vec<Input> {
        let facts = &self.header.facts;
        let mut inputs = vec![
            Input::ServiceCidrs(facts.service_cidrs.clone().into()),
            Input::InterfaceAddresses(facts.interface_addresses.clone().into()),
            Input::NodeIps(facts.node_ips.clone().into()),
            Input::Zone(facts.zone.as_deref().map(Into::into)),
            Input::Listing(Kind::Service),
        ];
        inputs.extend(self.services.iter().cloned().map(Input::Service));
        inputs.extend([Input::Listed(Kind::Service), Input::Listing(Kind::Slice)]);
        inputs.extend(self.slices.iter().cloned().map(Input::Slice));
        inputs.push(Input::Listed(Kind::Slice));
        inputs
    }

    /// What the node is, as the engine takes it.
    pub fn facts(&self) -> NodeFacts {
        let facts = &self.header.facts;
        NodeFacts {
            service_cidrs: facts.service_cidrs.clone().into(),
            node_ips: facts.node_ips.clone().into(),
            interface_addresses: facts.interface_addresses.clone().into(),
        }
    }

    /// What is in the kernel for a Service in one family.
    pub fn installed(&self, family: Family, service: &ServiceName) -> Option<&Installed> {
        let name = service.to_string();
        let by_name =
            |installed: &Installed| installed.service.as_str().cmp(&name).then(installed.family.cmp(&family));
        let at = self.installed.binary_search_by(by_name).ok()?;
        self.installed.get(at)
    }

    /// Why a Service is not in the kernel as it asks to be.
    pub fn aside(&self, family: Family, service: &ServiceName) -> Option<&Aside> {
        let name = service.to_string();
        self.asides.iter().find(|aside| aside.family == family && aside.service == name)
    }

    /// The cluster as API objects: the Node, ServiceCIDRs, Services and EndpointSlices, with the fields that the engine
    /// keeps.
    pub fn objects(&self) -> Vec<Value> {
        let mut all = objects::surroundings(&self.header);
        all.extend(self.services.iter().map(|service| service_object(service)));
        all.extend(self.slices.iter().map(|slice| slice_object(slice, &self.header.node)));
        all
    }
}
