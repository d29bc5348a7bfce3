//! What the process tells of itself: logs, metrics, its health.

pub(crate) mod first_sync;
pub(crate) mod health;
pub(crate) mod logging;
pub(crate) mod metrics;
pub(crate) mod recent;
pub(crate) mod service_metrics;
