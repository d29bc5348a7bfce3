//! What the ipvs mode has in iptables, for hosts whose firewall drops what nobody accepts. In nftables nobody can accept
//! for another table. As with kube-proxy, `KUBE-FORWARD` lets through what endpoints answer (`iptables -P FORWARD DROP`),
//! and `KUBE-NODE-PORT` lets load balancers ask for the health of Services (a firewall in INPUT).

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
    time::Duration,
};

use backend_iptables::{
    chains::FORWARD,
    variant::{self, Machine, Programs, Variant},
};
use proxy_core::model::Family;
use tokio::{runtime::Handle, sync::watch};

use crate::serve::service_health::Wanted;

/// How long to wait for somebody else who writes.
const LOCK: [&str; 2] = ["-w", "5"];

const NODE_PORT: &str = "KUBE-NODE-PORT";

/// As kube-proxy writes them: cleaning up knows jumps by their comments.
const JUMPS: [[&str; 7]; 2] = [
    ["FORWARD", "-m", "comment", "--comment", "kubernetes forwarding rules", "-j", FORWARD],
    ["INPUT", "-m", "comment", "--comment", "kubernetes health check rules", "-j", NODE_PORT],
];

/// The chains of the filter table that these jumps lead to.
pub(crate) const CHAINS: [&str; 2] = [FORWARD, NODE_PORT];

/// What stands in iptables of it.
#[derive(Debug, Default)]
pub(crate) struct Forwarding {
    health_checks: BTreeSet<u16>,
    /// What was written last, of each family.
    written: [Option<BTreeSet<u16>>; 2],
    told: Option<String>,
}

impl Forwarding {
    /// Sees to it on the calling thread for as long as both have a sender: at once when the health checks change, and again
    /// after each period, for others rewrite their firewalls.
    pub(crate) fn keep(
        &mut self,
        runtime: &Handle,
        mut checks: watch::Receiver<Wanted>,
        mut periods: watch::Receiver<Duration>,
    ) {
        loop {
            self.health_checks = checks.borrow_and_update().checks.values().map(|check| check.port).collect();
            self.accept();
            let period = *periods.borrow_and_update();
            let gone = runtime.block_on(async {
                tokio::select! {
                    changed = checks.changed() => changed.is_err(),
                    changed = periods.changed() => changed.is_err(),
                    () = tokio::time::sleep(period) => false,
                }
            });
            if gone {
                return;
            }
        }
    }

    /// Writes what is missing. Says once what cannot be written.
    pub(crate) fn accept(&mut self) {
        let failure = self.try_accept().err().map(|error| error.to_string());
        if failure != self.told
            && let Some(error) = &failure
        {
            tracing::warn!(
                error,
                "A firewall in iptables may drop what endpoints answer, and health checks of load balancers"
            );
        }
        self.told = failure;
    }

    fn try_accept(&mut self) -> io::Result<()> {
        let Some(variant) = variant() else { return Ok(()) };
        let mut first_failure = Ok(());
        for (family, written) in Family::BOTH.into_iter().zip(&mut self.written) {
            let outcome = accept_in(family, variant, &self.health_checks, written);
            first_failure = first_failure.and(outcome);
        }
        first_failure
    }
}

/// The variant that the host uses. Where iptables is not installed nobody has a firewall in it.
pub(crate) fn variant() -> Option<Variant> {
    match variant::installed(Family::V4).as_slice() {
        [] => None,
        [only] => Some(*only),
        _ => Some(variant::choose(&Machine)),
    }
}

fn accept_in(
    family: Family,
    variant: Variant,
    health_checks: &BTreeSet<u16>,
    written: &mut Option<BTreeSet<u16>>,
) -> io::Result<()> {
    let programs = Programs::of(family, Some(variant));
    // Whoever takes rules away takes the jumps away.
    let mut missing = Vec::new();
    for jump in &JUMPS {
        let mut check = Command::new(&programs.iptables);
        check.args(LOCK).arg("-C").args(jump);
        if !check.stdin(Stdio::null()).output()?.status.success() {
            missing.push(jump);
        }
    }
    if missing.is_empty() && written.as_ref() == Some(health_checks) {
        return Ok(());
    }
    let mut child = Command::new(&programs.restore)
        .args(LOCK)
        .arg("--noflush")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(rules(&missing, health_checks).as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        *written = Some(health_checks.clone());
        return Ok(());
    }
    Err(io::Error::other(format!("{}: {}", programs.restore, String::from_utf8_lossy(&output.stderr).trim())))
}

/// Naming a chain empties it, so that it holds each rule once, and nothing of kube-proxy's.
fn rules(jumps: &[&[&str; 7]], health_checks: &BTreeSet<u16>) -> String {
    let mut text = "*filter\n".to_owned();
    for chain in CHAINS {
        writeln!(text, ":{chain} - [0:0]").expect("a String takes everything");
    }
    for jump in jumps {
        text += "-I";
        for word in *jump {
            let quoted = if word.contains(' ') { format!("\"{word}\"") } else { (*word).to_owned() };
            write!(text, " {quoted}").expect("a String takes everything");
        }
        text += "\n";
    }
    writeln!(
        text,
        "-A {FORWARD} -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    )
    .expect("a String takes everything");
    for port in health_checks {
        writeln!(
            text,
            "-A {NODE_PORT} -p tcp -m comment --comment \"Kubernetes health check node port\" -m tcp --dport {port} -j ACCEPT"
        )
        .expect("a String takes everything");
    }
    text + "COMMIT\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rules_are_kube_proxys() {
        assert_eq!(
            rules(&[&JUMPS[0], &JUMPS[1]], &BTreeSet::from([32000])),
            "*filter\n:KUBE-FORWARD - [0:0]\n:KUBE-NODE-PORT - [0:0]\n\
             -I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
             -I INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT\n\
             -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" \
             -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             -A KUBE-NODE-PORT -p tcp -m comment --comment \"Kubernetes health check node port\" \
             -m tcp --dport 32000 -j ACCEPT\nCOMMIT\n"
        );
    }
}
