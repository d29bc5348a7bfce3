//! The configuration as the rest of the program sees it: no strings for addresses, networks, ports or modes.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use serde_json::Value;

use crate::feature_gates::FeatureGates;

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub mode: Mode,
    pub feature_gates: FeatureGates,
    pub client: ClientSettings,
    pub logging: LoggingSettings,
    /// Trimmed and lower case; `None`: the machine's hostname is the node's name.
    pub hostname_override: Option<String>,
    /// Overrides the node's primary IP (and with it the primary family). Nothing is bound to it.
    pub bind_address: Option<IpAddr>,
    /// `None`: no health server.
    pub healthz_address: Option<SocketAddr>,
    /// `None`: no metrics server.
    pub metrics_address: Option<SocketAddr>,
    pub bind_address_hard_fail: bool,
    pub profiling: bool,
    /// The one bit of the packet mark that asks for masquerading.
    pub masquerade_mark: u32,
    pub masquerade_all: bool,
    pub localhost_node_ports: bool,
    /// Of the selected mode.
    pub sync_period: Duration,
    /// Of the selected mode; `None`: nobody asked for one, so changes may be written as soon as they come.
    pub min_sync_period: Option<Duration>,
    pub ipvs: IpvsSettings,
    pub detect_local: DetectLocal,
    /// Also outside ClusterCIDR mode, where it only serves to warn.
    pub cluster_cidrs: Vec<IpNet>,
    pub node_port_addresses: NodePortSelection,
    pub oom_score_adj: i32,
    pub conntrack: ConntrackSettings,
    pub config_sync_period: Duration,
    /// The file that all this came from, to be watched.
    pub config_file: Option<PathBuf>,
    /// The public object, for `/configz`.
    pub document: Value,
    /// Every flag with its value, for `/flagz` and the log.
    pub flags: Vec<(&'static str, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    Nftables,
    Iptables,
    Ipvs,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Iptables, Self::Ipvs, Self::Nftables];

    /// As in the configuration and on `/proxyMode`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ClientSettings {
    /// `None`, and no master: the in-cluster configuration.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, over whatever the kubeconfig says.
    pub master: Option<String>,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f32,
    pub burst: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggingSettings {
    pub format: LogFormat,
    pub flush_frequency: Duration,
    pub verbosity: u32,
    /// Pattern of a source file's name without its ending, and its verbosity.
    pub vmodule: Vec<(String, u32)>,
    /// Informational lines go to stdout, errors to stderr.
    pub split_stream: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// How traffic of this node's pods is told from other traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DetectLocal {
    /// At most one network per family; none at all means: no detector.
    ClusterCidr(Vec<IpNet>),
    /// The networks of the Node object.
    NodeCidr,
    BridgeInterface(String),
    InterfaceNamePrefix(String),
}

/// Where NodePorts answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodePortSelection {
    pub addresses: NodePortAddressSet,
    /// `localhost` was asked for: NodePorts answer on 127.0.0.0/8 too (IPv4 only).
    pub localhost: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum NodePortAddressSet {
    /// On every local address.
    #[default]
    Any,
    /// On the node's own addresses as its Node object has them.
    Primary,
    /// On the local addresses within these networks.
    Cidrs(Vec<IpNet>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpvsSettings {
    /// `None`: rr.
    pub scheduler: Option<String>,
    pub exclude_cidrs: Vec<IpNet>,
    pub strict_arp: bool,
    /// `None`: as the kernel has it. The same for the next two.
    pub tcp_timeout: Option<Duration>,
    pub tcp_fin_timeout: Option<Duration>,
    pub udp_timeout: Option<Duration>,
}

/// What to write to the kernel's connection tracking; `None` and 0 leave it as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConntrackSettings {
    pub max_per_core: u32,
    pub min: u32,
    pub tcp_established_timeout: Option<Duration>,
    pub tcp_close_wait_timeout: Option<Duration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: Option<Duration>,
    pub udp_stream_timeout: Option<Duration>,
}
