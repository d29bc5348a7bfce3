//! Netlink framing, batched sockets, links, addresses, routes, news of what went, conntrack and its events.
//!
//! `attr` writes and reads messages, `socket` and `pipeline` carry them, the rest speaks one kernel subsystem each.

pub mod address;
pub mod attr;
pub mod conntrack;
pub mod flow_events;
pub mod link;
pub mod loss;
pub mod message;
pub mod pipeline;
pub mod route;
pub mod scratch;
pub mod socket;

mod error;
mod ip;
mod rtnetlink;

pub use attr::{Attribute, Attributes, Nest, Writer};
pub use error::{Error, Failure};
pub use message::{Message, Messages, flags};
pub use pipeline::Pipeline;
pub use socket::{Dump, Protocol, Socket, Traffic, wait};
