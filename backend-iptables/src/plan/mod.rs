//! Decides which chains to write. Pure: no I/O, no clock.

mod dispatch;
pub(crate) mod planner;
pub(crate) mod removal;
mod scaffold;
mod service;
