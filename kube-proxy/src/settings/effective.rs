//! The configuration as the rest of the program sees it: no strings for addresses, networks, ports or modes.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use backend_ipvs::Binding;
use ipnet::IpNet;
use serde_json::Value;

use crate::settings::feature_gates::FeatureGates;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    /// Nobody chose the mode; it is the default of Kubernetes.
    pub(crate) mode_defaulted: bool,
    pub(crate) feature_gates: FeatureGates,
    pub(crate) client: ClientSettings,
    pub(crate) logging: LoggingSettings,
    /// Trimmed and lower case; `None`: the machine's hostname is the node's name.
    pub(crate) hostname_override: Option<String>,
    /// Overrides the node's primary IP (and with it the primary family). Nothing is bound to it.
    pub(crate) bind_address: Option<IpAddr>,
    /// `None`: no health server.
    pub(crate) healthz_address: Option<SocketAddr>,
    /// `None`: no metrics server.
    pub(crate) metrics_address: Option<SocketAddr>,
    pub(crate) bind_address_hard_fail: bool,
    pub(crate) profiling: bool,
    /// The one bit of the packet mark that asks for masquerading.
    pub(crate) masquerade_mark: u32,
    pub(crate) masquerade_all: bool,
    pub(crate) localhost_node_ports: bool,
    /// Of the selected mode.
    pub(crate) sync_period: Duration,
    /// Of the selected mode; `None`: nobody asked for one, so changes may be written as soon as they come.
    pub(crate) min_sync_period: Option<Duration>,
    pub(crate) ipvs: IpvsSettings,
    pub(crate) detect_local: DetectLocal,
    /// Also outside ClusterCIDR mode, where it only serves to warn.
    pub(crate) cluster_cidrs: Vec<IpNet>,
    pub(crate) node_port_addresses: NodePortSelection,
    pub(crate) oom_score_adj: i32,
    pub(crate) conntrack: ConntrackSettings,
    pub(crate) config_sync_period: Duration,
    /// From a flag of ours; `None`: none was given.
    pub(crate) insight_socket: Option<String>,
    /// The file that all this came from, to be watched.
    pub(crate) config_file: Option<PathBuf>,
    /// The public object, for `/configz`.
    pub(crate) document: Value,
    /// Every flag with its value, for `/flagz` and the log.
    pub(crate) flags: Vec<(&'static str, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Mode {
    Nftables,
    Iptables,
    Ipvs,
}

impl Mode {
    pub(crate) const ALL: [Self; 3] = [Self::Iptables, Self::Ipvs, Self::Nftables];

    /// As in the configuration and on `/proxyMode`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ClientSettings {
    /// `None`, and no master: the in-cluster configuration.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// URL of the API server, over whatever the kubeconfig says.
    pub(crate) master: Option<String>,
    pub(crate) accept_content_types: String,
    pub(crate) content_type: String,
    pub(crate) qps: f32,
    pub(crate) burst: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoggingSettings {
    pub(crate) format: LogFormat,
    pub(crate) flush_frequency: Duration,
    pub(crate) verbosity: u32,
    /// Pattern of a source file's name without its ending, and its verbosity.
    pub(crate) vmodule: Vec<(String, u32)>,
    /// Informational lines go to stdout, errors to stderr.
    pub(crate) split_stream: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// How traffic of this node's pods is told from other traffic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DetectLocal {
    /// At most one network per family; none at all means: no detector.
    ClusterCidr(Vec<IpNet>),
    /// The networks of the Node object.
    NodeCidr,
    BridgeInterface(String),
    InterfaceNamePrefix(String),
}

/// Where NodePorts answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct NodePortSelection {
    pub(crate) addresses: NodePortAddressSet,
    /// `localhost`, or an IPv4 network of loopback addresses, was named.
    pub(crate) localhost: bool,
    /// `localhost`, or `::1`, was named.
    pub(crate) localhost_v6: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum NodePortAddressSet {
    /// On every local address.
    #[default]
    Any,
    /// On the node's own addresses as its Node object has them.
    Primary,
    /// On the local addresses within these networks.
    Cidrs(Vec<IpNet>),
    /// On those of `Primary` and those of `Cidrs`.
    PrimaryAndCidrs(Vec<IpNet>),
}

impl NodePortAddressSet {
    /// The networks that were named, keywords included.
    pub(crate) fn cidrs(&self) -> &[IpNet] {
        match self {
            Self::Any | Self::Primary => &[],
            Self::Cidrs(cidrs) | Self::PrimaryAndCidrs(cidrs) => cidrs,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IpvsSettings {
    /// `None`: rr.
    pub(crate) scheduler: Option<String>,
    pub(crate) exclude_cidrs: Vec<IpNet>,
    pub(crate) strict_arp: bool,
    /// `None`: as the kernel has it. The same for the next two.
    pub(crate) tcp_timeout: Option<Duration>,
    pub(crate) tcp_fin_timeout: Option<Duration>,
    pub(crate) udp_timeout: Option<Duration>,
    /// From a flag of ours, with a file or without.
    pub(crate) vip_binding: Binding,
}

/// What to write to the kernel's connection tracking; `None` and 0 leave it as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConntrackSettings {
    pub(crate) max_per_core: u32,
    pub(crate) min: u32,
    pub(crate) tcp_established_timeout: Option<Duration>,
    pub(crate) tcp_close_wait_timeout: Option<Duration>,
    pub(crate) tcp_be_liberal: bool,
    pub(crate) udp_timeout: Option<Duration>,
    pub(crate) udp_stream_timeout: Option<Duration>,
}
