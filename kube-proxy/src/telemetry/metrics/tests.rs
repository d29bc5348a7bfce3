use std::collections::{BTreeMap, BTreeSet};

use metrics::with_local_recorder;

use super::*;
use crate::settings::{self, Command};

pub(crate) fn settings(mode: Mode) -> Settings {
    match settings::load(&[format!("--mode={}", mode.as_str())]).expect("good arguments").command {
        Command::Run(settings) => *settings,
        other => panic!("{other:?}"),
    }
}

/// A metric as scraped.
#[derive(Debug, Default, PartialEq)]
struct Scraped {
    kind: String,
    help: String,
    labels: BTreeSet<String>,
    bounds: Vec<String>,
    values: Vec<(String, f64)>,
}

fn scrape(text: &str) -> BTreeMap<String, Scraped> {
    let mut all: BTreeMap<String, Scraped> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            all.entry(name.to_owned()).or_default().help = help.to_owned();
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            all.entry(name.to_owned()).or_default().kind = kind.to_owned();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect("a value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let base = ["_bucket", "_sum", "_count"]
            .into_iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|base| all.get(*base).is_some_and(|metric| metric.kind == "histogram"))
            .unwrap_or(name);
        let metric = all.get_mut(base).unwrap_or_else(|| panic!("{line}: no type"));
        for (label, value) in
            labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once("=\""))
        {
            if label == "le" {
                let bound = value.trim_end_matches('"').to_owned();
                if !metric.bounds.contains(&bound) {
                    metric.bounds.push(bound);
                }
            } else {
                metric.labels.insert(label.to_owned());
            }
        }
        metric.values.push((series.to_owned(), value.parse().expect("a number")));
    }
    all
}

/// The page that `work` leaves.
pub(crate) fn recorded(work: impl FnOnce()) -> String {
    let recorder = recorder().expect("buckets are valid");
    with_local_recorder(&recorder, work);
    exposition::canonical(&recorder.handle().render())
}

/// Does all that can happen in a mode, once.
fn exercise(mode: Mode) {
    let second = Duration::from_secs(1);
    first_lists(second, second);
    object_unreadable("Service");
    for family in Family::BOTH {
        first_sync(family, Phases { plan: second, encode: second, kernel: second });
        for (full, succeeded) in [(true, true), (false, true), (false, false)] {
            synced(
                SyncSample { family, mode, full, succeeded, took: second, since_change: Some(second) },
                5.0,
            );
        }
        queued(family, 4.0);
        programmed(family, second);
        no_local_endpoints(family, 1, 2);
        conntrack_cleaned(family, second, 3);
        installed(family, 1, 0, 0);
        drifted(family);
        affinity_lost(family, 1);
        match mode {
            Mode::Iptables => {
                iptables_rules(family, "nat", 10, 2);
                iptables_rules(family, "filter", 5, 1);
            }
            Mode::Nftables => nftables_cleanup_failed(family, 1),
            Mode::Ipvs => {}
        }
    }
    metrics::gauge!("switchyard_ipvs_leaving", "what" => "connections").set(1.0);
    hints_ignored(Family::V4, "no_zone", 1);
    ipvs_draining(Family::V4, 1);
    metrics::gauge!("switchyard_api_last_contact_timestamp_seconds", "kind" => "Service").set(1.0);
    if mode == Mode::Nftables {
        localhost_node_port_listeners(1);
        localhost_node_port_listener_failed();
        for family in Family::BOTH {
            refused_on_localhost(family, Protocol::Udp, 1);
        }
    }
    for what in [Changed::Services, Changed::Endpoints] {
        changed(what, 2);
        pending(what, 1);
    }
    config_changed("applied");
    confined("landlock", true);
    event_dropped("rate");
    health_answered(HealthPath::Healthz, 200);
    health_answered(HealthPath::Livez, 503);
    health_check_node_ports(1, 0);
    leaving_ipvs(Remaining { servers: 1, destinations: 2, connections: 3 });
    metrics::counter!("rest_client_requests_total", "code" => "200", "method" => "GET", "host" => "h")
        .increment(1);
    metrics::histogram!("rest_client_request_duration_seconds", "verb" => "GET", "host" => "h").record(0.1);
    metrics::histogram!("rest_client_request_size_bytes", "verb" => "GET", "host" => "h").record(0.0);
}

fn run(mode: Mode, work: impl FnOnce()) -> BTreeMap<String, Scraped> {
    let recorder = recorder().expect("a recorder");
    let handle = recorder.handle();
    let text = with_local_recorder(&recorder, || {
        let metrics = Metrics::begin(handle, &settings(mode), |counter| Some(counter.len() as u64));
        work();
        metrics.render()
    });
    scrape(&text)
}

#[test]
fn names_types_labels_and_buckets_are_those_of_kube_proxy() {
    let listed = include_str!("../../../tests/data/metrics.tsv");
    for mode in Mode::ALL {
        let scraped = run(mode, || exercise(mode));
        let mut expected = BTreeSet::new();
        for line in listed.lines().filter(|line| !line.starts_with('#')) {
            let columns: Vec<&str> = line.split('\t').collect();
            let [name, kind, labels, modes, bounds] = columns[..] else { panic!("{line}") };
            if !modes.split(',').any(|name| name == mode.as_str()) {
                assert!(!scraped.contains_key(name), "{name} has no meaning in mode {}", mode.as_str());
                continue;
            }
            let metric =
                scraped.get(name).unwrap_or_else(|| panic!("{name} is missing in mode {}", mode.as_str()));
            assert_eq!(metric.kind, kind, "{name}");
            let labels: BTreeSet<String> =
                labels.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect();
            assert_eq!(metric.labels, labels, "{name}");
            let numbers = |bounds: &str| -> Vec<f64> {
                bounds.split_whitespace().map(|bound| bound.parse().expect("a number")).collect()
            };
            assert_eq!(numbers(&metric.bounds.join(" ")), numbers(bounds), "{name}");
            assert!(!metric.help.is_empty(), "{name}");
            expected.insert(name);
        }
        let others: Vec<&String> = scraped.keys().filter(|name| !expected.contains(name.as_str())).collect();
        assert!(others.iter().all(|name| name.starts_with("switchyard_")), "{others:?}");
        for metric in TABLE.iter().filter(|metric| metric.modes.contains(&mode)) {
            let found = scraped.get(metric.name).unwrap_or_else(|| panic!("{} never appears", metric.name));
            assert_eq!(found.help, metric.help, "{}", metric.name);
            assert_eq!(found.labels.len(), metric.labels.len(), "{}", metric.name);
        }
    }
}

#[test]
fn what_has_no_labels_is_there_before_anything_happened() {
    let scraped = run(Mode::Nftables, || ());
    for name in [
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_pending",
    ] {
        assert_eq!(scraped[name].values, [(name.to_owned(), 0.0)]);
    }
    let config = &scraped["switchyard_config_changes_total"].values;
    assert_eq!(config.iter().map(|(_, value)| *value).collect::<Vec<_>>(), [0.0; 3]);
    assert!(!scraped.contains_key("kubeproxy_sync_proxy_rules_duration_seconds"));
    assert!(!scraped.contains_key("kubeproxy_iptables_ct_state_invalid_dropped_packets_total"));
}

#[test]
fn a_failed_sync_does_not_count_as_the_last_good_one() {
    let scraped = run(Mode::Nftables, || {
        let sample = SyncSample {
            family: Family::V4,
            mode: Mode::Nftables,
            full: true,
            succeeded: true,
            took: Duration::from_millis(3),
            since_change: None,
        };
        synced(sample, 100.0);
        synced(SyncSample { succeeded: false, ..sample }, 200.0);
    });
    let value = |name: &str| scraped[name].values[0].1;
    assert_eq!(value("kubeproxy_sync_proxy_rules_last_timestamp_seconds"), 100.0);
    assert_eq!(value("kubeproxy_sync_proxy_rules_nftables_sync_failures_total"), 1.0);
    let buckets = &scraped["kubeproxy_sync_full_proxy_rules_duration_seconds"].values;
    let bucket = |bound: &str| {
        buckets.iter().find(|(series, _)| series.contains(&format!("le=\"{bound}\""))).expect("a bucket").1
    };
    assert_eq!((bucket("0.002"), bucket("0.004"), bucket("+Inf")), (0.0, 2.0, 2.0));
}

#[test]
fn packet_counters_are_shown_where_the_kernel_has_them() {
    let name = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total";
    let scraped = run(Mode::Iptables, || ());
    assert_eq!(scraped[name].values, [(name.to_owned(), accounting::INVALID_DROPPED.len() as f64)]);
    let recorder = recorder().expect("a recorder");
    let handle = recorder.handle();
    with_local_recorder(&recorder, || {
        let metrics = Metrics::begin(handle, &settings(Mode::Iptables), |_| None);
        assert!(!metrics.render().contains(&format!("\n{name} ")));
    });
}

#[test]
fn gates_and_versions_are_shown() {
    let scraped = run(Mode::Ipvs, || ());
    let gates = &scraped["kubernetes_feature_enabled"].values;
    let of = |name: &str| {
        gates.iter().find(|(series, _)| series.contains(&format!("name=\"{name}\""))).expect("a gate")
    };
    assert_eq!(of("AllowServiceExternalIPs").1, 1.0);
    assert_eq!(of("LoggingAlphaOptions").1, 0.0);
    assert!(of("ComponentFlagz").0.contains("stage=\"BETA\""));
    assert!(scraped["kubernetes_build_info"].values[0].0.contains("git_version=\"v1.36.2\""));
}

#[test]
fn the_indicators_appear_with_the_first_health_check() {
    let recorder = recorder().expect("a recorder");
    let handle = recorder.handle();
    with_local_recorder(&recorder, || {
        let metrics = Metrics::begin(handle, &settings(Mode::Nftables), |_| None);
        assert!(!metrics.render_slis().contains("kubernetes_healthcheck"));
        metrics.health_checked();
        metrics.health_checked();
        let text = metrics.render_slis();
        assert!(text.contains(
            "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n"
        ));
        assert!(!metrics.render().contains("kubernetes_healthcheck"));
    });
}

/// Every word of a text that looks like the name of a metric of ours or of kube-proxy, without the suffixes of
/// histograms.
fn named(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| {
            ["kubeproxy_", "switchyard_", "rest_client_"].iter().any(|start| word.starts_with(start))
        })
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word))
        .collect()
}

#[test]
fn dashboards_alerts_and_documents_name_metrics_that_exist() {
    for (file, text) in [
        ("grafana/switchyard.json", include_str!("../../../../deploy/grafana/switchyard.json")),
        ("alerts.yaml", include_str!("../../../../deploy/alerts.yaml")),
        ("operations.md", include_str!("../../../../docs/operations.md")),
    ] {
        let of_services = crate::telemetry::service_metrics::names();
        for name in named(text) {
            let known =
                TABLE.iter().any(|metric| metric.name == name) || of_services.iter().any(|of| of == name);
            assert!(known, "{file}: there is no {name}");
        }
    }
    let documented = named(include_str!("../../../../docs/operations.md"));
    for metric in TABLE.iter().filter(|metric| metric.name.starts_with("switchyard_")) {
        assert!(documented.contains(metric.name), "{} is not documented", metric.name);
    }
    for name in crate::telemetry::service_metrics::names() {
        assert!(documented.contains(&*name), "{name} is not documented");
    }
}
