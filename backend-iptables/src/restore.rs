//! Operations, the text that `iptables-restore` reads for a step of them, and the way back from a line of that text to
//! the operation it belongs to.

use std::{
    fmt, mem,
    ops::{AddAssign, SubAssign},
    sync::Arc,
};

use proxy_core::backend::Step;

use crate::{
    chains::{self, Jump, ServiceChain, Table},
    variant::Variant,
};

/// What a plan consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates chains of a Service port in table `nat`, or empties those that exist, and fills them.
    Fill { chains: Box<[ServiceChain]>, rules: String },
    /// Deletes chains of a Service port, whatever they hold.
    Drop { chains: Box<[ServiceChain]> },
    /// Creates a chain, or empties it.
    Declare { table: Table, chain: &'static str },
    /// Rules at the end of a chain that is declared in the same step. `standing` ones do not depend on any Service,
    /// and stand for the whole table when it is checked whether somebody else has flushed it.
    Append { table: Table, chain: &'static str, rules: Arc<str>, standing: bool },
    /// Rules that are in the kernel already, with the meaning of `standing` ones.
    Stands { table: Table, chain: &'static str, rules: Arc<str> },
    /// Inserts a jump at the head of one of the kernel's chains.
    Insert(Jump),
    /// Removes a jump from one of the kernel's chains.
    Remove(Jump),
    /// Deletes a chain by its name, whatever it holds.
    DropNamed { table: Table, chain: Box<str> },
    /// How many rules of ours the tables hold once the step is applied: for metrics only.
    Tally(Tally),
    /// Lets packets to and from 127.0.0.0/8 cross interfaces (a sysctl, once the rules that guard it are in).
    RouteLocalnet,
}

impl Op {
    /// The table it belongs to; `None` if it is no matter of rules.
    pub fn table(&self) -> Option<Table> {
        match self {
            Self::Fill { .. } | Self::Drop { .. } => Some(Table::Nat),
            Self::Declare { table, .. } | Self::Append { table, .. } | Self::DropNamed { table, .. } => {
                Some(*table)
            }
            Self::Insert(jump) | Self::Remove(jump) => Some(jump.table),
            Self::Stands { .. } | Self::Tally(_) | Self::RouteLocalnet => None,
        }
    }

    /// How many chains it writes or deletes.
    fn chains(&self) -> usize {
        match self {
            Self::Fill { chains, .. } | Self::Drop { chains } => chains.len(),
            Self::DropNamed { .. } => 1,
            _ => 0,
        }
    }

    /// Writes its lines of one section.
    fn lines(&self, section: Section, to: &mut dyn FnMut(&str)) {
        match (section, self) {
            (Section::Chains, Self::Fill { chains, .. } | Self::Drop { chains }) => {
                let mut line = String::with_capacity(36);
                for chain in chains {
                    line.clear();
                    line.push(':');
                    chain.write(&mut line);
                    line.push_str(" - [0:0]\n");
                    to(&line);
                }
            }
            (Section::Chains, Self::Declare { chain, .. }) => to(&format!(":{chain} - [0:0]\n")),
            (Section::Chains, Self::DropNamed { chain, .. }) => to(&format!(":{chain} - [0:0]\n")),
            (Section::Rules, Self::Fill { rules, .. }) => to(rules),
            (Section::Rules, Self::Append { rules, .. }) => to(rules),
            (Section::Rules, Self::Insert(jump)) => to(&format!("-I {} {}\n", jump.from, jump.rule())),
            (Section::Rules, Self::Remove(jump)) => to(&format!("-D {} {}\n", jump.from, jump.rule())),
            (Section::Deletions, Self::Drop { chains }) => {
                for chain in chains {
                    to(&format!("-X {chain}\n"));
                }
            }
            (Section::Deletions, Self::DropNamed { chain, .. }) => to(&format!("-X {chain}\n")),
            _ => {}
        }
    }
}

/// The restore text of the one operation, with its table.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = match self {
            Self::Stands { table, chain, .. } => return write!(f, "*{table}\n# {chain} stands"),
            Self::Tally(tally) => {
                return write!(f, "# {} rules in filter, {} in nat", tally.filter, tally.nat);
            }
            Self::RouteLocalnet => return f.write_str("sysctl net.ipv4.conf.all.route_localnet=1"),
            _ => self.table().expect("all others belong to a table"),
        };
        let mut text = format!("*{table}\n");
        for section in Section::ALL {
            self.lines(section, &mut |lines| text.push_str(lines));
        }
        f.write_str(text.trim_end())
    }
}

/// Numbers of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub filter: usize,
    pub nat: usize,
}

impl Tally {
    pub(crate) fn add(&mut self, table: Table, rules: &str) {
        *self.of(table) += count(rules);
    }

    /// `mangle` holds no rules of ours.
    fn of(&mut self, table: Table) -> &mut usize {
        if table == Table::Nat { &mut self.nat } else { &mut self.filter }
    }

    /// The rules that a step writes.
    pub(crate) fn written(step: &Step<Op>) -> Self {
        let mut tally = Self::default();
        for owned in &step.ops {
            match &owned.op {
                Op::Fill { rules, .. } => tally.add(Table::Nat, rules),
                Op::Append { table, rules, .. } => tally.add(*table, rules),
                _ => {}
            }
        }
        tally
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.filter += other.filter;
        self.nat += other.nat;
    }
}

impl SubAssign for Tally {
    fn sub_assign(&mut self, other: Self) {
        self.filter -= other.filter;
        self.nat -= other.nat;
    }
}

fn count(rules: &str) -> usize {
    // As many as a byte can count, so that many are counted at once: the texts are megabytes.
    let ends = |part: &[u8]| part.iter().map(|&byte| u8::from(byte == b'\n')).sum::<u8>();
    rules.as_bytes().chunks(255).map(|part| usize::from(ends(part))).sum()
}

/// A table's lines come in this order, so that every chain exists before a rule leads to it, and no rule leads to a
/// chain any more when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Chains,
    Rules,
    Deletions,
}

impl Section {
    const ALL: [Self; 3] = [Self::Chains, Self::Rules, Self::Deletions];
}

/// In the nft variant the time that `iptables-restore` (1.8.9, 1.8.11) takes grows with the square of the number of chains
/// that are named before one `COMMIT`: it keeps them in a sorted list and walks that for every line (nft-cache.c,
/// `cache_chain_list_insert`). 110,000 chains take minutes at once and seconds in blocks of this many.
pub(crate) const BLOCK_CHAINS: usize = 1000;

/// Whether the text of a step may have more than one `COMMIT` for table `nat`.
pub(crate) fn may_be_split(step: &Step<Op>) -> bool {
    count_chains(step) > BLOCK_CHAINS
}

fn count_chains(step: &Step<Op>) -> usize {
    step.ops.iter().map(|owned| owned.op.chains()).sum()
}

/// Operations (by index) of one table that are committed at once.
struct Block {
    table: Table,
    ops: Vec<usize>,
}

/// Divides a step into blocks. Where table `nat` is split, chains come before what leads to them, and what is deleted
/// comes last: every block leaves rules that work.
fn blocks(step: &Step<Op>, longest: usize) -> Vec<Block> {
    let split = count_chains(step) > longest;
    let mut blocks: Vec<Block> = Vec::new();
    for table in Table::ALL {
        let of_table = || (0..step.ops.len()).filter(move |&at| step.ops[at].op.table() == Some(table));
        if table != Table::Nat || !split {
            let ops: Vec<usize> = of_table().collect();
            if !ops.is_empty() {
                blocks.push(Block { table, ops });
            }
            continue;
        }
        for phase in Phase::ALL {
            let mut chains = 0;
            let mut ops = Vec::new();
            for at in of_table().filter(|&at| Phase::of(&step.ops[at].op) == phase) {
                let more = step.ops[at].op.chains();
                if chains > 0 && chains + more > longest {
                    blocks.push(Block { table, ops: mem::take(&mut ops) });
                    chains = 0;
                }
                chains += more;
                ops.push(at);
            }
            if !ops.is_empty() {
                blocks.push(Block { table, ops });
            }
        }
    }
    blocks
}

/// The order in which a split table `nat` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// What chains of Services lead to.
    Foundations,
    Services,
    /// What leads to chains of Services.
    Dispatch,
    Deletions,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Foundations, Self::Services, Self::Dispatch, Self::Deletions];

    fn of(op: &Op) -> Self {
        match op {
            Op::Fill { .. } => Self::Services,
            Op::Drop { .. } | Op::DropNamed { .. } => Self::Deletions,
            Op::Declare { chain, .. } | Op::Append { chain, .. }
                if !matches!(*chain, chains::SERVICES | chains::NODE_PORTS) =>
            {
                Self::Foundations
            }
            _ => Self::Dispatch,
        }
    }
}

/// Hands the pieces of a step's text to `to` in order, each with the index of its operation.
pub(crate) fn write(step: &Step<Op>, variant: Variant, to: &mut dyn FnMut(Option<usize>, &str)) {
    let longest = match variant {
        // Reads and writes the whole table for every `COMMIT`.
        Variant::Legacy => usize::MAX,
        Variant::Nft => BLOCK_CHAINS,
    };
    write_blocks(step, longest, to);
}

fn write_blocks(step: &Step<Op>, longest: usize, to: &mut dyn FnMut(Option<usize>, &str)) {
    for Block { table, ops } in blocks(step, longest) {
        to(None, &format!("*{table}\n"));
        for section in Section::ALL {
            for &at in &ops {
                step.ops[at].op.lines(section, &mut |lines| to(Some(at), lines));
            }
        }
        to(None, "COMMIT\n");
    }
}

/// The whole text of a step.
pub fn text(step: &Step<Op>, variant: Variant) -> String {
    let mut text = String::new();
    write(step, variant, &mut |_, lines| text.push_str(lines));
    text
}

/// The same, in blocks of another size.
#[cfg(test)]
pub(crate) fn text_in_blocks(step: &Step<Op>, longest: usize) -> String {
    let mut text = String::new();
    write_blocks(step, longest, &mut |_, lines| text.push_str(lines));
    text
}

/// Where a line of a step's text comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) text: String,
    /// The index of its operation; `None` for `*table` and `COMMIT`.
    pub(crate) op: Option<usize>,
}

/// The line with this number, counted from 1.
pub(crate) fn line(step: &Step<Op>, variant: Variant, number: usize) -> Option<Line> {
    let mut seen = 0;
    let mut found = None;
    write(step, variant, &mut |op, lines| {
        if found.is_some() {
            return;
        }
        let count = count(lines);
        if number > seen && number <= seen + count {
            let text = lines.lines().nth(number - seen - 1).unwrap_or_default().to_owned();
            found = Some(Line { text, op });
        }
        seen += count;
    });
    found
}

/// The line that a failed restore complains about, from what it says on its standard error. The legacy program writes
/// `line 5 failed` or `Error occurred at line: 5`, the nft one also `line 5: RULE_APPEND failed (..)`.
pub(crate) fn complained_line(stderr: &str) -> Option<usize> {
    stderr.lines().find_map(|message| {
        let rest = match message.split_once("Error occurred at line: ") {
            Some((_, rest)) => rest,
            None => {
                message
                    .trim_start()
                    .split_once("line ")
                    .filter(|(before, _)| before.is_empty() || before.ends_with(": "))?
                    .1
            }
        };
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let after = &rest[digits..];
        let number = rest[..digits].parse().ok()?;
        (after.is_empty() || after.starts_with(" failed") || after.starts_with(':')).then_some(number)
    })
}
