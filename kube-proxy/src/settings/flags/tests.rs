use std::collections::BTreeMap;

use super::*;

fn parse(arguments: &[&str]) -> Flags {
    Flags::parse(arguments).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

fn refusal(arguments: &[&str]) -> String {
    Flags::parse(arguments).expect_err("a refusal").to_string()
}

#[test]
fn names_types_and_defaults_are_those_of_kube_proxy() {
    let listed = include_str!("../../../tests/data/flags.tsv");
    let mut expected = BTreeMap::new();
    for line in listed.lines().filter(|line| !line.starts_with('#')) {
        let columns: Vec<&str> = line.split('\t').collect();
        expected.insert(columns[0], (columns[2], columns[3]));
    }
    let mut flags = Flags::default();
    let mut seen = BTreeMap::new();
    for flag in table::TABLE {
        let value = (flag.value)(&mut flags);
        seen.insert(flag.name, (value.kind(), value.show()));
    }
    // Hidden from kube-proxy's help because they are deprecated.
    assert_eq!(seen.remove("healthz-port"), Some(("int32", "10256".to_owned())));
    assert_eq!(seen.remove("metrics-port"), Some(("int32", "10249".to_owned())));
    // Ours alone.
    assert_eq!(seen.remove("cleanup-own"), Some(("", "false".to_owned())));
    assert_eq!(seen.remove("insight-socket"), Some(("string", "/run/switchyard/insight.sock".to_owned())));
    assert_eq!(seen.remove("ipvs-vip-binding"), Some(("routes|addresses", "routes".to_owned())));
    assert_eq!(seen.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, (kind, default)) in expected {
        let (our_kind, our_default) = &seen[name];
        let kind = match kind {
            "bool" => "",
            "version" => "version[=true]",
            kind => kind,
        };
        assert_eq!(*our_kind, kind, "{name}");
        let quiet = matches!(our_default.as_str(), "false" | "0s" | "[]" | "0");
        if !(quiet && default.is_empty()) {
            assert_eq!(our_default, default, "{name}");
        }
    }
}

#[test]
fn the_table_is_sorted_for_the_log() {
    assert!(table::TABLE.windows(2).all(|pair| pair[0].name < pair[1].name));
}

#[test]
fn underscores_and_dashes_are_the_same() {
    let flags = parse(&["--hostname_override=a", "--proxy_mode", "nftables"]);
    assert_eq!(flags.hostname_override, "a");
    assert_eq!(flags.configuration.mode, "nftables");
    assert!(flags.given("hostname-override"));
}

#[test]
fn values_come_after_an_equal_sign_or_as_the_next_argument() {
    for arguments in [&["--master=https://a:1/x=y"][..], &["--master", "https://a:1/x=y"]] {
        assert_eq!(parse(arguments).master, "https://a:1/x=y");
    }
    assert_eq!(parse(&["--master="]).master, "");
    assert_eq!(
        parse(&["--master", "--cleanup"]).master,
        "--cleanup",
        "as pflag: the next argument, whatever it is"
    );
    assert_eq!(refusal(&["--master"]), "flag needs an argument: --master");
}

#[test]
fn booleans_stand_alone_or_take_a_value_with_an_equal_sign() {
    assert!(parse(&["--cleanup"]).cleanup);
    for yes in ["1", "t", "T", "TRUE", "true", "True"] {
        assert!(parse(&[&format!("--cleanup={yes}")]).cleanup);
    }
    assert!(!parse(&["--cleanup", "--cleanup=false"]).cleanup);
    assert!(!parse(&["--iptables-localhost-nodeports=false"]).configuration.iptables_localhost_node_ports);
    assert!(refusal(&["--cleanup=yes"]).contains("invalid argument \"yes\" for \"--cleanup\" flag"));
    assert_eq!(
        refusal(&["--cleanup", "false"]),
        "\"kube-proxy\" does not take any arguments, got [\"false\"]"
    );
}

#[test]
fn verbosity_has_every_form_that_is_in_use() {
    for arguments in [&["-v=2"][..], &["-v", "2"], &["-v2"], &["--v=2"], &["--v", "2"]] {
        assert_eq!(parse(arguments).configuration.logging.verbosity, 2, "{arguments:?}");
    }
    for text in ["-v=-1", "-v=x", "-v=2147483648"] {
        assert!(Flags::parse(&[text]).is_err(), "{text}");
    }
    assert!(refusal(&["-v"]).starts_with("flag needs an argument: 'v'"));
}

#[test]
fn one_letter_flags_may_be_grouped() {
    let flags = parse(&["-hv3"]);
    assert!(flags.help);
    assert_eq!(flags.configuration.logging.verbosity, 3);
    assert!(refusal(&["-x"]).starts_with("unknown shorthand flag: 'x'"));
}

#[test]
fn unknown_flags_and_arguments_are_refused() {
    assert_eq!(refusal(&["--no-such-flag=1"]), "unknown flag: --no-such-flag");
    assert_eq!(refusal(&["---config=x"]), "bad flag syntax: ---config=x");
    assert_eq!(refusal(&["--=x"]), "bad flag syntax: --=x");
    assert!(refusal(&["run"]).contains("does not take any arguments"));
    assert!(refusal(&["--", "--cleanup"]).contains("does not take any arguments"));
    assert!(refusal(&["-"]).contains("does not take any arguments"));
    parse(&["", "--", ""]);
}

#[test]
fn lists_are_split_at_commas_and_add_up() {
    let flags =
        parse(&["--nodeport-addresses=10.0.0.0/8,fd00::/8", "--nodeport-addresses", "192.168.0.0/16"]);
    assert_eq!(
        flags.configuration.node_port_addresses.as_deref(),
        Some(&["10.0.0.0/8".to_owned(), "fd00::/8".to_owned(), "192.168.0.0/16".to_owned()][..])
    );
    let flags = parse(&["--feature-gates=A=true,B=false", "--feature-gates", "C=1"]);
    let gates: Vec<_> = flags.configuration.feature_gates.into_iter().collect();
    assert_eq!(gates, [("A".to_owned(), true), ("B".to_owned(), false), ("C".to_owned(), true)]);
    assert!(refusal(&["--feature-gates=A"]).contains("malformed pair \"A\""));
}

#[test]
fn vmodule_needs_patterns_and_levels() {
    let flags = parse(&["--vmodule=watch*=4,run=2,", "--vmodule", "sync=9"]);
    let expected = [("watch*", 4), ("run", 2), ("sync", 9)].map(|(name, level)| (name.to_owned(), level));
    assert_eq!(flags.configuration.logging.vmodule, expected);
    for text in ["--vmodule=a", "--vmodule==2", "--vmodule=a=b", "--vmodule=a=1=2"] {
        assert!(Flags::parse(&[text]).is_err(), "{text}");
    }
}

#[test]
fn addresses_are_checked_where_they_are_given() {
    assert!(refusal(&["--bind-address=node-1"]).contains("is not a valid IP address"));
    assert!(refusal(&["--healthz-bind-address=node-1"]).contains("is not in a valid format (ip or ip:port)"));
    assert!(refusal(&["--metrics-bind-address=10.0.0.1:http"]).contains("\"http\" is not a valid number"));
    parse(&["--bind-address=::", "--healthz-bind-address=::1", "--metrics-bind-address=[::]:1"]);
}

#[test]
fn numbers_are_written_as_in_go_and_are_finite() {
    assert_eq!(parse(&["--conntrack-min=1_000"]).configuration.conntrack.min, 1000);
    assert_eq!(parse(&["--conntrack-min=0x1_F"]).configuration.conntrack.min, 31);
    for text in ["--conntrack-min=1_", "--conntrack-min=1__0", "--conntrack-min=_1", "--kube-api-qps=nan"] {
        assert!(Flags::parse(&[text]).is_err(), "{text}");
    }
}

#[test]
fn the_version_may_be_named_only_as_what_it_is() {
    for text in ["v1.36.2", "v1.36.2-gke.100"] {
        assert_eq!(parse(&[&format!("--version={text}")]).version, VersionRequest::None);
    }
    for text in ["v1.36.3", "v1.36.20"] {
        assert!(refusal(&[&format!("--version={text}")]).contains("must match major/minor/patch"), "{text}");
    }
}

#[test]
fn the_last_of_several_occurrences_counts() {
    assert_eq!(parse(&["--oom-score-adj=1", "--oom-score-adj", "-5"]).configuration.oom_score_adj, -5);
}

#[test]
fn mode_is_another_name_of_proxy_mode() {
    let flags = parse(&["--mode=ipvs"]);
    assert_eq!(flags.configuration.mode, "ipvs");
    assert!(flags.given("proxy-mode"));
}

#[test]
fn deprecated_flags_work_and_say_so() {
    let flags = parse(&["--healthz-port=1", "--metrics_port=0"]);
    assert_eq!((flags.healthz_port, flags.metrics_port), (1, 0));
    let notes = flags.deprecations();
    assert_eq!(notes.len(), 2);
    assert!(notes[0].starts_with("Flag --healthz-port has been deprecated"));
}

#[test]
fn every_flag_is_shown_with_its_value() {
    let all = parse(&["--config-sync-period=90s", "--feature-gates=B=false,A=1", "--cleanup"]).all();
    let value = |name| all.iter().find(|(flag, _)| *flag == name).map(|(_, value)| value.as_str());
    assert_eq!(value("config-sync-period"), Some("1m30s"));
    assert_eq!(value("feature-gates"), Some("A=true,B=false"));
    assert_eq!(value("cleanup"), Some("true"));
    assert_eq!(value("nodeport-addresses"), Some("[]"));
    assert_eq!(value("machine-id-file"), Some("/etc/machine-id,/var/lib/dbus/machine-id"));
}

#[test]
fn the_help_names_every_flag() {
    let text = help();
    for flag in table::TABLE {
        assert!(text.contains(&format!("--{}", flag.name)), "{}", flag.name);
    }
    assert!(text.contains("(default 10256)") && text.contains("-v, --v Level"));
}
