//! Two packet counters of the kernel (`nfacct` objects), by which rules count what they drop or let through, and from
//! which metrics are read. They exist once per network namespace, for both families.

use netlink::{Error, Protocol, Socket, flags};
use nix::libc;

pub use crate::schema::counters::{Counters, INVALID_DROPPED, LOCALHOST_ACCEPTED};

/// `NFNL_SUBSYS_ACCT << 8` of linux/netfilter/nfnetlink.h, plus the message of nfnetlink_acct.h.
const NEW: u16 = 7 << 8;
const GET: u16 = 7 << 8 | 1;
/// Attributes of nfnetlink_acct.h.
const NAME: u16 = 1;
const PACKETS: u16 = 2;
/// `struct nfgenmsg` for all families.
const HEADER: [u8; 4] = [0; 4];

/// Creates the counters where the kernel has them at all (CONFIG_NETFILTER_NETLINK_ACCT).
pub(crate) fn ensure() -> Counters {
    let Ok(mut socket) = Socket::open(Protocol::Netfilter) else { return Counters::default() };
    let mut create = |name: &str| {
        let result = socket.request(NEW, flags::CREATE, |message| {
            message.raw(&HEADER);
            message.str(NAME, name);
        });
        match result {
            Ok(()) => true,
            // It exists.
            Err(error) if error.refused() == Some(libc::EBUSY) => true,
            Err(error) => {
                tracing::debug!(counter = name, %error, "no such counter in this kernel");
                false
            }
        }
    };
    Counters { invalid_dropped: create(INVALID_DROPPED), localhost_accepted: create(LOCALHOST_ACCEPTED) }
}

/// What a counter says; `None` if it does not exist.
pub fn packets(counter: &str) -> Result<Option<u64>, Error> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let answer = socket.ask(
        GET,
        0,
        |message| {
            message.raw(&HEADER);
            message.str(NAME, counter);
        },
        |message| message.attributes(HEADER.len()).get(PACKETS)?.be64(),
    );
    match answer {
        Ok(packets) => Ok(Some(packets)),
        Err(error) if matches!(error.refused(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
        Err(error) => Err(error),
    }
}
