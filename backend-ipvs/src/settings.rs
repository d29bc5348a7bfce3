//! What the user may choose about this backend: the `ipvs` section of the configuration, and our own additions.

use std::{str::FromStr, time::Duration};

use ipnet::IpNet;
use ipvs_netlink::{Scheduler, Timeouts};

/// How the backend works, the same for both families.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// For Services that do not choose their own.
    pub scheduler: Scheduler,
    /// Answer ARP for a virtual IP on no interface (`arp_ignore` 1, `arp_announce` 2), as MetalLB needs it.
    pub strict_arp: bool,
    /// Virtual servers in these networks are never removed; those that a Service wants are ours there too.
    pub exclude_cidrs: Box<[IpNet]>,
    /// What is `None` or 0 stays as the kernel has it.
    pub timeouts: Timeouts,
    /// How virtual IPs become this node's own.
    pub binding: Binding,
    /// The longest an endpoint that is gone may keep its connections; `None`: for as long as somebody uses them.
    pub drain_limit: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            scheduler: Scheduler::RR,
            strict_arp: false,
            exclude_cidrs: Box::default(),
            timeouts: Timeouts::default(),
            binding: Binding::Routes,
            // As kube-proxy. A connection that nobody uses is forgotten by IPVS: TCP after 15 minutes by default.
            drain_limit: None,
        }
    }
}

/// How a virtual IP is made this node's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Binding {
    /// A local route to the device: linear in their number.
    #[default]
    Routes,
    /// An address of the device, as kube-proxy does: quadratic, but tools that list addresses see it.
    Addresses,
}

impl Binding {
    /// As it is written in a configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Routes => "routes",
            Self::Addresses => "addresses",
        }
    }
}

impl FromStr for Binding {
    type Err = UnknownBinding;

    fn from_str(text: &str) -> Result<Self, UnknownBinding> {
        [Self::Routes, Self::Addresses]
            .into_iter()
            .find(|binding| binding.as_str() == text)
            .ok_or_else(|| UnknownBinding(text.to_owned()))
    }
}

/// A text that names no way of binding.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is neither routes nor addresses")]
pub struct UnknownBinding(String);

/// The device that virtual IPs are bound to; kube-proxy's name, which tools and manifests know.
pub const DEVICE: &str = "kube-ipvs0";

/// The protocol number of our local routes (`rtm_protocol`): free in iproute2's `rt_protos`, and how a start in
/// another mode knows which routes are ours.
pub const ROUTE_PROTOCOL: u8 = 89;
