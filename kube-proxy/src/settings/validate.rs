//! [`Configuration`] -> [`Settings`], or every field that has a value it may not have.

use std::{fmt, net::IpAddr, path::PathBuf, time::Duration};

use backend_ipvs::Binding;
use ipnet::IpNet;
use serde_json::Value;

use super::{
    configuration::{Configuration, LogStreams},
    effective::{
        ClientSettings, ConntrackSettings, DetectLocal, IpvsSettings, LogFormat, LoggingSettings, Mode,
        NodePortAddressSet, NodePortSelection, Settings,
    },
    encode,
    error::FieldError,
    go_text::{GoDuration, parse_cidr, parse_ip, parse_ip_port, parse_quantity},
};
use crate::settings::feature_gates::{Feature, FeatureGates};

/// IFNAMSIZ of linux/if.h is 16 with the final zero.
const INTERFACE_NAME_LIMIT: usize = 15;

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// What `all` stands for in `nodePortAddresses`.
const EVERYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// What is not in the configuration itself.
pub(super) struct Surroundings {
    pub(super) mode_defaulted: bool,
    pub(super) feature_gates: FeatureGates,
    pub(super) master: Option<String>,
    pub(super) config_file: Option<PathBuf>,
    pub(super) vip_binding: Binding,
    pub(super) insight_socket: Option<String>,
    pub(super) flags: Vec<(&'static str, String)>,
}

pub(super) fn validate(from: &Configuration, around: Surroundings) -> Result<Settings, Vec<FieldError>> {
    let mut check = Check::default();
    let mode = check.mode(&from.mode);
    let iptables_bit =
        check.range("iptables.masqueradeBit", from.iptables_masquerade_bit, 0, 31, "the range [0, 31]");
    let masquerade_bit = if mode == Mode::Nftables {
        check.range("nftables.masqueradeBit", from.nftables_masquerade_bit, 0, 31, "the range [0, 31]")
    } else {
        iptables_bit
    };
    let (sync_period, min_sync_period) = check.periods(from, mode);
    let detect_local = check.detect_local(from);
    let settings = Settings {
        mode,
        mode_defaulted: around.mode_defaulted,
        insight_socket: around.insight_socket,
        client: check.client(from, around.master),
        logging: check.logging(from, &around.feature_gates),
        hostname_override: some_text(from.hostname_override.trim()).map(|name| name.to_lowercase()),
        bind_address: check.bind_address(&from.bind_address),
        healthz_address: check.listen_address("healthzBindAddress", &from.healthz_bind_address),
        metrics_address: check.listen_address("metricsBindAddress", &from.metrics_bind_address),
        bind_address_hard_fail: from.bind_address_hard_fail,
        profiling: from.enable_profiling,
        masquerade_mark: 1 << masquerade_bit,
        masquerade_all: from.masquerade_all,
        localhost_node_ports: from.iptables_localhost_node_ports,
        sync_period,
        min_sync_period,
        ipvs: check.ipvs(from, mode, around.vip_binding),
        detect_local,
        cluster_cidrs: from.cluster_cidrs.iter().filter_map(|text| parse_cidr(text)).collect(),
        node_port_addresses: check.node_ports(from.node_port_addresses.as_deref().unwrap_or_default()),
        oom_score_adj: check.range("oomScoreAdj", from.oom_score_adj, -1000, 1000, "the range [-1000, 1000]"),
        conntrack: check.conntrack(from),
        config_sync_period: check.positive("configSyncPeriod", from.config_sync_period),
        config_file: around.config_file,
        document: encode::to_json(from),
        flags: around.flags,
        feature_gates: around.feature_gates,
    };
    check.hidden_metrics(&from.show_hidden_metrics_for_version);
    if check.errors.is_empty() { Ok(settings) } else { Err(check.errors) }
}

/// Collects refusals; what a refused field yields does not matter, since then nothing is returned.
#[derive(Default)]
struct Check {
    errors: Vec<FieldError>,
}

impl Check {
    fn refuse(&mut self, field: &str, value: impl fmt::Display, allowed: impl Into<String>) {
        self.errors.push(FieldError::new(field, value, allowed));
    }

    fn refuse_text(&mut self, field: &str, value: &str, allowed: impl Into<String>) {
        self.refuse(field, Value::from(value), allowed);
    }

    fn range(&mut self, field: &str, value: i32, low: i32, high: i32, allowed: &str) -> i32 {
        if (low..=high).contains(&value) {
            return value;
        }
        self.refuse(field, value, format!("must be within {allowed}"));
        0
    }

    fn not_negative(&mut self, field: &str, value: i32) -> u32 {
        u32::try_from(value).unwrap_or_else(|_| {
            self.refuse(field, value, "must be greater than or equal to 0");
            0
        })
    }

    fn positive(&mut self, field: &str, value: GoDuration) -> Duration {
        value.to_std().filter(|value| !value.is_zero()).unwrap_or_else(|| {
            self.refuse_text(field, &value.to_string(), "must be greater than 0");
            Duration::from_secs(1)
        })
    }

    /// Zero leaves things as they are.
    fn timeout(&mut self, field: &str, value: GoDuration) -> Option<Duration> {
        let result = value.to_std();
        if result.is_none() {
            self.refuse_text(field, &value.to_string(), "must be greater than or equal to 0");
        }
        result.filter(|value| !value.is_zero())
    }

    fn mode(&mut self, text: &str) -> Mode {
        Mode::ALL.into_iter().find(|mode| mode.as_str() == text).unwrap_or_else(|| {
            self.refuse_text(
                "mode",
                text,
                "must be iptables, ipvs, nftables or blank (blank means the default of Kubernetes, which is iptables)",
            );
            Mode::Iptables
        })
    }

    fn periods(&mut self, from: &Configuration, mode: Mode) -> (Duration, Option<Duration>) {
        let field = |name: &str| format!("{}.{name}", mode.as_str());
        let sync = self.positive(&field("syncPeriod"), from.sync_period);
        let min = from.min_sync_period.to_std();
        if min.is_none() {
            let text = from.min_sync_period.to_string();
            self.refuse_text(&field("minSyncPeriod"), &text, "must be greater than or equal to 0");
        } else if from.sync_period > GoDuration(0) && from.min_sync_period > from.sync_period {
            self.refuse_text(
                &field("syncPeriod"),
                &from.sync_period.to_string(),
                format!(
                    "must be greater than or equal to {} ({})",
                    field("minSyncPeriod"),
                    from.min_sync_period
                ),
            );
        }
        (sync, min.filter(|_| from.min_sync_period_given))
    }

    fn bind_address(&mut self, text: &str) -> Option<IpAddr> {
        let address = parse_ip(text);
        if address.is_none() {
            self.refuse_text("bindAddress", text, "must be an IP address such as 0.0.0.0, 192.0.2.1 or ::");
        }
        address.filter(|address| !address.is_unspecified())
    }

    fn listen_address(&mut self, field: &str, text: &str) -> Option<std::net::SocketAddr> {
        some_text(text).and_then(|text| match parse_ip_port(text) {
            Ok(address) => Some(address),
            Err(allowed) => {
                self.refuse_text(field, text, format!("{allowed}, such as 0.0.0.0:10256 or [::]:10256"));
                None
            }
        })
    }

    fn client(&mut self, from: &Configuration, master: Option<String>) -> ClientSettings {
        ClientSettings {
            kubeconfig: some_text(&from.client.kubeconfig).map(PathBuf::from),
            master,
            accept_content_types: from.client.accept_content_types.clone(),
            content_type: from.client.content_type.clone(),
            qps: from.client.qps,
            burst: self.not_negative("clientConnection.burst", from.client.burst),
        }
    }

    fn logging(&mut self, from: &Configuration, gates: &FeatureGates) -> LoggingSettings {
        let from = &from.logging;
        let format = match from.format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => {
                self.refuse_text("logging.format", other, "must be text or json");
                LogFormat::Text
            }
        };
        if format == LogFormat::Json && !from.vmodule.is_empty() {
            let text = from.vmodule.iter().map(|(pattern, level)| format!("{pattern}={level}"));
            let text = text.collect::<Vec<_>>().join(",");
            self.refuse_text("logging.vmodule", &text, "only supported for the text log format");
        }
        for (at, (pattern, _)) in from.vmodule.iter().enumerate() {
            if pattern.is_empty() || pattern.contains(['=', ',']) {
                let field = format!("logging.vmodule[{at}].filePattern");
                self.refuse_text(
                    &field,
                    pattern,
                    "must not be empty, and must not contain an equal sign or comma",
                );
            }
        }
        for (name, streams) in [("text", &from.text), ("json", &from.json)] {
            self.alpha_streams(name, streams, gates);
        }
        LoggingSettings {
            format,
            flush_frequency: self.positive("logging.flushFrequency", from.flush_frequency),
            verbosity: from.verbosity,
            vmodule: from.vmodule.clone(),
            split_stream: match format {
                LogFormat::Text => from.text.split_stream,
                LogFormat::Json => from.json.split_stream,
            },
        }
    }

    fn alpha_streams(&mut self, name: &str, streams: &LogStreams, gates: &FeatureGates) {
        if gates.enabled(Feature::LoggingAlphaOptions) {
            return;
        }
        const ALLOWED: &str = "may only be set when the feature gate LoggingAlphaOptions is on";
        if streams.split_stream {
            self.refuse(&format!("logging.options.{name}.splitStream"), true, ALLOWED);
        }
        if parse_quantity(&streams.info_buffer_size) != Ok(0) {
            let field = format!("logging.options.{name}.infoBufferSize");
            self.refuse_text(&field, &streams.info_buffer_size, ALLOWED);
        }
    }

    fn detect_local(&mut self, from: &Configuration) -> DetectLocal {
        match from.detect_local_mode.as_str() {
            "ClusterCIDR" => DetectLocal::ClusterCidr(self.cluster_cidrs(&from.cluster_cidrs)),
            "NodeCIDR" => DetectLocal::NodeCidr,
            "BridgeInterface" => {
                self.interface("detectLocal.bridgeInterface", &from.bridge_interface);
                DetectLocal::BridgeInterface(from.bridge_interface.clone())
            }
            "InterfaceNamePrefix" => {
                self.interface("detectLocal.interfaceNamePrefix", &from.interface_name_prefix);
                DetectLocal::InterfaceNamePrefix(from.interface_name_prefix.clone())
            }
            other => {
                let allowed = "must be ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix or blank (ClusterCIDR)";
                self.refuse_text("detectLocalMode", other, allowed);
                DetectLocal::NodeCidr
            }
        }
    }

    fn cluster_cidrs(&mut self, texts: &[String]) -> Vec<IpNet> {
        const ALLOWED: &str = "must be one CIDR, or one of each family (such as 10.100.0.0/16 or 10.100.0.0/16,fde4:8dba:82e1::/48)";
        let nets: Vec<IpNet> = texts.iter().filter_map(|text| parse_cidr(text)).collect();
        let one_family =
            nets.len() == 2 && matches!(nets[0], IpNet::V4(_)) == matches!(nets[1], IpNet::V4(_));
        if nets.len() != texts.len() || texts.len() > 2 || one_family {
            self.refuse_text("clusterCIDR", &texts.join(","), ALLOWED);
        }
        nets
    }

    fn interface(&mut self, field: &str, name: &str) {
        if name.is_empty() {
            self.refuse_text(field, name, "must not be empty in this detectLocalMode");
        } else if name.len() > INTERFACE_NAME_LIMIT || name.contains(|c: char| c == '/' || c.is_whitespace())
        {
            self.refuse_text(field, name, "must be at most 15 characters, without spaces and slashes");
        }
    }

    fn node_ports(&mut self, texts: &[String]) -> NodePortSelection {
        let mut selection = NodePortSelection::default();
        let mut nets: Vec<IpNet> = Vec::new();
        let mut primary = false;
        // A keyword stands for its networks; what is named counts together.
        let networks =
            |texts: &[&str]| texts.iter().filter_map(|text| parse_cidr(text)).collect::<Vec<IpNet>>();
        for (at, text) in texts.iter().enumerate() {
            match text.as_str() {
                "primary" => primary = true,
                "all" => nets.extend(networks(&EVERYWHERE)),
                "localhost" => nets.extend(networks(&LOOPBACK)),
                _ => match parse_cidr(text) {
                    Some(net) => nets.push(net),
                    None => self.refuse_text(
                        &format!("nodePortAddresses[{at}]"),
                        text,
                        "must be a valid CIDR, or one of primary, all, localhost",
                    ),
                },
            }
        }
        let loopback = |v4| nets.iter().any(|net| net.addr().is_ipv4() == v4 && net.addr().is_loopback());
        selection.localhost = loopback(true);
        selection.localhost_v6 = loopback(false);
        let open = networks(&EVERYWHERE).iter().all(|all| nets.contains(all));
        selection.addresses = match (primary, nets.is_empty()) {
            _ if open => NodePortAddressSet::Any,
            (true, true) => NodePortAddressSet::Primary,
            (true, false) => NodePortAddressSet::PrimaryAndCidrs(nets),
            (false, true) => NodePortAddressSet::Any,
            (false, false) => NodePortAddressSet::Cidrs(nets),
        };
        selection
    }

    fn ipvs(&mut self, from: &Configuration, mode: Mode, vip_binding: Binding) -> IpvsSettings {
        let from = &from.ipvs;
        // As in kube-proxy, this part is judged in its own mode only.
        let mut own = Self::default();
        let mut exclude_cidrs = Vec::new();
        for (at, text) in from.exclude_cidrs.iter().flatten().enumerate() {
            match parse_cidr(text) {
                Some(net) => exclude_cidrs.push(net),
                None => own.refuse_text(&format!("ipvs.excludeCIDRs[{at}]"), text, "must be a valid CIDR"),
            }
        }
        let settings = IpvsSettings {
            scheduler: some_text(&from.scheduler).map(str::to_owned),
            exclude_cidrs,
            strict_arp: from.strict_arp,
            tcp_timeout: own.timeout("ipvs.tcpTimeout", from.tcp_timeout),
            tcp_fin_timeout: own.timeout("ipvs.tcpFinTimeout", from.tcp_fin_timeout),
            udp_timeout: own.timeout("ipvs.udpTimeout", from.udp_timeout),
            vip_binding,
        };
        if mode == Mode::Ipvs {
            self.errors.append(&mut own.errors);
        }
        settings
    }

    fn conntrack(&mut self, from: &Configuration) -> ConntrackSettings {
        let from = &from.conntrack;
        ConntrackSettings {
            max_per_core: self.not_negative("conntrack.maxPerCore", from.max_per_core),
            min: self.not_negative("conntrack.min", from.min),
            tcp_established_timeout: self
                .timeout("conntrack.tcpEstablishedTimeout", from.tcp_established_timeout),
            tcp_close_wait_timeout: self
                .timeout("conntrack.tcpCloseWaitTimeout", from.tcp_close_wait_timeout),
            tcp_be_liberal: from.tcp_be_liberal,
            udp_timeout: self.timeout("conntrack.udpTimeout", from.udp_timeout),
            udp_stream_timeout: self.timeout("conntrack.udpStreamTimeout", from.udp_stream_timeout),
        }
    }

    /// Only the previous minor version means anything, so only it is accepted.
    fn hidden_metrics(&mut self, text: &str) {
        let previous = format!("{}.{}", crate::settings::version::MAJOR, crate::settings::version::MINOR - 1);
        if !text.is_empty() && text != previous {
            self.refuse_text(
                "showHiddenMetricsForVersion",
                text,
                format!("must be the previous minor version ({previous}) or blank"),
            );
        }
    }
}

fn some_text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}
