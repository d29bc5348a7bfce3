//! This node: its name, and what its Node object says that matters to a proxy.

use std::{net::IpAddr, time::Duration};

use http::Request;
use ipnet::IpNet;
use kube::Client;
use proxy_core::model::Family;
use serde::Deserialize;

use crate::api::{
    message::{Fields, Malformed, Value},
    slim::{Metadata, Object, object, read},
    watch::chain,
};

/// How long to wait for the answer that is only asked for to say what is wrong.
const ASKING: Duration = Duration::from_secs(5);

const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// A node that the cluster autoscaler is about to delete should get no new connections from load balancers.
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) metadata: Metadata,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<String>>,
    taints: Option<Vec<Taint>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Taint {
    key: String,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<Address>>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Address {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

/// The text in a message's first field.
fn first(value: Value<'_>) -> Result<String, Malformed> {
    let mut text = String::new();
    read!(value.fields()?, value, {
        1 => "key": text = value.string()?,
    });
    Ok(text)
}

impl Address {
    fn read(value: Value<'_>) -> Result<Self, Malformed> {
        let mut address = Self::default();
        read!(value.fields()?, value, {
            1 => "type": address.kind = value.string()?,
            2 => "address": address.address = value.string()?,
        });
        Ok(address)
    }
}

object!(Node, "/api/v1", "Node", "nodes");

impl Node {
    /// From protobuf; the numbers are those of `k8s.io/api/core/v1/generated.proto`.
    fn read(fields: Fields<'_>) -> Result<Self, Malformed> {
        let mut node = Self::default();
        read!(fields, value, {
            1 => "metadata": node.metadata = Metadata::from_protobuf(value)?,
            2 => "spec": {
                read!(value.fields()?, value, {
                    1 => "podCIDR": node.spec.pod_cidr = value.present()?,
                    5 => "taints": node.spec.taints.get_or_insert_default().push(Taint { key: first(value)? }),
                    7 => "podCIDRs": node.spec.pod_cidrs.get_or_insert_default().push(value.string()?),
                });
            },
            3 => "status": {
                read!(value.fields()?, value, {
                    5 => "addresses": node.status.addresses.get_or_insert_default().push(Address::read(value)?),
                });
            },
        });
        Ok(node)
    }

    /// The node's primary addresses: the first of each family, internal ones before external ones; the family of the
    /// very first is the node's primary family.
    pub(crate) fn ips(&self) -> Vec<IpAddr> {
        let of_kind = |kind: &'static str| {
            let all = self.status.addresses.iter().flatten();
            all.filter(move |address| address.kind == kind)
                .filter_map(|address| address.address.parse::<IpAddr>().ok())
        };
        let mut ips: Vec<IpAddr> = Vec::new();
        for ip in of_kind("InternalIP").chain(of_kind("ExternalIP")).map(|ip| ip.to_canonical()) {
            if !ips.iter().any(|known| Family::of(*known) == Family::of(ip)) {
                ips.push(ip);
            }
        }
        ips
    }

    pub(crate) fn pod_cidrs(&self) -> Vec<IpNet> {
        let given = self.spec.pod_cidrs.as_deref().filter(|cidrs| !cidrs.is_empty());
        let all = given.unwrap_or(self.spec.pod_cidr.as_slice());
        all.iter().filter_map(|cidr| cidr.parse::<IpNet>().ok()).map(|cidr| cidr.trunc()).collect()
    }

    pub(crate) fn zone(&self) -> Option<&str> {
        self.metadata.labels.get(LABEL_ZONE)
    }

    /// Whether load balancers should send new connections here: not while the node is being deleted.
    pub(crate) fn eligible(&self) -> bool {
        let tainted = self.spec.taints.iter().flatten().any(|taint| taint.key == TAINT_TO_BE_DELETED);
        !self.metadata.is_being_deleted && !tainted
    }
}

/// The node's name: what the configuration says, else the machine's hostname; trimmed, in lower case.
pub(crate) fn name(hostname_override: Option<&str>) -> anyhow::Result<String> {
    let given = match hostname_override {
        Some(name) => name.to_owned(),
        None => nix::unistd::gethostname()?
            .into_string()
            .map_err(|name| anyhow::anyhow!("the hostname {name:?} is not valid UTF-8"))?,
    };
    let name = given.trim().to_lowercase();
    anyhow::ensure!(!name.is_empty(), "the node has no name: set --hostname-override");
    Ok(name)
}

/// Why the addresses of this node are not known, for people.
pub(crate) async fn why_unknown(client: &Client, name: &str) -> String {
    let request = Request::get(format!("/api/v1/nodes/{name}")).body(Vec::new());
    let Ok(request) = request else { return format!("{name:?} is no name of a node") };
    let asked = tokio::time::timeout(ASKING, client.request::<serde_json::Value>(request)).await;
    match asked {
        Ok(Ok(_)) => format!("the Node object {name:?} has no InternalIP and no ExternalIP"),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
            "this process may not read nodes: grant it get, list and watch on nodes, as the ClusterRole \
             system:node-proxier does"
                .to_owned()
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
            format!("there is no Node object {name:?}: --hostname-override must be its name")
        }
        Ok(Err(error)) => format!("the Node object {name:?} cannot be read: {}", chain(&error)),
        Err(_) => format!("the API server did not say anything of the Node object {name:?}"),
    }
}

/// The node's addresses with the primary one first: `bind_address` replaces the one of its family and goes first.
pub(crate) fn primary_first(mut ips: Vec<IpAddr>, bind_address: Option<IpAddr>) -> Vec<IpAddr> {
    if let Some(bind_address) = bind_address {
        ips.retain(|ip| Family::of(*ip) != Family::of(bind_address));
        ips.insert(0, bind_address);
    }
    ips
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(value: serde_json::Value) -> Node {
        serde_json::from_value(value).expect("decodes")
    }

    #[test]
    fn internal_addresses_go_before_external_ones_and_each_family_counts_once() {
        let node = node(json!({"status": {"addresses": [
            {"type": "Hostname", "address": "n"},
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "ExternalIP", "address": "2001:db8::1"},
            {"type": "InternalIP", "address": "10.0.0.1"},
            {"type": "InternalIP", "address": "10.0.0.2"},
        ]}}));
        let ips: Vec<String> = node.ips().iter().map(ToString::to_string).collect();
        assert_eq!(ips, ["10.0.0.1", "2001:db8::1"]);
        let bound = primary_first(node.ips(), Some("2001:db8::9".parse().expect("literal")));
        assert_eq!(bound.iter().map(ToString::to_string).collect::<Vec<_>>(), ["2001:db8::9", "10.0.0.1"]);
    }

    #[test]
    fn a_node_about_to_go_is_not_eligible() {
        assert!(node(json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "other"}]}})).eligible());
        assert!(!node(json!({"spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}})).eligible());
        assert!(!node(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})).eligible());
    }

    #[test]
    fn the_name_is_trimmed_and_lower_case() {
        assert_eq!(name(Some(" Node-A ")).expect("a name"), "node-a");
        assert!(name(Some("  ")).is_err());
    }

    #[test]
    fn pod_cidrs_fall_back_to_the_single_one() {
        let both =
            node(json!({"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00::/64"]}}));
        assert_eq!(both.pod_cidrs().len(), 2);
        assert_eq!(node(json!({"spec": {"podCIDR": "10.1.0.0/24"}})).pod_cidrs().len(), 1);
    }
}
