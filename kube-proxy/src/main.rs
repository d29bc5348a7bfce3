//! The `kube-proxy` program.
fn main() {}
