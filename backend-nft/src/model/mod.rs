//! A table without a kernel, for tests here and in other crates (feature `model`): where would this packet go?

#[cfg(test)]
mod cost;
#[cfg(test)]
mod history;
#[cfg(test)]
mod limits;
#[cfg(test)]
mod stories;
mod table;
mod walk;

pub use table::{End, Fate, Model, Packet};
pub use walk::{Met, Moment};
