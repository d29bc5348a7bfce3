//! The HTTP servers: health, metrics, and one per Service with a health check node port; and the socket for questions.

pub(crate) mod answer;
pub(crate) mod capacity;
pub(crate) mod connections;
mod debug;
mod gzip;
pub(crate) mod healthz;
pub(crate) mod insight;
pub(crate) mod localhost_node_ports;
pub(crate) mod metrics_server;
mod page;
pub(crate) mod server;
pub(crate) mod service_health;

#[cfg(test)]
mod hostile_clients;
