//! What a full plan needs to know of the machine: which chains and jumps are there already and what the chains hold,
//! read from `iptables-save`, and some facts about the host.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hasher},
    io::{self, BufRead},
    mem,
};

use crate::schema::{
    chains::{
        Dispatcher, FIXED_CHAINS, IPVS_CHAINS, IPVS_JUMPS, JUMPS, Jump, KUBELET_JUMPS, ServiceChain, Table,
        is_service_chain,
    },
    counters::Counters,
};

/// A rule's table, chain, and words in order of the alphabet.
type JumpRule = (Table, Box<str>, Vec<Box<str>>);

/// The kernel's tables as far as they concern us, and the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Chains of Services in table `nat`, with the fingerprint of their rules.
    service_chains: HashMap<ServiceChain, u64>,
    /// All other chains whose name begins with `KUBE-`.
    other_chains: HashMap<(Table, Box<str>), u64>,
    /// How often there is each rule of the kernel's own chains that leads to a chain whose name begins with `KUBE-`.
    jumps: HashMap<JumpRule, usize>,
    /// Chains to which rules lead that neither kube-proxy nor kubelet writes, each with such a rule.
    used: BTreeMap<(Table, Box<str>), Box<str>>,
    /// What the dispatch chains of table `filter` refuse or drop, as lines.
    refusals: HashMap<Dispatcher, Vec<Box<str>>>,
    /// What decides on rules beside the tables.
    pub host: Host,
}

/// Facts about the host that decide on rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// `nf_conntrack_tcp_be_liberal` is not 0.
    pub tcp_be_liberal: bool,
    /// `MASQUERADE --random-fully` is known (iptables 1.6.2).
    pub random_fully: bool,
    /// Packet counters that rules may name.
    pub counters: Counters,
}

impl Default for Host {
    fn default() -> Self {
        Self { tcp_be_liberal: false, random_fully: true, counters: Counters::default() }
    }
}

/// A chain while its rules are read.
enum Reading {
    Service(ServiceChain),
    Other(Box<str>),
}

impl Found {
    /// Reads the output of `iptables-save`.
    pub fn read(mut save: impl BufRead, host: Host) -> io::Result<Self> {
        let mut found = Self { host, ..Self::default() };
        let mut table = None;
        let mut name = Vec::new();
        let mut rules = DefaultHasher::new();
        let mut line = Vec::new();
        while {
            line.clear();
            save.read_until(b'\n', &mut line)? > 0
        } {
            // The rules of a chain come one after the other.
            if let Some(rule) = line.strip_prefix(b"-A KUBE-") {
                let end = rule.iter().position(u8::is_ascii_whitespace).unwrap_or(rule.len());
                let chain = &line[3..b"-A KUBE-".len() + end];
                if chain != name {
                    found.finish(table, &name, mem::take(&mut rules));
                    name = chain.to_vec();
                }
                rules.write(&line);
                found.read_refusal(table, chain, &line);
                found.read_others(table, chain, &line);
                continue;
            }
            found.finish(table, &name, mem::take(&mut rules));
            name.clear();
            match line.first() {
                Some(b'*') => {
                    let name = String::from_utf8_lossy(&line[1..]);
                    table = Table::ALL.into_iter().find(|table| table.as_str() == name.trim_end());
                }
                Some(b':') => found.read_chain(table, &String::from_utf8_lossy(&line)),
                Some(b'-') => found.read_rule(table, &String::from_utf8_lossy(&line)),
                _ => {}
            }
        }
        found.finish(table, &name, rules);
        Ok(found)
    }

    fn finish(&mut self, table: Option<Table>, chain: &[u8], rules: DefaultHasher) {
        if let (Some(table), Ok(chain)) = (table, str::from_utf8(chain))
            && !chain.is_empty()
        {
            self.insert(table, chain, rules.finish());
        }
    }

    fn insert(&mut self, table: Table, chain: &str, rules: u64) {
        match reading(table, chain) {
            Reading::Service(chain) => self.service_chains.insert(chain, rules),
            Reading::Other(chain) => self.other_chains.insert((table, chain), rules),
        };
    }

    fn read_chain(&mut self, table: Option<Table>, line: &str) {
        if let Some(table) = table
            && let Some(chain) = line[1..].split_whitespace().next()
            && chain.starts_with("KUBE-")
        {
            self.insert(table, chain, fingerprint([]));
        }
    }

    /// A chain whose name begins like ours may be somebody else's: network policies have such.
    fn read_others(&mut self, table: Option<Table>, chain: &[u8], line: &[u8]) {
        if let (Some(table), Ok(chain)) = (table, str::from_utf8(chain))
            && !is_known(table, chain)
        {
            let line = String::from_utf8_lossy(line);
            self.read_use(table, &words(&line), &line);
        }
    }

    /// A rule in a chain of others that may lead to one of ours.
    fn read_use(&mut self, table: Table, rule: &[Box<str>], line: &str) {
        let target = rule.windows(2).find(|words| matches!(&*words[0], "-j" | "-g")).map(|words| &*words[1]);
        let Some(target) = target.filter(|target| is_known(table, target)) else { return };
        let known = JUMPS.iter().chain(&KUBELET_JUMPS).chain(&IPVS_JUMPS).any(|jump| {
            (jump.table, jump.from, jump.to) == (table, &*rule[1], target) && {
                let mut ours = words(&jump.rule());
                let mut theirs = rule[2..].to_vec();
                ours.sort_unstable();
                theirs.sort_unstable();
                ours == theirs
            }
        });
        if !known {
            self.used.entry((table, target.into())).or_insert_with(|| line.trim_end().into());
        }
    }

    /// A rule of others that leads to this chain.
    pub(crate) fn user_of(&self, table: Table, chain: &str) -> Option<&str> {
        self.used.get(&(table, chain.into())).map(|rule| &**rule)
    }

    /// Chains to which rules of others lead, and one such rule of each.
    pub(crate) fn used_by_others(&self) -> impl Iterator<Item = (Table, &str, &str)> {
        self.used.iter().map(|((table, chain), rule)| (*table, &**chain, &**rule))
    }

    /// Only those that are like ours: they may have to be written once more.
    fn read_refusal(&mut self, table: Option<Table>, chain: &[u8], line: &[u8]) {
        const REASONS: [&str; 3] = ["has no endpoints", "has no local endpoints", "traffic not accepted by"];
        if table != Some(Table::Filter) {
            return;
        }
        let of_chain = |dispatcher: &Dispatcher| {
            dispatcher.table() == Table::Filter && dispatcher.chain().as_bytes() == chain
        };
        if let Some(dispatcher) = Dispatcher::ALL.into_iter().find(of_chain)
            && let Ok(line) = str::from_utf8(line)
            && REASONS.iter().any(|reason| line.contains(reason))
        {
            self.refusals.entry(dispatcher).or_default().push(line.trim_end().into());
        }
    }

    /// What a dispatch chain of table `filter` refuses or drops.
    pub(crate) fn refusals(&self, dispatcher: Dispatcher) -> impl Iterator<Item = &str> {
        self.refusals.get(&dispatcher).into_iter().flatten().map(|line| &**line)
    }

    fn read_rule(&mut self, table: Option<Table>, line: &str) {
        let mut words = words(line);
        if let Some(table) = table
            && words.len() > 2
            && words.iter().any(|word| word.starts_with("KUBE-"))
        {
            self.read_use(table, &words, line);
            let chain = words.remove(1);
            words.remove(0);
            words.sort_unstable();
            *self.jumps.entry((table, chain, words)).or_default() += 1;
        }
    }

    /// Whether the chain is there, whatever it holds.
    pub fn has_chain(&self, table: Table, chain: &str) -> bool {
        match reading(table, chain) {
            Reading::Service(chain) => self.service_chains.contains_key(&chain),
            Reading::Other(chain) => self.other_chains.contains_key(&(table, chain)),
        }
    }

    /// Whether the chain is there with exactly these rules.
    pub(crate) fn holds<'a>(
        &self,
        table: Table,
        chain: &str,
        rules: impl IntoIterator<Item = &'a str>,
    ) -> bool {
        self.other_chains.get(&(table, chain.into())).is_some_and(|found| *found == fingerprint(rules))
    }

    /// Whether the chain is there and holds nothing.
    pub(crate) fn is_empty_chain(&self, table: Table, chain: &str) -> bool {
        match reading(table, chain) {
            Reading::Service(chain) => self.holds_service_chain(chain, ""),
            Reading::Other(_) => self.holds(table, chain, []),
        }
    }

    pub(crate) fn has_service_chain(&self, chain: ServiceChain) -> bool {
        self.service_chains.contains_key(&chain)
    }

    /// Whether the chain of a Service is there with exactly these rules.
    pub(crate) fn holds_service_chain(&self, chain: ServiceChain, rules: &str) -> bool {
        self.service_chains.get(&chain).is_some_and(|found| *found == fingerprint([rules]))
    }

    pub(crate) fn service_chains(&self) -> impl Iterator<Item = ServiceChain> {
        self.service_chains.keys().copied()
    }

    /// All chains whose name begins with `KUBE-` but those of Services in table `nat`, in no order.
    pub fn other_chains(&self, table: Table) -> impl Iterator<Item = &str> {
        self.other_chains.keys().filter(move |(of, _)| *of == table).map(|(_, chain)| &**chain)
    }

    /// Whether the rule is there, wherever it stands in its chain.
    pub fn has_jump(&self, jump: &Jump) -> bool {
        self.count_jumps(jump) > 0
    }

    /// How often there is such a rule: who saves and restores the tables may have doubled it. The order of its matches
    /// does not count: programs print it differently.
    pub(crate) fn count_jumps(&self, jump: &Jump) -> usize {
        let mut words = words(&jump.rule());
        words.sort_unstable();
        self.jumps.get(&(jump.table, jump.from.into(), words)).copied().unwrap_or_default()
    }
}

/// Whether a chain is one that kube-proxy has in one of its modes.
pub(crate) fn is_known(table: Table, chain: &str) -> bool {
    FIXED_CHAINS.contains(&(table, chain))
        || IPVS_CHAINS.contains(&(table, chain))
        || (table == Table::Nat && is_service_chain(chain))
}

fn reading(table: Table, chain: &str) -> Reading {
    match ServiceChain::parse(chain) {
        Some(chain) if table == Table::Nat => Reading::Service(chain),
        _ => Reading::Other(chain.into()),
    }
}

/// Of the rules of one chain, as restore lines.
fn fingerprint<'a>(rules: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for line in rules.into_iter().flat_map(|lines| lines.split_inclusive('\n')) {
        hasher.write(line.as_bytes());
    }
    hasher.finish()
}

/// Splits a rule at blanks outside double quotes; the quotes go.
pub(super) fn words(rule: &str) -> Vec<Box<str>> {
    let mut words: Vec<Box<str>> = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in rule.trim_end().chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(mem::take(&mut word).into()),
            c => word.push(c),
        }
    }
    words.push(word.into());
    words.retain(|word| !word.is_empty());
    words
}
