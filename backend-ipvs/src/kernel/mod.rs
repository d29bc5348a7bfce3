//! Operations as requests to the kernel, and what it holds.

pub mod schedulers;
pub mod servers;
pub mod tables;

pub(crate) mod audit;
pub(crate) mod bindings;
pub(crate) mod executor;
pub(crate) mod refusal;
pub(crate) mod survey;
pub(crate) mod sysctl;

pub use executor::IpvsExecutor;
