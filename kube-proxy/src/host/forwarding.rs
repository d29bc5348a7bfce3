//! In ipvs mode what endpoints answer is forwarded, and a firewall in iptables that forwards nothing of its own accord
//! (`-P FORWARD DROP`) would lose it. As with kube-proxy, `KUBE-FORWARD` lets through what belongs to a connection. In
//! nftables nobody can accept for another table, so this is the one thing of this mode that stands in iptables.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use backend_iptables::{
    chains::FORWARD,
    variant::{self, Machine, Programs, Variant},
};
use proxy_core::model::Family;

/// How long to wait for somebody else who writes.
const LOCK: [&str; 2] = ["-w", "5"];
/// As kube-proxy writes it: cleaning up knows the jump by its comment.
const JUMP: [&str; 7] =
    ["FORWARD", "-m", "comment", "--comment", "kubernetes forwarding rules", "-j", FORWARD];

/// Sees to it for as long as `periods` has a sender, again after each period: others rewrite their firewalls. A period that
/// comes takes the place of the last one.
pub(crate) fn keep_accepting(periods: &Receiver<Duration>) {
    let mut told = None;
    let Ok(mut period) = periods.recv() else { return };
    loop {
        let failure = accept_answers().err().map(|error| error.to_string());
        if failure != told
            && let Some(error) = &failure
        {
            tracing::warn!(error, "A firewall in iptables may drop what endpoints answer");
        }
        told = failure;
        period = match periods.recv_timeout(period) {
            Ok(other) => other,
            Err(RecvTimeoutError::Timeout) => period,
            Err(RecvTimeoutError::Disconnected) => return,
        };
    }
}

fn accept_answers() -> io::Result<()> {
    let installed = variant::installed(Family::V4);
    // Where iptables is not installed nobody has a firewall in it.
    let chosen = match installed.as_slice() {
        [] => return Ok(()),
        [only] => *only,
        _ => variant::choose(&Machine),
    };
    let mut first_failure = Ok(());
    for family in Family::BOTH {
        let outcome = accept_in(family, chosen);
        first_failure = first_failure.and(outcome);
    }
    first_failure
}

fn accept_in(family: Family, variant: Variant) -> io::Result<()> {
    let programs = Programs::of(family, Some(variant));
    let mut check = Command::new(&programs.iptables);
    check.args(LOCK).arg("-C").args(JUMP);
    // Whoever takes rules away takes the jump away.
    if check.stdin(Stdio::null()).output()?.status.success() {
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
        stdin.write_all(rules().as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{}: {}", programs.restore, String::from_utf8_lossy(&output.stderr).trim())))
}

/// Naming the chain empties it, so that it holds this rule once.
fn rules() -> String {
    let mut jump = String::from("-I");
    for word in JUMP {
        let quoted = if word.contains(' ') { format!("\"{word}\"") } else { word.to_owned() };
        write!(jump, " {quoted}").expect("a String takes everything");
    }
    format!(
        "*filter\n:{FORWARD} - [0:0]\n{jump}\n\
         -A {FORWARD} -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n"
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_rules_are_kube_proxys() {
        assert_eq!(
            super::rules(),
            "*filter\n:KUBE-FORWARD - [0:0]\n\
             -I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
             -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" \
             -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n"
        );
    }
}
