//! Decides what to write: one Service port's change as operations, in steps, and everything anew.
//!
//! [`planner`] is the seam to the engine; [`draft`] turns one change into operations, [`placement`] and [`sticky`] say where
//! endpoints stand, [`full`] writes a generation, [`upkeep`] clears away, [`state`] is what is remembered.

mod draft;
mod full;
mod ids;
mod placement;
mod planner;
mod shared_keys;
mod slots;
mod state;
mod sticky;
mod upkeep;

pub(crate) use placement::comment;
pub use planner::Planner;
pub(crate) use planner::class_step;
