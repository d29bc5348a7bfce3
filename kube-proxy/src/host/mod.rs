//! What is read and set on the node itself: sysctls, addresses, conntrack, the FORWARD policy, what other modes left.

pub(crate) mod cleanup;
pub(crate) mod conntrack;
pub(crate) mod forwarding;
pub(crate) mod interfaces;
pub(crate) mod sysctl;
