//! From one state of the kernel to another: pure, without a clock.

pub(crate) mod draft;
pub(crate) mod drain;
pub(crate) mod journal;
pub(crate) mod marks;
pub(crate) mod order;
pub(crate) mod planner;
pub(crate) mod state;

pub use planner::IpvsPlanner;
