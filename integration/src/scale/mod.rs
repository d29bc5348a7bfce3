//! The scale benchmark: the same cluster for every backend, and for any other kube-proxy, measured from outside.
//!
//! A contender is a process with a configuration file. It is judged by packets, by what the kernel announces and by what
//! the kernel accounts for it. What it says about itself is shown in one place, which says so, and on a live cluster.

#![expect(clippy::disallowed_methods, reason = "measuring is reading the clock")]

mod answering;
mod axis;
mod both_guests;
mod census;
mod changes;
mod chart;
mod churn;
pub mod cluster;
mod commits;
mod comparison;
mod completeness;
mod connecting;
pub mod contender;
mod control_group;
mod disturbance;
pub mod document;
mod exposition;
mod first_packet;
mod flood;
pub mod guest;
mod held;
pub mod html;
mod kernel_memory;
mod listing;
pub mod machine;
pub mod matrix;
mod neighbour;
pub mod panel;
pub mod plan;
mod process_usage;
mod quantity;
pub mod question;
mod rate_chart;
mod real_cluster;
mod recorder;
mod removal;
pub mod results;
pub mod round_trip;
pub mod round_trip_table;
mod run;
mod seed;
pub mod server;
mod site;
#[cfg(test)]
mod slow_proxy;
mod stack_chart;
pub mod statistics;
pub mod table;
pub mod workload;
