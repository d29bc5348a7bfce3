//! Asks the kernel, before anything is installed, for each part of nf_tables that our rules use.

use std::fmt;

use netlink::{Protocol, Socket};
use nft_netlink::{
    CommitError,
    probe::{self, Feature},
};
use proxy_core::model::Family;

use crate::kernel::encode::encoding;

/// A part of the kernel that is not there, and without which the rules are refused (all but [`Missing::is_hash`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing(probe::Missing);

impl Missing {
    /// Whether the rules can do without: see [`crate::Planner::without_hash`].
    pub fn is_hash(&self) -> bool {
        self.0.feature == Feature::Hash
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let probe::Missing { feature, family, errno } = self.0;
        write!(
            f,
            "the kernel lacks {}: {}, which {} needs ({})",
            feature.wants(family),
            feature.name(),
            purpose(feature).unwrap_or("nothing"),
            std::io::Error::from_raw_os_error(errno)
        )
    }
}

/// Why nothing can be said about the kernel's parts.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// There is no way to ask the kernel.
    #[error("cannot talk to nf_tables: {0}")]
    Socket(#[from] netlink::Error),
    /// The kernel refuses what every use of nf_tables needs.
    #[error("nf_tables cannot be used (it takes CONFIG_NF_TABLES, and CAP_NET_ADMIN): {0}")]
    Unusable(#[from] CommitError),
}

/// What the kernel lacks for this family; empty if all is well. Nothing of the question can be seen by anybody else.
pub fn probe(family: Family) -> Result<Vec<Missing>, ProbeError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let missing = probe::missing(&mut socket, encoding(family))?;
    // The kernel lets go of such a socket only when all processors have left what was tried (nft_rcv_nl_event waits for
    // RCU): some 15 to 40 ms in which there is better to do.
    std::thread::spawn(move || drop(socket));
    Ok(missing.into_iter().filter(|missing| purpose(missing.feature).is_some()).map(Missing).collect())
}

/// What a feature is for; `None` where our rules do without it.
const fn purpose(feature: Feature) -> Option<&'static str> {
    Some(match feature {
        Feature::Tables => "everything",
        Feature::NatChain | Feature::Nat => "translation to endpoints",
        Feature::Masquerade => "masquerading",
        Feature::Fib => "the way to NodePorts",
        Feature::Numgen => "the choice of an endpoint",
        Feature::Hash => "leading clients by their address where the memory of session affinity is full",
        Feature::Conntrack => "telling new connections from established ones",
        Feature::Reject => "refusing connections to Services without endpoints",
        Feature::ConcatenatedMap => "finding a Service's endpoints",
        Feature::DynamicMap | Feature::Counter => "session affinity",
        Feature::BitwiseShift | Feature::IntervalConcatenation | Feature::Destroy => return None,
    })
}

#[cfg(test)]
mod tests {
    use nft_netlink::Family;

    use super::*;

    #[test]
    fn what_is_missing_is_named_by_its_option_and_by_what_it_is_for() {
        let missing = Missing(probe::Missing { feature: Feature::Fib, family: Family::Ip6, errno: 2 });
        assert_eq!(
            missing.to_string(),
            "the kernel lacks CONFIG_NFT_FIB_IPV6: fib lookups, which the way to NodePorts needs \
             (No such file or directory (os error 2))"
        );
    }
}
