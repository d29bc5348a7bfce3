//! Reads our sets from the kernel on a thread of its own and compares them with what was written.
//!
//! Listing a set takes the kernel time that grows with the square of its size (0.3 s for 100,000 elements), so this
//! happens only where something cheaper cannot tell, beside the engine's work, and for a small share of the time.

use std::{
    thread::JoinHandle,
    time::{Duration, Instant},
};

use netlink::{Protocol, Socket};
use nft_netlink::list;
use proxy_core::model::Family;

use crate::kernel::{encode::table, tally::Tally};

/// Sets that are being read, as they were written when it began.
#[derive(Debug)]
pub(crate) struct Reading {
    thread: JoinHandle<Result<Seen, netlink::Error>>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Names of the sets that hold something else than was written.
    pub(crate) differ: Vec<Box<str>>,
    pub(crate) took: Duration,
    pub(crate) ended: Instant,
}

impl Reading {
    /// Begins to read; the thread shares the caller's network namespace.
    pub(crate) fn begin(family: Family, sets: Vec<(Box<str>, Tally)>) -> std::io::Result<Self> {
        let thread =
            std::thread::Builder::new().name("nft-reading".to_owned()).spawn(move || read(family, sets))?;
        Ok(Self { thread })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    pub(crate) fn end(self) -> Result<Seen, netlink::Error> {
        self.thread.join().unwrap_or(Err(netlink::Error::Malformed("the thread that read the sets died")))
    }
}

fn read(family: Family, sets: Vec<(Box<str>, Tally)>) -> Result<Seen, netlink::Error> {
    let began = clock();
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let mut differ = Vec::new();
    for (name, written) in sets {
        let mut found = Tally::default();
        // Another generation in between matters only if it changed this set: then it is not ours as we wrote it.
        match list::elements(&mut socket, table(family), &name, |element| found.add_found(&element)) {
            Ok(netlink::Dump::Complete | netlink::Dump::Interrupted) => {}
            Err(error) if error.refused().is_some() => {}
            Err(error) => return Err(error),
        }
        if !written.is_like(&found) {
            differ.push(name);
        }
    }
    let ended = clock();
    Ok(Seen { differ, took: ended.saturating_duration_since(began), ended })
}

#[expect(clippy::disallowed_methods, reason = "how long the kernel takes decides when to read again")]
pub(crate) fn clock() -> Instant {
    Instant::now()
}
