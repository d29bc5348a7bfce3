//! Rules of others, read as far as they can be: does this packet match, does it not, or can that not be told?
//!
//! The rule set comes from `nft -j list ruleset`, which shows what iptables-nft has written as well (and of iptables-legacy from
//! [`legacy`](super::legacy)). Of a match that is not
//! known here it is never claimed that it matches or not.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use proxy_core::model::Protocol;
use serde_json::Value;

/// Whether a packet matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Is {
    No,
    Maybe,
    Yes,
}

/// A packet that begins a connection, as it passes a hook.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub(super) protocol: Protocol,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    /// Its destination was replaced before.
    pub(super) translated: bool,
    /// It carries the mark that asks for masquerading.
    pub(super) masqueraded: bool,
}

/// What becomes of a packet in the chains of one hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finding {
    /// The chain: `inet firewall forward`, and the hook with its priority.
    pub(super) chain: String,
    pub(super) hook: String,
    pub(super) priority: i64,
    /// `drop`, `reject`, …
    pub(super) verdict: &'static str,
    /// The rule, or the policy.
    pub(super) rule: String,
    /// It does match, as far as rules before it can be read.
    pub(super) certain: bool,
}

/// A rule's comment, and its expressions.
type Commented = (Value, Vec<Value>);

/// All chains of a rule set.
#[derive(Debug, Default)]
pub(super) struct Ruleset {
    base: Vec<Base>,
    rules: HashMap<(String, String, String), Vec<Commented>>,
    sets: HashMap<(String, String, String), Option<Vec<Value>>>,
}

#[derive(Debug)]
struct Base {
    family: String,
    table: String,
    name: String,
    hook: String,
    priority: i64,
    drops: bool,
}

/// Chains are followed so deep.
const DEEPEST: usize = 16;

impl Ruleset {
    /// From the output of `nft -j list ruleset`. `ours`: tables that are not others'.
    pub(super) fn parse(text: &str, ours: &dyn Fn(&str, &str) -> bool) -> Option<Self> {
        let document: Value = serde_json::from_str(text).ok()?;
        let mut ruleset = Self::default();
        ruleset.add(document["nftables"].as_array()?, ours);
        Some(ruleset)
    }

    /// More of the same.
    pub(super) fn add(&mut self, items: &[Value], ours: &dyn Fn(&str, &str) -> bool) {
        let text = |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
        for item in items {
            if let Some(chain) = item.get("chain") {
                let (family, table, name) =
                    (text(chain, "family"), text(chain, "table"), text(chain, "name"));
                if chain["hook"].is_string() && !ours(&family, &table) {
                    self.base.push(Base {
                        hook: text(chain, "hook"),
                        priority: chain["prio"].as_i64().unwrap_or(0),
                        drops: chain["policy"] == "drop",
                        family,
                        table,
                        name,
                    });
                }
            } else if let Some(rule) = item.get("rule") {
                let key = (text(rule, "family"), text(rule, "table"), text(rule, "chain"));
                let expressions = rule["expr"].as_array().cloned().unwrap_or_default();
                self.rules.entry(key).or_default().push((rule["comment"].clone(), expressions));
            } else if let Some(set) = item.get("set") {
                let key = (text(set, "family"), text(set, "table"), text(set, "name"));
                let plain = set["type"].is_string();
                self.sets.insert(key, plain.then(|| set["elem"].as_array().cloned().unwrap_or_default()));
            }
        }
        self.base.sort_by_key(|base| base.priority);
    }

    /// What the chains of a hook may do to a packet, in the order of their priorities. `at`: the packet as it comes to a chain of
    /// this priority.
    pub(super) fn at(&self, hook: &str, at: &dyn Fn(i64) -> Packet) -> Vec<Finding> {
        let mut findings = Vec::new();
        for base in self.base.iter().filter(|base| base.hook == hook) {
            let packet = at(base.priority);
            let family = if packet.source.is_ipv4() { "ip" } else { "ip6" };
            if base.family != family && base.family != "inet" {
                continue;
            }
            let mut walk = Walk { ruleset: self, base, packet, sure: true, findings: &mut findings };
            let end = walk.chain(&base.name, 0);
            let sure = walk.sure;
            if base.drops && end == End::Through {
                findings.push(Finding {
                    chain: format!("{} {} {}", base.family, base.table, base.name),
                    hook: base.hook.clone(),
                    priority: base.priority,
                    verdict: "drop",
                    rule: "the policy of the chain".to_owned(),
                    certain: sure,
                });
            }
            if findings.iter().any(|finding| finding.certain) {
                break;
            }
        }
        findings
    }
}

/// How a chain ends for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nothing ends it; the caller goes on.
    Through,
    /// It is over, well or not.
    Over,
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    base: &'a Base,
    packet: Packet,
    /// No rule before may have ended it.
    sure: bool,
    findings: &'a mut Vec<Finding>,
}

impl Walk<'_> {
    fn chain(&mut self, name: &str, depth: usize) -> End {
        // What a proxy in iptables mode has written is not others'. It lets through what it has marked.
        if name == "KUBE-FORWARD" && self.packet.masqueraded {
            return End::Over;
        }
        if depth > DEEPEST || name.starts_with("KUBE-") {
            return End::Through;
        }
        let key = (self.base.family.clone(), self.base.table.clone(), name.to_owned());
        let Some(rules) = self.ruleset.rules.get(&key) else { return End::Through };
        for (comment, expressions) in rules {
            let mut is = Is::Yes;
            for expression in expressions {
                is = is.min(self.matches(expression));
                if is == Is::No {
                    break;
                }
            }
            if is == Is::No {
                continue;
            }
            for expression in expressions {
                match self.verdict(expression, is, (name, comment, expressions), depth) {
                    None => {}
                    Some(End::Over) if is == Is::Yes => return End::Over,
                    Some(End::Through) if is == Is::Yes => return End::Through,
                    // It may have ended here.
                    Some(_) => self.sure = false,
                }
            }
        }
        End::Through
    }

    /// `None`: the rule goes on.
    fn verdict(
        &mut self,
        expression: &Value,
        is: Is,
        (chain, comment, rule): (&str, &Value, &[Value]),
        depth: usize,
    ) -> Option<End> {
        let object = expression.as_object()?;
        let mut note = |verdict: &'static str, certain: bool| {
            self.findings.push(Finding {
                chain: format!("{} {} {chain}", self.base.family, self.base.table),
                hook: self.base.hook.clone(),
                priority: self.base.priority,
                verdict,
                rule: text(comment, rule),
                certain,
            });
        };
        let certain = self.sure && is == Is::Yes;
        let (name, value) = object.iter().next()?;
        match name.as_str() {
            "accept" => Some(End::Over),
            "drop" => {
                note("drop", certain);
                Some(End::Over)
            }
            "reject" => {
                note("reject", certain);
                Some(End::Over)
            }
            "queue" | "tproxy" | "synproxy" => {
                note("hand over", false);
                Some(End::Over)
            }
            "dnat" | "redirect" => {
                note("translate", false);
                Some(End::Over)
            }
            "return" => Some(End::Through),
            "jump" => {
                let target = value["target"].as_str()?.to_owned();
                let before = self.sure;
                if is == Is::Maybe {
                    self.sure = false;
                }
                let end = self.chain(&target, depth + 1);
                if is == Is::Maybe {
                    self.sure = before;
                }
                (end == End::Over).then_some(End::Over)
            }
            "goto" => {
                let target = value["target"].as_str()?.to_owned();
                Some(self.chain(&target, depth + 1))
            }
            // A target of iptables that nft has no name for.
            "xt" => {
                let goes_on = ["LOG", "MARK", "CONNMARK", "NFLOG", "CHECKSUM", "TCPMSS", "CT", "TRACE"];
                let name = value["name"].as_str().unwrap_or_default();
                if value["type"] == "target" && !goes_on.contains(&name) {
                    self.sure = false;
                }
                None
            }
            "vmap" => {
                note("decide by a map", false);
                self.sure = false;
                None
            }
            _ => None,
        }
    }

    fn matches(&self, expression: &Value) -> Is {
        let Some((name, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
            return Is::Maybe;
        };
        match name.as_str() {
            "match" => self.compare(value),
            // They say nothing about the packet.
            "counter" | "log" | "comment" | "accept" | "drop" | "reject" | "return" | "jump" | "goto"
            | "mangle" | "masquerade" | "snat" | "dnat" | "redirect" | "notrack" | "queue" | "flow"
            | "tproxy" | "vmap" | "synproxy" | "ct helper" | "ct timeout" => Is::Yes,
            "xt" if value["type"] == "target" || value["name"] == "comment" => Is::Yes,
            // Limits, quotas, numbers at random, matches of iptables that nft has no name for.
            _ => Is::Maybe,
        }
    }

    fn compare(&self, value: &Value) -> Is {
        let (left, right) = (&value["left"], &value["right"]);
        let not = value["op"] == "!=";
        let is = self.holds(left, right);
        match (is, not, value["op"].as_str()) {
            (_, _, Some(op)) if !matches!(op, "==" | "!=" | "in") => Is::Maybe,
            (Is::Yes, true, _) => Is::No,
            (Is::No, true, _) => Is::Yes,
            (is, ..) => is,
        }
    }

    fn holds(&self, left: &Value, right: &Value) -> Is {
        let packet = &self.packet;
        if let Some(payload) = left.get("payload") {
            let protocol = payload["protocol"].as_str().unwrap_or_default();
            let of_family = |v4: bool| protocol == if v4 { "ip" } else { "ip6" };
            match payload["field"].as_str().unwrap_or_default() {
                "saddr" | "daddr" if !of_family(packet.source.is_ipv4()) => return Is::No,
                "saddr" => return self.any(right, &|one| address(one, packet.source)),
                "daddr" => return self.any(right, &|one| address(one, packet.destination)),
                "protocol" | "nexthdr" => return self.any(right, &|one| word(one, packet.protocol)),
                "dport" if protocol == "th" || protocol == packet.protocol.as_str() => {
                    return self.any(right, &|one| number(one, packet.port));
                }
                "dport" | "sport"
                    if matches!(protocol, "tcp" | "udp" | "sctp") && protocol != packet.protocol.as_str() =>
                {
                    return Is::No;
                }
                "type" if matches!(protocol, "icmp" | "icmpv6") => return Is::No,
                _ => return Is::Maybe,
            }
        }
        if let Some(meta) = left.get("meta") {
            return match meta["key"].as_str().unwrap_or_default() {
                "l4proto" => self.any(right, &|one| word(one, packet.protocol)),
                "nfproto" => {
                    let wanted = if packet.source.is_ipv4() { "ipv4" } else { "ipv6" };
                    self.any(right, &|one| same(one, wanted))
                }
                "iifname" | "iif" if self.base.hook == "output" => Is::No,
                _ => Is::Maybe,
            };
        }
        if let Some(ct) = left.get("ct") {
            return match ct["key"].as_str().unwrap_or_default() {
                "state" => self.any(right, &|one| same(one, "new")),
                "status" => match right.as_str() {
                    Some("dnat") if self.packet.translated => Is::Yes,
                    Some("dnat") => Is::No,
                    _ => Is::Maybe,
                },
                _ => Is::Maybe,
            };
        }
        Is::Maybe
    }

    /// One of a list, a set, or a single value.
    fn any(&self, right: &Value, one: &dyn Fn(&Value) -> Is) -> Is {
        let of = |all: &[Value]| all.iter().map(|each| one(plain(each))).max().unwrap_or(Is::No);
        if let Some(name) = right.as_str().and_then(|text| text.strip_prefix('@')) {
            let key = (self.base.family.clone(), self.base.table.clone(), name.to_owned());
            return match self.ruleset.sets.get(&key) {
                Some(Some(elements)) => of(elements),
                _ => Is::Maybe,
            };
        }
        match (right.get("set").and_then(Value::as_array), right.as_array()) {
            (Some(all), _) | (None, Some(all)) => of(all),
            (None, None) => one(right),
        }
    }
}

/// An element with a timeout, a counter or a comment is an object around its value.
fn plain(element: &Value) -> &Value {
    element.get("elem").map_or(element, |elem| &elem["val"])
}

fn address(right: &Value, address: IpAddr) -> Is {
    let is = |yes: bool| if yes { Is::Yes } else { Is::No };
    if let Some(text) = right.as_str() {
        return text.parse::<IpAddr>().map_or(Is::Maybe, |one| is(one == address));
    }
    if let Some(prefix) = right.get("prefix") {
        let net = prefix["addr"].as_str().zip(prefix["len"].as_u64());
        let net = net.and_then(|(at, length)| IpNet::new(at.parse().ok()?, u8::try_from(length).ok()?).ok());
        return net.map_or(Is::Maybe, |net| is(net.contains(&address)));
    }
    if let Some([from, to]) = right.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        let bound = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
        return match (bound(from), bound(to)) {
            (Some(from), Some(to)) => is(from <= address && address <= to),
            _ => Is::Maybe,
        };
    }
    Is::Maybe
}

fn number(right: &Value, number: u16) -> Is {
    let is = |yes: bool| if yes { Is::Yes } else { Is::No };
    if let Some(one) = right.as_u64() {
        return is(one == u64::from(number));
    }
    if let Some([from, to]) = right.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return match (from.as_u64(), to.as_u64()) {
            (Some(from), Some(to)) => is((from..=to).contains(&u64::from(number))),
            _ => Is::Maybe,
        };
    }
    Is::Maybe
}

fn word(right: &Value, protocol: Protocol) -> Is {
    match (right.as_str(), right.as_u64()) {
        (Some(text), _) => same(&Value::from(text), protocol.as_str()),
        (None, Some(number)) if number == u64::from(protocol.number()) => Is::Yes,
        (None, Some(_)) => Is::No,
        (None, None) => Is::Maybe,
    }
}

fn same(right: &Value, wanted: &str) -> Is {
    match right.as_str() {
        Some(text) if text == wanted => Is::Yes,
        Some(_) => Is::No,
        None => Is::Maybe,
    }
}

/// A rule in a few words: what it matches and does, in nft's terms.
fn text(comment: &Value, rule: &[Value]) -> String {
    let mut words: Vec<String> = Vec::new();
    for expression in rule {
        let Some((name, value)) = expression.as_object().and_then(|object| object.iter().next()) else {
            continue;
        };
        match name.as_str() {
            "match" => {
                words.push(format!("{} {}{}", side(&value["left"]), sign(value), side(&value["right"])))
            }
            "counter" | "comment" => {}
            "xt" => words.push(format!("xt {}", value["name"].as_str().unwrap_or("?"))),
            "jump" | "goto" => words.push(format!("{name} {}", value["target"].as_str().unwrap_or("?"))),
            other => words.push(other.to_owned()),
        }
    }
    let comment = comment.as_str().map_or(String::new(), |comment| format!(" # {comment}"));
    format!("{}{comment}", words.join(" "))
}

fn sign(value: &Value) -> String {
    match value["op"].as_str() {
        None | Some("==" | "in") => String::new(),
        Some(other) => format!("{other} "),
    }
}

fn side(value: &Value) -> String {
    if let Some(payload) = value.get("payload") {
        let part = |name: &str| payload[name].as_str().unwrap_or("?").to_owned();
        return format!("{} {}", part("protocol"), part("field"));
    }
    for kind in ["meta", "ct"] {
        if let Some(key) = value.get(kind).and_then(|of| of["key"].as_str()) {
            return format!("{kind} {key}");
        }
    }
    if let Some(prefix) = value.get("prefix") {
        return format!("{}/{}", prefix["addr"].as_str().unwrap_or("?"), prefix["len"]);
    }
    if let Some(all) = value.get("set").and_then(Value::as_array).or(value.as_array()) {
        let all: Vec<String> = all.iter().map(|one| side(plain(one))).collect();
        return format!("{{ {} }}", all.join(", "));
    }
    if let Some([from, to]) = value.get("range").and_then(Value::as_array).map(Vec::as_slice) {
        return format!("{}-{}", side(from), side(to));
    }
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
