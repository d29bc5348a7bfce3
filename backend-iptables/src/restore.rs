//! Operations, the text that `iptables-restore` reads for a step of them, and the way back from a line of that text to
//! the operation it belongs to.

use std::{fmt, sync::Arc};

use proxy_core::backend::Step;

use crate::chains::{Jump, ServiceChain, Table};

/// What a plan consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates chains of a Service port in table `nat`, or empties those that exist, and fills them.
    Fill { chains: Box<[ServiceChain]>, rules: Box<str> },
    /// Deletes chains of a Service port, whatever they hold.
    Drop { chains: Box<[ServiceChain]> },
    /// Creates a chain, or empties it.
    Declare { table: Table, chain: &'static str },
    /// Rules at the end of a chain that is declared in the same step. `standing` ones do not depend on any Service,
    /// and stand for the whole table when it is checked whether somebody else has flushed it.
    Append { table: Table, chain: &'static str, rules: Arc<str>, standing: bool },
    /// Inserts a jump at the head of one of the kernel's chains.
    Insert(Jump),
    /// Removes a jump from one of the kernel's chains.
    Remove(Jump),
    /// Deletes a chain by its name, whatever it holds.
    DropNamed { table: Table, chain: Box<str> },
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
            Self::RouteLocalnet => None,
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
        let Some(table) = self.table() else {
            return f.write_str("sysctl net.ipv4.conf.all.route_localnet=1");
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
enum Section {
    Chains,
    Rules,
    Deletions,
}

impl Section {
    const ALL: [Self; 3] = [Self::Chains, Self::Rules, Self::Deletions];
}

/// Hands the pieces of a step's text to `to` in order, each with the index of its operation.
pub(crate) fn write(step: &Step<Op>, to: &mut dyn FnMut(Option<usize>, &str)) {
    for table in Table::ALL {
        if !step.ops.iter().any(|owned| owned.op.table() == Some(table)) {
            continue;
        }
        to(None, &format!("*{table}\n"));
        for section in Section::ALL {
            for (at, owned) in step.ops.iter().enumerate() {
                if owned.op.table() == Some(table) {
                    owned.op.lines(section, &mut |lines| to(Some(at), lines));
                }
            }
        }
        to(None, "COMMIT\n");
    }
}

/// The whole text of a step.
pub fn text(step: &Step<Op>) -> String {
    let mut text = String::new();
    write(step, &mut |_, lines| text.push_str(lines));
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
pub(crate) fn line(step: &Step<Op>, number: usize) -> Option<Line> {
    let mut seen = 0;
    let mut found = None;
    write(step, &mut |op, lines| {
        if found.is_some() {
            return;
        }
        let count = lines.bytes().filter(|&byte| byte == b'\n').count();
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
