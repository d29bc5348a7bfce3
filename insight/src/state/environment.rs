//! The part of the configuration that routes and backends are made by, as it stands in a file.

use ipnet::IpNet;
use proxy_core::{
    environment::{self as core, EnvironmentSettings, NodePortSettings},
    model::{Family, Protocol},
};
use serde::{Deserialize, Serialize};

use crate::text;

/// [`EnvironmentSettings`] in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// The one bit of the packet mark that asks for masquerading.
    pub masquerade_mark: u32,
    /// All traffic to cluster IPs is masqueraded.
    pub masquerade_all: bool,
    /// How traffic of this node's pods is told from other traffic.
    pub local_pods: LocalPods,
    /// Where NodePorts answer.
    pub node_ports: NodePorts,
    /// NodePorts are wanted on IPv4 loopback addresses.
    pub localhost_node_ports: bool,
    /// Whose NodePorts are refused on loopback addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused_on_localhost: Vec<Refused>,
}

/// NodePorts that are refused on loopback addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Of this family,
    #[serde(with = "text::of_family")]
    pub family: Family,
    /// and this protocol.
    #[serde(with = "text::of_protocol")]
    pub protocol: Protocol,
}

/// How traffic of this node's pods is told from other traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LocalPods {
    /// Not at all.
    Unknown,
    /// By the source address.
    Cidrs(#[serde(with = "text::list")] Vec<IpNet>),
    /// By the bridge that it came in through.
    Bridge(String),
    /// By how the name of the interface begins.
    InterfacePrefix(String),
}

/// `nodePortAddresses`, after the mode's default was applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodePorts {
    /// On all local addresses.
    Any,
    /// On the node's primary address of each family.
    Primary,
    /// On local addresses inside these.
    Within(#[serde(with = "text::list")] Vec<IpNet>),
    /// On both.
    PrimaryAndWithin(#[serde(with = "text::list")] Vec<IpNet>),
}

impl Settings {
    /// As they stand in a file.
    pub fn of(settings: &EnvironmentSettings) -> Self {
        Self {
            masquerade_mark: settings.masquerade_mark,
            masquerade_all: settings.masquerade_all,
            local_pods: match &settings.local_pods {
                core::LocalPods::Unknown => LocalPods::Unknown,
                core::LocalPods::Cidrs(cidrs) => LocalPods::Cidrs(cidrs.to_vec()),
                core::LocalPods::Bridge(name) => LocalPods::Bridge(name.to_string()),
                core::LocalPods::InterfacePrefix(prefix) => LocalPods::InterfacePrefix(prefix.to_string()),
            },
            node_ports: match &settings.node_ports {
                NodePortSettings::Any => NodePorts::Any,
                NodePortSettings::Primary => NodePorts::Primary,
                NodePortSettings::Within(given) => NodePorts::Within(given.to_vec()),
                NodePortSettings::PrimaryAndWithin(given) => NodePorts::PrimaryAndWithin(given.to_vec()),
            },
            localhost_node_ports: settings.localhost_node_ports,
            refused_on_localhost: {
                let refused = settings.refused_on_localhost.iter();
                refused.map(|(family, protocol)| Refused { family: *family, protocol: *protocol }).collect()
            },
        }
    }

    /// As the engine takes them.
    pub fn to_settings(&self) -> EnvironmentSettings {
        EnvironmentSettings {
            masquerade_mark: self.masquerade_mark,
            masquerade_all: self.masquerade_all,
            local_pods: match &self.local_pods {
                LocalPods::Unknown => core::LocalPods::Unknown,
                LocalPods::Cidrs(cidrs) => core::LocalPods::Cidrs(cidrs.clone().into()),
                LocalPods::Bridge(name) => core::LocalPods::Bridge(name.as_str().into()),
                LocalPods::InterfacePrefix(prefix) => {
                    core::LocalPods::InterfacePrefix(prefix.as_str().into())
                }
            },
            node_ports: match &self.node_ports {
                NodePorts::Any => NodePortSettings::Any,
                NodePorts::Primary => NodePortSettings::Primary,
                NodePorts::Within(given) => NodePortSettings::Within(given.clone().into()),
                NodePorts::PrimaryAndWithin(given) => {
                    NodePortSettings::PrimaryAndWithin(given.clone().into())
                }
            },
            localhost_node_ports: self.localhost_node_ports,
            refused_on_localhost: {
                let refused = self.refused_on_localhost.iter();
                refused.map(|refused| (refused.family, refused.protocol)).collect()
            },
        }
    }
}
