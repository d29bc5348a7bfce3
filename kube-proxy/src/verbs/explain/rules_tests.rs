use super::*;

/// A packet from a pod to a Service that was sent to an endpoint.
fn packet() -> Packet {
    Packet {
        protocol: Protocol::Tcp,
        source: [10, 0, 1, 11].into(),
        destination: [10, 0, 2, 11].into(),
        port: 8080,
        translated: true,
        masqueraded: false,
    }
}

/// The findings of the hook forward, as `nft -j` prints such a table.
fn findings(policy: &str, rules: &[Value]) -> Vec<(String, bool)> {
    let chain = |name: &str| serde_json::json!({"chain": {"family": "inet", "table": "t", "name": name}});
    let mut all = vec![
        serde_json::json!({"chain": {
            "family": "inet", "table": "t", "name": "f", "type": "filter", "hook": "forward", "prio": 0, "policy": policy,
        }}),
        chain("other"),
        serde_json::json!({"set": {"family": "inet", "table": "t", "name": "s", "type": "ipv4_addr", "elem": [
            "10.0.9.9", {"prefix": {"addr": "10.0.2.0", "len": 24}},
        ]}}),
    ];
    for rule in rules {
        let chain = rule.get("chain").cloned().unwrap_or_else(|| "f".into());
        let expr = rule.get("expr").unwrap_or(rule);
        all.push(serde_json::json!({"rule": {"family": "inet", "table": "t", "chain": chain, "expr": expr}}));
    }
    let text = serde_json::json!({ "nftables": all }).to_string();
    let ruleset = Ruleset::parse(&text, &|_, _| false).expect("JSON");
    let found = ruleset.at("forward", &|_| packet());
    found
        .into_iter()
        .map(|finding| (format!("{}: {}", finding.verdict, finding.rule), finding.certain))
        .collect()
}

fn is(left: Value, right: Value) -> Value {
    serde_json::json!({"match": {"op": "==", "left": left, "right": right}})
}

fn payload(protocol: &str, field: &str) -> Value {
    serde_json::json!({"payload": {"protocol": protocol, "field": field}})
}

#[test]
fn what_matches_for_certain_and_what_does_not() {
    let drop = serde_json::json!({ "drop": null });
    let net = serde_json::json!({"prefix": {"addr": "10.0.2.0", "len": 24}});
    let other = serde_json::json!({"prefix": {"addr": "10.0.3.0", "len": 24}});
    let ct = |key: &str| serde_json::json!({ "ct": { "key": key } });
    let meta = |key: &str| serde_json::json!({ "meta": { "key": key } });
    for (rule, expected) in [
        (is(payload("ip", "daddr"), net), Some(true)),
        (is(payload("ip", "daddr"), other.clone()), None),
        (is(payload("ip", "daddr"), "@s".into()), Some(true)),
        (is(payload("ip", "daddr"), "@unknown".into()), Some(false)),
        (is(payload("ip", "saddr"), "10.0.1.11".into()), Some(true)),
        (is(payload("ip6", "daddr"), "fd00::1".into()), None),
        (is(payload("tcp", "dport"), 8080.into()), Some(true)),
        (is(payload("tcp", "dport"), serde_json::json!({"range": [8000, 9000]})), Some(true)),
        (is(payload("tcp", "dport"), serde_json::json!({"set": [80, 443]})), None),
        (is(payload("udp", "dport"), 8080.into()), None),
        (is(payload("tcp", "sport"), 1024.into()), Some(false)),
        (is(meta("l4proto"), "tcp".into()), Some(true)),
        (is(meta("l4proto"), "udp".into()), None),
        (is(meta("iifname"), "eth0".into()), Some(false)),
        (is(ct("state"), "invalid".into()), None),
        (is(ct("state"), serde_json::json!(["established", "related"])), None),
        (is(ct("state"), "new".into()), Some(true)),
        (is(ct("status"), "dnat".into()), Some(true)),
        (serde_json::json!({"limit": {"rate": 1, "per": "second"}}), Some(false)),
        (serde_json::json!({"xt": {"type": "match", "name": "recent"}}), Some(false)),
        (serde_json::json!({"something": "new"}), Some(false)),
    ] {
        let found = findings("accept", &[serde_json::json!([rule, drop])]);
        assert_eq!(found.first().map(|(_, certain)| *certain), expected, "{rule}: {found:?}");
    }
    let mut not = is(payload("ip", "daddr"), other);
    not["match"]["op"] = "!=".into();
    assert!(findings("accept", &[serde_json::json!([not, drop])])[0].1);
    let mut less = is(payload("tcp", "dport"), 9000.into());
    less["match"]["op"] = "<".into();
    assert!(!findings("accept", &[serde_json::json!([less, drop])])[0].1, "it is not claimed");
}

#[test]
fn what_ends_before_hides_what_follows() {
    let rule = Value::Array;
    let (accept, drop) = (serde_json::json!({"accept": null}), serde_json::json!({"drop": null}));
    let maybe = is(payload("tcp", "sport"), 9.into());
    let jump = serde_json::json!({"jump": {"target": "other"}});
    let here = |expr: Value| serde_json::json!({"chain": "other", "expr": expr});
    assert!(findings("drop", &[rule(vec![accept.clone()]), rule(vec![drop.clone()])]).is_empty());
    let unsure = findings("accept", &[rule(vec![maybe.clone(), accept.clone()]), rule(vec![drop.clone()])]);
    assert_eq!(unsure, [("drop: drop".to_owned(), false)]);
    let policy = findings("drop", &[]);
    assert_eq!(policy, [("drop: the policy of the chain".to_owned(), true)]);
    let jumped = findings("accept", &[rule(vec![jump.clone()]), here(rule(vec![drop.clone()]))]);
    assert!(jumped[0].1, "{jumped:?}");
    let returned = findings(
        "accept",
        &[
            rule(vec![jump.clone()]),
            here(rule(vec![serde_json::json!({"return": null})])),
            here(rule(vec![drop])),
        ],
    );
    assert!(returned.is_empty(), "{returned:?}");
    let perhaps = findings("drop", &[rule(vec![maybe, jump]), here(rule(vec![accept]))]);
    assert_eq!(perhaps, [("drop: the policy of the chain".to_owned(), false)]);
}

#[test]
fn a_rule_is_told_in_the_words_of_nft() {
    let rule = serde_json::json!([
        is(payload("ip", "daddr"), serde_json::json!({"prefix": {"addr": "10.0.2.0", "len": 24}})),
        is(payload("tcp", "dport"), serde_json::json!({"set": [80, 8080]})),
        {"counter": {"packets": 1, "bytes": 2}},
        {"reject": {"type": "icmpx"}},
    ]);
    assert_eq!(
        findings("accept", &[rule])[0].0,
        "reject: ip daddr 10.0.2.0/24 tcp dport { 80, 8080 } reject"
    );
}
