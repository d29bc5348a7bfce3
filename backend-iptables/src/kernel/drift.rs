//! Whether the tables still hold what was written, at a cost that does not depend on how much that is while nobody else
//! writes.
//!
//! The nft variant has a number that every transaction of anybody raises. When somebody raised it, the kernel's own count of
//! rules and jumps of every chain tells at once of a chain that was flushed, deleted or made anew. The legacy variant tells
//! how many entries a table has and how long they are. What that cannot tell (a rule exchanged for another; whether a count
//! that moved is ours) takes a reading of all rules, which runs beside the engine and has a small share of the time.

use std::{
    io::{self, BufReader},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use netlink::{Protocol, Socket};
use nft_netlink::{
    generation::{OwnCommits, Watch},
    list,
};
use proxy_core::{
    backend::{ApplyError, Step},
    model::Family,
};
use xtables_info::{TableInfo, Tables};

use crate::{
    kernel::process::{collect, message, not_run, now},
    schema::{
        chains::{FIXED_CHAINS, Table},
        op::{Op, Sums},
        stamp::{Observed, Stamp, has_known_uses},
        variant::Variant,
    },
};

/// Of the time, one part in so many at most goes into reading and counting, however often others write.
const SHARE: u32 = 50;
/// The least time from the end of one reading to the beginning of the next.
const LEAST_PAUSE: Duration = Duration::from_secs(1);
/// A legacy table is read now and then though its size is the same, with a share of the time of its own.
const UNASKED_SHARE: u32 = 200;
const LEAST_UNASKED_PAUSE: Duration = Duration::from_secs(30);
/// How long one look may wait for a reading; it goes on beside the engine.
const MOST_WAIT: Duration = Duration::from_millis(50);
/// A program that reads for so long hangs.
const HANGS: Duration = Duration::from_secs(120);

/// How what is there differs from what should be: the difference of two sums, which says nothing but that it is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    Uses(u64),
    Content(u64),
}

#[derive(Debug)]
pub(crate) struct Standing {
    family: Family,
    /// What `iptables-save` is called.
    save: String,
    indicator: Indicator,
    /// What the last plan that took effect leaves behind.
    expected: Option<Sums>,
    /// Differences that are no damage: a repair does not remove them. This `iptables-save` prints something in its own
    /// way, or somebody else's rules lead to chains of ours.
    usual: Stamp,
    /// The difference for which a repair was asked, and the one that was to be removed by the last.
    suspect: Option<Difference>,
    repaired: Option<Difference>,
    /// Somebody else wrote since the last full plan was made.
    disturbed: bool,
    /// Somebody else wrote since uses were last counted, since the rules were last read.
    count_owed: bool,
    reading_owed: bool,
    count_after: Option<Instant>,
    read_after: Option<Instant>,
    read_unasked: Option<Instant>,
    reading: Option<Reading>,
    /// How often we wrote: what is read meanwhile may be of before or after.
    writes: u64,
}

impl Standing {
    pub(crate) fn new(family: Family, variant: Variant, save: String) -> Self {
        let indicator = match variant {
            Variant::Legacy => Indicator::Legacy { tables: None, seen: None },
            Variant::Nft => Indicator::Nft { socket: None, watch: Watch::new(OwnCommits::default()) },
        };
        Self {
            family,
            save,
            indicator,
            expected: None,
            usual: Stamp::default(),
            suspect: None,
            repaired: None,
            disturbed: false,
            count_owed: false,
            reading_owed: false,
            count_after: None,
            read_after: None,
            read_unasked: None,
            reading: None,
            writes: 0,
        }
    }

    /// All transactions of this process in this network namespace are counted together.
    pub(crate) fn count_with(&mut self, own: &OwnCommits) {
        if let Indicator::Nft { watch, .. } = &mut self.indicator {
            *watch = Watch::new(own.clone());
        }
    }

    /// The tables are about to be read for a full plan: what anybody did before, that plan puts right.
    pub(crate) fn before_survey(&mut self) {
        self.indicator.accept(self.family);
        self.repaired = self.suspect.take();
        self.disturbed = false;
        // Whether that removes the difference is seen at the next look.
        self.count_owed = self.repaired.is_some();
        self.reading_owed = self.repaired.is_some();
    }

    pub(crate) fn before_writing(&mut self) {
        self.writes += 1;
        if matches!(self.indicator, Indicator::Legacy { .. }) {
            self.look();
        }
    }

    /// A program of ours made so many transactions.
    pub(crate) fn committed(&mut self, commits: u32) {
        if let Indicator::Nft { watch, .. } = &self.indicator {
            (0..commits).for_each(|_| watch.committed());
        }
    }

    /// A step took effect.
    pub(crate) fn written(&mut self, step: &Step<Op>) {
        if matches!(self.indicator, Indicator::Legacy { .. }) {
            self.indicator.accept(self.family);
        }
        let sums = step.ops.iter().find_map(|owned| match &owned.op {
            Op::Sums(sums) => Some(*sums),
            _ => None,
        });
        self.expected = sums.or(self.expected);
    }

    /// Whether all is there. Nothing is changed.
    pub(crate) fn intact(&mut self) -> Result<bool, ApplyError> {
        let Some(expected) = self.expected else { return Ok(true) };
        self.look();
        if self.indicator.holds_less_than(&expected) {
            tracing::info!(family = %self.family, "a table has fewer rules than were written");
            return Ok(false);
        }
        if self.count_owed && self.count_after.is_none_or(|at| at <= now()) {
            let begun = now();
            if let Some(uses) = self.indicator.uses(self.family)? {
                let difference = Difference::Uses(uses.wrapping_sub(expected.stamp.uses));
                if !self.is_no_damage(difference) {
                    tracing::info!(family = %self.family, "chains of ours have other numbers of rules, or jumps to them");
                    return Ok(false);
                }
            }
            self.count_owed = false;
            self.count_after = Some(now() + begun.elapsed() * SHARE);
        }
        self.contents_stand(&expected)
    }

    fn look(&mut self) {
        if self.indicator.moved(self.family) {
            self.disturbed = true;
            self.count_owed = true;
            self.reading_owed = true;
        }
    }

    fn contents_stand(&mut self, expected: &Sums) -> Result<bool, ApplyError> {
        let reading = match &mut self.reading {
            Some(reading) => reading,
            None => {
                let due = |at: Option<Instant>| at.is_none_or(|at| at <= now());
                let unasked = matches!(self.indicator, Indicator::Legacy { .. })
                    && self.read_unasked.is_some_and(|at| at <= now());
                if self.read_unasked.is_none() {
                    self.read_unasked = Some(now() + LEAST_UNASKED_PAUSE);
                }
                if !(unasked || (self.reading_owed && due(self.read_after))) {
                    return Ok(true);
                }
                self.reading_owed = false;
                self.reading.insert(Reading::begin(&self.save, self.writes)?)
            }
        };
        let Some(observed) = reading.wait(MOST_WAIT) else { return Ok(true) };
        let (took, current) = (reading.begun.elapsed(), reading.writes == self.writes);
        self.reading = None;
        self.read_after = Some(now() + LEAST_PAUSE.max(took * SHARE));
        self.read_unasked = Some(now() + LEAST_UNASKED_PAUSE.max(took * UNASKED_SHARE));
        let observed = observed.inspect_err(|_| self.reading_owed = true)?;
        if !current {
            self.reading_owed = true;
            self.read_after = Some(now() + took);
            return Ok(true);
        }
        let guard_is_gone = expected.guard && !observed.guard;
        if guard_is_gone || !observed.missing.is_empty() {
            let first = observed.missing.first().map_or("the guard of 127.0.0.0/8", |rule| rule);
            tracing::info!(family = %self.family, missing = first, "rules of ours are missing");
            return Ok(false);
        }
        let difference = Difference::Content(observed.content.wrapping_sub(expected.stamp.content));
        let intact = self.is_no_damage(difference);
        if !intact {
            tracing::info!(family = %self.family, "rules of ours are missing or were changed");
        }
        Ok(intact)
    }

    /// Judges a difference, and notes one that a repair is to remove.
    fn is_no_damage(&mut self, difference: Difference) -> bool {
        let (usual, now) = match difference {
            Difference::Uses(now) => (&mut self.usual.uses, now),
            Difference::Content(now) => (&mut self.usual.content, now),
        };
        if *usual != now && self.repaired == Some(difference) && !self.disturbed {
            tracing::debug!(family = %self.family, ?difference, "is there after a repair as before it");
            *usual = now;
        }
        let known = *usual == now;
        if !known {
            self.suspect = Some(difference);
        }
        known
    }

    /// Whether something is left to be looked at.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        !self.count_owed && !self.reading_owed && self.reading.is_none()
    }
}

/// What tells for little that somebody wrote.
#[derive(Debug)]
enum Indicator {
    Nft { socket: Option<Socket>, watch: Watch },
    Legacy { tables: Option<Tables>, seen: Option<[TableInfo; 3]> },
}

impl Indicator {
    /// Whether somebody else wrote since the last call, or may have.
    fn moved(&mut self, family: Family) -> bool {
        match self {
            Self::Nft { socket, watch } => {
                let Some(sight) = open(socket).and_then(|socket| watch.look(socket).ok()) else {
                    *socket = None;
                    return true;
                };
                let moved = !watch.undisturbed(sight);
                watch.accept(sight);
                moved
            }
            Self::Legacy { tables, seen } => {
                let now = infos(tables, family);
                let moved = now.is_none() || (seen.is_some() && now != *seen);
                *seen = now;
                moved
            }
        }
    }

    fn accept(&mut self, family: Family) {
        self.moved(family);
    }

    /// Whether a table has not even as many rules as ours are.
    fn holds_less_than(&self, expected: &Sums) -> bool {
        let Self::Legacy { seen: Some(seen), .. } = self else { return false };
        Table::ALL.into_iter().zip(seen).any(|(table, info)| {
            let ours = match table {
                Table::Mangle => 0,
                Table::Filter => expected.rules.filter,
                Table::Nat => expected.rules.nat,
            };
            usize::try_from(info.entries).is_ok_and(|entries| entries < ours)
        })
    }

    /// The sum over all chains of ours and their uses, where the kernel counts them.
    fn uses(&mut self, family: Family) -> Result<Option<u64>, ApplyError> {
        let Self::Nft { socket, .. } = self else { return Ok(None) };
        let lost = |error| ApplyError::Lost(io::Error::other(error));
        let Some(open) = open(socket) else { return Ok(None) };
        let counted = count_uses(open, family);
        if counted.is_err() {
            *socket = None;
        }
        counted.map(Some).map_err(lost)
    }
}

fn count_uses(socket: &mut Socket, family: Family) -> Result<u64, netlink::Error> {
    let family = match family {
        Family::V4 => nft_netlink::Family::Ip,
        Family::V6 => nft_netlink::Family::Ip6,
    };
    let mut stamp = Stamp::default();
    for table in Table::ALL {
        let of = nft_netlink::Table::new(family, table.as_str());
        let found = if table == Table::Nat {
            list::chains(socket, of)?
        } else {
            let fixed = FIXED_CHAINS.iter().filter(|(of, _)| *of == table);
            let names: Vec<&str> = fixed.map(|(_, chain)| *chain).collect();
            list::chains_named(socket, of, &names)?.into_iter().flatten().collect()
        };
        for chain in found.iter().filter(|chain| has_known_uses(table, &chain.name)) {
            stamp.add_uses(table, &chain.name, usize::try_from(chain.uses).unwrap_or(usize::MAX));
        }
    }
    Ok(stamp.uses)
}

fn open(socket: &mut Option<Socket>) -> Option<&mut Socket> {
    if socket.is_none() {
        *socket = Socket::open(Protocol::Netfilter).ok();
    }
    socket.as_mut()
}

fn infos(tables: &mut Option<Tables>, family: Family) -> Option<[TableInfo; 3]> {
    let family = match family {
        Family::V4 => xtables_info::Family::V4,
        Family::V6 => xtables_info::Family::V6,
    };
    if tables.is_none() {
        *tables = Tables::open(family).ok();
    }
    let [mangle, filter, nat] = Table::ALL.map(|table| tables.as_ref()?.info(table.as_str()).ok());
    Some([mangle?, filter?, nat?])
}

/// `iptables-save` at work, and a thread that sums up what it prints.
#[derive(Debug)]
struct Reading {
    program: String,
    child: Child,
    stderr: Option<thread::JoinHandle<String>>,
    result: Receiver<io::Result<Observed>>,
    writes: u64,
    begun: Instant,
}

impl Reading {
    fn begin(program: &str, writes: u64) -> Result<Self, ApplyError> {
        let begun = now();
        let mut child = Command::new(program)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| not_run(program, &error))?;
        let stderr = collect(child.stderr.take());
        let stdout = child.stdout.take().expect("stdout is piped");
        let (tell, result) = mpsc::channel();
        thread::spawn(move || {
            // Nobody may wait any more.
            let _ = tell.send(Observed::read(BufReader::with_capacity(1 << 16, stdout)));
        });
        Ok(Self { program: program.to_owned(), child, stderr: Some(stderr), result, writes, begun })
    }

    /// `None` while it goes on.
    fn wait(&mut self, most: Duration) -> Option<Result<Observed, ApplyError>> {
        let observed = match self.result.recv_timeout(most) {
            Ok(observed) => observed,
            Err(RecvTimeoutError::Timeout) => {
                if self.begun.elapsed() > HANGS {
                    // Its end ends the thread that reads.
                    let _ = self.child.kill();
                }
                return None;
            }
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("the thread that reads has ended")),
        };
        let status = self.child.wait();
        let stderr = self.stderr.take().and_then(|stderr| stderr.join().ok()).unwrap_or_default();
        Some(match (status, observed) {
            (Ok(status), Ok(observed)) if status.success() => Ok(observed),
            (Ok(_), Ok(_)) => {
                Err(ApplyError::Lost(io::Error::other(format!("{}: {}", self.program, message(&stderr)))))
            }
            (Err(error), _) | (_, Err(error)) => Err(ApplyError::Lost(error)),
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests;
