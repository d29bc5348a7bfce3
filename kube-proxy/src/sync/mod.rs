//! What surrounds one engine: how it starts, what it tells after each sync, and to whom.

pub(crate) mod ipvs;
pub(crate) mod localhost_node_ports;
pub(crate) mod observe;
pub(crate) mod open_load_balancers;
pub(crate) mod start;
pub(crate) mod talk;
pub(crate) mod topology_hints;
pub(crate) mod watched;
