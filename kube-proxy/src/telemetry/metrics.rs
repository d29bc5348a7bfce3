//! What Prometheus may ask: kube-proxy's metrics under their own names, and ours under `switchyard_`.
//!
//! `table.rs` holds what they are; here they get their values. Everything is kept by the process-wide recorder of the
//! `metrics` crate, so a value can be set from any thread.

use std::{
    fmt::{self, Write as _},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use backend_iptables::accounting;
use backend_ipvs::leaving::Remaining;
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use proxy_core::{
    instance::Phases,
    model::{Family, Protocol},
};

use crate::{
    settings::{
        effective::{Mode, Settings},
        version,
    },
    telemetry::service_metrics::Services,
};

mod exposition;
mod process;
mod rest_client;
mod table;

pub(crate) use process::start_time_seconds;
pub(crate) use rest_client::RestClientMetrics;
use table::{Kind, Metric, TABLE};

/// The values of one process, to be rendered.
#[derive(Clone)]
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    /// How often the metrics server's own health was asked for, for `/metrics/slis`.
    health_checks: Arc<AtomicU64>,
    /// How to read a packet counter of the kernel, in the mode that has them.
    packets: Option<ReadPackets>,
    /// Of single Services, where they are asked for.
    services: Arc<OnceLock<Services>>,
}

/// `None` where the kernel does not have the counter.
type ReadPackets = fn(&str) -> Option<u64>;

/// Metrics that show packet counters of the kernel, and the names of those counters.
const PACKET_COUNTERS: [(&str, &str); 2] = [
    ("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", accounting::INVALID_DROPPED),
    ("kubeproxy_iptables_localhost_nodeports_accepted_packets_total", accounting::LOCALHOST_ACCEPTED),
];

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Why metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    #[error("the metrics could not be set up: {0}")]
    Build(#[from] BuildError),
    #[error("the metrics were set up before")]
    Repeated,
}

impl Metrics {
    /// Makes the process-wide recorder; once per process.
    pub(crate) fn install(settings: &Settings) -> Result<Self, MetricsError> {
        let recorder = recorder()?;
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| MetricsError::Repeated)?;
        let read: ReadPackets = |counter| accounting::packets(counter).ok().flatten();
        Ok(Self::begin(handle, settings, read))
    }

    fn begin(handle: PrometheusHandle, settings: &Settings, read: ReadPackets) -> Self {
        describe(settings.mode);
        show_what_is_constant(settings);
        let packets = (settings.mode == Mode::Iptables).then_some(read);
        Self { handle, health_checks: Arc::default(), packets, services: Arc::default() }
    }

    /// Shows metrics of single Services from now on.
    pub(crate) fn show_services(&self, services: &Services) {
        let _ = self.services.set(services.clone());
    }

    /// The text of `/metrics`.
    pub(crate) fn render(&self) -> String {
        if let Some(read) = self.packets {
            for (metric, counter) in PACKET_COUNTERS {
                if let Some(packets) = read(counter) {
                    metrics::counter!(metric).absolute(packets);
                }
            }
        }
        let mut text = self.handle.render();
        text.push_str(&process::render());
        if let Some(services) = self.services.get() {
            text.push_str(&services.render());
        }
        exposition::canonical(&text)
    }

    /// The text of `/metrics/slis`.
    pub(crate) fn render_slis(&self) -> String {
        let mut text = String::new();
        let count = self.health_checks.load(Ordering::Relaxed);
        if count > 0 {
            let _ = write!(
                text,
                "# HELP kubernetes_healthcheck [STABLE] This metric records the result of a single healthcheck.\n\
                 # TYPE kubernetes_healthcheck gauge\n\
                 kubernetes_healthcheck{{name=\"ping\",type=\"healthz\"}} 1\n\
                 # HELP kubernetes_healthchecks_total [STABLE] This metric records the results of all healthcheck.\n\
                 # TYPE kubernetes_healthchecks_total counter\n\
                 kubernetes_healthchecks_total{{name=\"ping\",status=\"success\",type=\"healthz\"}} {count}\n"
            );
        }
        if let Some(start) = start_time_seconds() {
            let _ = write!(
                text,
                "# HELP process_start_time_seconds [ALPHA] Start time of the process since unix epoch in seconds.\n\
                 # TYPE process_start_time_seconds gauge\n\
                 process_start_time_seconds {start}\n"
            );
        }
        text
    }

    /// The metrics server's `/healthz` was asked.
    pub(crate) fn health_checked(&self) {
        self.health_checks.fetch_add(1, Ordering::Relaxed);
    }

    /// Folds what was recorded into the histograms; to be called every few seconds where nobody scrapes.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let mut builder = PrometheusBuilder::new();
    for metric in TABLE {
        if let Kind::Histogram(buckets) = metric.kind {
            builder =
                builder.set_buckets_for_metric(Matcher::Full(metric.name.to_owned()), &buckets.bounds())?;
        }
    }
    Ok(builder.build_recorder())
}

/// Registers the metrics of the mode; those without labels appear at once, as a Go program's do.
fn describe(mode: Mode) {
    for metric in TABLE.iter().filter(|metric| metric.modes.contains(&mode)) {
        let Metric { name, help, .. } = *metric;
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(name, help),
            Kind::Gauge => metrics::describe_gauge!(name, help),
            Kind::Histogram(_) => metrics::describe_histogram!(name, help),
        }
        match metric.kind {
            // Shown only where the kernel has it.
            Kind::Counter if PACKET_COUNTERS.iter().any(|(shown, _)| *shown == name) => {}
            Kind::Counter if metric.labels.is_empty() => metrics::counter!(name).absolute(0),
            Kind::Gauge if metric.labels.is_empty() => metrics::gauge!(name).set(0.0),
            _ => {}
        }
    }
}

fn show_what_is_constant(settings: &Settings) {
    metrics::gauge!("kubernetes_build_info",
        "major" => version::MAJOR.to_string(), "minor" => version::MINOR.to_string(),
        "git_version" => version::COMPATIBLE, "git_commit" => "", "git_tree_state" => "", "build_date" => "",
        "go_version" => "", "compiler" => "rustc",
        "platform" => format!("linux/{}", version::go_architecture()))
    .set(1.0);
    metrics::gauge!("switchyard_build_info", "version" => version::OWN).set(1.0);
    // A series that appears with its first increment has not increased, as Prometheus sees it: no alert.
    for result in ["applied", "restart", "invalid"] {
        metrics::counter!("switchyard_config_changes_total", "result" => result).absolute(0);
    }
    config_in_force(true);
    for (name, stage, enabled) in settings.feature_gates.all() {
        metrics::gauge!("kubernetes_feature_enabled", "name" => name, "stage" => stage.label())
            .set(f64::from(u8::from(enabled)));
    }
    for level in ["ALPHA", "BETA"] {
        let mark = format!("[{level}] ");
        let of_mode = TABLE.iter().filter(|metric| metric.modes.contains(&settings.mode));
        let count = of_mode.filter(|metric| metric.help.starts_with(&mark)).count();
        metrics::counter!("registered_metrics_total", "stability_level" => level, "deprecated_version" => "")
            .absolute(count as u64);
    }
}

/// What one sync of one family did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SyncSample {
    pub(crate) family: Family,
    pub(crate) mode: Mode,
    pub(crate) full: bool,
    pub(crate) succeeded: bool,
    pub(crate) took: Duration,
    /// From the arrival of its oldest change until now.
    pub(crate) since_change: Option<Duration>,
}

/// A sync ended now.
pub(crate) fn synced(sample: SyncSample, unix_now: f64) {
    let seconds = sample.took.as_secs_f64();
    by_family_histogram("kubeproxy_sync_proxy_rules_duration_seconds", sample.family).record(seconds);
    if sample.mode != Mode::Ipvs {
        let name = if sample.full {
            "kubeproxy_sync_full_proxy_rules_duration_seconds"
        } else {
            "kubeproxy_sync_partial_proxy_rules_duration_seconds"
        };
        by_family_histogram(name, sample.family).record(seconds);
    }
    if sample.succeeded {
        by_family_gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", sample.family).set(unix_now);
        if let Some(since) = sample.since_change {
            by_family_histogram("switchyard_change_to_kernel_seconds", sample.family)
                .record(since.as_secs_f64());
        }
        return;
    }
    by_family_counter("switchyard_sync_failures_total", sample.family).increment(1);
    match sample.mode {
        Mode::Nftables => {
            by_family_counter("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", sample.family)
                .increment(1);
        }
        Mode::Iptables | Mode::Ipvs => {
            by_family_counter("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", sample.family)
                .increment(1);
        }
    }
    if sample.mode == Mode::Iptables && !sample.full {
        by_family_counter(
            "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
            sample.family,
        )
        .increment(1);
    }
}

/// The first lists are there, after so long a wait for them and so long a time to decode them.
pub(crate) fn first_lists(waiting: Duration, decoding: Duration) {
    for (phase, took) in [("list", waiting), ("decode", decoding)] {
        metrics::gauge!("switchyard_first_sync_seconds", "phase" => phase).set(took.as_secs_f64());
    }
}

/// An object of this kind could not be decoded.
pub(crate) fn object_unreadable(kind: &'static str) {
    metrics::counter!("switchyard_unreadable_objects_total", "kind" => kind).increment(1);
}

/// A family's first sync ended, or a try at it.
pub(crate) fn first_sync(family: Family, phases: Phases) {
    for (phase, took) in [("plan", phases.plan), ("encode", phases.encode), ("kernel", phases.kernel)] {
        metrics::gauge!("switchyard_first_sync_seconds", "phase" => phase, "ip_family" => label(family))
            .increment(took.as_secs_f64());
    }
}

/// A change came that the family's kernel state has to follow.
pub(crate) fn queued(family: Family, unix_now: f64) {
    by_family_gauge("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", family).set(unix_now);
}

/// How long it took from the cluster's change (as the EndpointSlice dates it) to the kernel.
pub(crate) fn programmed(family: Family, latency: Duration) {
    by_family_histogram("kubeproxy_network_programming_duration_seconds", family)
        .record(latency.as_secs_f64());
}

/// Objects that changed, by kind.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Changed {
    Services,
    Endpoints,
}

/// So many objects changed.
pub(crate) fn changed(what: Changed, count: u64) {
    match what {
        Changed::Services => {
            metrics::counter!("kubeproxy_sync_proxy_rules_service_changes_total").increment(count)
        }
        Changed::Endpoints => {
            metrics::counter!("kubeproxy_sync_proxy_rules_endpoint_changes_total").increment(count)
        }
    }
}

/// So many changes wait for a sync.
pub(crate) fn pending(what: Changed, count: usize) {
    match what {
        Changed::Services => {
            metrics::gauge!("kubeproxy_sync_proxy_rules_service_changes_pending").set(count as f64)
        }
        Changed::Endpoints => {
            metrics::gauge!("kubeproxy_sync_proxy_rules_endpoint_changes_pending").set(count as f64)
        }
    }
}

/// Service ports whose Local traffic policy leaves them without an endpoint on this node.
pub(crate) fn no_local_endpoints(family: Family, internal: usize, external: usize) {
    for (policy, count) in [("internal", internal), ("external", external)] {
        metrics::gauge!("kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "traffic_policy" => policy, "ip_family" => family.to_string())
        .set(count as f64);
    }
}

/// iptables mode: rules that are ours in a table, and those that the last sync wrote.
pub(crate) fn iptables_rules(family: Family, table: &'static str, total: usize, last: usize) {
    for (name, count) in [
        ("kubeproxy_sync_proxy_rules_iptables_total", total),
        ("kubeproxy_sync_proxy_rules_iptables_last", last),
    ] {
        metrics::gauge!(name, "table" => table, "ip_family" => family.to_string()).set(count as f64);
    }
}

/// nftables mode: so many times what was to be removed after a sync could not be.
pub(crate) fn nftables_cleanup_failed(family: Family, count: u64) {
    if count > 0 {
        by_family_counter("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", family)
            .increment(count);
    }
}

/// A round of conntrack cleaning ended.
pub(crate) fn conntrack_cleaned(family: Family, took: Duration, deleted: u64) {
    by_family_histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", family)
        .record(took.as_secs_f64());
    by_family_counter("kubeproxy_conntrack_reconciler_deleted_entries_total", family).increment(deleted);
}

/// What is installed, what was refused, and what is claimed twice.
pub(crate) fn installed(family: Family, service_ports: usize, set_aside: usize, conflicts: usize) {
    by_family_gauge("switchyard_service_ports", family).set(service_ports as f64);
    by_family_gauge("switchyard_set_aside_service_ports", family).set(set_aside as f64);
    by_family_gauge("switchyard_address_conflicts", family).set(conflicts as f64);
}

/// Services whose topology hints are ignored for this reason.
pub(crate) fn hints_ignored(family: Family, reason: &'static str, count: usize) {
    metrics::gauge!("switchyard_topology_hints_ignored", "ip_family" => label(family), "reason" => reason)
        .set(count as f64);
}

/// ipvs mode: endpoints that are kept for the connections they have.
pub(crate) fn ipvs_draining(family: Family, count: usize) {
    by_family_gauge("switchyard_ipvs_draining_endpoints", family).set(count as f64);
}

/// Rules are rebuilt because somebody else changed them.
pub(crate) fn drifted(family: Family) {
    by_family_counter("switchyard_drift_repairs_total", family).increment(1);
}

/// So many clients got no affinity because its table was full.
pub(crate) fn affinity_lost(family: Family, count: u64) {
    if count == 0 {
        return;
    }
    by_family_counter("switchyard_affinity_entries_lost_total", family).increment(count);
}

/// The configuration file changed: `applied`, `restart` or `invalid`.
pub(crate) fn config_changed(result: &'static str) {
    metrics::counter!("switchyard_config_changes_total", "result" => result).increment(1);
}

/// nftables mode: listeners of NodePorts on ::1.
pub(crate) fn localhost_node_port_listeners(count: usize) {
    by_family_gauge("kubeproxy_nftables_localhost_nodeport_listeners", Family::V6).set(count as f64);
}

/// nftables mode: such a listener could not be opened.
pub(crate) fn localhost_node_port_listener_failed() {
    by_family_counter("kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total", Family::V6)
        .increment(1);
}

/// nftables mode: packets to NodePorts on loopback addresses that were refused so far.
pub(crate) fn refused_on_localhost(family: Family, protocol: Protocol, packets: u64) {
    let protocol = match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    };
    metrics::counter!("kubeproxy_nftables_localhost_nodeport_rejected_packets_total",
        "ip_family" => label(family), "protocol" => protocol)
    .absolute(packets);
}

/// Whether `seccomp` or `landlock` restrains the process.
pub(crate) fn confined(by: &'static str, yes: bool) {
    metrics::gauge!("switchyard_confined", "by" => by).set(f64::from(u8::from(yes)));
}

/// A line of the log was not written, as there were too many of its kind.
pub(crate) fn log_line_withheld() {
    metrics::counter!("switchyard_log_lines_withheld_total").increment(1);
}

/// Whether the configuration file as it is now is what the process follows.
pub(crate) fn config_in_force(yes: bool) {
    metrics::gauge!("switchyard_config_file_in_force").set(f64::from(u8::from(yes)));
    config_waits_for_restart(0);
}

/// So many fields of the file have changed that only a new process can follow; this one is about to end.
pub(crate) fn config_waits_for_restart(fields: usize) {
    metrics::gauge!("switchyard_config_fields_waiting_for_restart").set(fields as f64);
    if fields > 0 {
        metrics::gauge!("switchyard_config_file_in_force").set(0.0);
    }
}

/// An Event was not sent.
pub(crate) fn event_dropped(reason: &'static str) {
    metrics::counter!("switchyard_events_dropped_total", "reason" => reason).increment(1);
}

/// A probe of the health server was answered.
pub(crate) fn health_answered(path: HealthPath, code: u16) {
    let name = match path {
        HealthPath::Healthz => "kubeproxy_proxy_healthz_total",
        HealthPath::Livez => "kubeproxy_proxy_livez_total",
    };
    metrics::counter!(name, "code" => code.to_string()).increment(1);
}

/// The two questions of the health server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HealthPath {
    Healthz,
    Livez,
}

/// Health check node ports that are served, and those that could not be bound.
pub(crate) fn health_check_node_ports(serving: usize, failed: usize) {
    metrics::gauge!("switchyard_health_check_node_ports", "state" => "serving").set(serving as f64);
    metrics::gauge!("switchyard_health_check_node_ports", "state" => "failed").set(failed as f64);
}

/// What is left of an ipvs mode that was left, until its connections have ended.
pub(crate) fn leaving_ipvs(remaining: Remaining) {
    let Remaining { servers, destinations, connections } = remaining;
    let gauge = |what| metrics::gauge!("switchyard_ipvs_leaving", "what" => what);
    gauge("virtual_servers").set(servers as f64);
    gauge("destinations").set(destinations as f64);
    gauge("connections").set(connections as f64);
}

fn by_family_counter(name: &'static str, family: Family) -> metrics::Counter {
    metrics::counter!(name, "ip_family" => label(family))
}

fn by_family_gauge(name: &'static str, family: Family) -> metrics::Gauge {
    metrics::gauge!(name, "ip_family" => label(family))
}

fn by_family_histogram(name: &'static str, family: Family) -> metrics::Histogram {
    metrics::histogram!(name, "ip_family" => label(family))
}

fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

#[cfg(test)]
pub(crate) mod tests;
