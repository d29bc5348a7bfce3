//! The last syncs of both families, for those who ask what happened.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use insight::{state::Sync, text::Time};
use jiff::Timestamp;
use proxy_core::{instance::SyncReport, model::ServiceName};

/// So many are kept.
const MOST: usize = 64;
/// So many names of each.
const MOST_NAMES: usize = 8;

/// The last syncs; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent(Arc<Mutex<VecDeque<Sync>>>);

impl Recent {
    /// One that has just ended.
    pub(crate) fn note(&self, report: &SyncReport) {
        let took = report.ended.saturating_duration_since(report.started);
        // Changes are sorted by name.
        let mut changed: Vec<&ServiceName> =
            report.changes.iter().map(|change| &change.name.service).collect();
        changed.dedup();
        let names = |names: &mut dyn Iterator<Item = &ServiceName>| {
            names.take(MOST_NAMES).map(ToString::to_string).collect()
        };
        let sync = Sync {
            family: report.family,
            ended: Time::from_micros(Timestamp::now().as_microsecond()),
            took_micros: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            full: report.full.map(str::to_owned),
            services: report.services.len(),
            changes: report.changes.len(),
            changed: names(&mut changed.into_iter()),
            set_aside: names(&mut report.set_aside.iter().map(|(name, _)| name)),
            error: report.error.clone(),
        };
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() == MOST {
            all.pop_front();
        }
        all.push_back(sync);
    }

    /// All that are kept, oldest first.
    pub(crate) fn all(&self) -> Vec<Sync> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}
