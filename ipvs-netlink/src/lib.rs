//! The kernel's IPVS load balancer over generic netlink: virtual servers, destinations, timeouts.
//!
//! Requests are appended to a [`Batch`], which cannot fail, and a [`Socket`] delivers them 256 at a time
//! with one acknowledgement; what the kernel refused comes back by index. Dumps are typed.
//!
//! ```no_run
//! use ipvs_netlink::{Batch, Destination, Protocol, Scheduler, Service, ServiceKey, Socket};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let key = ServiceKey::new("10.96.0.1".parse()?, 443, Protocol::Tcp);
//! let mut batch = Batch::new();
//! batch.new_service(&Service::new(key, Scheduler::RR).persistent(10_800));
//! batch.new_destination(&key, &Destination::new("10.1.0.2".parse()?, 6443, 1));
//!
//! let mut ipvs = Socket::open()?;
//! for failure in ipvs.send(&mut batch)? {
//!     eprintln!("{failure}");
//! }
//! for entry in ipvs.services()? {
//!     println!("{} by {}", entry.service.key, entry.service.scheduler);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The sync daemon's commands are left out.

#![warn(missing_docs)]

mod decode;
mod encode;
mod error;
mod socket;
mod types;
mod uapi;

pub use encode::Batch;
pub use error::{Error, Failure, Malformed};
pub use socket::Socket;
pub use types::{
    Destination, DestinationEntry, Family, Forwarding, Info, InvalidName, Name, Netmask, Protocol, Scheduler,
    Service, ServiceEntry, ServiceFlags, ServiceKey, Stats, Timeouts, Tunnel, TunnelKind,
};
