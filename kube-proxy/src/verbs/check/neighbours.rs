//! Who else is at our hooks: tables whose base chains drop, firewall managers that flush, other proxies.

use std::{
    fs,
    path::{Path, PathBuf},
};

use insight::state::Mode;
use nft_netlink::{Family as NftFamily, Table, list};
use proxy_core::model::Family;

use super::{kernel::because, report::Finding};
use crate::verbs::plan::left::left;

/// Tables of ours and of kube-proxy; others' are looked at.
const OURS: [&str; 3] = ["kube-proxy", "kube-proxy-ipvs", "switchyard-localnet"];
/// Names of the hooks by number, linux/netfilter.h.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

/// Base chains of others that drop what nobody accepts.
pub(crate) fn hooks(mode: Mode) -> Vec<Finding> {
    let check = "hooks.policies";
    let chains = match droppers() {
        Ok(chains) => chains,
        Err(error) => {
            return vec![Finding::warn(
                check,
                format!("the tables of others cannot be read: {error}"),
                "run it as root in the node's network namespace",
            )];
        }
    };
    if chains.is_empty() {
        return vec![Finding::ok(check, "no other table drops by its policy")];
    }
    let mend = match mode {
        Mode::Nftables => {
            "it must accept traffic to and from pods, and node ports: nftables cannot accept for another table"
        }
        Mode::Iptables | Mode::Ipvs => {
            "it must accept node ports; forwarded traffic of Services is accepted in iptables only"
        }
    };
    chains.into_iter().map(|chain| Finding::warn(check, chain, mend)).collect()
}

fn droppers() -> Result<Vec<String>, netlink::Error> {
    let mut socket = netlink::Socket::open(netlink::Protocol::Netfilter)?;
    let mut found = Vec::new();
    for family in [NftFamily::Ip, NftFamily::Ip6, NftFamily::Inet] {
        for table in list::tables(&mut socket, family)? {
            if OURS.contains(&&*table.name) || table.dormant {
                continue;
            }
            for chain in list::chains(&mut socket, Table::new(family, &table.name))? {
                if let Some((hook, priority)) = chain.hook.filter(|_| chain.drops) {
                    let hook = HOOKS.get(hook as usize).unwrap_or(&"another hook");
                    found.push(format!(
                        "chain {} of table {} {} drops by its policy (hook {hook}, priority {priority})",
                        chain.name,
                        family.name(),
                        table.name
                    ));
                }
            }
        }
    }
    Ok(found)
}

/// What kube-proxy and other modes left.
pub(crate) fn leftovers(mode: Mode, families: &[Family]) -> Vec<Finding> {
    let check = "takeover.leftovers";
    let all = left(Some(mode), families.iter().copied());
    if all.is_empty() {
        return vec![Finding::ok(check, "nothing of kube-proxy and of other modes in the kernel")];
    }
    let finding = |left: crate::verbs::plan::left::Left| {
        let by = left.by.map_or(String::new(), |by| format!(", of {by}"));
        match left.unread {
            Some(error) => {
                Finding::warn(check, format!("{} ({}): {error}", left.what, left.family), "run it as root")
            }
            None => Finding::warn(
                check,
                format!("{} ({}{by}): {} objects", left.what, left.family, left.objects),
                "the process removes them after its first sync; if they stay, its log names who uses them",
            ),
        }
    };
    all.into_iter().map(finding).collect()
}

/// A process as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) id: u32,
    pub(crate) parent: u32,
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    /// In this network namespace, whose rules are asked about (or in one that is not told).
    pub(crate) here: bool,
}

/// All processes that can be seen.
pub(crate) fn processes(proc: &Path) -> Vec<Process> {
    let Ok(entries) = fs::read_dir(proc) else { return Vec::new() };
    let namespace = |folder: &Path| fs::read_link(folder.join("ns/net")).ok();
    let own = namespace(&proc.join("self"));
    let of = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?.trim().to_owned();
        // proc(5), stat: the name in parentheses may hold anything; the parent is the second field after it.
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let arguments = line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned());
        let here = namespace(&entry.path()).is_none_or(|its| Some(its) == own);
        Some(Process {
            id,
            parent,
            name,
            arguments: arguments.filter(|part| !part.is_empty()).collect(),
            here,
        })
    };
    entries.flatten().filter_map(of).collect()
}

/// Programs that serve Services themselves, and by which option, if by one.
const PROXIES: [(&str, Option<&str>); 4] = [
    ("kube-router", Some("--run-service-proxy")),
    ("cilium-agent", None),
    ("antrea-agent", None),
    ("ovnkube", None),
];

/// Whether somebody else serves the same Services.
pub(crate) fn proxies(all: &[Process], own: u32) -> Vec<Finding> {
    let check = "hooks.proxies";
    let is_verb =
        |process: &Process| process.arguments.get(1).is_some_and(|first| crate::verbs::is_verb(first));
    let mut running: Vec<&Process> = all
        .iter()
        .filter(|process| process.name == "kube-proxy" && process.here)
        .filter(|process| process.id != own && !is_verb(process))
        .collect();
    // A program that one of them starts has its name for a moment.
    let ids: Vec<u32> = running.iter().map(|process| process.id).collect();
    running.retain(|process| !ids.contains(&process.parent));
    let mut findings = Vec::new();
    if running.len() > 1 {
        let ids: Vec<String> = running.iter().map(|process| process.id.to_string()).collect();
        findings.push(Finding::fail(
            check,
            format!(
                "{} processes kube-proxy write the same rules (process ids {})",
                running.len(),
                ids.join(", ")
            ),
            "leave one DaemonSet on this node: each takes the other's rules for damage",
        ));
    }
    for process in all.iter().filter(|process| process.here) {
        let known = PROXIES.iter().find(|(name, _)| *name == process.name);
        let Some((name, option)) = known else { continue };
        if option.is_none_or(|option| process.arguments.iter().any(|one| one.starts_with(option))) {
            findings.push(Finding::warn(
                check,
                format!("{name} runs here, which may serve Services itself (process id {})", process.id),
                "let one of the two do it: see its setting for replacing kube-proxy",
            ));
        }
    }
    if findings.is_empty() {
        let seen = if running.is_empty() {
            "no process kube-proxy can be seen from here"
        } else {
            "one process kube-proxy"
        };
        findings.push(Finding::ok(check, seen));
    }
    findings
}

/// Firewall managers that take away what they did not write. `root`: the host's.
pub(crate) fn firewalls(root: &Path, all: &[Process]) -> Vec<Finding> {
    let check = "hooks.firewalls";
    let mut findings = Vec::new();
    let runs = |name: &str| {
        all.iter().any(|process| process.arguments.iter().take(2).any(|one| one.ends_with(name)))
    };
    if runs("firewalld") {
        findings.push(Finding::warn(
            check,
            "firewalld runs: a reload flushes iptables' tables (FlushAllOnReload), and its own table drops what it does not know",
            "FlushAllOnReload=no; put the pods' interfaces into a trusted zone",
        ));
    }
    let enabled = |unit: &str| {
        let wants = ["multi-user.target.wants", "sysinit.target.wants", "basic.target.wants"];
        wants
            .iter()
            .any(|wants| root.join("etc/systemd/system").join(wants).join(unit).symlink_metadata().is_ok())
    };
    let flushes = |file: &str| {
        let text = fs::read_to_string(root.join(file)).unwrap_or_default();
        text.lines().any(|line| line.trim_start().starts_with("flush ruleset"))
    };
    for file in ["etc/nftables.conf", "etc/sysconfig/nftables.conf"] {
        if flushes(file) {
            let what = format!("/{file} flushes the whole rule set");
            let mend = "flush the tables of its own by name: table inet filter, then flush table inet filter";
            findings.push(if enabled("nftables.service") {
                Finding::warn(check, format!("{what}, and nftables.service is enabled"), mend)
            } else {
                Finding::ok(check, format!("{what}; nftables.service is not enabled"))
            });
        }
    }
    let ufw = fs::read_to_string(root.join("etc/ufw/ufw.conf")).unwrap_or_default();
    if ufw.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes")) {
        findings.push(Finding::warn(
            check,
            "ufw is enabled: it drops what is forwarded, and what comes in to node ports",
            "ufw default allow routed, and ufw allow for node ports",
        ));
    }
    for unit in ["netfilter-persistent.service", "iptables.service"] {
        if enabled(unit) {
            findings.push(Finding::warn(
                check,
                format!("{unit} is enabled: it puts the rules of its last save in the place of those that are there"),
                "take the chains KUBE-* out of what it saves, or disable it",
            ));
        }
    }
    if findings.is_empty() {
        let seen = if root.join("etc").is_dir() {
            "none that flushes the rules of others"
        } else {
            "the host's files cannot be seen from here"
        };
        findings.push(Finding::ok(check, seen));
    }
    findings
}

/// Where the host's files are: of the first process, where that is the host's and may be looked at.
pub(crate) fn host_root() -> PathBuf {
    let first = Path::new("/proc/1/root");
    match fs::read_dir(first.join("etc")) {
        Ok(_) => first.to_owned(),
        Err(error) => {
            tracing::debug!(error = because(&error), "the host's files cannot be seen");
            PathBuf::from("/")
        }
    }
}

#[cfg(test)]
#[path = "neighbours_tests.rs"]
mod tests;
