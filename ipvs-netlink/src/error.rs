//! What can go wrong between a request and its effect.

use std::io;

/// Why a request or dump did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no IPVS, or may not load it.
    #[error("this kernel has no IPVS: load the module ip_vs, or use a kernel built with CONFIG_IP_VS")]
    Unsupported,
    /// The kernel answered one request with an error number.
    #[error("IPVS refused the request: {0}")]
    Refused(#[source] io::Error),
    /// The table changed while it was dumped: ask again.
    #[error("the IPVS table changed while it was read")]
    Interrupted,
    /// The socket failed, or replies were lost: what took effect is unknown.
    #[error("netlink to IPVS: {0}")]
    Lost(#[from] io::Error),
    /// The kernel sent what this crate cannot read.
    #[error("cannot read the kernel's answer: {0}")]
    Malformed(#[from] Malformed),
}

/// Which part of a message could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A header or attribute ends before its length says.
    #[error("it is cut off")]
    CutOff,
    /// An attribute that must be there is not.
    #[error("attribute {0} is missing")]
    Missing(&'static str),
    /// An attribute whose length or value its type does not have.
    #[error("attribute {0} has no such value")]
    Invalid(&'static str),
}

/// One request of a batch that the kernel did not carry out; the others were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its index in the batch.
    pub index: usize,
    /// The error number, positive.
    pub errno: i32,
    /// The kernel's reason in words, where it gives one.
    pub reason: Option<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "request {}: {}", self.index, io::Error::from_raw_os_error(self.errno))?;
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}
