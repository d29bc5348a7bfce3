//! The seam between the engine and a way to program the kernel.
//!
//! A backend is a [`Planner`] (pure: decides the operations) and an [`Executor`] (the only half that touches the
//! kernel and the only half that can fail). The engine owns one pair per IP family and drives both.

use std::{
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    environment::Environment,
    model::{Protocol, ServicePortName},
    route::Route,
};

/// One Service port whose route differs from what is installed. Never both `None`.
#[derive(Debug, Clone)]
pub struct Change {
    /// Which one.
    pub name: ServicePortName,
    /// What the last successful plan installed.
    pub before: Option<Arc<Route>>,
    /// What is wanted.
    pub after: Option<Arc<Route>>,
}

/// An operation, and the index (into the `changes` or `routes` that were given to the planner) of the Service port it
/// serves, so that a refusal by the kernel can be laid at the right door. `None`: it serves all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned<Op> {
    /// What to do.
    pub op: Op,
    /// Whom it serves.
    pub owner: Option<u32>,
}

/// Operations that take effect together where the kernel offers transactions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step<Op> {
    /// In the order in which the kernel is to see them.
    pub ops: Vec<Owned<Op>>,
}

impl<Op> Default for Step<Op> {
    fn default() -> Self {
        Self { ops: Vec::new() }
    }
}

impl<Op> Step<Op> {
    /// Adds an operation at the end.
    pub fn push(&mut self, op: Op, owner: Option<u32>) {
        self.ops.push(Owned { op, owner });
    }
}

/// Steps in the order in which they must be applied; pure data, printable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<Op> {
    /// In order; a step may rely on all before it.
    pub steps: Vec<Step<Op>>,
}

impl<Op> Default for Plan<Op> {
    fn default() -> Self {
        Self { steps: Vec::new() }
    }
}

impl<Op> Plan<Op> {
    /// Whether nothing is to be done.
    pub fn is_empty(&self) -> bool {
        self.steps.iter().all(|step| step.ops.is_empty())
    }
}

/// One operation a line, a blank line between steps.
impl<Op: fmt::Display> fmt::Display for Plan<Op> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.steps.iter().enumerate() {
            if at > 0 {
                writeln!(f)?;
            }
            for owned in &step.ops {
                writeln!(f, "{}", owned.op)?;
            }
        }
        Ok(())
    }
}

/// What [`Planner::plan`] decided.
#[derive(Debug)]
pub enum Planned<Op> {
    /// Apply this on top of what is installed.
    Plan(Plan<Op>),
    /// The change does not fit what is installed (a map is nearly full, say): survey and plan in full.
    StartOver(&'static str),
}

/// Whether the plan that was handed out last took effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// All of it.
    Applied,
    /// Its last, decisive step did not: what is installed is as before.
    Nothing,
}

/// Decides operations. No I/O, no clock, cannot fail.
///
/// What a plan assumes (slot orders, ids) becomes the planner's memory only by `settle(Effect::Applied)`; after
/// `settle(Effect::Nothing)` the planner stands where it stood before. Every plan is settled before the next.
pub trait Planner {
    /// An operation of this backend; it prints as one line.
    type Op: fmt::Display;
    /// What the executor read from the kernel.
    type Found;

    /// Operations that turn every `before` into its `after`, and the previous environment into `environment`.
    ///
    /// An address may pass from one Service to another within one call: it stands in the `before` of one change and in
    /// the `after` of another, in either order. A frontend's (protocol, address, port) is unique among all routes.
    fn plan(&mut self, changes: &[Change], environment: &Environment, now: Instant) -> Planned<Self::Op>;

    /// Operations that make the kernel hold exactly `routes` (sorted by name), whatever it holds now, without an
    /// interval in which a route that is wanted before and after does not work.
    fn plan_full(
        &mut self,
        routes: &[(ServicePortName, Arc<Route>)],
        environment: &Environment,
        found: Self::Found,
        now: Instant,
    ) -> Plan<Self::Op>;

    /// Tells what became of the plan that was handed out last.
    fn settle(&mut self, effect: Effect);

    /// Work owed to the past that is due (draining destinations, unused chains); `None` if nothing is.
    fn plan_upkeep(&mut self, now: Instant) -> Option<Plan<Self::Op>>;

    /// When `plan_upkeep` next has something to do.
    fn next_upkeep(&self) -> Option<Instant>;

    /// Endpoints that get no new connections and are kept for those they have; `None` where there is no such thing.
    fn draining(&self) -> Option<usize> {
        None
    }
}

/// Applies plans to the kernel.
pub trait Executor {
    /// The planner's operations.
    type Op;
    /// What a survey finds.
    type Found;

    /// Reads what a full plan needs to know of the kernel's present state.
    fn survey(&mut self) -> Result<Self::Found, ApplyError>;

    /// Applies every step in order, and stops at the first that the kernel refuses.
    fn apply(&mut self, plan: &Plan<Self::Op>) -> Result<Outcome, ApplyError>;

    /// Whether what was applied last still stands: a check of constant cost.
    fn intact(&mut self) -> Result<bool, ApplyError>;

    /// How long it has been waiting for the kernel, or for programs that talk to it, since it was opened.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }

    /// Numbers worth showing that only this backend has.
    fn figures(&self) -> Figures {
        Figures::default()
    }
}

/// What metrics show of a backend beyond what the engine knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// Of each table: its name, the rules of ours in it, and how many of them the last plan wrote.
    pub rules: Vec<(&'static str, usize, usize)>,
    /// Clients that got no affinity because its table was full, since the start.
    pub affinity_lost: u64,
    /// Packets to NodePorts on loopback addresses that were refused, since the start, of each protocol that is refused there.
    pub refused_on_localhost: Vec<(Protocol, u64)>,
    /// Removals of unused objects that failed, since the start.
    pub cleanup_failures: u64,
}

/// What became of a plan that was carried through.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Operations that the kernel refused one by one while all others took effect (no transaction): the owner and why.
    pub rejected: Vec<Rejection>,
}

/// An operation that the kernel refused by itself.
#[derive(Debug, Clone)]
pub struct Rejection {
    /// Whom it served; `None`: all.
    pub owner: Option<u32>,
    /// What the kernel said.
    pub reason: String,
}

/// Why a plan was not carried through.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The kernel refused a step whole. `culprit` is the owner of the operation at fault, if it is known and if the
    /// error is one that an object can cause (never ENOMEM, ENOBUFS, EBUSY, EAGAIN, ENFILE, EINTR).
    #[error("refused by the kernel: {reason}")]
    Refused {
        /// What the kernel said, and of which operation.
        reason: String,
        /// The owner of the operation at fault.
        culprit: Option<u32>,
    },
    /// It is not known what took effect: read the kernel again.
    #[error("lost track of the kernel's state: {0}")]
    Lost(#[from] io::Error),
}
