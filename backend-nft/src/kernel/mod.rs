//! Writes plans into the kernel, and tells whether what was written still stands.

mod census;
mod cleanup;
mod commit;
mod drift;
mod encode;
mod encode_rule;
mod encode_set;
mod executor;
mod probe;
mod reading;
mod tally;

pub use cleanup::{CleanupError, cleanup};
pub(crate) use encode::{hook_of, table};
pub(crate) use encode_set::key_bytes;
pub use executor::Executor;
pub(crate) use executor::live_generation;
pub use probe::{Missing, ProbeError, probe};
