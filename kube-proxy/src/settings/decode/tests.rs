use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn good(body: &str) -> Decoded {
    decode(&format!("{HEAD}{body}")).unwrap_or_else(|error| panic!("{body}: {error:?}"))
}

fn field_errors(body: &str) -> Vec<String> {
    match decode(&format!("{HEAD}{body}")) {
        Err(DecodeError::Fields(errors)) => errors.iter().map(ToString::to_string).collect(),
        other => panic!("{body}: {other:?}"),
    }
}

fn document_error(text: &str) -> String {
    match decode(text) {
        Err(DecodeError::Document(reason)) => reason,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_bare_document_is_the_default() {
    assert_eq!(good("").configuration, Configuration::default());
}

#[test]
fn what_kubeadm_writes_means_the_default() {
    // The shape of kubeadm's ConfigMap: zero values and nulls for all that nobody asked for.
    let decoded = good(include_str!("../../../tests/data/kubeadm-fields.yaml"));
    assert_eq!(decoded.strict_errors, Vec::<String>::new());
    let mut expected = Configuration::default();
    "/var/lib/kube-proxy/kubeconfig.conf".clone_into(&mut expected.client.kubeconfig);
    expected.cluster_cidrs = vec!["10.244.0.0/16".to_owned()];
    assert_eq!(decoded.configuration, expected);
}

#[test]
fn periods_and_masquerade_all_come_from_the_part_of_the_mode() {
    let body = |mode: &str| {
        good(&format!(
            "mode: {mode}\n\
             iptables: {{ syncPeriod: 10s, minSyncPeriod: 2s, masqueradeAll: true }}\n\
             ipvs: {{ syncPeriod: 20s, minSyncPeriod: 3s }}\n\
             nftables: {{ syncPeriod: 40s, minSyncPeriod: 4s }}\n"
        ))
        .configuration
    };
    for (mode, sync, min, all) in
        [("iptables", 10, 2, true), ("ipvs", 20, 3, true), ("nftables", 40, 4, false), ("\"\"", 10, 2, true)]
    {
        let configuration = body(mode);
        assert_eq!(configuration.sync_period, GoDuration::from_secs(sync), "{mode}");
        assert_eq!(configuration.min_sync_period, GoDuration::from_secs(min), "{mode}");
        assert_eq!(configuration.masquerade_all, all, "{mode}");
        assert!(configuration.min_sync_period_given);
    }
}

#[test]
fn only_ipvs_has_no_minimum_by_default() {
    for (mode, min) in [("iptables", 1), ("ipvs", 0), ("nftables", 1)] {
        let configuration = good(&format!("mode: {mode}\n")).configuration;
        assert_eq!(configuration.min_sync_period, GoDuration::from_secs(min), "{mode}");
        assert!(!configuration.min_sync_period_given, "{mode}");
    }
}

#[test]
fn addresses_get_the_family_of_the_bind_address_and_a_port() {
    let configuration = good("bindAddress: \"::\"\n").configuration;
    assert_eq!(configuration.healthz_bind_address, "[::]:10256");
    assert_eq!(configuration.metrics_bind_address, "[::1]:10249");
    let configuration = good("healthzBindAddress: 10.0.0.1\nmetricsBindAddress: \"\"\n").configuration;
    assert_eq!(configuration.healthz_bind_address, "10.0.0.1:10256");
    assert_eq!(configuration.metrics_bind_address, "127.0.0.1:10249");
}

#[test]
fn zero_timeouts_of_conntrack_are_a_wish_and_null_is_not() {
    let configuration =
        good("conntrack: { maxPerCore: 0, tcpEstablishedTimeout: 0s, min: null }\n").configuration;
    assert_eq!(configuration.conntrack.max_per_core, 0);
    assert_eq!(configuration.conntrack.tcp_established_timeout, GoDuration(0));
    assert_eq!(configuration.conntrack.min, 131_072);
}

#[test]
fn unknown_and_repeated_fields_are_reported_and_forgiven() {
    let decoded = good("mode: iptables\nmode: nftables\niptables: { noSuch: 1 }\nresourceContainer: /x\n");
    assert_eq!(decoded.configuration.mode, "nftables");
    assert_eq!(decoded.strict_errors.len(), 3, "{:?}", decoded.strict_errors);
    assert!(decoded.strict_errors[0].contains("mode"), "{}", decoded.strict_errors[0]);
    assert_eq!(
        decoded.strict_errors[1..],
        ["unknown field \"iptables.noSuch\"", "unknown field \"resourceContainer\""]
    );
}

#[test]
fn wrong_types_name_field_value_and_what_is_allowed() {
    assert_eq!(
        field_errors("mode: 7\nconntrack: { min: \"x\", udpTimeout: 5 }\nnodePortAddresses: primary\n"),
        [
            "mode: Invalid value: 7: must be a string (put it in quotes)",
            "nodePortAddresses: Invalid value: \"primary\": must be a list of strings",
            "conntrack.min: Invalid value: \"x\": must be a whole number that fits into 32 bits",
            "conntrack.udpTimeout: Invalid value: 5: must be a duration such as \"30s\", \"1h30m\" or \"0s\"",
        ]
    );
    assert_eq!(field_errors("iptables: 3\n"), ["iptables: Invalid value: 3: must be a map of fields"]);
}

#[test]
fn booleans_may_be_spelled_as_yaml_1_1_does() {
    let configuration =
        good("bindAddressHardFail: yes\niptables: { localhostNodePorts: off }\n").configuration;
    assert!(configuration.bind_address_hard_fail);
    assert!(!configuration.iptables_localhost_node_ports);
}

#[test]
fn json_is_read_as_well() {
    let text = r#"{"kind":"KubeProxyConfiguration","apiVersion":"kubeproxy.config.k8s.io/v1alpha1","oomScoreAdj":-5}"#;
    assert_eq!(decode(text).expect("JSON").configuration.oom_score_adj, -5);
}

#[test]
fn logging_is_read_in_both_forms_of_its_period() {
    let configuration = good(
        "logging: { format: json, verbosity: 4, flushFrequency: 2000000000, options: { json: { infoBufferSize: 8Ki } } }\n",
    )
    .configuration;
    assert_eq!(configuration.logging.flush_frequency, GoDuration::from_secs(2));
    assert_eq!(configuration.logging.verbosity, 4);
    assert_eq!(configuration.logging.json.info_buffer_size, "8Ki");
    let configuration =
        good("logging:\n  vmodule:\n  - filePattern: watch\n    verbosity: 3\n").configuration;
    assert_eq!(configuration.logging.vmodule, [("watch".to_owned(), 3)]);
}

#[test]
fn other_kinds_and_broken_documents_are_refused() {
    assert!(document_error("").contains("it is empty"));
    assert!(document_error("- a\n").contains("no map of fields"));
    assert!(document_error("kind: KubeProxyConfiguration\n").contains("apiVersion is missing"));
    assert!(document_error("apiVersion: v1\n").contains("kind is missing"));
    assert!(
        document_error("apiVersion: v1\nkind: ConfigMap\n").contains("no kind \"ConfigMap\" is registered")
    );
    let reason = document_error(&format!("{HEAD}mode: [\n"));
    assert!(reason.contains("line"), "{reason}");
}

#[test]
fn what_kubernetes_yaml_reader_takes_is_taken() {
    let numbers = good("conntrack: { min: 5.0 }\niptables: { masqueradeBit: 010 }\n").configuration;
    assert_eq!((numbers.conntrack.min, numbers.iptables_masquerade_bit), (5, 8));
    assert_eq!(field_errors("conntrack: { min: 5.5 }").len(), 1);
    // Only the first document counts, and the dashes before it begin none.
    for text in [format!("{HEAD}mode: ipvs\n---\n{HEAD}mode: nftables\n"), format!("---\n{HEAD}mode: ipvs\n")]
    {
        assert_eq!(decode(&text).expect("good").configuration.mode, "ipvs");
    }
}

#[test]
fn log_streams_are_split_by_the_flag_alone() {
    let decoded = good("logging: { options: { text: { splitStream: true } } }");
    assert!(!decoded.configuration.logging.text.split_stream);
    assert_eq!(decoded.strict_errors, Vec::<String>::new());
}
