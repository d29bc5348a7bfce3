//! The language: names of tables and chains, rules as text, operations, and what was found in the kernel.
//!
//! Nothing here decides anything, and nothing here does I/O.

pub mod chains;
pub(crate) mod counters;
pub(crate) mod found;
pub(crate) mod op;
pub mod restore;
pub(crate) mod rule;
pub(crate) mod stamp;
pub(crate) mod variant;
