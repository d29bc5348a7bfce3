//! The nftables backend: a handful of maps that hold the Services, and chains that all Services of a size share.
//!
//! Four rooms: `schema` is the table's language (read `value`, what a packet carries between two look-ups, then `scaffold` and
//! `class_chain`, the rules), `plan` decides what to write, `kernel` writes it and watches over it, `model` is a table without a
//! kernel for tests. `plan` and `kernel` know `schema` and not each other.

#![warn(missing_docs)]

mod compare;
mod kernel;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod plan;
mod schema;

pub use compare::{Standing, compare, standing};
pub use kernel::{CleanupError, Executor, Missing, ProbeError, cleanup, probe};
pub use nft_netlink::generation::OwnCommits;
pub use plan::Planner;
pub use schema::{found::Found, operation::Op};
