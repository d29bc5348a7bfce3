//! What is read and set on the node itself: sysctls, addresses, conntrack, the FORWARD policy, what other modes left; and what the
//! process gives up.

pub(crate) mod accounting;
pub(crate) mod cleanup;
pub(crate) mod confinement;
pub(crate) mod conntrack;
pub(crate) mod forwarding;
pub(crate) mod interfaces;
pub(crate) mod service_metrics;
pub(crate) mod sysctl;
