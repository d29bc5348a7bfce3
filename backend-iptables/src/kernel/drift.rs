//! Whether the tables still hold what was written: the rules that do not depend on any Service, the jumps and the canary
//! chains stand for the rest, which a flush takes along with them.

use std::{collections::BTreeMap, io, sync::Arc};

use netlink::{Protocol, Socket};
use nft_netlink::generation::generation;
use proxy_core::{
    backend::{ApplyError, Step},
    model::Family,
};

use crate::{
    kernel::process::{LOCK_WAIT, is_of_the_moment, message, run_restore},
    schema::{
        chains::{CANARY, JUMPS, KUBELET_JUMPS, Table},
        op::Op,
        restore,
        variant::Variant,
    },
};

/// What stands for the tables.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// As they were written last.
    rules: BTreeMap<(Table, &'static str), Arc<str>>,
    /// The generation of the kernel's nf_tables in which all was in order.
    seen: Option<u32>,
}

impl Standing {
    /// A step was carried out.
    pub(crate) fn remember(&mut self, step: &Step<Op>) {
        for owned in &step.ops {
            match &owned.op {
                Op::Declare { table, chain } => {
                    self.rules.remove(&(*table, *chain));
                }
                Op::Append { table, chain, rules, standing: true } | Op::Stands { table, chain, rules } => {
                    self.rules.insert((*table, chain), rules.clone());
                }
                _ => {}
            }
        }
    }

    /// Whether all is there. Nothing is changed.
    pub(crate) fn intact(
        &mut self,
        family: Family,
        variant: Variant,
        program: &str,
    ) -> Result<bool, ApplyError> {
        if self.rules.is_empty() {
            return Ok(true);
        }
        // Read before the rules: what somebody does meanwhile makes the next look a thorough one.
        let generation = match variant {
            // The legacy tables have no such number, and are given out only whole.
            Variant::Legacy => None,
            Variant::Nft => current_generation(),
        };
        if generation.is_some() && generation == self.seen {
            return Ok(true);
        }
        let text = self.check_text();
        // The nft variant carries out nothing in a test, not even checks; with nothing to change, it writes nothing.
        let test: &[&str] = match variant {
            Variant::Legacy => &["-w", LOCK_WAIT, "--noflush", "--test"],
            Variant::Nft => &["-w", LOCK_WAIT, "--noflush"],
        };
        let run = run_restore(program, test, |to| to.write_all(text.as_bytes()))?;
        if run.status.success() {
            self.seen = generation;
            return Ok(true);
        }
        if run.status.code().is_none() || is_of_the_moment(&run.stderr) {
            return Err(ApplyError::Lost(io::Error::other(message(&run.stderr))));
        }
        let missing = restore::complained_line(&run.stderr).and_then(|number| text.lines().nth(number - 1));
        tracing::info!(
            %family,
            missing = missing.unwrap_or("unknown"),
            "rules of ours are missing: {}",
            message(&run.stderr),
        );
        Ok(false)
    }

    /// A restore that changes nothing and fails if something is missing.
    fn check_text(&self) -> String {
        let mut text = String::new();
        for table in Table::ALL {
            text.push_str(&format!("*{table}\n-S {CANARY}\n"));
            for jump in JUMPS.iter().chain(&KUBELET_JUMPS).filter(|jump| jump.table == table) {
                text.push_str(&format!("-C {} {}\n", jump.from, jump.rule()));
            }
            for ((_, _), rules) in self.rules.iter().filter(|((of, _), _)| *of == table) {
                for rule in rules.lines() {
                    text.push_str(&rule.replacen("-A ", "-C ", 1));
                    text.push('\n');
                }
            }
            text.push_str("COMMIT\n");
        }
        text
    }
}

/// The number that every transaction of anybody in this network namespace raises. Without an answer, one looks.
fn current_generation() -> Option<u32> {
    Socket::open(Protocol::Netfilter).and_then(|mut socket| generation(&mut socket)).ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn while_nobody_makes_a_transaction_no_program_is_run() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own");
        let rules = [((Table::Nat, "KUBE-MARK-MASQ"), Arc::from("-A KUBE-MARK-MASQ -j RETURN\n"))].into();
        let mut standing = Standing { rules, seen: current_generation() };
        let mut check = |variant| standing.intact(Family::V4, variant, "no-such-program");
        assert!(check(Variant::Nft).expect("nothing has to be run"));
        assert!(check(Variant::Legacy).is_err(), "the legacy tables have to be read");

        let changed =
            Command::new("iptables-nft").args(["-N", "SOMEBODY"]).status().expect("it is installed");
        assert!(changed.success());
        assert!(check(Variant::Nft).is_err(), "now one has to look");
    }
}
