//! What the tests and benchmarks of all backends share: an API server to watch, a network to send packets through,
//! and an oracle that says where each packet may go.

pub mod apiserver;
pub mod connect_proxy;
mod connection;
pub mod history;
pub mod interrupt;
pub mod kube_proxy_layouts;
pub mod lab;
pub mod manifest;
pub mod network;
pub mod oracle;
pub mod pace;
pub mod playground;
mod process_tree;
pub mod random;
pub mod real_apiserver;
pub mod scale;
