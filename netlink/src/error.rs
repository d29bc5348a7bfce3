//! What can go wrong on a netlink socket, by what the caller does next.

use std::{fmt, io};

/// The exchange as a whole went wrong. What the kernel did with the request is known only where the variant says so.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused the one request that was made; nothing happened.
    #[error("{0}")]
    Refused(Failure),
    #[error("{doing}: {source}")]
    Os { doing: &'static str, source: io::Error },
    /// Nothing reached the kernel (`EMSGSIZE`: the send buffer is too small and may not be raised).
    #[error("the request could not be sent: {0}")]
    Unsent(#[source] io::Error),
    /// `ENOBUFS`: the receive buffer overflowed, so some answers are missing.
    #[error("the kernel's answers did not fit into the receive buffer, some are lost")]
    RepliesLost,
    #[error("the kernel did not answer in time")]
    TimedOut,
    /// Nothing was sent.
    #[error("an attribute of the request is longer than 65,535 bytes")]
    TooLong,
    #[error("the kernel's answer makes no sense: {0}")]
    Malformed(&'static str),
}

impl Error {
    /// The errno of a refusal.
    pub const fn refused(&self) -> Option<i32> {
        match self {
            Self::Refused(failure) => Some(failure.errno),
            _ => None,
        }
    }
}

/// One request that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which request: its place among those sent together, from 0.
    pub index: usize,
    /// A positive errno.
    pub errno: i32,
    /// Where the offending attribute stands, in bytes from the start of the request's header.
    pub offset: Option<u32>,
    /// What the kernel says about it.
    pub message: Option<String>,
}

impl Failure {
    pub fn as_io(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "request {}: {}", self.index, self.as_io())?;
        if let Some(message) = &self.message {
            write!(f, ": {message}")?;
        }
        match self.offset {
            Some(offset) => write!(f, " (at byte {offset})"),
            None => Ok(()),
        }
    }
}
