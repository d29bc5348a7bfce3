//! `net.netfilter.nf_conntrack_acct`: has conntrack count packets and bytes. Set only where that is asked for, and given back.
//!
//! A table without chains notes that it was 0 before us, so that a later process gives it back too, after a crash.

use std::{fs, io};

use netlink::{Protocol, Socket};
use nft_netlink::{Batch, CommitError, Family, Table, list};

const SETTING: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";
const NOTE: Table<'_> = Table::new(Family::Ip, "switchyard-accounting");
const WAS_OFF: &str = "net.netfilter.nf_conntrack_acct was 0";

/// Why bytes are not counted, or go on being counted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountingError {
    #[error("{SETTING}: {0}")]
    Setting(#[from] io::Error),
    #[error("cannot talk to nf_tables: {0}")]
    Socket(#[from] netlink::Error),
    #[error("the table switchyard-accounting: {0}")]
    Note(#[from] CommitError),
}

/// Has connections counted that begin from now on.
pub(crate) fn begin() -> Result<(), AccountingError> {
    if fs::read_to_string(SETTING)?.trim() != "0" {
        return Ok(());
    }
    // The note first: a crash in between leaves a note of what is so.
    let mut batch = Batch::new();
    batch.add_table(NOTE, Some(WAS_OFF));
    batch.commit(&mut Socket::open(Protocol::Netfilter)?)?;
    fs::write(SETTING, "1")?;
    Ok(())
}

/// Puts back what was, if it was us who changed it.
pub(crate) fn end() -> Result<(), AccountingError> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    if !list::tables(&mut socket, NOTE.family)?.iter().any(|table| *table.name == *NOTE.name) {
        return Ok(());
    }
    fs::write(SETTING, "0")?;
    let mut batch = Batch::new();
    batch.delete_table(NOTE);
    batch.commit(&mut socket)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn what_was_off_is_given_back_and_what_was_on_stays() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests run as root)");
        let value = || fs::read_to_string(SETTING).expect("a setting").trim().to_owned();
        let set = |text: &str| fs::write(SETTING, text).expect("a setting");
        set("0");
        begin().expect("on");
        begin().expect("again");
        assert_eq!(value(), "1");
        end().expect("off");
        end().expect("again");
        assert_eq!(value(), "0");
        set("1");
        begin().expect("it is on");
        end().expect("it is not ours");
        assert_eq!(value(), "1");
    }
}
