//! What a sync tells: metrics, Events, logs and stale flows are made of it.

use std::time::Instant;

use super::{Conflict, Phases};
use crate::{
    backend::Change,
    limits::Excess,
    model::{Family, ServiceName},
};

/// Inputs taken in since the last successful sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pending {
    /// Services that came or changed.
    pub services: u64,
    /// EndpointSlices that came or changed.
    pub slices: u64,
}

/// Why one Service is not in the kernel as it asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Since when.
    pub since: Instant,
    /// What the kernel said last, or what it asks for too much of.
    pub reason: String,
    /// When it is tried again at the earliest; `None`: when it changes.
    pub retry_at: Option<Instant>,
}

/// What one family's half of the engine owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How many Services may differ from what is installed.
    pub waiting: usize,
    /// Since when something has been waiting.
    pub queued_since: Option<Instant>,
    /// Why the next sync is a full one, if it is.
    pub full: Option<&'static str>,
    /// Syncs in a row that failed.
    pub failures: u32,
}

/// What one sync did, for metrics, events, logs and the conntrack reconciler.
#[derive(Debug)]
pub struct SyncReport {
    /// Which half of the engine it was.
    pub family: Family,
    /// Why it was a full one; `None` for an incremental one.
    pub full: Option<&'static str>,
    /// When it began.
    pub started: Instant,
    /// When it ended, well or not.
    pub ended: Instant,
    /// Where the time in between went.
    pub phases: Phases,
    /// Services that were looked at, whether their routes differed or not; empty if the sync failed.
    pub services: Vec<ServiceName>,
    /// Applied changes. Of a full sync: against what was installed before.
    pub changes: Vec<Change>,
    /// Services that lost addresses to another in this sync, the most addresses first.
    pub conflicts: Vec<Conflict>,
    /// Services that were found to ask for more than one may.
    pub excesses: Vec<(ServiceName, Excess)>,
    /// Services that the kernel refused; all others went ahead.
    pub set_aside: Vec<(ServiceName, String)>,
    /// Services set aside earlier that work now.
    pub restored: Vec<ServiceName>,
    /// `last-change-trigger-time` of the slices that took effect, in nanoseconds since the Unix epoch.
    pub triggers: Vec<i64>,
    /// Inputs that it covers, or that still wait if it failed.
    pub pending: Pending,
    /// Nothing took effect; it is tried again at `retry_at`.
    pub error: Option<String>,
    /// When it is tried again, if it failed.
    pub retry_at: Option<Instant>,
}

impl SyncReport {
    pub(super) fn new(family: Family, started: Instant, pending: Pending) -> Self {
        Self {
            family,
            full: None,
            started,
            ended: started,
            phases: Phases::default(),
            services: Vec::new(),
            changes: Vec::new(),
            conflicts: Vec::new(),
            excesses: Vec::new(),
            set_aside: Vec::new(),
            restored: Vec::new(),
            triggers: Vec::new(),
            pending,
            error: None,
            retry_at: None,
        }
    }
}
