//! The iptables backend: kube-proxy's chains, written in less time.
//!
//! [`Planner`] decides which chains to write (`rules.rs` writes those of one Service port, `scaffold.rs` those that
//! exist once), [`restore`] makes them text, [`Executor`] feeds that to `iptables-restore`.

pub mod accounting;
pub mod chains;
mod cleanup;
mod drift;
mod kernel;
pub mod limits;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod plan;
mod process;
pub mod restore;
mod rules;
mod scaffold;
mod survey;
mod trial;
pub mod variant;

#[cfg(test)]
mod tests;

pub use cleanup::{CleanupError, cleanup};
pub use kernel::{Executor, OpenError};
pub use plan::Planner;
pub use restore::Op;
pub use survey::{Found, Host};
pub use variant::Variant;
