//! The `kube-proxy` program.

mod engine;
mod slim;
mod watch;

fn main() {}
