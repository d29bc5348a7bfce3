//! The text that `iptables-restore` reads for a step of operations, and the way back from a line of that text to the
//! operation it belongs to.

use std::{mem, ops::Range};

use proxy_core::backend::Step;

pub use crate::schema::op::{Op, Sums, Tally};
use crate::schema::{
    chains::{self, Table},
    op::{Section, count},
    variant::Variant,
};

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

/// Divides a step into blocks: one for each table that is written before an [`Op::Then`], one for each after it. Where
/// table `nat` is split, chains come before what leads to them, and what is deleted comes last: every block leaves rules
/// that work.
fn blocks(step: &Step<Op>, longest: usize) -> Vec<Block> {
    let split = count_chains(step) > longest;
    let mut blocks = Vec::new();
    let mut start = 0;
    for part in step.ops.split(|owned| owned.op == Op::Then) {
        part_into_blocks(step, start..start + part.len(), (longest, split), &mut blocks);
        start += part.len() + 1;
    }
    blocks
}

fn part_into_blocks(
    step: &Step<Op>,
    part: Range<usize>,
    (longest, split): (usize, bool),
    blocks: &mut Vec<Block>,
) {
    for table in Table::ALL {
        let of_table = || part.clone().filter(move |&at| step.ops[at].op.table() == Some(table));
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
            Op::Drop { .. } | Op::Empty { .. } | Op::DropNamed { .. } => Self::Deletions,
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

/// A step without the deletion of the chains that it is to delete: those are only emptied.
pub(crate) fn without_deletions(step: &Step<Op>) -> Step<Op> {
    let mut emptied = Step::default();
    for owned in &step.ops {
        let deleted = owned.op.deleted();
        if deleted.is_empty() {
            emptied.ops.push(owned.clone());
        }
        for (table, chain) in deleted {
            emptied.push(Op::Empty { table, chain }, owned.owner);
        }
    }
    emptied
}

/// What deletes these chains, which are empty.
pub(crate) fn deletion(chains: &[(Table, Box<str>)]) -> String {
    let mut text = String::new();
    for table in Table::ALL {
        let mut of_table = chains.iter().filter(|(of, _)| *of == table).peekable();
        if of_table.peek().is_some() {
            text.push_str(&format!("*{table}\n"));
            of_table.for_each(|(_, chain)| text.push_str(&format!("-X {chain}\n")));
            text.push_str("COMMIT\n");
        }
    }
    text
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
