//! What the node is set to: kernel settings, connection tracking, the clock.

use std::{fs, path::Path};

use insight::state::{Mode, State};
use proxy_core::model::Family;

use super::report::Finding;

/// A kernel setting that traffic to Services depends on.
struct Setting {
    name: &'static str,
    wanted: &'static str,
    why: &'static str,
    family: Option<Family>,
}

const SETTINGS: [Setting; 4] = [
    Setting {
        name: "net/ipv4/ip_forward",
        wanted: "1",
        why: "packets to pods and from pods are not forwarded",
        family: Some(Family::V4),
    },
    Setting {
        name: "net/ipv6/conf/all/forwarding",
        wanted: "1",
        why: "packets to pods and from pods are not forwarded",
        family: Some(Family::V6),
    },
    // Where a bridge connects pods (the setting is there once br_netfilter is loaded).
    Setting {
        name: "net/bridge/bridge-nf-call-iptables",
        wanted: "1",
        why: "answers between pods on one bridge pass by the translation",
        family: Some(Family::V4),
    },
    Setting {
        name: "net/bridge/bridge-nf-call-ip6tables",
        wanted: "1",
        why: "answers between pods on one bridge pass by the translation",
        family: Some(Family::V6),
    },
];

/// Settings that are not as Services need them.
pub(crate) fn settings(proc: &Path, families: &[Family]) -> Vec<Finding> {
    let check = "node.settings";
    let mut findings: Vec<Finding> = SETTINGS
        .iter()
        .filter(|setting| setting.family.is_none_or(|family| families.contains(&family)))
        .filter_map(|setting| {
            // One that is not there is no matter here.
            let is = fs::read_to_string(proc.join(setting.name)).ok()?;
            let name = setting.name.replace('/', ".");
            (is.trim() != setting.wanted).then(|| {
                Finding::fail(
                    check,
                    format!("{name} is {}: {}", is.trim(), setting.why),
                    format!("sysctl -w {name}={} (and in /etc/sysctl.d)", setting.wanted),
                )
            })
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(check, "forwarding is on"));
    }
    findings
}

/// Whether the settings that the configuration asks for can be made. Opened, not written.
pub(crate) fn writable(proc: &Path, mode: Mode) -> Finding {
    let check = "node.writable";
    let mut names = vec!["net/netfilter/nf_conntrack_max", "net/ipv4/conf/all/route_localnet"];
    if mode == Mode::Ipvs {
        names.extend(["net/ipv4/vs/conntrack", "net/ipv4/vs/expire_nodest_conn"]);
    }
    for name in names {
        let path = proc.join(name);
        if !path.exists() {
            continue;
        }
        if let Err(error) = fs::OpenOptions::new().write(true).open(&path) {
            return Finding::warn(
                check,
                format!("{} cannot be written: {error}", name.replace('/', ".")),
                "set it on the host, and the conntrack section of the configuration to 0; Services work all the same",
            );
        }
    }
    Finding::ok(check, "kernel settings can be made")
}

/// How full connection tracking is: beyond its limit, new connections are dropped.
pub(crate) fn conntrack(proc: &Path) -> Finding {
    let check = "node.conntrack";
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(proc.join("net/netfilter").join(name)).ok()?.trim().parse().ok()
    };
    match (number("nf_conntrack_count"), number("nf_conntrack_max")) {
        (Some(count), Some(most)) if most > 0 => {
            let share = count * 100 / most;
            let what = format!("{count} of {most} connections are tracked");
            let mend =
                "raise conntrack.maxPerCore or conntrack.min, or look for who opens them: conntrack -S";
            match share {
                95.. => Finding::fail(check, what, mend),
                80.. => Finding::warn(check, what, mend),
                _ => Finding::ok(check, what),
            }
        }
        _ => Finding::warn(
            check,
            "connection tracking is not loaded yet",
            "nothing, if no rules were written yet; else load nf_conntrack",
        ),
    }
}

/// So far ahead of this node's clock may the cluster's be, in seconds.
const AHEAD: i64 = 2;

/// The node's clock against the times at which the cluster says that endpoints changed.
pub(crate) fn clock(state: &State, now: i64) -> Finding {
    let check = "node.clock";
    let newest = state.slices.iter().filter_map(|slice| slice.trigger_time).max();
    match newest.map(|nanoseconds| nanoseconds / 1_000_000_000 - now) {
        None => Finding::ok(check, "no EndpointSlice says when its change began: nothing to compare with"),
        Some(ahead) if ahead > AHEAD => Finding::warn(
            check,
            format!(
                "an EndpointSlice changed {ahead} s from now: this node's clock is behind, or the control plane's ahead"
            ),
            "synchronise the clocks (chrony); tokens, certificates and latencies in metrics depend on them",
        ),
        Some(_) => Finding::ok(check, "not behind the times at which endpoints changed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verbs::check::report::Status;

    struct Proc(std::path::PathBuf);

    impl Proc {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let path = std::env::temp_dir().join(format!("check-{name}-{}", std::process::id()));
            for (file, text) in files {
                let at = path.join(file);
                fs::create_dir_all(at.parent().expect("a folder")).expect("a folder");
                fs::write(at, text).expect("a file");
            }
            Self(path)
        }
    }

    impl Drop for Proc {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn forwarding_that_is_off_is_a_fault_of_the_families_that_are_served() {
        let proc = Proc::new(
            "forwarding",
            &[("net/ipv4/ip_forward", "1\n"), ("net/ipv6/conf/all/forwarding", "0\n")],
        );
        assert_eq!(settings(&proc.0, &[Family::V4])[0].status, Status::Ok);
        let found = settings(&proc.0, &Family::BOTH);
        assert_eq!(found[0].status, Status::Fail);
        assert!(found[0].mend.contains("net.ipv6.conf.all.forwarding=1"), "{found:?}");
    }

    #[test]
    fn connection_tracking_warns_before_it_is_full() {
        for (count, status) in [("10", Status::Ok), ("81", Status::Warn), ("99", Status::Fail)] {
            let files =
                [("net/netfilter/nf_conntrack_count", count), ("net/netfilter/nf_conntrack_max", "100")];
            let proc = Proc::new(&format!("conntrack-{count}"), &files);
            assert_eq!(conntrack(&proc.0).status, status);
        }
        assert_eq!(conntrack(Path::new("/nowhere")).status, Status::Warn);
    }
}
