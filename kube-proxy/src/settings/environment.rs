//! The part of the settings that backends act on.

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_core::environment::{EnvironmentSettings, LocalPods, NodePortSettings};

use crate::settings::effective::{DetectLocal, Mode, NodePortAddressSet, Settings};

/// `pod_cidrs`: the node's own, where they tell its pods apart.
pub(crate) fn settings(settings: &Settings, pod_cidrs: &[IpNet]) -> EnvironmentSettings {
    let local_pods = match &settings.detect_local {
        DetectLocal::ClusterCidr(cidrs) if cidrs.is_empty() => {
            tracing::info!("Defaulting to no-op detect-local");
            LocalPods::Unknown
        }
        DetectLocal::ClusterCidr(cidrs) => LocalPods::Cidrs(cidrs.clone().into()),
        DetectLocal::NodeCidr => LocalPods::Cidrs(pod_cidrs.into()),
        DetectLocal::BridgeInterface(name) => LocalPods::Bridge(name.as_str().into()),
        DetectLocal::InterfaceNamePrefix(prefix) => LocalPods::InterfacePrefix(prefix.as_str().into()),
    };
    let selection = &settings.node_port_addresses;
    let node_ports = match &selection.addresses {
        NodePortAddressSet::Any => NodePortSettings::Any,
        NodePortAddressSet::Primary => NodePortSettings::Primary,
        NodePortAddressSet::Cidrs(cidrs) => NodePortSettings::Within(cidrs.clone().into()),
    };
    let v4: Vec<&IpNet> = match &selection.addresses {
        NodePortAddressSet::Cidrs(cidrs) => cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()).collect(),
        _ => Vec::new(),
    };
    let loopback = IpAddr::from([127, 0, 0, 0]);
    let names_loopback = v4
        .iter()
        .any(|cidr| cidr.prefix_len() > 0 && (cidr.addr().is_loopback() || cidr.contains(&loopback)));
    let everywhere = match &selection.addresses {
        NodePortAddressSet::Any => true,
        NodePortAddressSet::Primary => false,
        NodePortAddressSet::Cidrs(_) => v4.is_empty() || v4.iter().any(|cidr| cidr.prefix_len() == 0),
    };
    let localhost_node_ports = match settings.mode {
        // As kube-proxy: on by default, where NodePorts answer on all addresses or on a loopback network.
        Mode::Iptables => {
            settings.localhost_node_ports && (selection.localhost || names_loopback || everywhere)
        }
        // Only where it is asked for: the kernel setting behind it has a cost in safety.
        Mode::Nftables | Mode::Ipvs => selection.localhost || names_loopback,
    };
    EnvironmentSettings {
        masquerade_mark: settings.masquerade_mark,
        masquerade_all: settings.masquerade_all,
        local_pods,
        node_ports,
        localhost_node_ports,
    }
}
