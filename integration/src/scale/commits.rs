//! When nf_tables transactions were committed, and by whom: the kernel's own announcements, with the time they arrived.
//!
//! The kernel prepares an event for every element as soon as anyone listens, so this is used where changes are small.

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nft_netlink::monitor::NftMonitor;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::network::Namespace;

/// Listens until dropped.
#[derive(Debug)]
pub(crate) struct Commits {
    seen: Arc<Mutex<Vec<Commit>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy)]
struct Commit {
    at: Instant,
    process: u32,
}

impl Commits {
    pub(crate) fn listen(namespace: &Namespace) -> Result<Self> {
        let mut monitor = namespace.run(NftMonitor::open)?.context("listening to nf_tables")?;
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (into, until) = (seen.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let mut waiting = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
                let ready = poll(&mut waiting, PollTimeout::from(50_u16));
                let at = Instant::now();
                if !matches!(ready, Ok(count) if count > 0) {
                    continue;
                }
                let Ok(changes) = monitor.drain() else { continue };
                let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                seen.extend(changes.transactions.iter().map(|one| Commit { at, process: one.process }));
            }
        });
        Ok(Self { seen, stop, thread: Some(thread) })
    }

    /// Waits until a commit of somebody else after `from` was announced, so that it is not taken for a later one's.
    pub(crate) fn wait(&self, from: Instant, patience: Duration) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < patience {
            let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.iter().any(|commit| commit.at > from && commit.process != std::process::id()) {
                return true;
            }
            drop(seen);
            thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// The commit behind an effect that was seen at `seen`: the last one before it that was not made by this process,
    /// or, as the announcement may be slower than a packet, the first one after it but before `until`.
    pub(crate) fn behind(&self, from: Instant, seen: Instant, until: Instant) -> Option<Instant> {
        let all = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let others: Vec<Instant> = all
            .iter()
            .filter(|commit| commit.process != std::process::id() && (from..until).contains(&commit.at))
            .map(|commit| commit.at)
            .collect();
        let after = others.partition_point(|at| *at <= seen);
        after.checked_sub(1).map_or_else(|| others.get(after).copied(), |last| Some(others[last]))
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}
