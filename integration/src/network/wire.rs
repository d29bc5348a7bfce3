//! The protocols that probes and servers speak, and what a server says about a request.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a server answers: who it is, on which port, and where it believes the request came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub by: String,
    pub port: u16,
    pub seen_source: SocketAddr,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.by, self.port, self.seen_source)
    }
}

impl FromStr for Answer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace();
        let mut parse = || {
            let by = words.next()?.to_owned();
            let port = words.next()?.parse().ok()?;
            let seen: SocketAddr = words.next()?.parse().ok()?;
            Some(Self { by, port, seen_source: SocketAddr::new(plain(seen.ip()), seen.port()) })
        };
        parse().ok_or_else(|| format!("not an answer of a server: {text:?}"))
    }
}

/// A rule in the sender's own output hook fails the call; whether it dropped or refused is seen afterwards.
pub(crate) fn even_if_filtered(sent: io::Result<usize>) -> io::Result<()> {
    match sent {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => Err(error),
        _ => Ok(()),
    }
}

/// An IPv4-mapped address as the IPv4 address it is.
pub(crate) fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}
