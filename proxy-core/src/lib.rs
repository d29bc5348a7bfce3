//! Decides what every Service should do on this node: pure code, no I/O, no clock, no async.
//!
//! Read in the order of the data flow: [`model`] (what the cluster says), [`store`] (remembered once),
//! [`route`] (Kubernetes' policy, one decision per Service port), [`reconciler`] (when to act), [`backend`]
//! (the seam where a decision becomes kernel state).

#![warn(missing_docs)]

pub mod backend;
pub mod claims;
pub mod conntrack;
pub mod difference;
pub mod environment;
pub mod health;
pub mod instance;
pub mod limits;
pub mod look;
pub mod model;
mod pace;
pub mod reconciler;
pub mod route;
pub mod store;
