//! A table for as long as somebody watches: the kernel removes it with the process that made it (Linux 5.12). On older
//! kernels its comment says how long it may stay and who made it, so that the next such table's maker removes it.

use std::{fs, os::unix::fs::MetadataExt as _};

use netlink::{Error, Protocol, Socket};

use crate::{
    batch::{Batch, CommitError},
    list,
    object::{Family, Table},
};

/// How the names of such tables begin.
pub const PREFIX: &str = "switchyard-watch-";

const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const EOPNOTSUPP: i32 = 95;
const ENOENT: i32 = 2;

/// A table of family `inet` that goes when this is dropped, or when the process ends in whatever way.
#[derive(Debug)]
pub struct TemporaryTable {
    socket: Socket,
    name: Box<str>,
    owned: bool,
}

impl TemporaryTable {
    /// Makes the table and, in the same transaction, what `fill` adds to it. `until`: the Unix time in seconds after which
    /// nobody needs it any more.
    pub fn make(
        purpose: &str,
        until: u64,
        fill: impl Fn(&mut Batch, Table<'_>),
    ) -> Result<Self, CommitError> {
        Self::attempt(purpose, until, true, &fill)
    }

    fn attempt(
        purpose: &str,
        until: u64,
        owned: bool,
        fill: &dyn Fn(&mut Batch, Table<'_>),
    ) -> Result<Self, CommitError> {
        const TRIES: u32 = 16;
        let mut socket = Socket::open(Protocol::Netfilter).map_err(CommitError::Invalid)?;
        let comment = Maker::this_process().comment(until);
        let mut number = 0;
        loop {
            let name: Box<str> = match number {
                0 => format!("{PREFIX}{purpose}-{}", std::process::id()),
                number => format!("{PREFIX}{purpose}-{}-{number}", std::process::id()),
            }
            .into();
            let table = Table::new(Family::Inet, &name);
            let mut batch = Batch::new();
            batch.create_table(table, owned, Some(&comment));
            fill(&mut batch, table);
            let refusals = match batch.commit(&mut socket) {
                Ok(()) => return Ok(Self { socket, name, owned }),
                Err(CommitError::Refused(refusals)) => refusals,
                Err(error) => return Err(error),
            };
            let first = refusals.iter().find(|refusal| refusal.position.is_some_and(|at| at.message == 0));
            match first.map(|refusal| refusal.errno) {
                // Processes in different containers have the same numbers. `EPERM`: somebody's socket owns it.
                Some(EEXIST | 1) if number < TRIES => number += 1,
                Some(EOPNOTSUPP | EINVAL) if owned => return Self::attempt(purpose, until, false, fill),
                _ => return Err(CommitError::Refused(refusals)),
            }
        }
    }

    pub fn table(&self) -> Table<'_> {
        Table::new(Family::Inet, &self.name)
    }

    /// Whether the kernel removes it by itself.
    pub const fn is_owned(&self) -> bool {
        self.owned
    }

    /// Makes a further transaction: only this socket may.
    pub fn change(&mut self, fill: impl FnOnce(&mut Batch, Table<'_>)) -> Result<(), CommitError> {
        let mut batch = Batch::new();
        fill(&mut batch, Table::new(Family::Inet, &self.name));
        batch.commit(&mut self.socket)
    }

    /// The socket that owns the table, to read what is in it.
    pub const fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }
}

impl Drop for TemporaryTable {
    fn drop(&mut self) {
        let mut batch = Batch::new();
        batch.delete_table(Table::new(Family::Inet, &self.name));
        // Where it is owned it goes with the socket in any case.
        let _ = batch.commit(&mut self.socket);
    }
}

/// Removes temporary tables that a kernel before 5.12 kept: those whose time is over, and those whose maker has ended.
/// Answers how many. `now`: Unix time in seconds.
pub fn sweep(socket: &mut Socket, now: u64) -> Result<usize, Error> {
    let mut removed = 0;
    for table in list::tables(socket, Family::Inet)? {
        let note = table.comment.as_deref().and_then(Maker::read);
        let Some((maker, until)) = note.filter(|_| table.name.starts_with(PREFIX) && table.owner.is_none())
        else {
            continue;
        };
        if now <= until && !maker.has_ended() {
            continue;
        }
        let mut batch = Batch::new();
        batch.delete_table(Table::new(Family::Inet, &table.name));
        match batch.commit(socket) {
            Ok(()) => removed += 1,
            Err(CommitError::Refused(refusals)) if refusals.iter().all(|one| one.errno == ENOENT) => {}
            // The next one tries again.
            Err(_) => {}
        }
    }
    Ok(removed)
}

/// Who made a table: a process, as numbers that no other process has at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Maker {
    process: u32,
    /// The inode of its pid namespace: processes of others are not to be seen.
    namespace: u64,
}

impl Maker {
    fn this_process() -> Self {
        Self { process: std::process::id(), namespace: pid_namespace() }
    }

    fn comment(self, until: u64) -> String {
        format!("process {} of pid namespace {}, until {until}", self.process, self.namespace)
    }

    fn read(comment: &str) -> Option<(Self, u64)> {
        let rest = comment.strip_prefix("process ")?;
        let (process, rest) = rest.split_once(" of pid namespace ")?;
        let (namespace, until) = rest.split_once(", until ")?;
        let maker = Self { process: process.parse().ok()?, namespace: namespace.parse().ok()? };
        Some((maker, until.parse().ok()?))
    }

    fn has_ended(self) -> bool {
        self.namespace != 0
            && self.namespace == pid_namespace()
            && !fs::exists(format!("/proc/{}", self.process)).unwrap_or(true)
    }
}

/// 0 where it is not known.
fn pid_namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comment_says_who_and_until_when() {
        let maker = Maker { process: 7, namespace: 4_026_531_836 };
        let comment = maker.comment(1_800_000_000);
        assert!(comment.len() < 128, "nft's comments are short");
        assert_eq!(Maker::read(&comment), Some((maker, 1_800_000_000)));
        assert_eq!(Maker::read("somebody's"), None);
        assert!(!Maker::this_process().has_ended());
    }
}
