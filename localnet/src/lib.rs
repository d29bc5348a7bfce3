//! NodePorts on 127.0.0.1 need `net.ipv4.conf.all.route_localnet = 1`, and then the kernel takes packets from and to
//! 127.0.0.0/8 from outside as well (CVE-2020-8558). So that setting and the rules that make it safe come and go together.
//!
//! The rules are a table of their own: whoever takes over the table of Services, or removes it, leaves them alone. The table's
//! comment says what the setting was before, so that it can be put back by another process, after a crash, in another mode.
//! In the order of both ways there is no moment in which the setting stands without the rules.
#![warn(missing_docs)]

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, Ordering},
};

use netlink::{Protocol, Socket};
use nft_netlink::{
    Batch, Chain, ChainKind, CommitError, Family, Hook, Register, Rule, Table,
    expression::{Comparison, destination_prefix, drop_packet, input_name, interface, source_prefix},
    list,
};

/// The table that holds the guard.
const TABLE: Table<'_> = Table::new(Family::Ip, "switchyard-localnet");
const GUARD: &str = "guard";
/// Before any destination is translated (`NF_IP_PRI_NAT_DST` is -100), where kube-proxy has its guard.
const PRIORITY: i32 = -110;
const SETTING: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
const WAS_CLOSED: &str = "net.ipv4.conf.all.route_localnet was 0";
const WAS_OPEN: &str = "net.ipv4.conf.all.route_localnet was 1";

/// The setting was 0 before this process set it, should somebody delete the table in which that is noted.
static FOUND_CLOSED: AtomicBool = AtomicBool::new(false);

/// Why 127.0.0.0/8 is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guard could not be read.
    #[error("cannot talk to nf_tables: {0}")]
    Socket(#[from] netlink::Error),
    /// The guard could not be written; the setting is as it was.
    #[error("cannot write the table switchyard-localnet: {0}")]
    Guard(#[from] CommitError),
    /// The setting could not be read or written; the guard stands.
    #[error("{SETTING}: {0}")]
    Setting(#[from] io::Error),
}

/// Lets packets from and to 127.0.0.0/8 be routed; those from outside are dropped before.
pub fn open() -> Result<(), Error> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let was_open = is_open()?;
    // Where all stands nothing is written: whoever watches the rule set would take it for a change of somebody else's.
    if was_open && is_safe(&mut socket)? {
        return Ok(());
    }
    guard(&mut socket, was_open)?;
    if !was_open {
        fs::write(SETTING, "1")?;
    }
    Ok(())
}

/// Nobody needs it any more: puts back what was, and takes the guard away. Where the setting was 1 before, or nobody knows, the
/// guard stays, or comes, for as long as it is 1.
pub fn close() -> Result<(), Error> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    let note = note(&mut socket)?;
    shut(&mut socket, note)
}

/// As [`close`], for good: where there is no guard, nothing is done.
pub fn leave() -> Result<(), Error> {
    let mut socket = Socket::open(Protocol::Netfilter)?;
    match note(&mut socket)? {
        Some(note) => shut(&mut socket, Some(note)),
        None => Ok(()),
    }
}

fn shut(socket: &mut Socket, note: Option<Box<str>>) -> Result<(), Error> {
    let open = is_open()?;
    if note.as_deref() == Some(WAS_CLOSED) || FOUND_CLOSED.load(Ordering::Relaxed) {
        if open {
            fs::write(SETTING, "0")?;
        }
        FOUND_CLOSED.store(false, Ordering::Relaxed);
    } else if open {
        return guard(socket, true);
    }
    remove_table(socket)
}

/// Whether no packet from outside reaches what listens on 127.0.0.1 only: the setting is 0, or the guard stands.
pub fn is_safe(socket: &mut Socket) -> Result<bool, netlink::Error> {
    if !is_open().unwrap_or(false) {
        return Ok(true);
    }
    let stands = |chain: list::FoundChain| {
        let hooked = chain.hook == Some((0, PRIORITY)) && chain.kind.as_deref() == Some("filter");
        hooked && chain.uses == rules().len() as u32
    };
    let awake =
        list::tables(socket, TABLE.family)?.iter().any(|table| *table.name == *TABLE.name && !table.dormant);
    Ok(awake && list::chain(socket, TABLE, GUARD)?.is_some_and(stands))
}

/// Whether packets from and to 127.0.0.0/8 are routed.
fn is_open() -> io::Result<bool> {
    Ok(fs::read_to_string(SETTING)?.trim() != "0")
}

/// What the table says of the setting before us.
fn note(socket: &mut Socket) -> Result<Option<Box<str>>, netlink::Error> {
    let tables = list::tables(socket, TABLE.family)?;
    Ok(tables
        .into_iter()
        .find(|table| *table.name == *TABLE.name)
        .map(|table| table.comment.unwrap_or_default()))
}

/// Writes the guard, the same again where it stands. A table that is there keeps its note.
fn guard(socket: &mut Socket, is_open: bool) -> Result<(), Error> {
    if !is_open {
        // Whatever a note says: we are the first to open it now.
        remove_table(socket)?;
        FOUND_CLOSED.store(true, Ordering::Relaxed);
    }
    let was_closed = FOUND_CLOSED.load(Ordering::Relaxed);
    let mut batch = Batch::new();
    batch.add_table(TABLE, Some(if was_closed { WAS_CLOSED } else { WAS_OPEN }));
    batch.add_chain(TABLE, &Chain::base(GUARD, ChainKind::Filter, Hook::Prerouting, PRIORITY));
    batch.flush_chain(TABLE, GUARD);
    for rule in rules() {
        batch.append_rule(TABLE, GUARD, &rule);
    }
    batch.commit(socket)?;
    Ok(())
}

fn remove_table(socket: &mut Socket) -> Result<(), Error> {
    const ENOENT: i32 = 2;
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    match batch.commit(socket) {
        Err(CommitError::Refused(refusals)) if refusals.iter().all(|refusal| refusal.errno == ENOENT) => {
            Ok(())
        }
        outcome => Ok(outcome?),
    }
}

/// `ip daddr 127.0.0.0/8 iifname != "lo" drop`, and the same for the source. The address comes first: few packets go on.
fn rules() -> [Rule; 2] {
    let net = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0));
    [destination_prefix, source_prefix].map(|prefix| {
        Rule::new()
            .with_all(prefix(net, 8, Comparison::Equal, Register::R0))
            .with(input_name(Register::R0))
            .with(interface(Register::R0, Comparison::NotEqual, "lo"))
            .with(drop_packet())
    })
}
