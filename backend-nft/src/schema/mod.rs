//! The language of the table: names, values, elements, rules and operations on them, as data that can be printed.
//!
//! Nothing here decides, and nothing here knows netlink.

pub(crate) mod class_chain;
pub(crate) mod element;
pub(crate) mod found;
pub(crate) mod name;
pub(crate) mod operation;
pub(crate) mod scaffold;
pub(crate) mod size_class;
pub(crate) mod statement;
mod text;
pub(crate) mod value;
