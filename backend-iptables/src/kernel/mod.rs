//! The half that touches the kernel: runs the programs, reads the tables, watches whether they stand.

pub mod accounting;
pub(crate) mod cleanup;
mod drift;
pub(crate) mod executor;
pub mod limits;
mod process;
mod trial;
pub mod variant;
