//! A packet on its way through the tables.

use std::net::{IpAddr, SocketAddr};

use proxy_core::model::Protocol;

/// The first packet of a connection.
#[derive(Debug, Clone)]
pub struct Packet<'a> {
    /// The sender's address.
    pub source: IpAddr,
    /// The interface it comes in through; `None` for one that the node itself sends.
    pub interface: Option<&'a str>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Where it is addressed to.
    pub to: SocketAddr,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It goes to an endpoint.
    Translated {
        /// The endpoint's address and port.
        to: SocketAddr,
        /// With the node's address as its source.
        masqueraded: bool,
    },
    /// Refused by ICMP.
    Rejected,
    /// Dropped in silence.
    Dropped,
    /// It goes its way.
    Passed,
}

/// What a packet has become on its way.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    pub(super) to: SocketAddr,
    pub(super) translated: bool,
    pub(super) mark: u32,
    pub(super) masqueraded: bool,
}

impl State {
    pub(super) fn fate(self) -> Fate {
        if self.translated {
            Fate::Translated { to: self.to, masqueraded: self.masqueraded }
        } else {
            Fate::Passed
        }
    }
}
