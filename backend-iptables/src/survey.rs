//! What a full plan needs to know of the machine: which chains and jumps are there already, read from
//! `iptables-save`, and two facts about the host.

use std::{collections::HashSet, io::BufRead};

use crate::{
    accounting::Counters,
    chains::{Jump, Table},
};

/// The kernel's tables as far as they concern us, and the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    chains: HashSet<(Table, Box<str>)>,
    /// Rules of the kernel's own chains that lead to a chain whose name begins with `KUBE-`: chain and sorted words.
    jumps: HashSet<(Table, Box<str>, Vec<Box<str>>)>,
    pub host: Host,
}

/// Facts about the host that decide on rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// `nf_conntrack_tcp_be_liberal` is not 0.
    pub tcp_be_liberal: bool,
    /// `MASQUERADE --random-fully` is known (iptables 1.6.2).
    pub random_fully: bool,
    pub counters: Counters,
}

impl Default for Host {
    fn default() -> Self {
        Self { tcp_be_liberal: false, random_fully: true, counters: Counters::default() }
    }
}

impl Found {
    /// Reads the output of `iptables-save`.
    pub fn read(mut save: impl BufRead, host: Host) -> std::io::Result<Self> {
        let mut found = Self { host, ..Self::default() };
        let mut table = None;
        let mut line = Vec::new();
        while {
            line.clear();
            save.read_until(b'\n', &mut line)? > 0
        } {
            match line.first() {
                Some(b'*') => {
                    let name = String::from_utf8_lossy(&line[1..]);
                    table = Table::ALL.into_iter().find(|table| table.as_str() == name.trim_end());
                }
                Some(b':') => found.read_chain(table, &String::from_utf8_lossy(&line)),
                // Nearly all lines are rules of our own chains, of which nothing needs to be known.
                Some(b'-') if !line.starts_with(b"-A KUBE-") => {
                    found.read_rule(table, &String::from_utf8_lossy(&line));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    fn read_chain(&mut self, table: Option<Table>, line: &str) {
        if let Some(table) = table
            && let Some(chain) = line[1..].split_whitespace().next()
            && chain.starts_with("KUBE-")
        {
            self.chains.insert((table, chain.into()));
        }
    }

    fn read_rule(&mut self, table: Option<Table>, line: &str) {
        let mut words = words(line);
        if let Some(table) = table
            && words.len() > 2
            && words.iter().any(|word| word.starts_with("KUBE-"))
        {
            let chain = words.remove(1);
            words.remove(0);
            words.sort_unstable();
            self.jumps.insert((table, chain, words));
        }
    }

    pub fn has_chain(&self, table: Table, chain: &str) -> bool {
        self.chains.contains(&(table, chain.into()))
    }

    /// All chains whose name begins with `KUBE-`, in no order.
    pub fn chains(&self, table: Table) -> impl Iterator<Item = &str> {
        self.chains.iter().filter(move |(of, _)| *of == table).map(|(_, chain)| &**chain)
    }

    /// Whether there is such a rule. The order of its matches does not count: programs print it differently.
    pub fn has_jump(&self, jump: &Jump) -> bool {
        let mut words = words(&jump.rule());
        words.sort_unstable();
        self.jumps.contains(&(jump.table, jump.from.into(), words))
    }
}

/// Splits a rule at blanks outside double quotes; the quotes go.
fn words(rule: &str) -> Vec<Box<str>> {
    let mut words: Vec<Box<str>> = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in rule.trim_end().chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word).into()),
            c => word.push(c),
        }
    }
    words.push(word.into());
    words.retain(|word| !word.is_empty());
    words
}
