//! The configuration as written by flags or a file, defaulted but not yet judged.
//!
//! As inside kube-proxy there is one sync period and one `masqueradeAll`: those of the selected mode. Decoding picks
//! them, encoding puts them back into that mode's part.

use std::collections::BTreeMap;

use super::go_text::{GoDuration, split_host_port, with_port};

pub(crate) const HEALTHZ_PORT: u16 = 10256;
pub(crate) const METRICS_PORT: u16 = 10249;
const DEFAULT_SYNC_PERIOD: GoDuration = GoDuration::from_secs(30);
const DEFAULT_MIN_SYNC_PERIOD: GoDuration = GoDuration::from_secs(1);

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Configuration {
    pub(crate) feature_gates: BTreeMap<String, bool>,
    pub(crate) client: Client,
    pub(crate) logging: Logging,
    pub(crate) hostname_override: String,
    pub(crate) bind_address: String,
    pub(crate) healthz_bind_address: String,
    pub(crate) metrics_bind_address: String,
    pub(crate) bind_address_hard_fail: bool,
    pub(crate) enable_profiling: bool,
    pub(crate) show_hidden_metrics_for_version: String,
    pub(crate) mode: String,
    pub(crate) iptables_masquerade_bit: i32,
    pub(crate) iptables_localhost_node_ports: bool,
    pub(crate) ipvs: Ipvs,
    pub(crate) nftables_masquerade_bit: i32,
    pub(crate) winkernel: Winkernel,
    pub(crate) masquerade_all: bool,
    pub(crate) sync_period: GoDuration,
    pub(crate) min_sync_period: GoDuration,
    /// Whether somebody asked for this minimum, rather than getting the default.
    pub(crate) min_sync_period_given: bool,
    pub(crate) detect_local_mode: String,
    pub(crate) bridge_interface: String,
    pub(crate) interface_name_prefix: String,
    pub(crate) cluster_cidrs: Vec<String>,
    pub(crate) node_port_addresses: Option<Vec<String>>,
    pub(crate) oom_score_adj: i32,
    pub(crate) conntrack: Conntrack,
    pub(crate) config_sync_period: GoDuration,
    pub(crate) windows_run_as_service: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Client {
    pub(crate) kubeconfig: String,
    pub(crate) accept_content_types: String,
    pub(crate) content_type: String,
    pub(crate) qps: f32,
    pub(crate) burst: i32,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Logging {
    pub(crate) format: String,
    pub(crate) flush_frequency: GoDuration,
    pub(crate) verbosity: u32,
    /// Pattern of a source file's name, and its verbosity.
    pub(crate) vmodule: Vec<(String, u32)>,
    pub(crate) text: LogStreams,
    pub(crate) json: LogStreams,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LogStreams {
    pub(crate) split_stream: bool,
    /// A quantity, as written.
    pub(crate) info_buffer_size: String,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Ipvs {
    pub(crate) scheduler: String,
    pub(crate) exclude_cidrs: Option<Vec<String>>,
    pub(crate) strict_arp: bool,
    pub(crate) tcp_timeout: GoDuration,
    pub(crate) tcp_fin_timeout: GoDuration,
    pub(crate) udp_timeout: GoDuration,
}

/// Means nothing on Linux; kept so that it is written back.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Winkernel {
    pub(crate) network_name: String,
    pub(crate) source_vip: String,
    pub(crate) enable_dsr: bool,
    pub(crate) root_hns_endpoint_name: String,
    pub(crate) forward_health_check_vip: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Conntrack {
    pub(crate) max_per_core: i32,
    pub(crate) min: i32,
    pub(crate) tcp_established_timeout: GoDuration,
    pub(crate) tcp_close_wait_timeout: GoDuration,
    pub(crate) tcp_be_liberal: bool,
    pub(crate) udp_timeout: GoDuration,
    pub(crate) udp_stream_timeout: GoDuration,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            feature_gates: BTreeMap::new(),
            client: Client {
                kubeconfig: String::new(),
                accept_content_types: String::new(),
                content_type: "application/vnd.kubernetes.protobuf".to_owned(),
                qps: 5.0,
                burst: 10,
            },
            logging: Logging::default(),
            hostname_override: String::new(),
            bind_address: "0.0.0.0".to_owned(),
            healthz_bind_address: format!("0.0.0.0:{HEALTHZ_PORT}"),
            metrics_bind_address: format!("127.0.0.1:{METRICS_PORT}"),
            bind_address_hard_fail: false,
            enable_profiling: false,
            show_hidden_metrics_for_version: String::new(),
            mode: String::new(),
            iptables_masquerade_bit: 14,
            iptables_localhost_node_ports: true,
            ipvs: Ipvs::default(),
            nftables_masquerade_bit: 14,
            winkernel: Winkernel::default(),
            masquerade_all: false,
            sync_period: DEFAULT_SYNC_PERIOD,
            min_sync_period: DEFAULT_MIN_SYNC_PERIOD,
            min_sync_period_given: false,
            detect_local_mode: String::new(),
            bridge_interface: String::new(),
            interface_name_prefix: String::new(),
            cluster_cidrs: Vec::new(),
            node_port_addresses: None,
            oom_score_adj: -999,
            conntrack: Conntrack {
                max_per_core: 32 * 1024,
                min: 128 * 1024,
                tcp_established_timeout: GoDuration::from_secs(24 * 3600),
                tcp_close_wait_timeout: GoDuration::from_secs(3600),
                tcp_be_liberal: false,
                udp_timeout: GoDuration(0),
                udp_stream_timeout: GoDuration(0),
            },
            config_sync_period: GoDuration::from_secs(15 * 60),
            windows_run_as_service: false,
        }
    }
}

impl Default for Logging {
    fn default() -> Self {
        Self {
            format: "text".to_owned(),
            flush_frequency: GoDuration::from_secs(5),
            verbosity: 0,
            vmodule: Vec::new(),
            text: LogStreams::default(),
            json: LogStreams::default(),
        }
    }
}

impl Default for LogStreams {
    fn default() -> Self {
        Self { split_stream: false, info_buffer_size: "0".to_owned() }
    }
}

impl Configuration {
    /// Gives the addresses that are empty or lack a port what their defaults are.
    pub(super) fn default_addresses(&mut self) {
        if self.bind_address.is_empty() {
            self.bind_address = "0.0.0.0".to_owned();
        }
        let (any, loopback) =
            if self.bind_address.contains(':') { ("::", "::1") } else { ("0.0.0.0", "127.0.0.1") };
        for (address, host, port) in [
            (&mut self.healthz_bind_address, any, HEALTHZ_PORT),
            (&mut self.metrics_bind_address, loopback, METRICS_PORT),
        ] {
            *address = with_port(if address.is_empty() { host } else { address }, port);
        }
    }

    /// What `--healthz-port` and `--metrics-port` do to addresses that name no port of their own; 0 disables.
    pub(super) fn apply_deprecated_port(address: &mut String, port: i32) {
        if port == 0 {
            address.clear();
        } else if split_host_port(address).is_none()
            && let Ok(port) = u16::try_from(port)
        {
            *address = with_port(address, port);
        }
    }

    /// What depends on the platform: the mode and detector that stand behind an empty name.
    pub(super) fn default_for_linux(&mut self) -> Vec<String> {
        let mut notices = Vec::new();
        if self.mode.is_empty() {
            self.mode = "iptables".to_owned();
            notices.push(
                "Using iptables proxy: no mode is configured, and iptables is the default of Kubernetes; \
                 mode nftables is recommended (see docs/migrate.md)"
                    .to_owned(),
            );
        }
        if self.mode == "nftables" && self.node_port_addresses.as_ref().is_none_or(Vec::is_empty) {
            self.node_port_addresses = Some(vec!["primary".to_owned()]);
        }
        if self.detect_local_mode.is_empty() {
            "ClusterCIDR".clone_into(&mut self.detect_local_mode);
        }
        notices
    }
}
