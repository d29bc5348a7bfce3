//! [`Configuration`] -> the public object: JSON for `/configz`, YAML for `--write-config-to`.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::{
    configuration::{Configuration, LogStreams, Logging},
    go_text::GoDuration,
};

/// The object with `apiVersion` and `kind`. The periods of the modes that are not selected are zero, as kube-proxy
/// writes them.
pub(super) fn to_json(from: &Configuration) -> Value {
    let periods = |mode: &str| {
        let selected = match from.mode.as_str() {
            "ipvs" => "ipvs",
            "nftables" => "nftables",
            _ => "iptables",
        };
        if mode == selected { (from.sync_period, from.min_sync_period) } else { Default::default() }
    };
    let nftables = from.mode == "nftables";
    let with_periods = |mode: &str, mut part: Value| {
        let (sync, min) = periods(mode);
        part["syncPeriod"] = text(sync);
        part["minSyncPeriod"] = text(min);
        part
    };
    let mut object = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {
            "kubeconfig": from.client.kubeconfig,
            "acceptContentTypes": from.client.accept_content_types,
            "contentType": from.client.content_type,
            "qps": number(from.client.qps),
            "burst": from.client.burst,
        },
        "logging": logging(&from.logging),
        "hostnameOverride": from.hostname_override,
        "bindAddress": from.bind_address,
        "healthzBindAddress": from.healthz_bind_address,
        "metricsBindAddress": from.metrics_bind_address,
        "bindAddressHardFail": from.bind_address_hard_fail,
        "enableProfiling": from.enable_profiling,
        "showHiddenMetricsForVersion": from.show_hidden_metrics_for_version,
        "mode": from.mode,
        "iptables": with_periods("iptables", json!({
            "masqueradeBit": from.iptables_masquerade_bit,
            "masqueradeAll": from.masquerade_all && !nftables,
            "localhostNodePorts": from.iptables_localhost_node_ports,
        })),
        "ipvs": with_periods("ipvs", json!({
            "scheduler": from.ipvs.scheduler,
            "excludeCIDRs": from.ipvs.exclude_cidrs,
            "strictARP": from.ipvs.strict_arp,
            "tcpTimeout": text(from.ipvs.tcp_timeout),
            "tcpFinTimeout": text(from.ipvs.tcp_fin_timeout),
            "udpTimeout": text(from.ipvs.udp_timeout),
        })),
        "nftables": with_periods("nftables", json!({
            "masqueradeBit": from.nftables_masquerade_bit,
            "masqueradeAll": from.masquerade_all && nftables,
        })),
        "winkernel": {
            "networkName": from.winkernel.network_name,
            "sourceVip": from.winkernel.source_vip,
            "enableDSR": from.winkernel.enable_dsr,
            "rootHnsEndpointName": from.winkernel.root_hns_endpoint_name,
            "forwardHealthCheckVip": from.winkernel.forward_health_check_vip,
        },
        "detectLocalMode": from.detect_local_mode,
        "detectLocal": {
            "bridgeInterface": from.bridge_interface,
            "interfaceNamePrefix": from.interface_name_prefix,
        },
        "clusterCIDR": from.cluster_cidrs.join(","),
        "nodePortAddresses": from.node_port_addresses,
        "oomScoreAdj": from.oom_score_adj,
        "conntrack": {
            "maxPerCore": from.conntrack.max_per_core,
            "min": from.conntrack.min,
            "tcpEstablishedTimeout": text(from.conntrack.tcp_established_timeout),
            "tcpCloseWaitTimeout": text(from.conntrack.tcp_close_wait_timeout),
            "tcpBeLiberal": from.conntrack.tcp_be_liberal,
            "udpTimeout": text(from.conntrack.udp_timeout),
            "udpStreamTimeout": text(from.conntrack.udp_stream_timeout),
        },
        "configSyncPeriod": text(from.config_sync_period),
        // Means nothing any more; kube-proxy drops what it was.
        "portRange": "",
    });
    if !from.feature_gates.is_empty() {
        object["featureGates"] = json!(from.feature_gates);
    }
    if from.windows_run_as_service {
        object["windowsRunAsService"] = json!(true);
    }
    object
}

fn logging(from: &Logging) -> Value {
    let streams = |streams: &LogStreams| {
        let mut object = json!({ "infoBufferSize": streams.info_buffer_size });
        if streams.split_stream {
            object["splitStream"] = json!(true);
        }
        object
    };
    let mut object = json!({
        "format": from.format,
        "flushFrequency": text(from.flush_frequency),
        "verbosity": from.verbosity,
        "options": { "text": streams(&from.text), "json": streams(&from.json) },
    });
    if !from.vmodule.is_empty() {
        object["vmodule"] = from
            .vmodule
            .iter()
            .map(|(pattern, verbosity)| json!({ "filePattern": pattern, "verbosity": verbosity }))
            .collect();
    }
    object
}

fn text(duration: GoDuration) -> Value {
    Value::String(duration.to_string())
}

/// Whole numbers without a fraction, others as short as an f32 is.
fn number(value: f32) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        json!(value as i64)
    } else {
        value.to_string().parse::<serde_json::Number>().map_or(Value::Null, Value::Number)
    }
}

/// Block-style YAML with sorted keys, as Kubernetes programs write it.
pub(super) fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    if let Value::Object(fields) = value {
        write_fields(&mut out, fields, 0);
    }
    out
}

fn write_fields(out: &mut String, fields: &Map<String, Value>, indent: usize) {
    let mut sorted: Vec<_> = fields.iter().collect();
    sorted.sort_by_key(|&(name, _)| name);
    for (name, value) in sorted {
        let _ = write!(out, "{:indent$}{}:", "", scalar_text(name));
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                out.push('\n');
                write_fields(out, inner, indent + 2);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                for item in items {
                    write_item(out, item, indent);
                }
            }
            other => {
                let _ = writeln!(out, " {}", scalar(other));
            }
        }
    }
}

fn write_item(out: &mut String, item: &Value, indent: usize) {
    match item {
        Value::Object(inner) if !inner.is_empty() => {
            let mut text = String::new();
            write_fields(&mut text, inner, indent + 2);
            let _ = write!(out, "{:indent$}- {}", "", &text[indent + 2..]);
        }
        other => {
            let _ = writeln!(out, "{:indent$}- {}", "", scalar(other));
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => scalar_text(text),
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        other => other.to_string(),
    }
}

/// As Kubernetes' YAML library writes a string: in double quotes what a YAML 1.1 reader could take for something else,
/// in single quotes what has a meaning in YAML, and anything else as it is.
fn scalar_text(text: &str) -> String {
    if text.is_empty() || looks_like_another_type(text) || text.chars().any(char::is_control) {
        Value::String(text.to_owned()).to_string()
    } else if has_a_meaning(text) {
        format!("'{}'", text.replace('\'', "''"))
    } else {
        text.to_owned()
    }
}

/// Whether a text that is written plainly would begin or contain a structure, or lose its spaces.
fn has_a_meaning(text: &str) -> bool {
    const FIRST: &str = "#,[]{}&*!|>'\"%@`";
    let mut chars = text.chars();
    let first = chars.next();
    let alone = chars.next().is_none_or(char::is_whitespace);
    first.is_some_and(|c| FIRST.contains(c) || (alone && "-?:".contains(c)))
        || text.starts_with("---")
        || text.starts_with("...")
        || text.trim() != text
        || text.ends_with(':')
        || text.contains(": ")
        || text.contains(" #")
}

fn looks_like_another_type(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let word =
        ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "~", "<<"].contains(&lower.as_str());
    // Numbers, and base-60 numbers such as 12:30:45; an address has dots as well as colons.
    let digits = text.starts_with(|c: char| c.is_ascii_digit() || "+-".contains(c))
        && text.contains(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_digit() || ":_+-,".contains(c));
    word || digits
        || lower.trim_start_matches(['+', '-']) == ".inf"
        || lower == ".nan"
        || text.parse::<f64>().is_ok()
        || lower.starts_with("0x")
        || lower.starts_with("0o")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_could_be_misread_is_quoted() {
        for (text, written) in [
            ("", "\"\""),
            ("-1s", "-1s"),
            ("1\u{b5}s", "1\u{b5}s"),
            ("- x", "'- x'"),
            ("it's", "it's"),
            ("'x", "'''x'"),
            ("a#b", "a#b"),
            ("a #b", "'a #b'"),
            ("#x", "'#x'"),
            (" x ", "' x '"),
            ("?x", "?x"),
            (":x", ":x"),
            ("<<", "\"<<\""),
            ("~", "\"~\""),
            ("0", "\"0\""),
            ("1.5", "\"1.5\""),
            ("off", "\"off\""),
            ("0.0.0.0", "0.0.0.0"),
            ("0.0.0.0:10256", "0.0.0.0:10256"),
            ("[::]:10256", "'[::]:10256'"),
            ("::", "'::'"),
            ("::1", "::1"),
            ("::/0", "::/0"),
            ("fd00::1", "fd00::1"),
            ("12:30:45", "\"12:30:45\""),
            ("10.0.0.0/8,fd00::/48", "10.0.0.0/8,fd00::/48"),
            ("a: b", "'a: b'"),
            ("24h0m0s", "24h0m0s"),
            ("a\"b\n", "\"a\\\"b\\n\""),
        ] {
            assert_eq!(scalar_text(text), written);
        }
    }

    #[test]
    fn lists_and_nested_maps_are_written_as_blocks() {
        let value = json!({ "b": ["x", "1"], "a": { "d": [], "c": null }, "e": [{ "f": 1, "g": "h" }] });
        assert_eq!(to_yaml(&value), "a:\n  c: null\n  d: []\nb:\n- x\n- \"1\"\ne:\n- f: 1\n  g: h\n");
        assert_eq!(serde_saphyr::from_str::<Value>(&to_yaml(&value)).expect("YAML"), value);
    }
}
