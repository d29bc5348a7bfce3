//! The HTTP servers: health, metrics, and one per Service with a health check node port.

pub(crate) mod answer;
mod debug;
pub(crate) mod healthz;
pub(crate) mod metrics_server;
pub(crate) mod server;
pub(crate) mod service_health;
