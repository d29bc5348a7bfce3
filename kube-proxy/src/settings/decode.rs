//! YAML or JSON of kind KubeProxyConfiguration -> [`Configuration`], defaulted.
//!
//! Unknown and repeated fields are never fatal, as in kube-proxy: they are reported, and the rest counts.

use serde_json::{Map, Value};
use serde_saphyr::options::DuplicateKeyPolicy;

use super::{
    configuration::{Client, Configuration, Conntrack, Ipvs, Logging, Winkernel},
    error::FieldError,
    fields::{Fields, Findings},
    go_text::GoDuration,
};

const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// What a document said.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) configuration: Configuration,
    /// What a strict reader would have refused.
    pub(super) strict_errors: Vec<String>,
}

#[derive(Debug, PartialEq)]
pub(super) enum DecodeError {
    Document(String),
    Fields(Vec<FieldError>),
}

pub(super) fn decode(text: &str) -> Result<Decoded, DecodeError> {
    let (fields, repeated) = read_document(text)?;
    let mut strict_errors: Vec<String> = repeated.into_iter().collect();
    let mut findings = Findings::default();
    let mut fields = Fields::new("", fields, &mut findings);
    let (kind, version) = (fields.string("kind"), fields.string("apiVersion"));
    match (kind.as_deref(), version.as_deref()) {
        (None | Some(""), _) => {
            return Err(DecodeError::Document(format!("kind is missing: must be {KIND}")));
        }
        (_, None | Some("")) => {
            return Err(DecodeError::Document(format!("apiVersion is missing: must be {API_VERSION}")));
        }
        (Some(KIND), Some(API_VERSION)) => {}
        (Some(kind), Some(version)) => {
            return Err(DecodeError::Document(format!(
                "no kind {kind:?} is registered for version {version:?}: must be {KIND} of {API_VERSION}"
            )));
        }
    }
    let configuration = read(&mut fields);
    fields.finish();
    strict_errors.extend(findings.unknown.iter().map(|path| format!("unknown field {path:?}")));
    if findings.errors.is_empty() {
        Ok(Decoded { configuration, strict_errors })
    } else {
        Err(DecodeError::Fields(findings.errors))
    }
}

/// The fields of the first document, and a complaint when one was repeated (the last one wins).
fn read_document(text: &str) -> Result<(Map<String, Value>, Option<String>), DecodeError> {
    let parse = |duplicates| {
        // 010 is eight, as in YAML 1.1, which is what Kubernetes reads.
        let options = serde_saphyr::options! {
            duplicate_keys: duplicates,
            legacy_octal_numbers: true,
            with_snippet: false,
        };
        let documents = serde_saphyr::from_multiple_with_options::<Value>(text, options)?;
        Ok::<_, serde_saphyr::Error>(documents.into_iter().next().unwrap_or_default())
    };
    let (value, repeated) = match parse(DuplicateKeyPolicy::Error) {
        Ok(value) => (value, None),
        Err(strict) => match parse(DuplicateKeyPolicy::LastWins) {
            Ok(value) => (value, Some(strict.to_string())),
            Err(error) => return Err(DecodeError::Document(error.to_string())),
        },
    };
    match value {
        Value::Object(fields) => Ok((fields, repeated)),
        Value::Null => Err(DecodeError::Document(format!("it is empty: must be a {KIND} of {API_VERSION}"))),
        _ => Err(DecodeError::Document(format!("it is no map of fields: must be a {KIND} of {API_VERSION}"))),
    }
}

/// The periods and the `masqueradeAll` of one mode's part.
#[derive(Default)]
struct OfMode {
    masquerade_all: bool,
    sync_period: GoDuration,
    min_sync_period: GoDuration,
}

impl OfMode {
    fn read(fields: &mut Fields<'_>) -> Self {
        Self {
            masquerade_all: fields.boolean("masqueradeAll").unwrap_or_default(),
            sync_period: fields.duration("syncPeriod").unwrap_or_default(),
            min_sync_period: fields.duration("minSyncPeriod").unwrap_or_default(),
        }
    }
}

fn read(fields: &mut Fields<'_>) -> Configuration {
    let mut to = Configuration::default();
    let text = |fields: &mut Fields<'_>, name: &str| fields.string(name).unwrap_or_default();

    to.feature_gates = fields.booleans("featureGates").unwrap_or_default().into_iter().collect();
    fields.object("clientConnection", |fields| read_client(fields, &mut to.client));
    fields.object("logging", |fields| read_logging(fields, &mut to.logging));
    to.hostname_override = text(fields, "hostnameOverride");
    to.bind_address = text(fields, "bindAddress");
    to.healthz_bind_address = text(fields, "healthzBindAddress");
    to.metrics_bind_address = text(fields, "metricsBindAddress");
    to.default_addresses();
    to.bind_address_hard_fail = fields.boolean("bindAddressHardFail").unwrap_or_default();
    to.enable_profiling = fields.boolean("enableProfiling").unwrap_or_default();
    to.show_hidden_metrics_for_version = text(fields, "showHiddenMetricsForVersion");
    to.mode = text(fields, "mode");
    let iptables = fields.object("iptables", |fields| {
        set(&mut to.iptables_masquerade_bit, fields.int32("masqueradeBit"));
        set(&mut to.iptables_localhost_node_ports, fields.boolean("localhostNodePorts"));
        OfMode::read(fields)
    });
    let ipvs = fields.object("ipvs", |fields| read_ipvs(fields, &mut to.ipvs));
    let nftables = fields.object("nftables", |fields| {
        set(&mut to.nftables_masquerade_bit, fields.int32("masqueradeBit"));
        OfMode::read(fields)
    });
    fields.object("winkernel", |fields| {
        to.winkernel = Winkernel {
            network_name: text(fields, "networkName"),
            source_vip: text(fields, "sourceVip"),
            enable_dsr: fields.boolean("enableDSR").unwrap_or_default(),
            root_hns_endpoint_name: text(fields, "rootHnsEndpointName"),
            forward_health_check_vip: fields.boolean("forwardHealthCheckVip").unwrap_or_default(),
        };
    });
    to.detect_local_mode = text(fields, "detectLocalMode");
    fields.object("detectLocal", |fields| {
        to.bridge_interface = text(fields, "bridgeInterface");
        to.interface_name_prefix = text(fields, "interfaceNamePrefix");
    });
    let cluster_cidr = text(fields, "clusterCIDR");
    if !cluster_cidr.is_empty() {
        to.cluster_cidrs = cluster_cidr.split(',').map(str::to_owned).collect();
    }
    to.node_port_addresses = fields.strings("nodePortAddresses");
    set(&mut to.oom_score_adj, fields.int32("oomScoreAdj"));
    fields.object("conntrack", |fields| read_conntrack(fields, &mut to.conntrack));
    set_unless_zero(&mut to.config_sync_period, fields.duration("configSyncPeriod"));
    fields.string("portRange");
    to.windows_run_as_service = fields.boolean("windowsRunAsService").unwrap_or_default();

    to.masquerade_all = if to.mode == "nftables" { nftables.masquerade_all } else { iptables.masquerade_all };
    let selected = match to.mode.as_str() {
        "ipvs" => {
            // The one mode whose minimum is zero by default.
            to.min_sync_period = GoDuration(0);
            ipvs
        }
        "nftables" => nftables,
        _ => iptables,
    };
    if selected.sync_period != GoDuration(0) {
        to.sync_period = selected.sync_period;
    }
    if selected.min_sync_period != GoDuration(0) {
        to.min_sync_period = selected.min_sync_period;
        to.min_sync_period_given = true;
    }
    to
}

fn read_client(fields: &mut Fields<'_>, to: &mut Client) {
    to.kubeconfig = fields.string("kubeconfig").unwrap_or_default();
    to.accept_content_types = fields.string("acceptContentTypes").unwrap_or_default();
    set(&mut to.content_type, fields.string("contentType").filter(|text| !text.is_empty()));
    set(&mut to.qps, fields.float32("qps").filter(|&qps| qps != 0.0));
    set(&mut to.burst, fields.int32("burst").filter(|&burst| burst != 0));
}

fn read_logging(fields: &mut Fields<'_>, to: &mut Logging) {
    set(&mut to.format, fields.string("format").filter(|text| !text.is_empty()));
    set_unless_zero(&mut to.flush_frequency, fields.duration_or_nanoseconds("flushFrequency"));
    to.verbosity = fields.level("verbosity").unwrap_or_default();
    to.vmodule = fields.list("vmodule", |fields| {
        (fields.string("filePattern").unwrap_or_default(), fields.level("verbosity").unwrap_or_default())
    });
    fields.object("options", |fields| {
        for (name, streams) in [("text", &mut to.text), ("json", &mut to.json)] {
            fields.object(name, |fields| {
                // As in kube-proxy, only the flag splits the streams.
                fields.boolean("splitStream");
                streams.info_buffer_size =
                    fields.quantity("infoBufferSize").unwrap_or_else(|| "0".to_owned());
            });
        }
    });
}

fn read_ipvs(fields: &mut Fields<'_>, to: &mut Ipvs) -> OfMode {
    *to = Ipvs {
        scheduler: fields.string("scheduler").unwrap_or_default(),
        exclude_cidrs: fields.strings("excludeCIDRs"),
        strict_arp: fields.boolean("strictARP").unwrap_or_default(),
        tcp_timeout: fields.duration("tcpTimeout").unwrap_or_default(),
        tcp_fin_timeout: fields.duration("tcpFinTimeout").unwrap_or_default(),
        udp_timeout: fields.duration("udpTimeout").unwrap_or_default(),
    };
    OfMode {
        masquerade_all: false,
        sync_period: fields.duration("syncPeriod").unwrap_or_default(),
        min_sync_period: fields.duration("minSyncPeriod").unwrap_or_default(),
    }
}

/// Here a zero is a wish (leave the kernel's value alone), and only null means the default.
fn read_conntrack(fields: &mut Fields<'_>, to: &mut Conntrack) {
    set(&mut to.max_per_core, fields.int32("maxPerCore"));
    set(&mut to.min, fields.int32("min"));
    set(&mut to.tcp_established_timeout, fields.duration("tcpEstablishedTimeout"));
    set(&mut to.tcp_close_wait_timeout, fields.duration("tcpCloseWaitTimeout"));
    to.tcp_be_liberal = fields.boolean("tcpBeLiberal").unwrap_or_default();
    to.udp_timeout = fields.duration("udpTimeout").unwrap_or_default();
    to.udp_stream_timeout = fields.duration("udpStreamTimeout").unwrap_or_default();
}

fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

fn set_unless_zero(to: &mut GoDuration, value: Option<GoDuration>) {
    set(to, value.filter(|&value| value != GoDuration(0)));
}

#[cfg(test)]
mod tests;
