//! The IPVS backend: virtual servers for every Service port, virtual IPs as local routes, and nftables sets for what
//! IPVS cannot decide: masquerading, source ranges, traffic policies.
//!
//! Read [`render`] first (what a route is in the kernel), then [`plan`] (from one state to another).

pub mod found;
pub mod kernel;
pub mod marks;
pub mod op;
pub mod open;
pub mod options;
pub mod plan;
pub mod servers;
pub mod settings;
pub mod tables;

mod audit;
mod bindings;
mod draft;
mod drain;
mod element;
mod journal;
#[cfg(test)]
mod model;
mod order;
mod refusal;
mod render;
mod scaffold;
mod state;
mod survey;
mod sysctl;

pub use drain::Reaped;
pub use kernel::IpvsExecutor;
pub use nft_netlink::generation::OwnCommits;
pub use open::{OpenError, open};
pub use plan::IpvsPlanner;
pub use render::OURS;
pub use settings::{Binding, Settings};

/// Makes the kernel settings alone, which takes more privileges than the rest.
pub fn prepare(settings: &Settings) {
    proxy_core::model::Family::BOTH.into_iter().for_each(|family| sysctl::apply(settings, family));
}
