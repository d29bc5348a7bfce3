//! The IPVS backend: virtual servers for every Service port, virtual IPs as local routes, and nftables sets for what
//! IPVS cannot decide: masquerading, source ranges, traffic policies.
//!
//! Four rooms, each using only those before it: `settings` (what the user may choose), [`schema`] (what there is in the
//! kernel, and what a route becomes there), [`plan`] (from one state to another, pure), [`kernel`] (the requests). Read
//! [`schema::render`] first.

#![warn(missing_docs)]

pub mod kernel;
pub mod leaving;
pub mod plan;
pub mod schema;
pub mod settings;

mod compare;
#[cfg(test)]
mod model;
mod open;

pub use compare::{compare, survey};
pub use kernel::IpvsExecutor;
pub use nft_netlink::generation::OwnCommits;
pub use open::{OpenError, open};
pub use plan::IpvsPlanner;
pub use settings::{Binding, MarkSpace, Settings};

use proxy_core::model::Family;

/// Makes the kernel settings alone, which takes more privileges than the rest.
pub fn prepare(settings: &Settings) {
    Family::BOTH.into_iter().for_each(|family| kernel::sysctl::apply(settings, family));
}
