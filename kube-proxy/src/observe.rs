//! What becomes of a sync outside the engine: logs, metrics, health, events, conntrack.

use proxy_core::{
    backend::{Executor, Planner},
    instance::SyncReport,
    model::Family,
    reconciler::Reconciler,
};

use crate::engine::Observer;

#[derive(Debug, Default)]
pub(crate) struct Observations {}

impl<P, X> Observer<P, X> for Observations
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    fn synced(&mut self, report: SyncReport, _engine: &mut Reconciler<P, X>) {
        let elapsed = report.ended.saturating_duration_since(report.started);
        if let Some(error) = &report.error {
            tracing::error!(ipFamily = %report.family, error, "Sync failed");
        } else {
            tracing::debug!(ipFamily = %report.family, full = report.full, changes = report.changes.len(), ?elapsed, "SyncProxyRules complete");
        }
        for conflict in &report.conflicts {
            tracing::warn!(service = %conflict.service, winner = %conflict.winner, address = ?conflict.at, port = conflict.port,
                protocol = %conflict.protocol, "Two Services claim one address; the older one keeps it");
        }
        for (service, reason) in &report.set_aside {
            tracing::error!(%service, reason, "The kernel refused this Service; it keeps its last good state");
        }
        for service in &report.restored {
            tracing::info!(%service, "A Service that the kernel had refused works again");
        }
    }

    fn drifted(&mut self, family: Family) {
        tracing::warn!(ipFamily = %family, "The kernel's state was changed by somebody else; rebuilding it");
    }

    fn round(&mut self, _engine: &mut Reconciler<P, X>) {}
}
