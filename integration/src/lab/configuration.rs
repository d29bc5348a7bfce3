//! What a lab is to be like: as it is told to the proxy, and as it is told to the oracle.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::own_addresses;
use super::secured::Secure;
use crate::network::{Family, POD_BRIDGE, POD_INTERFACE_PREFIX, Place};
use crate::oracle::{self, NodePorts, Settings};

/// A mode of the proxy as it can be run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    IptablesLegacy,
    IptablesNft,
    Ipvs,
}

/// How the proxy tells local pods from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detect {
    Never,
    ClusterCidr,
    NodeCidr,
    InterfacePrefix,
    Bridge,
}

/// What a lab is to be like; the default is a plain node in nftables mode.
#[derive(Debug, Clone)]
pub struct Options {
    pub mode: Mode,
    pub detect: Detect,
    pub masquerade_all: bool,
    pub node_port_addresses: Vec<String>,
    /// Other fields of the configuration, by JSON pointer.
    pub config: Vec<(&'static str, Value)>,
    /// Added to the proxy's environment.
    pub variables: Vec<(&'static str, String)>,
    /// Never a real API server: what is asked of it, or what is applied, no real one would do or take.
    pub embedded_server: bool,
    /// The embedded server speaks TLS.
    pub secure: Option<Secure>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Nftables,
            detect: Detect::ClusterCidr,
            masquerade_all: false,
            node_port_addresses: Vec::new(),
            config: Vec::new(),
            variables: Vec::new(),
            embedded_server: false,
            secure: None,
        }
    }
}

impl Options {
    /// The same for the oracle.
    pub(super) fn settings(&self) -> Settings {
        let iptables = matches!(self.mode, Mode::IptablesLegacy | Mode::IptablesNft);
        let words = &self.node_port_addresses;
        let networks: Vec<IpNet> = words
            .iter()
            .flat_map(|word| match word.as_str() {
                "all" => vec!["0.0.0.0/0", "::/0"],
                "localhost" => vec!["127.0.0.0/8", "::1/128"],
                other => vec![other],
            })
            .filter_map(|network| network.parse().ok())
            .collect();
        let primary = words.iter().any(|word| word == "primary");
        let loopback = |v4| networks.iter().any(|net| net.addr().is_ipv4() == v4 && net.addr().is_loopback());
        let mut of_v4 = networks.iter().filter(|net| net.addr().is_ipv4()).peekable();
        let everything_v4 = of_v4.peek().is_none() && !primary || of_v4.any(|net| net.prefix_len() == 0);
        let gate = "KubeProxyNFTablesLocalhostNodePorts";
        let gate_off =
            self.config.iter().any(|(field, value)| *field == "/featureGates" && value[gate] == json!(false));
        let localhost = self.mode != Mode::Nftables || !gate_off;
        Settings {
            mode: match self.mode {
                Mode::Nftables => oracle::Mode::Nftables,
                Mode::IptablesLegacy | Mode::IptablesNft => oracle::Mode::Iptables,
                Mode::Ipvs => oracle::Mode::Ipvs,
            },
            node_name: Place::Node.name().to_owned(),
            detect_local: match self.detect {
                Detect::Never => oracle::DetectLocal::Never,
                Detect::ClusterCidr => {
                    oracle::DetectLocal::Networks(Family::BOTH.map(Family::cluster_cidr).to_vec())
                }
                Detect::NodeCidr => {
                    oracle::DetectLocal::Networks(Family::BOTH.map(Family::node_pod_cidr).to_vec())
                }
                Detect::InterfacePrefix | Detect::Bridge => oracle::DetectLocal::Interface,
            },
            masquerade_all: self.masquerade_all,
            node_ports: match (primary, networks.is_empty()) {
                (false, true) if self.mode == Mode::Nftables => NodePorts::Primary,
                (false, true) => NodePorts::Everywhere,
                (true, true) => NodePorts::Primary,
                (true, false) => NodePorts::PrimaryAndWithin(networks.clone()),
                (false, false) => NodePorts::Within(networks.clone()),
            },
            // On by default in iptables mode only; in nftables mode where the addresses name them; with IPVS never.
            localhost_node_ports: (iptables && everything_v4)
                || (self.mode != Mode::Ipvs && localhost && loopback(true)),
            localhost_v6_node_ports: self.mode == Mode::Nftables && localhost && loopback(false),
            local_addresses: own_addresses(),
        }
    }
}

/// The configuration file. JSON is YAML.
pub(super) fn file(options: &Options, kubeconfig: &str) -> Value {
    let mode = match options.mode {
        Mode::Nftables => "nftables",
        Mode::IptablesLegacy | Mode::IptablesNft => "iptables",
        Mode::Ipvs => "ipvs",
    };
    // Both encodings have their turn: one in the clear, where it can be watched, the other with TLS, as in clusters.
    let content_type = match options.secure {
        Some(_) => "application/vnd.kubernetes.protobuf",
        None => "application/json",
    };
    let cluster_cidr = Family::BOTH.map(|family| family.cluster_cidr().to_string()).join(",");
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clientConnection": {"kubeconfig": kubeconfig, "contentType": content_type},
        "clusterCIDR": if options.detect == Detect::ClusterCidr { cluster_cidr } else { String::new() },
        "detectLocalMode": match options.detect {
            Detect::Never | Detect::ClusterCidr => "ClusterCIDR",
            Detect::NodeCidr => "NodeCIDR",
            Detect::InterfacePrefix => "InterfaceNamePrefix",
            Detect::Bridge => "BridgeInterface",
        },
        "detectLocal": {"bridgeInterface": POD_BRIDGE, "interfaceNamePrefix": POD_INTERFACE_PREFIX},
        "nodePortAddresses": options.node_port_addresses,
        // These belong to the host, not to a network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "iptables": {"masqueradeAll": options.masquerade_all},
        "nftables": {"masqueradeAll": options.masquerade_all},
        "ipvs": {},
    })
}
