//! The iptables backend: kube-proxy's chains, written in less time.
//!
//! [`Planner`] decides which chains to write (`plan/`), [`restore`] makes them text in the language of `schema/`, and
//! [`Executor`] feeds that to `iptables-restore` (`kernel/`).

#![warn(missing_docs)]

mod compare;
mod kernel;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod plan;
mod schema;

#[cfg(test)]
mod tests;

pub use compare::{Removal, compare, removals, survey};
pub use kernel::{
    accounting,
    cleanup::{CleanupError, cleanup, cleanup_but},
    executor::{Executor, OpenError},
    limits, variant,
};
pub use nft_netlink::generation::OwnCommits;
pub use plan::planner::Planner;
pub use schema::{
    chains,
    found::{Found, Host},
    op::Op,
    restore,
    variant::Variant,
};
