//! `trace` names the rule that a scenario put in the way, and tells a good packet's way.

use integration::lab::{Lab, Mode};
use integration::network::{Outcome, Place};
use serde_json::Value;

use crate::rig::{Verb, connect, in_every_mode, nft, tables, web_and_empty};

in_every_mode!(a_good_packet_is_told, what_is_in_the_way_is_named, a_service_without_endpoints_refuses);

fn trace(lab: &Lab, arguments: &str) -> Verb {
    Verb::start(lab, &format!("trace {arguments} --for 60s --count 1 -o json"), &[]).watches(lab)
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

/// Whether nf_tables sees what becomes of a packet between the hooks.
fn sees_rules(lab: &Lab) -> bool {
    lab.mode() != Mode::IptablesLegacy
}

fn a_good_packet_is_told(lab: &mut Lab) {
    web_and_empty(lab);
    let verb = trace(lab, "lab/web:http --from 10.0.0.0/16");
    assert!(matches!(connect(lab, Place::PodA, 1), Outcome::Answered { .. }));
    let (code, answer) = verb.json();
    assert_eq!(code, 0, "{answer:#}");
    let packet = &answer["packets"][0];
    assert_eq!(text(packet, "service"), "lab/web:http", "{packet:#}");
    assert_eq!(text(packet, "address_kind"), "cluster IP");
    let endpoints = ["10.0.1.3:8080", "10.0.2.2:8080"];
    let places = [Place::PodB, Place::PodD].map(|place| place.address(integration::network::Family::V4));
    let chosen = text(packet, "endpoint");
    assert!(places.iter().any(|at| chosen == format!("{at}:8080")), "{chosen} of {places:?} {endpoints:?}");
    let sentence = text(packet, "sentence");
    assert!(sentence.starts_with("cluster IP lab/web:http, 2 endpoints, chose "), "{sentence}");
    let interface = sentence.rsplit_once("; left by ").map(|(_, interface)| interface).unwrap_or_default();
    assert!(["veth", "eth0"].iter().any(|start| interface.starts_with(start)), "{sentence}");
    let here = packet["endpoint_is_here"].as_bool().expect("known");
    assert_eq!(here, chosen.starts_with(&places[0].to_string()), "{packet:#}");
    assert_eq!(packet["masqueraded_as"], Value::Null, "a pod's connection to a cluster IP keeps its source");
    assert_eq!(answer["missed_events"], Value::Null);
    assert_eq!(answer["missedEvents"], 0);
    assert!(!tables(lab).contains("switchyard-watch-"), "the table is gone");

    // From outside, with its source translated.
    let verb = trace(lab, "lab/web");
    assert!(matches!(connect(lab, Place::Client, 1), Outcome::Answered { .. }));
    let (code, answer) = verb.json();
    assert_eq!(code, 0, "{answer:#}");
    let sentence = text(&answer["packets"][0], "sentence");
    assert!(
        sentence.contains("masqueraded as ") && sentence.contains(" because the client is outside"),
        "{sentence}"
    );
}

fn what_is_in_the_way_is_named(lab: &mut Lab) {
    web_and_empty(lab);
    // A rule of somebody else's, in a chain that another one jumps to.
    for command in [
        "add table inet firewall",
        "add chain inet firewall deny",
        "add rule inet firewall deny tcp dport 8080 drop",
        "add chain inet firewall ahead { type filter hook forward priority 5 ; }",
        "add rule inet firewall ahead jump deny",
        // IPVS sends what it takes in out of the hook output, not through forward.
        "add chain inet firewall sent { type filter hook output priority 5 ; }",
        "add rule inet firewall sent jump deny",
    ] {
        nft(lab, command);
    }
    let verb = trace(lab, "lab/web");
    assert_eq!(connect(lab, Place::PodA, 1), Outcome::Silent);
    let (code, answer) = verb.json();
    assert_eq!(code, 2, "{answer:#}");
    let by = &answer["packets"][0]["by"];
    assert_eq!(
        (text(by, "family"), text(by, "table"), text(by, "chain")),
        ("inet", "firewall", "deny"),
        "{answer:#}"
    );
    assert_eq!(text(by, "rule"), "tcp dport 8080 drop");
    let listed = nft(lab, "-a list chain inet firewall deny");
    assert!(listed.contains(&format!("drop # handle {}", by["handle"])), "{listed} {by}");
    assert!(
        text(&answer["packets"][0], "sentence").contains("table inet firewall, chain deny"),
        "{answer:#}"
    );
    nft(lab, "delete table inet firewall");
    // A policy.
    nft(lab, "add table ip walls");
    nft(lab, "add chain ip walls ahead { type filter hook forward priority 5 ; policy drop ; }");
    nft(lab, "add chain ip walls in { type filter hook input priority 5 ; policy drop ; }");
    let verb = trace(lab, "lab/web");
    assert_eq!(connect(lab, Place::PodA, 1), Outcome::Silent);
    let (code, answer) = verb.json();
    assert_eq!(code, 2, "{answer:#}");
    let by = &answer["packets"][0]["by"];
    let chain = if lab.mode() == Mode::Ipvs { "in" } else { "ahead" };
    assert_eq!(
        (text(by, "table"), text(by, "chain"), &by["handle"]),
        ("walls", chain, &Value::Null),
        "{answer:#}"
    );
    nft(lab, "delete table ip walls");
}

fn a_service_without_endpoints_refuses(lab: &mut Lab) {
    web_and_empty(lab);
    let verb = trace(lab, "lab/empty");
    let outcome = connect(lab, Place::PodA, 2);
    assert!(matches!(outcome, Outcome::Refused), "{outcome}");
    let (code, answer) = verb.json();
    let packet = &answer["packets"][0];
    let sentence = text(packet, "sentence");
    assert!(sentence.starts_with("cluster IP lab/empty:http, no usable endpoint; "), "{answer:#}");
    if sees_rules(lab) {
        assert_eq!((code, text(packet, "outcome")), (1, "refused"), "{answer:#}");
    } else {
        // What cannot be seen is said, and what the rule counted is shown.
        assert_eq!((code, text(packet, "outcome")), (4, "unseen"), "{answer:#}");
        let notes = answer["notes"].to_string();
        assert!(
            notes.contains("legacy iptables counted 1 packets meanwhile")
                && notes.contains("has no endpoints"),
            "{notes}"
        );
    }
}

#[test]
fn filters_that_would_trace_everything_are_refused_before_anything_is_asked() {
    crate::rig::run(Mode::Nftables, integration::lab::Options::default(), |lab| {
        for arguments in ["trace --from 0.0.0.0/0", "trace -p tcp", "trace", "trace ::/0"] {
            let output = Verb::start(lab, arguments, &[]).end();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(70), "{arguments}: {errors}");
            assert!(errors.contains("this would trace every packet of the node"), "{arguments}: {errors}");
        }
        web_and_empty(lab);
        let output = Verb::start(lab, "trace lab/nothing", &[]).end();
        assert!(String::from_utf8_lossy(&output.stderr).contains("serves no address of Service lab/nothing"));
        assert!(!tables(lab).contains("switchyard-watch-"));
    });
}

#[test]
fn a_trace_that_is_killed_leaves_nothing_and_a_tiny_buffer_is_told() {
    crate::rig::run(Mode::Nftables, integration::lab::Options::default(), |lab| {
        web_and_empty(lab);
        let mut verb = trace(lab, "lab/web");
        verb.kill();
        assert!(!tables(lab).contains("switchyard-watch-"), "{}", tables(lab));
        let tiny = [("SWITCHYARD_WATCH_BUFFER", "1")];
        let verb = Verb::start(lab, "trace lab/web --for 5s --count 1 -o json", &tiny).watches(lab);
        connect(lab, Place::PodA, 1);
        let (_, answer) = verb.json();
        assert!(answer["missedEvents"].as_u64().expect("a number") > 0, "{answer:#}");
    });
}

/// What people read. `--no-capture` shows it; the documents have it from here.
#[test]
fn people_read_sentences_and_tables() {
    crate::rig::run(Mode::Nftables, integration::lab::Options::default(), |lab| {
        web_and_empty(lab);
        let show = |arguments: &str, output: &std::process::Output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            eprintln!("$ kube-proxy {arguments}\n{text}{}", String::from_utf8_lossy(&output.stderr));
            text
        };
        for command in [
            "add table inet firewall",
            "add chain inet firewall ahead { type filter hook forward priority 5 ; }",
            "add rule inet firewall ahead ip daddr 10.0.2.0/24 tcp dport 8080 drop",
        ] {
            nft(lab, command);
        }
        let arguments = "trace lab/web -o wide --for 10s --count 1";
        let verb = Verb::start(lab, arguments, &[]).watches(lab);
        connect(lab, Place::PodA, 1);
        let text = show(arguments, &verb.end());
        assert!(text.starts_with("1. TCP 10.0.1.11:") && text.contains("\n   HOOK "), "{text}");
        let arguments = "trace lab/web --for 5s --count 8";
        let verb = Verb::start(lab, arguments, &[]).watches(lab);
        for from in [Place::PodA, Place::Client, Place::Node] {
            for _ in 0..2 {
                connect(lab, from, 1);
            }
        }
        connect(lab, Place::PodA, 2);
        let text = show(arguments, &verb.end());
        assert!(text.contains("2 endpoints, chose "), "{text}");
        let arguments = "flows -f --refused --for 4s";
        let verb = Verb::start(lab, arguments, &[]).watches(lab);
        for number in [1, 1, 1, 2] {
            connect(lab, Place::PodA, number);
        }
        let text = show(arguments, &verb.end());
        assert!(text.contains(" refused    TCP lab/empty:http "), "{text}");
        let arguments = "flows";
        let text = show(arguments, &Verb::start(lab, "flows -A", &[]).end());
        assert!(text.starts_with("SERVICE "), "{text}");
        let arguments = ["top --once", arguments][0];
        let verb = Verb::start(lab, arguments, &[]).listens(lab);
        connect(lab, Place::PodA, 1);
        let text = show(arguments, &verb.end());
        assert!(text.starts_with("SERVICE "), "{text}");
    });
}
