//! The nftables backend: a handful of maps that hold the Services, and chains that all Services of a size share.
//!
//! Read [`value`] (what a packet carries between two look-ups), [`scaffold`] and [`class_chain`] (the rules),
//! [`placement`] (where endpoints stand), [`draft`] and [`plan`] (changes), [`full`] (everything anew).

mod census;
mod class_chain;
mod cleanup;
mod draft;
mod drift;
mod element;
mod encode;
mod encode_rule;
mod encode_set;
mod found;
mod full;
#[cfg(test)]
mod history;
mod ids;
mod kernel;
#[cfg(any(test, feature = "model"))]
pub mod model;
mod name;
mod operation;
mod placement;
mod plan;
mod probe;
mod reading;
mod scaffold;
mod shared_keys;
mod size_class;
mod slots;
mod state;
mod statement;
mod sticky;
mod tally;
mod text;
mod upkeep;
mod value;
#[cfg(any(test, feature = "model"))]
mod walk;

pub use cleanup::{CleanupError, cleanup};
pub use found::Found;
pub use kernel::Executor;
pub use nft_netlink::generation::OwnCommits;
pub use operation::Op;
pub use plan::Planner;
pub use probe::{Missing, ProbeError, probe};
