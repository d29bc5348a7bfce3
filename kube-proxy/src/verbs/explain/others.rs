//! What others have on the way of a packet: their chains, routes, and kernel settings that drop.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::{Command, Stdio},
};

use insight::{decision::SourceKind, state::Mode};
use proxy_core::model::Family;
use serde::Serialize;
use serde_json::Value;

use super::{
    legacy,
    question::Question,
    rules::{Finding, Packet, Ruleset},
};

/// One thing on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Obstacle {
    /// Where: a chain with its hook and priority, a route, a setting.
    pub(super) at: String,
    /// What it does.
    pub(super) what: String,
    /// What becomes of the packet there.
    pub(super) effect: Effect,
}

/// What an obstacle does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Effect {
    Drops,
    Refuses,
    /// It depends on what is not known here.
    MayStop,
    /// Worth knowing.
    Note,
}

/// Priorities of the kernel's hooks (linux/netfilter_ipv4.h): where destinations are translated.
const DESTINATION_NAT: i64 = -100;

/// Everything on the way from the source to `endpoint`, masqueraded or not (`None`: to the frontend itself, which nobody
/// translates).
pub(super) fn on_the_way(
    question: &Question,
    mode: Mode,
    endpoint: Option<(SocketAddr, bool)>,
    is_own: &dyn Fn(IpAddr) -> bool,
) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let target = endpoint.map_or(question.to, |(at, _)| at);
    let to_node = is_own(target.ip());
    let from_node = question.source.kind == SourceKind::Node;
    settings(&mut found, question, from_node, to_node);
    routes(&mut found, question, target, (from_node, to_node));
    let hooks: &[&str] = match (from_node, to_node) {
        (true, true) => &["output", "input"],
        (true, false) => &["output"],
        (false, true) => &["prerouting", "input"],
        (false, false) => &["prerouting", "forward"],
    };
    chains(&mut found, question, (mode, endpoint), hooks);
    found
}

fn settings(found: &mut Vec<Obstacle>, question: &Question, from_node: bool, to_node: bool) {
    let read = |path: &str| {
        fs::read_to_string(format!("/proc/sys/net/{path}")).ok().map(|text| text.trim().to_owned())
    };
    let forwards = match Family::of(question.to.ip()) {
        Family::V4 => "ipv4/ip_forward",
        Family::V6 => "ipv6/conf/all/forwarding",
    };
    if !from_node && !to_node && read(forwards).as_deref() == Some("0") {
        found.push(Obstacle {
            at: format!("/proc/sys/net/{forwards}"),
            what: "is 0: the node forwards nothing. Set it to 1".to_owned(),
            effect: Effect::Drops,
        });
    }
    if !from_node && question.to.is_ipv4() && read("ipv4/conf/all/rp_filter").as_deref() == Some("1") {
        found.push(Obstacle {
            at: "/proc/sys/net/ipv4/conf/all/rp_filter".to_owned(),
            what: "is 1: what comes in by another interface than the one that leads back to its source is dropped"
                .to_owned(),
            effect: Effect::Note,
        });
    }
}

/// The route to an address, as `ip` says it: the interface, or that there is none.
pub(super) fn route(address: IpAddr) -> Option<Result<String, String>> {
    let output = Command::new("ip")
        .args(["-j", "route", "get", &address.to_string()])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let first = &all[0];
    if let Some(kind) =
        first["type"].as_str().filter(|kind| matches!(*kind, "unreachable" | "blackhole" | "prohibit"))
    {
        return Some(Err(format!("the route is of type {kind}")));
    }
    match first["dev"].as_str() {
        Some(device) => Some(Ok(device.to_owned())),
        None if error.contains("unreachable") => Some(Err(error)),
        None => None,
    }
}

fn routes(
    found: &mut Vec<Obstacle>,
    question: &Question,
    target: SocketAddr,
    (from_node, to_node): (bool, bool),
) {
    if !to_node && let Some(Err(error)) = route(target.ip()) {
        found.push(Obstacle { at: format!("route to {}", target.ip()), what: error, effect: Effect::Drops });
    }
    if !from_node
        && !question.anybody
        && let Some(Err(error)) = route(question.source.address)
    {
        found.push(Obstacle {
            at: format!("route back to {}", question.source.address),
            what: error,
            effect: Effect::MayStop,
        });
    }
}

fn chains(
    found: &mut Vec<Obstacle>,
    question: &Question,
    (mode, endpoint): (Mode, Option<(SocketAddr, bool)>),
    hooks: &[&'static str],
) {
    let note = |what: String| Obstacle { at: "nft".to_owned(), what, effect: Effect::Note };
    let ours = |_: &str, table: &str| match mode {
        Mode::Nftables => table == "kube-proxy",
        Mode::Ipvs => table == "kube-proxy-ipvs",
        // Its chains are named KUBE-, in tables that others use too.
        Mode::Iptables => false,
    };
    let mut ruleset = Ruleset::default();
    match said(&["nft", "-j", "list", "ruleset"]) {
        Ok(text) => match Ruleset::parse(&text, &ours) {
            Some(read) => ruleset = read,
            None => found
                .push(note("chains of others were not looked at: nft's list is not understood".to_owned())),
        },
        Err(error) => found.push(note(format!("chains of others were not looked at: {error}"))),
    }
    let (family, names, save) = match Family::of(question.to.ip()) {
        Family::V4 => ("ip", "ip_tables_names", "iptables-legacy-save"),
        Family::V6 => ("ip6", "ip6_tables_names", "ip6tables-legacy-save"),
    };
    // Asking for tables that are not there would make them.
    let there = fs::read_to_string(format!("/proc/net/{names}")).unwrap_or_default();
    if there.lines().any(|table| table != "nat") {
        match said(&[save]) {
            Ok(text) => ruleset.add(&legacy::as_nft(&text, family), &ours),
            Err(error) => found.push(note(format!("tables of iptables-legacy were not looked at: {error}"))),
        }
    }
    for hook in hooks {
        let packet = |priority: i64| {
            let before = matches!(*hook, "prerouting" | "output") && priority <= DESTINATION_NAT;
            let target = endpoint.filter(|_| !before).map_or(question.to, |(at, _)| at);
            Packet {
                protocol: question.protocol,
                source: question.source.address,
                destination: target.ip(),
                port: target.port(),
                translated: endpoint.is_some() && !before,
                masqueraded: endpoint.is_some_and(|(_, masqueraded)| masqueraded) && !before,
            }
        };
        for Finding { chain, hook, priority, verdict, rule, certain } in ruleset.at(hook, &packet) {
            let certain = certain && !question.anybody;
            found.push(Obstacle {
                at: format!("{chain} (hook {hook}, priority {priority})"),
                what: format!("{verdict}: {rule}"),
                effect: match (certain, verdict) {
                    (true, "reject") => Effect::Refuses,
                    (true, _) => Effect::Drops,
                    (false, _) => Effect::MayStop,
                },
            });
        }
    }
}

/// What a program prints.
fn said(command: &[&str]) -> Result<String, String> {
    let output = Command::new(command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}: {}", command[0], error.lines().next().unwrap_or("it failed")))
        }
        Err(error) => Err(format!("the program {} cannot be run ({error})", command[0])),
    }
}
