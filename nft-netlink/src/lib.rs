//! The nf_tables protocol: typed tables, chains, sets, elements and rules, written straight into netlink batches.
//!
//! A [`Batch`] is one transaction: the kernel takes all of it or nothing. Numbers are from linux/netfilter/nf_tables.h.
//! What is written is listed by the `nft` program (1.0.6 and newer) in its own language.
//!
//! ```no_run
//! use netlink::{Protocol, Socket};
//! use nft_netlink::{
//!     Batch, Chain, ChainKind, Family, Field, Hook, Register, Rule, Set, Table, Template, concat,
//!     expression::{destination_port, dnat, ip_destination, l4proto, map},
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let table = Table::new(Family::Ip, "example");
//! let endpoints = Set::map(
//!     "endpoints",
//!     &[Field::IP_DESTINATION, Field::L4_PROTOCOL, Field::DESTINATION_PORT],
//!     &[Field::IP_DESTINATION, Field::DESTINATION_PORT],
//! );
//! let mut batch = Batch::new();
//! batch.add_table(table, Some("an example"));
//! batch.add_set(table, &endpoints);
//! batch.add_chain(table, &Chain::base("services", ChainKind::Nat, Hook::Prerouting, -100));
//!
//! // dnat ip to ip daddr . meta l4proto . th dport map @endpoints
//! let (address, protocol, port) = (Register::R0, Register::R1, Register::R2);
//! let rule = Rule::new()
//!     .with(ip_destination(address))
//!     .with(l4proto(protocol))
//!     .with(destination_port(port))
//!     .with(map(address, "endpoints", address))
//!     .with(dnat(Family::Ip, address, Register::R1));
//! batch.append_rule(table, "services", &rule);
//!
//! let template = Template::new(endpoints.key_length() as usize, endpoints.data_length() as usize);
//! let key = concat(&[&[172, 30, 0, 1], &[6], &80u16.to_be_bytes()]);
//! let data = concat(&[&[10, 0, 0, 1], &8080u16.to_be_bytes()]);
//! let position = batch.add_elements(table, "endpoints").push_fixed(&template, &key, &data);
//!
//! // A refusal carries the position of what the kernel refused.
//! println!("the element is at {position:?}");
//! batch.commit(&mut Socket::open(Protocol::Netfilter)?)?;
//! # Ok(())
//! # }
//! ```

pub mod batch;
pub mod datatype;
pub mod element;
pub mod expression;
pub mod generation;
pub mod list;
pub mod monitor;
pub mod object;
pub mod probe;
pub mod rule;
pub mod set;
pub mod temporary;
pub mod trace;

mod uapi;

pub use batch::{Batch, CommitError, Elements, Position, Refusal};
pub use datatype::{Field, concat};
pub use element::{Element, ElementData, Template};
pub use expression::{Expression, Register, SetName, Verdict};
pub use object::{BaseChain, Chain, ChainKind, Family, Hook, Policy, Table};
pub use rule::Rule;
pub use set::{Data, Set};
