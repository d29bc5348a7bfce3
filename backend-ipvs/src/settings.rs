//! What the user may choose about this backend: the `ipvs` section of the configuration, and our own additions.

use std::{fmt, str::FromStr, time::Duration};

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
    /// Which packet marks select virtual servers of ours.
    pub marks: MarkSpace,
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
            marks: MarkSpace::default(),
            // As kube-proxy. A connection that nobody uses is forgotten by IPVS: TCP after 15 minutes by default.
            drain_limit: None,
        }
    }
}

/// The packet marks that are ours: those whose bits under a mask have one value. A packet carries such a mark from the last
/// rule before IPVS to the first behind it, so that it meets no rule of others; but IPVS has one table of virtual servers
/// by mark, which all programs of the node share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MarkSpace {
    tag: u32,
    mask: u32,
}

impl MarkSpace {
    /// So many bits must be free, to number the Service ports under `externalTrafficPolicy: Local` with.
    const FREE: u32 = 10;

    /// The value of the bits that are the same in all of them.
    pub const fn tag(self) -> u32 {
        self.tag
    }

    /// Which bits these are.
    pub const fn mask(self) -> u32 {
        self.mask
    }

    /// The mark of a virtual server that nothing uses: while it stands, nobody has cleared the table.
    pub const fn sentinel(self) -> u32 {
        self.tag
    }

    /// The mark of a number, of which the lower bits count, as many as are free.
    pub(crate) fn nth(self, number: u32) -> u32 {
        let free = (0..u32::BITS).filter(|bit| self.mask & (1 << bit) == 0);
        (0..).zip(free).fold(self.tag, |mark, (from, to)| mark | (number >> from & 1) << to)
    }

    /// The number of the last one.
    pub(crate) const fn last(self) -> u32 {
        u32::MAX >> self.mask.count_ones()
    }
}

impl Default for MarkSpace {
    fn default() -> Self {
        Self { tag: 0x5300_0000, mask: 0xff00_0000 }
    }
}

impl fmt::Display for MarkSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}/{:#010x}", self.tag, self.mask)
    }
}

impl FromStr for MarkSpace {
    type Err = BadMarkSpace;

    /// `VALUE/MASK`, as iptables writes marks: hexadecimal after `0x`, else decimal.
    fn from_str(text: &str) -> Result<Self, BadMarkSpace> {
        let bad = |what| BadMarkSpace { text: text.to_owned(), what };
        let number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        let (tag, mask) = text.split_once('/').ok_or_else(|| bad("is not VALUE/MASK"))?;
        let (Ok(tag), Ok(mask)) = (number(tag.trim()), number(mask.trim())) else {
            return Err(bad("holds what is no number of 32 bits"));
        };
        if tag & !mask != 0 {
            return Err(bad("has a value with bits outside its mask"));
        }
        if tag == 0 {
            return Err(bad("has the value 0, as packets without a mark do"));
        }
        if mask.count_zeros() < Self::FREE {
            return Err(bad("has a mask of more than 22 bits: the others number the Service ports"));
        }
        Ok(Self { tag, mask })
    }
}

/// A text that names no packet marks to use.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} {what}")]
pub struct BadMarkSpace {
    text: String,
    what: &'static str,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_those_whose_bits_under_the_mask_have_the_value() {
        let marks: MarkSpace = "0x2a0000c0/0xff0000c0".parse().expect("good");
        assert_eq!(
            [0, 1, 0x3f, 0x40, marks.last()].map(|number| marks.nth(number)),
            [0x2a00_00c0, 0x2a00_00c1, 0x2a00_00ff, 0x2a00_01c0, 0x2aff_ffff]
        );
        assert_eq!(marks.nth(marks.last() + 2), marks.nth(1), "more bits than are free do not count");
        assert_eq!(marks.to_string().parse::<MarkSpace>().expect("as it is written"), marks);
        assert_eq!("16777216/4278190080".parse::<MarkSpace>().expect("decimal").tag(), 0x0100_0000);
    }

    #[test]
    fn what_cannot_be_marks_is_named() {
        for (text, what) in [
            ("0x53000000", "is not VALUE/MASK"),
            ("0x53000000/", "no number"),
            ("0x153000000/0xff000000", "no number"),
            ("-1/0xff000000", "no number"),
            ("0x53000001/0xff000000", "outside its mask"),
            ("0x0/0xff000000", "the value 0"),
            ("0x53000000/0xfffffe00", "more than 22 bits"),
        ] {
            let error = text.parse::<MarkSpace>().expect_err(text).to_string();
            assert!(error.contains(text) && error.contains(what), "{error}");
        }
    }
}
