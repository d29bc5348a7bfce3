//! How the ipvs modes end, kube-proxy's and ours: what they leave is found by evidence, serves the connections that still
//! use it, and goes when nobody does.

pub mod ipset;

pub(crate) mod exit;
pub(crate) mod usage;

pub use exit::{Exit, ExitError, Remaining, remove_unknown};

use nft_netlink::{Batch, CommitError};
use proxy_core::model::Family;

use crate::schema::scaffold;

/// Why our rules of a family are still there.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// No socket.
    #[error("cannot talk to nf_tables: {0}")]
    Socket(#[from] netlink::Error),
    /// The kernel does not want to.
    #[error("cannot remove table {table}: {source}")]
    Refused {
        /// Its name.
        table: &'static str,
        /// The kernel's words.
        source: CommitError,
    },
}

/// Removes our rules of one family. Answers whether there were any.
pub fn remove_rules(family: Family) -> Result<bool, RulesError> {
    const ENOENT: i32 = 2;
    let mut socket = netlink::Socket::open(netlink::Protocol::Netfilter)?;
    let mut batch = Batch::new();
    batch.delete_table(scaffold::table(family));
    match batch.commit(&mut socket) {
        Ok(()) => Ok(true),
        Err(CommitError::Refused(refusals)) if refusals.iter().all(|refusal| refusal.errno == ENOENT) => {
            Ok(false)
        }
        Err(source) => Err(RulesError::Refused { table: scaffold::TABLE, source }),
    }
}
