//! Operations: what a plan consists of, and the lines each of them has in a restore text.

use std::{
    fmt,
    ops::{AddAssign, SubAssign},
    sync::Arc,
};

use proxy_core::backend::Step;

use crate::schema::{
    chains::{Jump, ServiceChain, Table},
    stamp::Stamp,
};

/// What a plan consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates chains of a Service port in table `nat`, or empties those that exist, and fills them.
    Fill {
        /// Which chains.
        chains: Box<[ServiceChain]>,
        /// Their rules, as restore lines.
        rules: String,
    },
    /// Deletes chains of a Service port, whatever they hold.
    Drop {
        /// Which chains, those first that lead to others.
        chains: Box<[ServiceChain]>,
    },
    /// Creates a chain, or empties it.
    Declare {
        /// Its table.
        table: Table,
        /// Its name.
        chain: &'static str,
    },
    /// Rules at the end of a chain that is declared in the same step.
    Append {
        /// The chain's table.
        table: Table,
        /// The chain's name.
        chain: &'static str,
        /// As restore lines.
        rules: Arc<str>,
    },
    /// Inserts a jump at the head of one of the kernel's chains.
    Insert(Jump),
    /// Removes a jump from one of the kernel's chains.
    Remove(Jump),
    /// Empties a chain to which rules of others lead.
    Empty {
        /// Its table.
        table: Table,
        /// Its name.
        chain: Box<str>,
    },
    /// Deletes a chain by its name, whatever it holds.
    DropNamed {
        /// Its table.
        table: Table,
        /// Its name.
        chain: Box<str>,
    },
    /// What the tables hold of ours once the step is applied: by this it is seen whether somebody changes it.
    Sums(Sums),
    /// What follows is committed after all that stands before.
    Then,
    /// Lets packets to and from 127.0.0.0/8 cross interfaces (a sysctl, once the rules that guard it are in).
    RouteLocalnet,
    /// The other way round, before the rules that guard it go.
    LeaveLocalnet,
}

impl Op {
    /// The table it belongs to; `None` if it is no matter of rules.
    pub fn table(&self) -> Option<Table> {
        match self {
            Self::Fill { .. } | Self::Drop { .. } => Some(Table::Nat),
            Self::Declare { table, .. }
            | Self::Append { table, .. }
            | Self::Empty { table, .. }
            | Self::DropNamed { table, .. } => Some(*table),
            Self::Insert(jump) | Self::Remove(jump) => Some(jump.table),
            Self::Sums(_) | Self::Then | Self::RouteLocalnet | Self::LeaveLocalnet => None,
        }
    }

    /// How many chains and rules of the kernel it touches.
    pub fn objects(&self) -> usize {
        match self {
            Self::Fill { chains, rules } => chains.len() + count(rules),
            Self::Drop { chains } => chains.len(),
            Self::Append { rules, .. } => count(rules),
            Self::Declare { .. }
            | Self::Insert(_)
            | Self::Remove(_)
            | Self::Empty { .. }
            | Self::DropNamed { .. } => 1,
            Self::Sums(_) | Self::Then | Self::RouteLocalnet | Self::LeaveLocalnet => 0,
        }
    }

    /// How many chains it writes or deletes.
    pub(super) fn chains(&self) -> usize {
        match self {
            Self::Fill { chains, .. } | Self::Drop { chains } => chains.len(),
            Self::Empty { .. } | Self::DropNamed { .. } => 1,
            _ => 0,
        }
    }

    /// The chains that it deletes.
    pub(crate) fn deleted(&self) -> Vec<(Table, Box<str>)> {
        match self {
            Self::Drop { chains } => {
                chains.iter().map(|chain| (Table::Nat, chain.to_string().into())).collect()
            }
            Self::DropNamed { table, chain } => vec![(*table, chain.clone())],
            _ => Vec::new(),
        }
    }

    /// Writes its lines of one section.
    pub(super) fn lines(&self, section: Section, to: &mut dyn FnMut(&str)) {
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
            (Section::Chains, Self::Empty { chain, .. } | Self::DropNamed { chain, .. }) => {
                to(&format!(":{chain} - [0:0]\n"));
            }
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
            Self::Sums(Sums { rules, .. }) => {
                return write!(f, "# {} rules in filter, {} in nat", rules.filter, rules.nat);
            }
            Self::Then => return f.write_str("# then"),
            Self::RouteLocalnet => return f.write_str("sysctl net.ipv4.conf.all.route_localnet=1"),
            Self::LeaveLocalnet => return f.write_str("sysctl net.ipv4.conf.all.route_localnet as it was"),
            _ => self.table().expect("all others belong to a table"),
        };
        let mut text = format!("*{table}\n");
        for section in Section::ALL {
            self.lines(section, &mut |lines| text.push_str(lines));
        }
        f.write_str(text.trim_end())
    }
}

/// A table's lines come in this order, so that every chain exists before a rule leads to it, and no rule leads to a
/// chain any more when it is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Chains,
    Rules,
    Deletions,
}

impl Section {
    pub(super) const ALL: [Self; 3] = [Self::Chains, Self::Rules, Self::Deletions];
}

/// What the tables hold of ours, summed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// How many rules.
    pub rules: Tally,
    /// What is in them.
    pub stamp: Stamp,
    /// Whether the rule that guards 127.0.0.0/8 is wanted.
    pub guard: bool,
}

/// Numbers of rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// In table `filter`.
    pub filter: usize,
    /// In table `nat`.
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

pub(super) fn count(rules: &str) -> usize {
    // As many as a byte can count, so that many are counted at once: the texts are megabytes.
    let ends = |part: &[u8]| part.iter().map(|&byte| u8::from(byte == b'\n')).sum::<u8>();
    rules.as_bytes().chunks(255).map(|part| usize::from(ends(part))).sum()
}
