use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use backend_ipvs::Binding;
use serde_json::Value;

use super::{
    effective::{DetectLocal, LogFormat, Mode, NodePortAddressSet},
    *,
};
use crate::settings::feature_gates::Feature;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// A file that is gone when the test ends.
struct File(PathBuf);

impl File {
    fn new(body: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "switchyard-configuration-{}-{}.yaml",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        fs::write(&path, format!("{HEAD}{body}")).expect("a file");
        Self(path)
    }

    fn flag(&self) -> String {
        format!("--config={}", self.0.display())
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn settings(arguments: &[&str]) -> Settings {
    match load(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}")).command {
        Command::Run(settings) => *settings,
        other => panic!("{arguments:?}: {other:?}"),
    }
}

fn file_settings(body: &str, arguments: &[&str]) -> Settings {
    let file = File::new(body);
    let flag = file.flag();
    let mut all = vec![flag.as_str()];
    all.extend(arguments);
    settings(&all)
}

fn refusal(arguments: &[&str]) -> String {
    load(arguments).expect_err("a refusal").to_string()
}

fn file_refusal(body: &str) -> String {
    refusal(&[&File::new(body).flag()])
}

#[test]
fn the_written_configuration_is_that_of_kube_proxy() {
    let Command::WriteConfig { path, text } = load(&["--write-config-to=/x/y"]).expect("a command").command
    else {
        panic!("no file is to be written");
    };
    assert_eq!(path, PathBuf::from("/x/y"));
    let expected = include_str!("../../tests/data/default-config.yaml");
    let expected: String =
        expected.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect();
    assert_eq!(text, expected);
}

#[test]
fn what_is_written_can_be_read_again() {
    let Command::WriteConfig { text, .. } = load(&[
        "--write-config-to=/x",
        "--mode=nftables",
        "--cluster-cidr=10.0.0.0/8,fd00::/48",
        "--vmodule=a*=3",
        "-v=4",
    ])
    .expect("a command")
    .command
    else {
        panic!("no file is to be written");
    };
    let body = text
        .replace("apiVersion: kubeproxy.config.k8s.io/v1alpha1\n", "")
        .replace("kind: KubeProxyConfiguration\n", "");
    let read = file_settings(&body, &[]);
    assert_eq!(read.mode, Mode::Nftables);
    assert_eq!(read.cluster_cidrs.len(), 2);
    assert_eq!(read.logging.vmodule, [("a*".to_owned(), 3)]);
    assert_eq!(read.node_port_addresses.addresses, NodePortAddressSet::Primary);
}

#[test]
fn configz_has_the_shape_of_kube_proxy() {
    fn shape(value: &Value) -> Value {
        match value {
            Value::Object(fields) => {
                fields.iter().map(|(name, value)| (name.clone(), shape(value))).collect()
            }
            Value::Array(_) | Value::Null => Value::from("list"),
            Value::String(_) => Value::from("string"),
            Value::Number(_) => Value::from("number"),
            Value::Bool(_) => Value::from("boolean"),
        }
    }
    let expected: Value = serde_json::from_str(include_str!("../../tests/data/configz.json")).expect("JSON");
    let expected = &expected["kubeproxy.config.k8s.io"];
    let ours = file_settings(
        "mode: nftables\n\
         hostnameOverride: peer-node\n\
         clientConnection: { kubeconfig: /var/lib/kube-proxy/kube-proxy.kubeconfig }\n\
         clusterCIDR: 10.128.0.0/9\n\
         metricsBindAddress: 0.0.0.0:10249\n\
         conntrack: { maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s }\n",
        &["-v=2"],
    )
    .document;
    assert_eq!(shape(&ours), shape(expected));
    assert_eq!(&ours, expected);
}

#[test]
fn the_arguments_of_kubeadm_work() {
    let file = File::new(include_str!("../../tests/data/kubeadm-fields.yaml"));
    let loaded = load(&[file.flag().as_str(), "--hostname-override=Worker-1"]).expect("a command");
    let Command::Run(settings) = loaded.command else { panic!("not to be run") };
    assert_eq!(settings.hostname_override.as_deref(), Some("worker-1"));
    assert_eq!(settings.mode, Mode::Iptables);
    assert_eq!(settings.client.kubeconfig.as_deref(), Some("/var/lib/kube-proxy/kubeconfig.conf".as_ref()));
    assert_eq!(settings.bind_address, None);
    assert_eq!(settings.healthz_address, Some(([0, 0, 0, 0], 10256).into()));
    assert_eq!(settings.metrics_address, Some(([127, 0, 0, 1], 10249).into()));
    assert_eq!(settings.masquerade_mark, 0x4000);
    assert_eq!(settings.sync_period, Duration::from_secs(30));
    assert_eq!(settings.min_sync_period, None);
    assert_eq!(settings.node_port_addresses.addresses, NodePortAddressSet::Any);
    assert!(settings.localhost_node_ports);
    assert_eq!(settings.config_file.as_deref(), Some(file.0.as_path()));
    assert_eq!(loaded.notices.len(), 1);
    assert!(loaded.notices[0].starts_with("Using iptables proxy"));
    assert!(loaded.notices[0].contains("nftables is recommended"));
}

#[test]
fn a_file_replaces_what_flags_say_except_for_the_log_and_the_hostname() {
    let settings = file_settings(
        "mode: nftables\nhostnameOverride: file\nlogging: { verbosity: 1, vmodule: [{ filePattern: b, verbosity: 2 }] }\n",
        &[
            "--proxy-mode=ipvs",
            "--oom-score-adj=5",
            "--hostname-override= Flag ",
            "--master=https://m",
            "-v=6",
            "--vmodule=a=9",
            "--healthz-port=0",
        ],
    );
    assert_eq!(settings.mode, Mode::Nftables);
    assert_eq!(settings.oom_score_adj, -999);
    assert_eq!(settings.hostname_override.as_deref(), Some("flag"));
    assert_eq!(settings.client.master.as_deref(), Some("https://m"));
    assert_eq!(settings.logging.verbosity, 6);
    assert_eq!(settings.logging.vmodule, [("a".to_owned(), 9), ("b".to_owned(), 2)]);
    assert!(settings.healthz_address.is_some(), "the deprecated port counts without a file only");
    let settings = file_settings("logging: { verbosity: 1 }\n", &[]);
    assert_eq!(settings.logging.verbosity, 1);
}

#[test]
fn an_empty_bind_address_is_the_default_and_an_empty_cluster_cidr_none_at_all() {
    assert_eq!(settings(&["--bind-address="]).document["bindAddress"], "0.0.0.0");
    assert!(refusal(&["--cluster-cidr="]).contains("clusterCIDR: Invalid value"));
}

#[test]
fn virtual_ips_are_bound_as_the_flag_says_with_a_file_and_without() {
    let addresses = ["--ipvs-vip-binding=addresses"];
    assert_eq!(settings(&addresses).ipvs.vip_binding, Binding::Addresses);
    assert_eq!(file_settings("mode: ipvs\n", &addresses).ipvs.vip_binding, Binding::Addresses);
    assert_eq!(file_settings("mode: ipvs\n", &[]).ipvs.vip_binding, Binding::Routes);
    assert_eq!(
        refusal(&["--ipvs-vip-binding=adresses"]),
        "invalid argument \"adresses\" for \"--ipvs-vip-binding\" flag: \"adresses\" is neither routes nor addresses"
    );
}

#[test]
fn flags_set_the_periods_of_the_mode() {
    let periods = |arguments: &[&str]| {
        let settings = settings(arguments);
        (settings.sync_period.as_secs(), settings.min_sync_period.map(|min| min.as_secs()))
    };
    let all = [
        "--iptables-sync-period=50s",
        "--iptables-min-sync-period=5s",
        "--ipvs-sync-period=60s",
        "--ipvs-min-sync-period=6s",
    ];
    for (mode, expected) in
        [("iptables", (50, Some(5))), ("nftables", (50, Some(5))), ("ipvs", (60, Some(6)))]
    {
        let mode = format!("--mode={mode}");
        let mut arguments = vec![mode.as_str()];
        arguments.extend(all);
        assert_eq!(periods(&arguments), expected, "{mode}");
    }
    assert_eq!(periods(&[]), (30, None));
    assert_eq!(periods(&["--iptables-min-sync-period=0"]), (30, Some(0)));
}

#[test]
fn the_deprecated_ports_disable_and_complete() {
    let of = |arguments: &[&str]| {
        let settings = settings(arguments);
        (settings.healthz_address.map(|a| a.to_string()), settings.metrics_address.map(|a| a.to_string()))
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(of(&["--healthz-port=0", "--metrics-port=0"]), (None, None));
    assert_eq!(of(&["--metrics-bind-address="]), (text("0.0.0.0:10256"), None));
    assert_eq!(of(&["--healthz-bind-address="]), (text("0.0.0.0:10256"), text("127.0.0.1:10249")));
    assert_eq!(
        of(&["--healthz-bind-address=10.0.0.1", "--healthz-port=77", "--metrics-port=78"]),
        (text("10.0.0.1:77"), text("127.0.0.1:10249"))
    );
}

#[test]
fn commands_are_chosen_in_the_order_of_kube_proxy() {
    let command = |arguments: &[&str]| load(arguments).expect("a command").command;
    assert_eq!(command(&["--version"]), Command::Print("Kubernetes v1.36.2\n".to_owned()));
    assert_eq!(
        command(&["--version=true", "--mode=nonsense"]),
        Command::Print("Kubernetes v1.36.2\n".to_owned())
    );
    assert!(
        matches!(command(&["--version=raw"]), Command::Print(text) if text.contains("GitVersion:\"v1.36.2\"") && text.contains("Switchyard"))
    );
    assert!(matches!(command(&["-h"]), Command::Help(text) if text.contains("--proxy-mode")));
    assert!(matches!(command(&["--cleanup", "--init-only"]), Command::Cleanup(_)));
    assert!(matches!(command(&["--cleanup", "--write-config-to=/x"]), Command::WriteConfig { .. }));
    assert!(matches!(command(&["--init-only"]), Command::InitOnly(_)));
    assert!(load(&["--version=x"]).is_err());
}

#[test]
fn every_refusal_names_field_value_and_what_is_allowed() {
    for (body, expected) in [
        (
            "mode: userspace\n",
            "mode: Invalid value: \"userspace\": must be iptables, ipvs, nftables or blank",
        ),
        (
            "iptables: { masqueradeBit: 32 }\n",
            "iptables.masqueradeBit: Invalid value: 32: must be within the range [0, 31]",
        ),
        (
            "mode: nftables\nnftables: { masqueradeBit: -1 }\n",
            "nftables.masqueradeBit: Invalid value: -1: must be within the range [0, 31]",
        ),
        (
            "iptables: { syncPeriod: -1s }\n",
            "iptables.syncPeriod: Invalid value: \"-1s\": must be greater than 0",
        ),
        (
            "iptables: { minSyncPeriod: -1s }\n",
            "iptables.minSyncPeriod: Invalid value: \"-1s\": must be greater than or equal to 0",
        ),
        (
            "iptables: { minSyncPeriod: 1m }\n",
            "iptables.syncPeriod: Invalid value: \"30s\": must be greater than or equal to iptables.minSyncPeriod (1m0s)",
        ),
        ("configSyncPeriod: -5s\n", "configSyncPeriod: Invalid value: \"-5s\": must be greater than 0"),
        ("bindAddress: node\n", "bindAddress: Invalid value: \"node\": must be an IP address"),
        (
            "healthzBindAddress: 0.0.0.0:0\n",
            "healthzBindAddress: Invalid value: \"0.0.0.0:0\": must be IP:port with a port from 1 to 65535",
        ),
        (
            "metricsBindAddress: localhost:1\n",
            "metricsBindAddress: Invalid value: \"localhost:1\": must be IP:port with a valid IP",
        ),
        (
            "clientConnection: { burst: -1 }\n",
            "clientConnection.burst: Invalid value: -1: must be greater than or equal to 0",
        ),
        ("oomScoreAdj: 1001\n", "oomScoreAdj: Invalid value: 1001: must be within the range [-1000, 1000]"),
        ("conntrack: { min: -1 }\n", "conntrack.min: Invalid value: -1: must be greater than or equal to 0"),
        (
            "conntrack: { udpTimeout: -1s }\n",
            "conntrack.udpTimeout: Invalid value: \"-1s\": must be greater than or equal to 0",
        ),
        (
            "detectLocalMode: Magic\n",
            "detectLocalMode: Invalid value: \"Magic\": must be ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
        ),
        (
            "detectLocalMode: BridgeInterface\n",
            "detectLocal.bridgeInterface: Invalid value: \"\": must not be empty",
        ),
        (
            "detectLocalMode: InterfaceNamePrefix\ndetectLocal: { interfaceNamePrefix: averyverylongname }\n",
            "detectLocal.interfaceNamePrefix: Invalid value: \"averyverylongname\": must be at most 15",
        ),
        ("clusterCIDR: 10.0.0.0\n", "clusterCIDR: Invalid value: \"10.0.0.0\": must be one CIDR"),
        (
            "clusterCIDR: 10.0.0.0/8,11.0.0.0/8\n",
            "clusterCIDR: Invalid value: \"10.0.0.0/8,11.0.0.0/8\": must be one CIDR, or one of each family",
        ),
        (
            "nodePortAddresses: [10.0.0.0/8, x]\n",
            "nodePortAddresses[1]: Invalid value: \"x\": must be a valid CIDR, or one of primary, all, localhost",
        ),
        (
            "nodePortAddresses: [primary, everything]\n",
            "must be a valid CIDR, or one of primary, all, localhost",
        ),
        (
            "mode: ipvs\nipvs: { excludeCIDRs: [x], tcpTimeout: -1s }\n",
            "ipvs.excludeCIDRs[0]: Invalid value: \"x\": must be a valid CIDR, ipvs.tcpTimeout: Invalid value: \"-1s\"",
        ),
        ("logging: { format: xml }\n", "logging.format: Invalid value: \"xml\": must be text or json"),
        (
            "logging: { format: json, vmodule: [{ filePattern: a, verbosity: 1 }] }\n",
            "logging.vmodule: Invalid value: \"a=1\": only supported for the text log format",
        ),
        (
            "logging: { vmodule: [{ filePattern: 'a=', verbosity: 1 }] }\n",
            "logging.vmodule[0].filePattern: Invalid value: \"a=\"",
        ),
        (
            "logging: { flushFrequency: -1s }\n",
            "logging.flushFrequency: Invalid value: \"-1s\": must be greater than 0",
        ),
        (
            "logging: { options: { text: { infoBufferSize: 1k } } }\n",
            "logging.options.text.infoBufferSize: Invalid value: \"1k\": may only be set when the feature gate LoggingAlphaOptions is on",
        ),
        (
            "showHiddenMetricsForVersion: \"1.20\"\n",
            "showHiddenMetricsForVersion: Invalid value: \"1.20\": must be the previous minor version (1.35) or blank",
        ),
        ("featureGates: { NoSuchGate: true }\n", "unrecognized feature gate: NoSuchGate"),
    ] {
        let text = file_refusal(body);
        assert!(text.contains(expected), "{body}\nexpected: {expected}\n     got: {text}");
    }
}

#[test]
fn several_refusals_come_together() {
    let text = file_refusal("mode: x\noomScoreAdj: 5000\n");
    assert!(
        text.starts_with("failed validate: [mode: ") && text.contains("], ") || text.contains("oomScoreAdj"),
        "{text}"
    );
}

#[test]
fn parts_of_other_modes_are_not_judged() {
    file_settings(
        "mode: iptables\nipvs: { excludeCIDRs: [x], tcpTimeout: -1s }\nnftables: { masqueradeBit: 99 }\n",
        &[],
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let text = refusal(&["--config=/no/such/file"]);
    assert!(text.contains("cannot read the configuration file /no/such/file: No such file"), "{text}");
}

#[test]
fn unknown_fields_are_worth_one_line() {
    let file = File::new("mode: nftables\nresourceContainer: /x\n");
    let loaded = load(&[file.flag()]).expect("a command");
    assert_eq!(
        loaded.notices,
        ["Using lenient decoding as strict decoding failed: unknown field \"resourceContainer\""]
    );
}

#[test]
fn localhost_is_noticed_among_the_addresses_of_node_ports() {
    for (addresses, expected) in [
        ("null", false),
        ("[primary]", false),
        ("[all]", false),
        ("[10.0.0.0/8]", false),
        ("[primary, localhost]", true),
        ("[127.0.0.0/8, 10.0.0.0/8]", true),
        ("[0.0.0.0/0]", false),
    ] {
        let settings = file_settings(&format!("nodePortAddresses: {addresses}\n"), &[]);
        assert_eq!(settings.node_port_addresses.localhost, expected, "{addresses}");
    }
    let only = file_settings("mode: nftables\nnodePortAddresses: [localhost]\n", &[]);
    let nets = only.node_port_addresses.addresses.cidrs();
    assert_eq!(nets.iter().map(ToString::to_string).collect::<Vec<_>>(), ["127.0.0.0/8", "::1/128"]);
    let all = file_settings("mode: nftables\nnodePortAddresses: [all, localhost]\n", &[]);
    assert_eq!(all.node_port_addresses.addresses, NodePortAddressSet::Any);
}

#[test]
fn detectors_are_typed() {
    let of = |body: &str| file_settings(body, &[]).detect_local;
    assert_eq!(of(""), DetectLocal::ClusterCidr(Vec::new()));
    assert_eq!(of("detectLocalMode: NodeCIDR\n"), DetectLocal::NodeCidr);
    assert_eq!(
        of("detectLocalMode: BridgeInterface\ndetectLocal: { bridgeInterface: cni0 }\n"),
        DetectLocal::BridgeInterface("cni0".to_owned())
    );
    let DetectLocal::ClusterCidr(nets) = of("clusterCIDR: 10.1.2.3/16,fd00::/48\n") else {
        panic!("another mode")
    };
    assert_eq!(nets.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.1.0.0/16", "fd00::/48"]);
}

#[test]
fn alpha_logging_options_need_their_gate() {
    let body = "featureGates: { LoggingAlphaOptions: true }\nlogging: { format: json }\n";
    let settings = file_settings(body, &["--log-json-split-stream"]);
    assert!(settings.logging.split_stream);
    assert_eq!(settings.logging.format, LogFormat::Json);
    assert!(settings.feature_gates.enabled(Feature::LoggingAlphaOptions));
}
