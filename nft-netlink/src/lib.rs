//! The nf_tables protocol: typed tables, chains, sets, elements and rules, written straight into netlink batches.
//!
//! A [`Batch`] is one transaction: the kernel takes all of it or nothing. Numbers are from linux/netfilter/nf_tables.h.

pub mod batch;
pub mod datatype;
pub mod element;
pub mod expression;
pub mod list;
pub mod object;
pub mod probe;
pub mod rule;
pub mod set;

mod uapi;

pub use batch::{Batch, CommitError, Position, Refusal};
pub use datatype::{Field, concat};
pub use element::{Element, ElementData, Elements, Template};
pub use expression::{Expression, Register, SetName, Verdict};
pub use object::{BaseChain, Chain, ChainKind, Family, Hook, Policy, Table};
pub use rule::Rule;
pub use set::{Data, Set};
