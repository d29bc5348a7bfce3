//! Every metric: name, type, labels, help text, buckets, and the modes in which it has a meaning.
//!
//! Names, labels and buckets of `kubeproxy_*` and `rest_client_*` are those of kube-proxy 1.36, of
//! `kubeproxy_nftables_localhost_*` those of 1.37; ours begin with `switchyard_`.

use crate::settings::effective::Mode;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram(Buckets),
}

/// Upper bounds, without infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Buckets {
    /// 15 powers of two from a millisecond on.
    Sync,
    /// Of the network programming latency: fine up to a minute, coarse up to five.
    Programming,
    /// Of requests to the API server.
    Request,
    /// 64 bytes to 16 MiB.
    Size,
    /// 17 powers of two from 32 microseconds on.
    Fine,
}

impl Buckets {
    pub(crate) fn bounds(self) -> Vec<f64> {
        let powers = |first: f64, count| (0..count).map(|at| first * f64::from(1_u32 << at)).collect();
        match self {
            Self::Sync => powers(0.001, 15),
            Self::Fine => powers(0.000_032, 17),
            Self::Programming => [0.25, 0.5]
                .into_iter()
                .chain((1..=59).map(f64::from))
                .chain((60..=115).step_by(5).map(f64::from))
                .chain((120..=300).step_by(30).map(f64::from))
                .collect(),
            Self::Request => vec![0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0],
            Self::Size => vec![
                64.0,
                256.0,
                512.0,
                1024.0,
                4096.0,
                16_384.0,
                65_536.0,
                262_144.0,
                1_048_576.0,
                4_194_304.0,
                16_777_216.0,
            ],
        }
    }
}

pub(super) struct Metric {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) labels: &'static [&'static str],
    pub(super) modes: &'static [Mode],
    pub(super) help: &'static str,
}

const ALL: &[Mode] = &Mode::ALL;
const IPTABLES: &[Mode] = &[Mode::Iptables];
const IPTABLES_AND_IPVS: &[Mode] = &[Mode::Iptables, Mode::Ipvs];
const IPTABLES_AND_NFTABLES: &[Mode] = &[Mode::Iptables, Mode::Nftables];
const NFTABLES: &[Mode] = &[Mode::Nftables];
const IPVS: &[Mode] = &[Mode::Ipvs];

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    modes: &'static [Mode],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, modes, help }
}

const FAMILY: &[&str] = &["ip_family"];
const SYNC: Kind = Kind::Histogram(Buckets::Sync);

use Kind::{Counter, Gauge};

#[rustfmt::skip]
pub(super) const TABLE: &[Metric] = &[
    metric("kubeproxy_sync_proxy_rules_duration_seconds", SYNC, FAMILY, ALL, "[ALPHA] SyncProxyRules latency in seconds"),
    metric("kubeproxy_sync_full_proxy_rules_duration_seconds", SYNC, FAMILY, IPTABLES_AND_NFTABLES, "[ALPHA] SyncProxyRules latency in seconds for full resyncs"),
    metric("kubeproxy_sync_partial_proxy_rules_duration_seconds", SYNC, FAMILY, IPTABLES_AND_NFTABLES, "[ALPHA] SyncProxyRules latency in seconds for partial resyncs"),
    metric("kubeproxy_sync_proxy_rules_last_timestamp_seconds", Gauge, FAMILY, ALL, "[ALPHA] The last time proxy rules were successfully synced"),
    metric("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", Gauge, FAMILY, ALL, "[ALPHA] The last time a sync of proxy rules was queued"),
    metric("kubeproxy_network_programming_duration_seconds", Kind::Histogram(Buckets::Programming), FAMILY, ALL, "[ALPHA] In Cluster Network Programming Latency in seconds"),
    metric("kubeproxy_sync_proxy_rules_endpoint_changes_pending", Gauge, &[], ALL, "[ALPHA] Pending proxy rules Endpoint changes"),
    metric("kubeproxy_sync_proxy_rules_endpoint_changes_total", Counter, &[], ALL, "[ALPHA] Cumulative proxy rules Endpoint changes"),
    metric("kubeproxy_sync_proxy_rules_service_changes_pending", Gauge, &[], ALL, "[ALPHA] Pending proxy rules Service changes"),
    metric("kubeproxy_sync_proxy_rules_service_changes_total", Counter, &[], ALL, "[ALPHA] Cumulative proxy rules Service changes"),
    metric("kubeproxy_sync_proxy_rules_no_local_endpoints_total", Gauge, &["traffic_policy", "ip_family"], ALL, "[ALPHA] Number of services with a Local traffic policy and no endpoints"),
    metric("kubeproxy_proxy_healthz_total", Counter, &["code"], ALL, "[ALPHA] Cumulative proxy healthz HTTP status"),
    metric("kubeproxy_proxy_livez_total", Counter, &["code"], ALL, "[ALPHA] Cumulative proxy livez HTTP status"),
    metric("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", Counter, FAMILY, IPTABLES_AND_IPVS, "[ALPHA] Cumulative proxy iptables restore failures"),
    metric("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", Counter, FAMILY, IPTABLES, "[ALPHA] Cumulative proxy iptables partial restore failures"),
    metric("kubeproxy_sync_proxy_rules_iptables_total", Gauge, &["table", "ip_family"], IPTABLES, "[ALPHA] Total number of iptables rules owned by kube-proxy"),
    metric("kubeproxy_sync_proxy_rules_iptables_last", Gauge, &["table", "ip_family"], IPTABLES, "[ALPHA] Number of iptables rules written by kube-proxy in last sync"),
    metric("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", Counter, &[], IPTABLES, "[ALPHA] packets dropped by iptables to work around conntrack problems"),
    metric("kubeproxy_nftables_localhost_nodeport_listeners", Gauge, FAMILY, NFTABLES, "[ALPHA] Listeners of NodePorts on localhost"),
    metric("kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total", Counter, FAMILY, NFTABLES, "[ALPHA] Listeners of NodePorts on localhost that could not be opened"),
    metric("kubeproxy_nftables_localhost_nodeport_rejected_packets_total", Counter, &["ip_family", "protocol"], NFTABLES, "[ALPHA] Packets to NodePorts on loopback addresses that were refused: UDP and SCTP always, TCP where nobody listens for it"),
    metric("kubeproxy_iptables_localhost_nodeports_accepted_packets_total", Counter, &[], IPTABLES, "[ALPHA] Number of packets accepted on nodeports of loopback interface"),
    metric("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", Counter, FAMILY, NFTABLES, "[ALPHA] Cumulative proxy nftables sync failures"),
    metric("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", Counter, FAMILY, NFTABLES, "[ALPHA] Cumulative proxy nftables cleanup failures"),
    metric("kubeproxy_conntrack_reconciler_sync_duration_seconds", SYNC, FAMILY, ALL, "[ALPHA] ReconcileConntrackFlowsLatency latency in seconds"),
    metric("kubeproxy_conntrack_reconciler_deleted_entries_total", Counter, FAMILY, ALL, "[ALPHA] Cumulative conntrack flows deleted by conntrack reconciler"),
    metric("rest_client_requests_total", Counter, &["code", "method", "host"], ALL, "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host."),
    metric("rest_client_request_duration_seconds", Kind::Histogram(Buckets::Request), &["verb", "host"], ALL, "[ALPHA] Request latency in seconds. Broken down by verb, and host."),
    metric("rest_client_request_size_bytes", Kind::Histogram(Buckets::Size), &["verb", "host"], ALL, "[ALPHA] Request size in bytes. Broken down by verb and host."),
    metric("kubernetes_build_info", Gauge, &["major", "minor", "git_version", "git_commit", "git_tree_state", "build_date", "go_version", "compiler", "platform"], ALL, "[BETA] A metric with a constant '1' value labeled by major, minor, git version, git commit, git tree state, build date, Go version, and compiler from which Kubernetes was built, and platform on which it is running."),
    metric("kubernetes_feature_enabled", Gauge, &["name", "stage"], ALL, "[BETA] This metric records the data about the stage and enablement of a k8s feature."),
    metric("registered_metrics_total", Counter, &["stability_level", "deprecated_version"], ALL, "[BETA] The count of registered metrics broken by stability level and deprecation version."),
    metric("hidden_metrics_total", Counter, &[], ALL, "[BETA] The count of hidden metrics."),
    metric("disabled_metrics_total", Counter, &[], ALL, "[BETA] The count of disabled metrics."),
    metric("switchyard_build_info", Gauge, &["version"], ALL, "A constant 1, labeled by the release of Switchyard"),
    metric("switchyard_service_ports", Gauge, FAMILY, ALL, "Service ports that are installed in the kernel"),
    metric("switchyard_change_to_kernel_seconds", Kind::Histogram(Buckets::Fine), FAMILY, ALL, "Time from the arrival of the oldest change of a sync until it was in the kernel"),
    metric("switchyard_first_sync_seconds", Gauge, &["phase", "ip_family"], ALL, "Where the time of the first sync went: list, decode, plan, encode or kernel"),
    metric("switchyard_sync_failures_total", Counter, FAMILY, ALL, "Syncs that failed as a whole and are tried again"),
    metric("switchyard_set_aside_service_ports", Gauge, FAMILY, ALL, "Service ports that the kernel refused and that keep their last good state"),
    metric("switchyard_address_conflicts", Gauge, FAMILY, ALL, "Addresses and ports claimed by more than one Service"),
    metric("switchyard_drift_repairs_total", Counter, FAMILY, ALL, "Times that rules were rebuilt because somebody else had changed them"),
    metric("switchyard_affinity_entries_lost_total", Counter, FAMILY, ALL, "New clients that got no session affinity because the kernel's table of it was full"),
    metric("switchyard_config_changes_total", Counter, &["result"], ALL, "Changes of the configuration file: applied, restart or invalid"),
    metric("switchyard_api_last_contact_timestamp_seconds", Gauge, &["kind"], ALL, "When the API server last said something about objects of this kind: a list, a change or a bookmark; 0 before it did"),
    metric("switchyard_config_fields_waiting_for_restart", Gauge, &[], ALL, "Fields of the configuration file that changed and that only a new process can follow; the process is about to end"),
    metric("switchyard_config_file_in_force", Gauge, &[], ALL, "1 where the configuration file as it is now is followed, 0 where it is not valid or waits for a restart"),
    metric("switchyard_events_dropped_total", Counter, &["reason"], ALL, "Events that were not sent: rate, queue, forbidden or error"),
    metric("switchyard_unreadable_objects_total", Counter, &["kind"], ALL, "Objects from the API server that could not be decoded and keep their last good state"),
    metric("switchyard_log_lines_withheld_total", Counter, &[], ALL, "Lines that were not logged because there were too many of their kind"),
    metric("switchyard_ipvs_leaving", Gauge, &["what"], ALL, "What is left of an ipvs mode until its connections have ended: virtual_servers, destinations or connections"),
    metric("switchyard_confined", Gauge, &["by"], ALL, "1 where seccomp or Landlock restrains the process"),
    metric("switchyard_ipvs_draining_endpoints", Gauge, FAMILY, IPVS, "Endpoints that are gone and are kept, without new connections, until theirs have ended"),
    metric("switchyard_topology_hints_ignored", Gauge, &["ip_family", "reason"], ALL, "Services whose endpoints carry topology hints that are not followed: incomplete, no_zone or none_here"),
    metric("switchyard_health_check_node_ports", Gauge, &["state"], ALL, "Health check node ports: serving or failed"),
];
