//! Every flag: its name, the variable it sets, its help text.

use std::fmt::Write as _;

use super::{
    Flags,
    values::{Checked, FlagValue, ip_or_empty, ip_port, quantity},
};

pub(super) struct Flag {
    pub(super) name: &'static str,
    pub(super) value: for<'a> fn(&'a mut Flags) -> Box<dyn FlagValue + 'a>,
    help: &'static str,
}

pub(super) fn find(name: &str) -> Option<&'static Flag> {
    // kube-proxy has only the long name; people guess the short one.
    let name = if name == "mode" { "proxy-mode" } else { name };
    TABLE.iter().find(|flag| flag.name == name)
}

pub(super) fn find_short(letter: char) -> Option<&'static Flag> {
    match letter {
        'h' => find("help"),
        'v' => find("v"),
        _ => None,
    }
}

/// The text of `--help`.
pub(crate) fn help() -> String {
    let mut text =
        "Switchyard runs on each node in the place of kube-proxy: it makes the node's kernel carry\n\
                    traffic for Kubernetes Services to their endpoints.\n\n\
                    Usage:\n  kube-proxy [flags]\n  kube-proxy VERB [options]\n\nFlags:\n"
            .to_owned();
    let mut defaults = Flags::default();
    for flag in TABLE {
        let (kind, default) = {
            let value = (flag.value)(&mut defaults);
            (value.kind(), value.show())
        };
        let short = match flag.name {
            "help" => "-h, ",
            "v" => "-v, ",
            _ => "    ",
        };
        let _ = write!(text, "  {short}--{}", flag.name);
        if !kind.is_empty() {
            let _ = write!(text, " {kind}");
        }
        let _ = write!(text, "\n          {}", flag.help);
        if !matches!(default.as_str(), "" | "false" | "0s" | "[]" | "0") {
            let _ = write!(text, " (default {default})");
        }
        text.push('\n');
    }
    text
}

/// `row!(name, |flags| variable, help)`: any variable whose type is a flag's.
macro_rules! row {
    ($name:literal, $($field:ident).+, $help:expr) => {
        Flag { name: $name, value: |flags| Box::new(By(&mut flags.$($field).+)), help: $help }
    };
    ($name:literal, $($field:ident).+ as $kind:literal, $check:expr, $help:expr) => {
        Flag {
            name: $name,
            value: |flags| Box::new(Checked { text: &mut flags.$($field).+, kind: $kind, check: $check }),
            help: $help,
        }
    };
}

/// A borrowed variable.
struct By<'a, T>(&'a mut T);

impl<T: FlagValue> FlagValue for By<'_, T> {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn set(&mut self, text: &str, first: bool) -> Result<(), String> {
        self.0.set(text, first)
    }

    fn show(&self) -> String {
        self.0.show()
    }

    fn alone(&self) -> Option<&'static str> {
        self.0.alone()
    }
}

/// Modes are judged with the rest of the configuration, which says what is allowed.
fn anything(_: &str) -> Result<(), String> {
    Ok(())
}

/// Sorted by name.
#[rustfmt::skip]
pub(super) const TABLE: &[Flag] = &[
    row!("bind-address", configuration.bind_address as "ip", ip_or_empty, "Overrides the node's primary IP; nothing is bound to it. Ignored with --config."),
    row!("bind-address-hard-fail", configuration.bind_address_hard_fail, "Exit when the health or metrics port cannot be bound, instead of trying again. Ignored with --config."),
    row!("boot-id-file", boot_id_file, "Accepted, without effect."),
    row!("cleanup", cleanup, "Remove all rules of all modes and exit."),
    row!("cleanup-own", cleanup_own, "Remove what a kube-proxy in ipvs mode that came after this program in ipvs mode does not know, and exit."),
    row!("cluster-cidr", cluster_cidr, "Network of the cluster's pods, or one of each family, comma-separated; tells local pods apart in detect-local-mode ClusterCIDR. Ignored with --config."),
    row!("config", config, "Path of the configuration file; it replaces what all flags say that are fields of it."),
    row!("config-sync-period", configuration.config_sync_period, "How often the configuration from the API server is refreshed. Ignored with --config."),
    row!("conntrack-max-per-core", configuration.conntrack.max_per_core, "Connections to track per processor core; 0 leaves the limit as it is and ignores conntrack-min. Ignored with --config."),
    row!("conntrack-min", configuration.conntrack.min, "Connections to track at least. Ignored with --config."),
    row!("conntrack-tcp-be-liberal", configuration.conntrack.tcp_be_liberal, "Set nf_conntrack_tcp_be_liberal to 1. Ignored with --config."),
    row!("conntrack-tcp-timeout-close-wait", configuration.conntrack.tcp_close_wait_timeout, "Timeout of TCP connections in CLOSE_WAIT; 0 leaves it as it is. Ignored with --config."),
    row!("conntrack-tcp-timeout-established", configuration.conntrack.tcp_established_timeout, "Idle timeout of established TCP connections; 0 leaves it as it is. Ignored with --config."),
    row!("conntrack-udp-timeout", configuration.conntrack.udp_timeout, "Idle timeout of UDP flows without an answer; 0 leaves it as it is. Ignored with --config."),
    row!("conntrack-udp-timeout-stream", configuration.conntrack.udp_stream_timeout, "Idle timeout of UDP flows with answers; 0 leaves it as it is. Ignored with --config."),
    row!("detect-local-mode", configuration.detect_local_mode as "LocalMode", anything, "How traffic of local pods is told apart: ClusterCIDR (default), NodeCIDR, BridgeInterface or InterfaceNamePrefix. Ignored with --config."),
    row!("feature-gates", configuration.feature_gates, "Feature gates, name=true|false, comma-separated. Ignored with --config."),
    row!("healthz-bind-address", configuration.healthz_bind_address as "ipport", ip_port, "Address and port of the health server. Ignored with --config."),
    row!("healthz-port", healthz_port, "Deprecated: port of the health server, 0 disables it; use --healthz-bind-address."),
    row!("help", help, "Print this text and exit."),
    row!("hostname-override", hostname_override, "Name of the Node, if it is not the machine's hostname."),
    row!("init-only", init_only, "Do what needs full privileges (sysctls), then exit; a second run then needs CAP_NET_ADMIN only."),
    row!("insight-socket", insight_socket, "Unix socket at which root may ask what this process knows and did; empty: none. Also with --config."),
    row!("iptables-localhost-nodeports", configuration.iptables_localhost_node_ports, "Let NodePorts answer on 127.0.0.1 (iptables mode, IPv4). Ignored with --config."),
    row!("iptables-masquerade-bit", configuration.iptables_masquerade_bit, "Bit of the packet mark that asks for SNAT in iptables and ipvs mode, from 0 to 31. Ignored with --config."),
    row!("iptables-min-sync-period", iptables_min_sync_period, "Least time between two writes in iptables and nftables mode. Ignored with --config."),
    row!("iptables-sync-period", iptables_sync_period, "How often rules are checked and retried in iptables and nftables mode. Ignored with --config."),
    row!("ipvs-exclude-cidrs", configuration.ipvs.exclude_cidrs, "Networks whose IPVS virtual servers are left alone. Ignored with --config."),
    row!("ipvs-min-sync-period", ipvs_min_sync_period, "Least time between two writes in ipvs mode. Ignored with --config."),
    row!("ipvs-scheduler", configuration.ipvs.scheduler, "IPVS scheduler; empty means rr. Ignored with --config."),
    row!("ipvs-strict-arp", configuration.ipvs.strict_arp, "Set arp_ignore to 1 and arp_announce to 2. Ignored with --config."),
    row!("ipvs-sync-period", ipvs_sync_period, "How often rules are checked and retried in ipvs mode. Ignored with --config."),
    row!("ipvs-tcp-timeout", configuration.ipvs.tcp_timeout, "Timeout of idle IPVS TCP connections; 0 leaves it as it is. Ignored with --config."),
    row!("ipvs-tcpfin-timeout", configuration.ipvs.tcp_fin_timeout, "Timeout of IPVS TCP connections after a FIN; 0 leaves it as it is. Ignored with --config."),
    row!("ipvs-udp-timeout", configuration.ipvs.udp_timeout, "Timeout of IPVS UDP flows; 0 leaves it as it is. Ignored with --config."),
    row!("ipvs-vip-binding", ipvs_vip_binding, "How virtual IPs become the node's own in ipvs mode: as local routes, or as addresses of kube-ipvs0. Also with --config."),
    row!("kube-api-burst", configuration.client.burst, "Accepted, without effect. Ignored with --config."),
    row!("kube-api-content-type", configuration.client.content_type, "Encoding of lists and watches: application/vnd.kubernetes.protobuf or application/json. Ignored with --config."),
    row!("kube-api-qps", configuration.client.qps, "Accepted, without effect. Ignored with --config."),
    row!("kubeconfig", configuration.client.kubeconfig, "Path of a kubeconfig file; without it and --master the in-cluster configuration is used. Ignored with --config."),
    row!("log-flush-frequency", configuration.logging.flush_frequency, "Accepted; every line is written at once."),
    row!("log-json-info-buffer-size", configuration.logging.json.info_buffer_size as "quantity", quantity, "Accepted with feature gate LoggingAlphaOptions; nothing is buffered."),
    row!("log-json-split-stream", configuration.logging.json.split_stream, "In JSON format, errors go to stderr and the rest to stdout (feature gate LoggingAlphaOptions)."),
    row!("log-text-info-buffer-size", configuration.logging.text.info_buffer_size as "quantity", quantity, "Accepted with feature gate LoggingAlphaOptions; nothing is buffered."),
    row!("log-text-split-stream", configuration.logging.text.split_stream, "In text format, errors go to stderr and the rest to stdout (feature gate LoggingAlphaOptions)."),
    row!("logging-format", configuration.logging.format, "Format of the log: text or json."),
    row!("machine-id-file", machine_id_file, "Accepted, without effect."),
    row!("masquerade-all", configuration.masquerade_all, "SNAT all traffic to cluster IPs. Ignored with --config."),
    row!("master", master, "Address of the API server, over what the kubeconfig says."),
    row!("metrics-bind-address", configuration.metrics_bind_address as "ipport", ip_port, "Address and port of the metrics server; empty disables it. Ignored with --config."),
    row!("metrics-port", metrics_port, "Deprecated: port of the metrics server, 0 disables it; use --metrics-bind-address."),
    row!("nodeport-addresses", configuration.node_port_addresses, "Networks of the node's addresses that serve NodePorts, or primary; also all and localhost. Ignored with --config."),
    row!("oom-score-adj", configuration.oom_score_adj, "oom_score_adj of the process, from -1000 to 1000. Ignored with --config."),
    row!("pod-bridge-interface", configuration.bridge_interface, "Bridge of the local pods, for detect-local-mode BridgeInterface. Ignored with --config."),
    row!("pod-interface-name-prefix", configuration.interface_name_prefix, "How the names of local pods' interfaces begin, for detect-local-mode InterfaceNamePrefix. Ignored with --config."),
    row!("profiling", configuration.enable_profiling, "Serve /debug on the metrics port. Ignored with --config."),
    row!("proxy-mode", configuration.mode as "ProxyMode", anything, "nftables, iptables (the default of Kubernetes) or ipvs; --mode is the same. Ignored with --config."),
    row!("show-hidden-metrics-for-version", configuration.show_hidden_metrics_for_version, "Previous minor version whose hidden metrics are shown (there are none). Ignored with --config."),
    row!("v", configuration.logging.verbosity, "Verbosity of the log."),
    row!("version", version, "Print the version and exit; raw prints more."),
    row!("vmodule", configuration.logging.vmodule, "Verbosity for single source files, pattern=N, comma-separated (text format only)."),
    row!("write-config-to", write_config_to, "Write the configuration that results to this file and exit."),
];
