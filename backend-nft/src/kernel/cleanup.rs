//! Removes the table, ours or kube-proxy's: both have the same name.

use netlink::{Protocol, Socket};
use nft_netlink::{Batch, CommitError};
use proxy_core::model::Family;

use crate::kernel::encode::table;

/// Why the table of a family is still there.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// There is no way to ask the kernel.
    #[error("cannot talk to nf_tables: {0}")]
    Socket(#[from] netlink::Error),
    /// The kernel keeps it.
    #[error("cannot remove table {family} kube-proxy: {source}")]
    Refused {
        /// `ip` or `ip6`.
        family: &'static str,
        /// What the kernel said.
        source: CommitError,
    },
}

/// Removes `table ip kube-proxy` or `table ip6 kube-proxy` with all that is in it. Says whether there was one.
pub fn cleanup(family: Family) -> Result<bool, CleanupError> {
    const ENOENT: i32 = 2;
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let mut batch = Batch::new();
    batch.delete_table(table(family));
    match batch.commit(&mut socket) {
        Ok(()) => Ok(true),
        Err(CommitError::Refused(refusals)) if refusals.iter().all(|refusal| refusal.errno == ENOENT) => {
            Ok(false)
        }
        Err(source) => Err(CleanupError::Refused { family: table(family).family.name(), source }),
    }
}
