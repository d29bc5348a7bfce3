//! Names of the packet counters that rules refer to.

/// Packets that `KUBE-FORWARD` dropped because connection tracking calls them invalid.
pub const INVALID_DROPPED: &str = "ct_state_invalid_dropped_pkts";
/// Packets to node ports on 127.0.0.0/8.
pub const LOCALHOST_ACCEPTED: &str = "localhost_nps_accepted_pkts";

/// Which of the counters exist, so that rules may name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// [`INVALID_DROPPED`].
    pub invalid_dropped: bool,
    /// [`LOCALHOST_ACCEPTED`].
    pub localhost_accepted: bool,
}

impl Counters {
    /// The name of one that exists.
    pub(crate) fn any(self) -> Option<&'static str> {
        match self {
            Self { invalid_dropped: true, .. } => Some(INVALID_DROPPED),
            Self { localhost_accepted: true, .. } => Some(LOCALHOST_ACCEPTED),
            _ => None,
        }
    }
}
