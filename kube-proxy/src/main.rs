//! The `kube-proxy` program.

mod version;
mod flags;
mod feature_gates;
mod config;
mod engine;
mod slim;
mod watch;

fn main() {}
