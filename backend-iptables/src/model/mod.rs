//! Tables without a kernel: restore texts are applied to them as strictly as `iptables-restore` would, and packets walk
//! their rules. For tests, here and in other crates (feature `model`).
//!
//! Where chance decides (`statistic`, `recent`), a walk follows both ways, so that it answers with every possible fate.

mod packet;
mod rule;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proxy_core::{backend::Plan, model::Family};

use crate::schema::{
    chains::Table,
    found::{Found, Host},
    op::Op,
    restore,
    variant::Variant,
};
use packet::State;
pub use packet::{Fate, Packet};
use rule::{Rule, Target};

/// The tables of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    family: Family,
    variant: Variant,
    chains: BTreeMap<(Table, String), Vec<String>>,
}

/// The kernel's own chains.
const BUILT_IN: [(Table, &[&str]); 3] = [
    (Table::Mangle, &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"]),
    (Table::Filter, &["INPUT", "FORWARD", "OUTPUT"]),
    (Table::Nat, &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
];

impl Model {
    /// Tables without any rules.
    pub fn new(family: Family, variant: Variant) -> Self {
        let built_in =
            BUILT_IN.iter().flat_map(|(table, chains)| chains.iter().map(move |chain| (*table, *chain)));
        let chains = built_in.map(|(table, chain)| ((table, chain.to_owned()), Vec::new())).collect();
        Self { family, variant, chains }
    }

    /// Applies a plan. An error names the line at fault; tables committed before it stay changed, as in the kernel.
    pub fn apply(&mut self, plan: &Plan<Op>) -> Result<(), String> {
        plan.steps.iter().try_for_each(|step| self.restore(&restore::text(step, self.variant)))
    }

    /// Carries out a restore text, as with `--noflush`.
    pub fn restore(&mut self, text: &str) -> Result<(), String> {
        let mut table = None;
        let mut draft = self.chains.clone();
        for (number, line) in (1..).zip(text.lines()) {
            let fail = |why: &str| format!("line {number}: {why}: {line}");
            if let Some(name) = line.strip_prefix('*') {
                let named = Table::ALL.into_iter().find(|table| table.as_str() == name);
                table = Some(named.ok_or_else(|| fail("no such table"))?);
                continue;
            }
            let table = table.ok_or_else(|| fail("no table"))?;
            if line == "COMMIT" {
                check_targets(&draft).map_err(|why| fail(&why))?;
                self.chains.clone_from(&draft);
            } else if let Some(declared) = line.strip_prefix(':') {
                let chain = declared.strip_suffix(" - [0:0]").ok_or_else(|| fail("not a chain of ours"))?;
                draft.insert((table, chain.to_owned()), Vec::new());
            } else {
                change(&mut draft, table, line).map_err(|why| fail(&why))?;
            }
        }
        Ok(())
    }

    /// What `iptables-save` prints.
    pub fn save(&self) -> String {
        let mut text = String::new();
        for table in Table::ALL {
            text.push_str(&format!("*{table}\n"));
            let chains = || self.chains.iter().filter(|((of, _), _)| *of == table);
            for ((_, chain), _) in chains() {
                text.push_str(&format!(":{chain} - [0:0]\n"));
            }
            for ((_, chain), rules) in chains() {
                rules.iter().for_each(|rule| text.push_str(&format!("-A {chain} {rule}\n")));
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    /// What a survey of these tables finds.
    pub fn found(&self, host: Host) -> Found {
        Found::read(self.save().as_bytes(), host).expect("reading from memory does not fail")
    }

    /// Every fate that a packet may have. `local` tells the node's own addresses.
    pub fn fates(&self, packet: &Packet<'_>, local: &dyn Fn(IpAddr) -> bool) -> BTreeSet<Fate> {
        let walk = Walk { model: self, packet, local };
        let (first, incoming) = match packet.interface {
            Some(_) => ("PREROUTING", true),
            None => ("OUTPUT", false),
        };
        let start = State { to: packet.to, translated: false, mark: 0, masqueraded: false };
        let mut fates = BTreeSet::new();
        for (end, state) in walk.chain(Table::Nat, first, start, 0) {
            debug_assert!(!matches!(end, End::Dropped | End::Rejected), "nat does not filter");
            let filter = match (incoming, local(state.to.ip())) {
                (true, true) => "INPUT",
                (true, false) => "FORWARD",
                (false, _) => "OUTPUT",
            };
            for (end, state) in walk.chain(Table::Filter, filter, state, 0) {
                match end {
                    End::Dropped => drop(fates.insert(Fate::Dropped)),
                    End::Rejected => drop(fates.insert(Fate::Rejected)),
                    End::Returned | End::Accepted => {
                        for (_, state) in walk.chain(Table::Nat, "POSTROUTING", state, 0) {
                            fates.insert(state.fate());
                        }
                    }
                }
            }
        }
        fates
    }

    /// Whose tables these are.
    pub fn family(&self) -> Family {
        self.family
    }
}

/// How it left a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Returned,
    Accepted,
    Dropped,
    Rejected,
}

struct Walk<'a> {
    model: &'a Model,
    packet: &'a Packet<'a>,
    local: &'a dyn Fn(IpAddr) -> bool,
}

impl Walk<'_> {
    fn chain(&self, table: Table, chain: &str, state: State, depth: usize) -> Vec<(End, State)> {
        assert!(depth < 16, "nf_tables follows 16 jumps");
        let rules = &self.model.chains[&(table, chain.to_owned())];
        let mut ends = Vec::new();
        let mut states = vec![state];
        for rule in rules {
            let rule = Rule::parse(rule).expect("only rules that were understood are kept");
            let mut on = Vec::new();
            for state in states {
                let (may, may_not) = rule.matches(self.packet, &state, self.local);
                if may {
                    self.target(table, &rule, state, depth, &mut on, &mut ends);
                }
                if may_not {
                    on.push(state);
                }
            }
            states = on;
        }
        ends.extend(states.into_iter().map(|state| (End::Returned, state)));
        ends
    }

    /// Applies a rule's target: states that go on to the next rule go to `on`, those that leave the chain to `ends`.
    fn target(
        &self,
        table: Table,
        rule: &Rule,
        state: State,
        depth: usize,
        on: &mut Vec<State>,
        ends: &mut Vec<(End, State)>,
    ) {
        match &rule.target {
            None => on.push(state),
            Some(Target::Return) => ends.push((End::Returned, state)),
            Some(Target::Accept) => ends.push((End::Accepted, state)),
            Some(Target::Drop) => ends.push((End::Dropped, state)),
            Some(Target::Reject) => ends.push((End::Rejected, state)),
            Some(Target::Translate(to)) => {
                ends.push((End::Accepted, State { to: *to, translated: true, ..state }))
            }
            Some(Target::Masquerade) => ends.push((End::Accepted, State { masqueraded: true, ..state })),
            Some(Target::Mark { value, mask }) => {
                on.push(State { mark: (state.mark & !mask) ^ value, ..state });
            }
            Some(Target::Chain(chain)) => {
                for (end, state) in self.chain(table, chain, state, depth + 1) {
                    if end == End::Returned {
                        on.push(state);
                    } else {
                        ends.push((end, state));
                    }
                }
            }
        }
    }
}

type Chains = BTreeMap<(Table, String), Vec<String>>;

/// Carries out `-A`, `-I`, `-D` or `-X`.
fn change(chains: &mut Chains, table: Table, line: &str) -> Result<(), String> {
    let (command, rest) = line.split_once(' ').ok_or("no chain")?;
    let (chain, rule) = rest.split_once(' ').unwrap_or((rest, ""));
    let key = (table, chain.to_owned());
    let rules = chains.get_mut(&key).ok_or("no such chain")?;
    match command {
        "-A" | "-I" => {
            Rule::parse(rule)?;
            let at = if command == "-A" { rules.len() } else { 0 };
            rules.insert(at, rule.to_owned());
        }
        "-D" => {
            let at = rules.iter().position(|other| other == rule).ok_or("no such rule")?;
            rules.remove(at);
        }
        "-X" => {
            if !rules.is_empty() {
                return Err("the chain is not empty".to_owned());
            }
            chains.remove(&key);
        }
        _ => return Err("an unknown command".to_owned()),
    }
    Ok(())
}

/// Every chain that a rule leads to must exist.
fn check_targets(chains: &Chains) -> Result<(), String> {
    for ((table, chain), rules) in chains {
        for rule in rules {
            if let Some(Target::Chain(to)) = Rule::parse(rule)?.target
                && !chains.contains_key(&(*table, to.clone()))
            {
                return Err(format!("{chain} leads to {to}, which does not exist"));
            }
        }
    }
    Ok(())
}
