//! What the tables should hold, and what they do hold, each summed up in a few numbers: sums of hashes, so that the sum
//! over all Services follows from those of the Services that change, and no shadow of the tables has to be kept.

use std::{
    hash::{DefaultHasher, Hasher as _},
    io::{self, BufRead},
    ops::{AddAssign, SubAssign},
};

use crate::schema::{
    chains::{
        Dispatcher, FIXED_CHAINS, JUMPS, KUBELET_FIREWALL, KUBELET_JUMPS, MARK_MASQUERADE, ServiceChain,
        Table,
    },
    found::words,
};

/// The rule that keeps strangers from 127.0.0.0/8 where `route_localnet` would let them in (CVE-2020-8558).
pub(crate) const LOOPBACK_GUARD: &str = "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP";

/// Chains and rules of ours. Kubelet's are no part of it, and neither is who leads to `KUBE-MARK-MASQ`: others may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// Every chain and every rule.
    pub(crate) content: u64,
    /// Every chain with the number of its rules and of those that lead to it, as nf_tables counts.
    pub(crate) uses: u64,
}

impl Stamp {
    pub(crate) fn add_chain(&mut self, table: Table, chain: &str) {
        self.content = self.content.wrapping_add(hash(table, usize::MAX, chain.as_bytes()));
    }

    /// `at`: its place in its chain, where that matters.
    pub(crate) fn add_rule(&mut self, table: Table, at: Option<usize>, rule: &str) {
        let at = at.map_or(0, |at| at + 1);
        self.content = self.content.wrapping_add(hash(table, at, rule.as_bytes()));
    }

    pub(crate) fn add_uses(&mut self, table: Table, chain: &str, uses: usize) {
        self.uses = self.uses.wrapping_add(hash(table, uses, chain.as_bytes()));
    }
}

impl AddAssign for Stamp {
    fn add_assign(&mut self, other: Self) {
        self.content = self.content.wrapping_add(other.content);
        self.uses = self.uses.wrapping_add(other.uses);
    }
}

impl SubAssign for Stamp {
    fn sub_assign(&mut self, other: Self) {
        self.content = self.content.wrapping_sub(other.content);
        self.uses = self.uses.wrapping_sub(other.uses);
    }
}

fn hash(table: Table, number: usize, text: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_usize(number);
    hasher.write_u8(table as u8);
    hasher.write(text);
    hasher.finish()
}

/// Whether what is in a chain is ours alone.
pub(crate) fn is_ours(table: Table, chain: &str) -> bool {
    FIXED_CHAINS.contains(&(table, chain)) || (table == Table::Nat && ServiceChain::parse(chain).is_some())
}

/// Whether a chain of ours is one of which the uses are known. Rules of others lead to `KUBE-MARK-MASQ`.
pub(crate) fn has_known_uses(table: Table, chain: &str) -> bool {
    chain != MARK_MASQUERADE && is_ours(table, chain)
}

/// In chains of all Services the order of rules does not matter, and is not looked at.
fn is_ordered(table: Table, chain: &str) -> bool {
    !Dispatcher::ALL.iter().any(|dispatcher| (dispatcher.table(), dispatcher.chain()) == (table, chain))
}

/// What `iptables-save` says is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Observed {
    pub(crate) content: u64,
    /// Whether the guard of 127.0.0.0/8 is in.
    pub(crate) guard: bool,
    /// Jumps from the kernel's own chains that are not there, as rules.
    pub(crate) missing: Vec<String>,
}

impl Observed {
    pub(crate) fn read(mut save: impl BufRead) -> io::Result<Self> {
        let mut stamp = Stamp::default();
        let mut guard = false;
        let all = || JUMPS.iter().chain(&KUBELET_JUMPS);
        let sorted = |rule: &str| {
            let mut words = words(rule);
            words.sort_unstable();
            words
        };
        let mut missing: Vec<_> = all().map(|jump| (jump, sorted(&jump.rule()))).collect();
        let mut table = None;
        // The chain of the rule before, whether it is ours and ordered, and how many of its rules were seen.
        let (mut chain, mut ours, mut ordered, mut seen) = (String::new(), false, false, 0);
        let mut line = Vec::new();
        while {
            line.clear();
            save.read_until(b'\n', &mut line)? > 0
        } {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end();
            if let Some(name) = text.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.as_str() == name);
                chain.clear();
                ours = false;
                continue;
            }
            let Some(table) = table else { continue };
            if let Some(declared) = text.strip_prefix(':') {
                let name = declared.split(' ').next().unwrap_or_default();
                if is_ours(table, name) {
                    stamp.add_chain(table, name);
                }
                continue;
            }
            let Some(rule) = text.strip_prefix("-A ") else { continue };
            let (of, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            if of != chain {
                chain = of.to_owned();
                ours = is_ours(table, of);
                ordered = is_ordered(table, of);
                seen = 0;
            }
            if ours {
                stamp.add_rule(table, ordered.then_some(seen), text);
                seen += 1;
            } else if of == KUBELET_FIREWALL {
                guard |= text == LOOPBACK_GUARD;
            } else if rule.contains("KUBE-") {
                let rule = sorted(rule);
                missing.retain(|(jump, words)| jump.table != table || jump.from != of || *words != rule);
            }
        }
        let missing =
            missing.iter().map(|(jump, _)| format!("-t {} -A {} {}", jump.table, jump.from, jump.rule()));
        Ok(Self { content: stamp.content, guard, missing: missing.collect() })
    }
}
