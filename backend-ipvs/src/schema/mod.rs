//! What there is in the kernel: the objects, by what ours are told from others', and what a route is among them.

pub mod found;
pub mod op;
pub mod options;
pub mod ownership;
pub mod render;

pub(crate) mod element;
pub(crate) mod mix;
pub(crate) mod scaffold;
