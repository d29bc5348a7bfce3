//! The tables of iptables-legacy, which nft does not show: what `iptables-legacy-save` prints, put into the words of
//! `nft -j`, so that [`rules`](super::rules) reads both.

use serde_json::{Value, json};

/// Where each table's chains are in the kernel's order (linux/netfilter_ipv4.h), and that it can drop.
const TABLES: [(&str, i64); 4] = [("raw", -300), ("mangle", -150), ("filter", 0), ("security", 50)];

/// As `nft -j list ruleset` would print it. `family`: `ip` or `ip6`.
pub(super) fn as_nft(saved: &str, family: &str) -> Vec<Value> {
    let mut all = Vec::new();
    let mut table = None;
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = TABLES.into_iter().find(|(known, _)| *known == name);
        } else if let (Some(text), Some((table, priority))) = (line.strip_prefix(':'), table) {
            all.push(chain(text, family, table, priority));
        } else if let (Some(text), Some((table, _))) = (line.strip_prefix("-A "), table) {
            let words = words(text);
            let Some((name, rest)) = words.split_first() else { continue };
            all.push(json!({"rule": {
                "family": family, "table": format!("{table} (legacy)"), "chain": name, "expr": rule(rest, family),
            }}));
        }
    }
    all
}

fn chain(text: &str, family: &str, table: &str, priority: i64) -> Value {
    let mut words = text.split(' ');
    let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut chain = json!({"family": family, "table": format!("{table} (legacy)"), "name": name});
    // A chain of a user's has no policy.
    if matches!(policy, "ACCEPT" | "DROP") {
        chain["hook"] = json!(name.to_ascii_lowercase());
        chain["prio"] = json!(priority);
        chain["policy"] = json!(policy.to_ascii_lowercase());
    }
    json!({ "chain": chain })
}

/// Words, of which some are in double quotes.
fn words(text: &str) -> Vec<String> {
    let (mut all, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for letter in text.chars() {
        match letter {
            '"' => quoted = !quoted,
            ' ' if !quoted => all.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            other => word.push(other),
        }
    }
    all.extend((!word.is_empty()).then_some(word));
    all
}

fn rule(words: &[String], family: &str) -> Value {
    let mut expressions = Vec::new();
    let mut protocol = "th".to_owned();
    let mut not = false;
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        let is = |left: Value, right: Value| json!({"match": {"op": if not { "!=" } else { "==" }, "left": left, "right": right}});
        let payload =
            |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
        let expression = match word {
            "!" => {
                not = true;
                continue;
            }
            "-s" | "-d" => {
                let field = if word == "-s" { "saddr" } else { "daddr" };
                is(payload(family, field), net(value()))
            }
            "-p" => {
                protocol = value().replace("ipv6-icmp", "icmpv6");
                is(json!({"meta": {"key": "l4proto"}}), json!(protocol))
            }
            "--dport" => is(payload(&protocol, "dport"), ports(value())),
            "--dports" => {
                let all: Vec<Value> = value().split(',').map(ports).collect();
                is(payload(&protocol, "dport"), json!({ "set": all }))
            }
            "--ctstate" | "--state" => {
                let all: Vec<String> = value().split(',').map(str::to_ascii_lowercase).collect();
                // What iptables calls a state of its own is a status.
                if all.iter().any(|state| matches!(&**state, "dnat" | "snat")) {
                    json!({"xt": {"type": "match", "name": "conntrack"}})
                } else {
                    is(json!({"ct": {"key": "state"}}), json!(all))
                }
            }
            "-i" => is(json!({"meta": {"key": "iifname"}}), json!(value())),
            "-o" => is(json!({"meta": {"key": "oifname"}}), json!(value())),
            // It says where the words come from that follow, and those are known or not.
            "-m" => match value() {
                "tcp" | "udp" | "sctp" | "comment" | "conntrack" | "state" | "multiport" => continue,
                other => json!({"xt": {"type": "match", "name": other}}),
            },
            "--comment" => {
                value();
                continue;
            }
            "-j" => match value() {
                "ACCEPT" => json!({"accept": null}),
                "DROP" => json!({"drop": null}),
                "REJECT" => json!({"reject": null}),
                "RETURN" => json!({"return": null}),
                target
                    if target.starts_with(|letter: char| letter.is_ascii_uppercase())
                        && is_extension(target) =>
                {
                    json!({"xt": {"type": "target", "name": target}})
                }
                target => json!({"jump": {"target": target}}),
            },
            "-g" => json!({"goto": {"target": value()}}),
            // An option of a match or target that was named before, or a match that is not known here.
            option if option.starts_with('-') => {
                if option.starts_with("--reject-with")
                    || option.starts_with("--set-")
                    || option.starts_with("--log")
                {
                    value();
                    continue;
                }
                json!({"xt": {"type": "match", "name": option}})
            }
            _ => continue,
        };
        not = false;
        expressions.push(expression);
    }
    Value::Array(expressions)
}

/// Targets that are no chains, and do not end a packet's way (or may, which is as unknown).
fn is_extension(target: &str) -> bool {
    const KNOWN: [&str; 20] = [
        "AUDIT",
        "CHECKSUM",
        "CLASSIFY",
        "CONNMARK",
        "CONNSECMARK",
        "CT",
        "DSCP",
        "HMARK",
        "LED",
        "LOG",
        "MARK",
        "NFLOG",
        "NFQUEUE",
        "NOTRACK",
        "RATEEST",
        "SECMARK",
        "SET",
        "TCPMSS",
        "TOS",
        "TRACE",
    ];
    KNOWN.contains(&target)
}

fn net(text: &str) -> Value {
    match text.split_once('/') {
        Some((address, length)) => match length.parse::<u8>() {
            Ok(length) if length < 32 || (address.contains(':') && length < 128) => {
                json!({"prefix": {"addr": address, "len": length}})
            }
            Ok(_) => json!(address),
            Err(_) => Value::Null,
        },
        None => json!(text),
    }
}

fn ports(text: &str) -> Value {
    let number = |text: &str| text.parse::<u16>().ok();
    match text.split_once(':') {
        Some((from, to)) => json!({"range": [number(from), number(to)]}),
        None => json!(number(text)),
    }
}

#[cfg(test)]
mod tests {
    use proxy_core::model::Protocol;

    use super::super::rules::{Packet, Ruleset};
    use super::*;

    fn found(saved: &str) -> Vec<(String, bool)> {
        let text = json!({ "nftables": as_nft(saved, "ip") }).to_string();
        let ruleset = Ruleset::parse(&text, &|_, _| false).expect("JSON");
        let packet = Packet {
            protocol: Protocol::Tcp,
            source: [10, 0, 1, 11].into(),
            destination: [10, 0, 2, 11].into(),
            port: 8080,
            translated: true,
            masqueraded: false,
        };
        let found = ruleset.at("forward", &|_| packet);
        found
            .into_iter()
            .map(|one| (format!("{}: {}: {}", one.chain, one.verdict, one.rule), one.certain))
            .collect()
    }

    #[test]
    fn policies_and_rules_are_read_as_nft_would_say_them() {
        let table = |policy: &str, rules: &str| {
            format!("*filter\n:INPUT ACCEPT [0:0]\n:FORWARD {policy} [0:0]\n:MINE - [0:0]\n{rules}\nCOMMIT\n")
        };
        let policy = found(&table("DROP", ""));
        assert_eq!(policy, [("ip filter (legacy) FORWARD: drop: the policy of the chain".to_owned(), true)]);
        assert!(found(&table("ACCEPT", "")).is_empty());
        assert!(
            found(&table("DROP", "-A FORWARD -d 10.0.0.0/8 -p tcp -m tcp --dport 8000:9000 -j ACCEPT"))
                .is_empty()
        );
        for (rule, certain) in [
            ("-A FORWARD -d 10.0.2.11/32 -j DROP", Some(true)),
            ("-A FORWARD ! -d 10.0.2.11/32 -j DROP", None),
            ("-A FORWARD -s 10.9.0.0/16 -j DROP", None),
            ("-A FORWARD -p udp -m udp --dport 8080 -j DROP", None),
            (
                "-A FORWARD -p tcp -m multiport --dports 80,8080 -j REJECT --reject-with icmp-port-unreachable",
                Some(true),
            ),
            ("-A FORWARD -m conntrack --ctstate INVALID -j DROP", None),
            ("-A FORWARD -m conntrack --ctstate NEW -j DROP", Some(true)),
            ("-A FORWARD -m conntrack --ctstate DNAT -j DROP", Some(false)),
            ("-A FORWARD -i eth0 -j DROP", Some(false)),
            ("-A FORWARD -m recent --rcheck --name x -j DROP", Some(false)),
            ("-A FORWARD -m comment --comment \"no -j ACCEPT here\" -j MINE\n-A MINE -j DROP", Some(true)),
            ("-A FORWARD -j LOG --log-prefix \"x \"\n-A FORWARD -j DROP", Some(true)),
            ("-A FORWARD -j NFQUEUE --queue-num 1\n-A FORWARD -j DROP", Some(false)),
            ("-A FORWARD -j KUBE-FORWARD\n-A KUBE-FORWARD -j DROP", None),
        ] {
            let found = found(&table("ACCEPT", rule));
            assert_eq!(found.first().map(|(_, certain)| *certain), certain, "{rule}: {found:?}");
        }
    }
}
