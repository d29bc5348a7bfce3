//! Decides which chains to write. Pure: no I/O, no clock.

mod dispatch;
pub(crate) mod planner;
pub(crate) mod removal;
pub(crate) mod scaffold;
pub(crate) mod service;
