//! The open connections of one server, or of several that share them: what each does and since when, and which one goes
//! where there is no room.
//!
//! The ports are open to the network. A connection costs a file and a few kilobytes for as long as it lasts, so each of
//! its phases has a limit, and so has the number of connections. Beyond that number nobody is turned away: what has been
//! idle longest is closed, as a prober or scraper that is served at once is never that.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{task::AbortHandle, time::Instant};

/// From the start of the connection, or from the first byte of a request, to the end of its head.
pub(super) const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Between two requests. Longer than the usual pause of a scraper that keeps its connection, which is 15 or 30 s: the two
/// would close it and use it at one moment.
pub(super) const IDLE_LIMIT: Duration = Duration::from_secs(45);
/// From the end of a request's head until its answer is with the kernel; the request's body is a part of it.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Smaller answers fit into the kernel's buffers; they are not counted.
const SMALL: usize = 16 << 10;
/// So much of answers may wait for readers, in bytes; beyond it, the answer that has waited longest is given up.
const MOST_UNREAD: usize = 16 << 20;

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Nothing was received yet.
    New = 0,
    /// All requests are answered.
    Idle = 1,
    /// A part of a request's head was received.
    Head = 2,
    /// A request is being answered.
    Answer = 3,
}

impl Phase {
    const ALL: [Self; 4] = [Self::New, Self::Idle, Self::Head, Self::Answer];

    fn limit(self) -> Duration {
        match self {
            Self::New | Self::Head => HEAD_LIMIT,
            Self::Idle => IDLE_LIMIT,
            Self::Answer => ANSWER_LIMIT,
        }
    }

    /// Who waits for nothing goes before who asks, and who asks before who is answered.
    fn rank(self) -> u8 {
        match self {
            Self::New | Self::Idle => 0,
            Self::Head => 1,
            Self::Answer => 2,
        }
    }
}

/// How far one connection is. The task that serves it writes, others read.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    /// Milliseconds from `began` to the start of the phase, times four, and the phase.
    phase: AtomicU64,
    /// The answer's body is with the HTTP implementation; once that has written all it holds, the answer is sent.
    body_taken: AtomicBool,
    unread: AtomicUsize,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            phase: AtomicU64::new(0),
            body_taken: AtomicBool::new(false),
            unread: AtomicUsize::new(0),
        }
    }

    fn enter(&self, phase: Phase) {
        let passed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX / 4);
        self.phase.store(passed << 2 | phase as u64, Ordering::Relaxed);
    }

    fn phase(&self) -> (Phase, Instant) {
        let state = self.phase.load(Ordering::Relaxed);
        let phase = Phase::ALL[usize::try_from(state & 3).unwrap_or_default()];
        (phase, self.began + Duration::from_millis(state >> 2))
    }

    /// Something was received.
    pub(super) fn received(&self) {
        if matches!(self.phase().0, Phase::New | Phase::Idle) {
            self.enter(Phase::Head);
        }
    }

    /// A request's head is complete.
    pub(super) fn asked(&self) {
        self.body_taken.store(false, Ordering::Relaxed);
        self.enter(Phase::Answer);
    }

    pub(super) fn body_taken(&self) {
        self.body_taken.store(true, Ordering::Relaxed);
    }

    /// All that was to be written is written.
    pub(super) fn flushed(&self) {
        if self.phase().0 == Phase::Answer && self.body_taken.load(Ordering::Relaxed) {
            self.unread.store(0, Ordering::Relaxed);
            self.enter(Phase::Idle);
        }
    }

    /// An answer has not reached the kernel.
    pub(super) fn answering(&self) -> bool {
        self.phase().0 == Phase::Answer
    }

    /// When the connection is closed if nothing changes.
    pub(super) fn deadline(&self) -> Instant {
        let (phase, since) = self.phase();
        since + phase.limit()
    }
}

/// Clones are the same connections.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    most: usize,
    open: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    connections: HashMap<u64, Open>,
    /// How many each listener has.
    counts: HashMap<u64, usize>,
    last: u64,
}

impl Table {
    fn insert(&mut self, id: u64, open: Open) {
        *self.counts.entry(open.listener).or_default() += 1;
        self.connections.insert(id, open);
    }

    fn remove(&mut self, id: u64) -> Option<Open> {
        let open = self.connections.remove(&id)?;
        if let Some(count) = self.counts.get_mut(&open.listener) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&open.listener);
            }
        }
        Some(open)
    }

    /// Closes the connection that is missed least, if there is one.
    fn close_one(&mut self) -> bool {
        // Where servers share, the one with most connections gives way: a flood at one costs the others nothing.
        let Some(most) = self.counts.iter().max_by_key(|(_, count)| **count).map(|(id, _)| *id) else {
            return false;
        };
        let candidates = self.connections.iter().filter(|(_, open)| open.listener == most);
        let least = candidates.min_by_key(|(id, open)| {
            let (phase, since) = open.progress.phase();
            (phase.rank(), since, **id)
        });
        let Some(id) = least.map(|(id, _)| *id) else { return false };
        if let Some(open) = self.remove(id) {
            open.task.abort();
        }
        true
    }
}

#[derive(Debug)]
struct Open {
    listener: u64,
    progress: Arc<Progress>,
    task: AbortHandle,
}

/// One server's part of the connections.
#[derive(Debug)]
pub(super) struct Listener {
    all: Connections,
    id: u64,
}

/// An entry in the table, which goes with this.
#[derive(Debug)]
pub(super) struct Entry {
    all: Connections,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.table().remove(self.id);
    }
}

impl Connections {
    /// At most so many at a time.
    pub(crate) fn new(most: usize) -> Self {
        Self { shared: Arc::new(Shared { most: most.max(1), open: Mutex::default() }) }
    }

    pub(super) fn listener(&self) -> Listener {
        let mut table = self.table();
        table.last += 1;
        Listener { all: self.clone(), id: table.last }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.table().connections.len()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.shared.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listener {
    /// Makes room for one more connection.
    pub(super) fn make_room(&self) {
        let mut table = self.all.table();
        while table.connections.len() >= self.all.shared.most && table.close_one() {}
    }

    /// Gives a file back to the process. Whether there was one to give.
    pub(super) fn give_up_one(&self) -> bool {
        self.all.table().close_one()
    }

    /// The id by which the next connection will be known; its task keeps the entry.
    pub(super) fn entry(&self) -> Entry {
        let mut table = self.all.table();
        table.last += 1;
        Entry { all: self.all.clone(), id: table.last }
    }

    pub(super) fn add(&self, id: u64, progress: Arc<Progress>, task: AbortHandle) {
        // A task that has ended by now has taken its entry back already.
        let mut table = self.all.table();
        if !task.is_finished() {
            table.insert(id, Open { listener: self.id, progress, task });
        }
    }
}

impl Entry {
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// So many bytes of an answer wait for their reader from now on. Where that is too much, other answers go.
    pub(super) fn holds(&self, progress: &Progress, bytes: usize) {
        if bytes < SMALL {
            return;
        }
        progress.unread.store(bytes, Ordering::Relaxed);
        let mut table = self.all.table();
        let unread = |open: &Open| open.progress.unread.load(Ordering::Relaxed);
        let mut sum: usize = table.connections.values().map(unread).sum();
        while sum > MOST_UNREAD {
            let others = table.connections.iter().filter(|(id, open)| **id != self.id && unread(open) > 0);
            let Some(id) = others.min_by_key(|(id, open)| (open.progress.phase().1, **id)).map(|(id, _)| *id)
            else {
                return;
            };
            if let Some(open) = table.remove(id) {
                sum -= unread(&open).min(sum);
                open.task.abort();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rig {
        all: Connections,
        tasks: Vec<(Entry, Arc<Progress>, AbortHandle)>,
    }

    impl Rig {
        fn new(most: usize) -> Self {
            Self { all: Connections::new(most), tasks: Vec::new() }
        }

        fn connect(&mut self, listener: &Listener) -> Arc<Progress> {
            listener.make_room();
            let progress = Arc::new(Progress::new());
            let entry = listener.entry();
            let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
            listener.add(entry.id(), Arc::clone(&progress), task.clone());
            self.tasks.push((entry, Arc::clone(&progress), task));
            progress
        }

        async fn closed(&self) -> Vec<usize> {
            // So that the tasks that were told to end do so.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            (0..self.tasks.len()).filter(|at| self.tasks[*at].2.is_finished()).collect()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_cap_the_longest_idle_goes_and_who_is_answered_stays() {
        let mut rig = Rig::new(4);
        let listener = rig.all.listener();
        let step = Duration::from_millis(10);
        let answered = rig.connect(&listener);
        answered.asked();
        tokio::time::sleep(step).await;
        let asking = rig.connect(&listener);
        asking.received();
        tokio::time::sleep(step).await;
        let idle = rig.connect(&listener);
        tokio::time::sleep(step).await;
        rig.connect(&listener);
        tokio::time::sleep(step).await;
        // A request that was answered a moment ago makes it the younger of the idle ones.
        idle.asked();
        idle.body_taken();
        idle.flushed();
        rig.connect(&listener);
        assert_eq!(rig.closed().await, [3]);
        rig.connect(&listener);
        assert_eq!(rig.closed().await, [2, 3]);
        for progress in [&rig.tasks[4].1, &rig.tasks[5].1] {
            progress.asked();
        }
        rig.connect(&listener);
        assert_eq!(rig.closed().await, [1, 2, 3], "who has only begun to ask");
        rig.tasks[6].1.asked();
        rig.connect(&listener);
        assert_eq!(rig.closed().await, [0, 1, 2, 3], "the longest answer");
        assert_eq!(rig.all.len(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_at_one_server_costs_the_others_nothing() {
        let mut rig = Rig::new(10);
        let (quiet, flooded) = (rig.all.listener(), rig.all.listener());
        for _ in 0..2 {
            rig.connect(&quiet);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..100 {
            rig.connect(&flooded);
        }
        let closed = rig.closed().await;
        assert_eq!((closed.len(), closed.contains(&0), closed.contains(&1)), (92, false, false));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_nobody_reads_are_bounded_in_bytes() {
        let mut rig = Rig::new(1000);
        let listener = rig.all.listener();
        for _ in 0..40 {
            let progress = rig.connect(&listener);
            progress.asked();
            rig.tasks[rig.tasks.len() - 1].0.holds(&progress, 1 << 20);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(rig.closed().await, (0..24).collect::<Vec<usize>>(), "16 MiB are left, the youngest");
        let last = &rig.tasks[39];
        last.0.holds(&last.1, 64 << 20);
        assert_eq!(rig.closed().await.len(), 39, "a large one alone is served");
    }

    #[tokio::test(start_paused = true)]
    async fn every_phase_has_its_limit() {
        let progress = Progress::new();
        let left = |progress: &Progress| progress.deadline() - Instant::now();
        assert_eq!(left(&progress), HEAD_LIMIT);
        tokio::time::advance(Duration::from_secs(3)).await;
        progress.received();
        assert_eq!(left(&progress), HEAD_LIMIT);
        tokio::time::advance(Duration::from_secs(1)).await;
        progress.received();
        assert_eq!(left(&progress), HEAD_LIMIT - Duration::from_secs(1), "a byte now and then buys no time");
        progress.asked();
        progress.flushed();
        assert!(progress.answering(), "the body is not written");
        assert_eq!(left(&progress), ANSWER_LIMIT);
        progress.body_taken();
        progress.flushed();
        assert_eq!(left(&progress), IDLE_LIMIT);
    }

    #[tokio::test]
    async fn an_entry_goes_with_its_connection() {
        let mut rig = Rig::new(10);
        let listener = rig.all.listener();
        for _ in 0..5 {
            rig.connect(&listener);
        }
        assert_eq!(rig.all.len(), 5);
        rig.tasks.truncate(2);
        assert_eq!(rig.all.len(), 2);
    }
}
