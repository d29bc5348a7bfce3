//! The addresses of this network namespace's interfaces, and the news that they changed.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use crate::{
    attr::Writer,
    error::Error,
    ip::{AddressFamily, full_length, read_ip, write_ip},
    message::{Messages, flags},
    pipeline::Pipeline,
    rtnetlink::{address as uapi, group, message as kind},
    socket::{Dump, Protocol, Socket},
};

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InterfaceAddress {
    pub address: IpAddr,
    pub prefix: u8,
    /// Index of the interface.
    pub interface: u32,
    /// `RT_SCOPE_*` of linux/rtnetlink.h.
    pub scope: u8,
    /// Not usable (yet): IPv6 duplicate address detection is running or has failed.
    pub unusable: bool,
}

/// All addresses of both families, in the kernel's order.
pub fn list(socket: &mut Socket) -> Result<Vec<InterfaceAddress>, Error> {
    // An address that comes or goes meanwhile interrupts the dump; the list is short, so it is simply read again.
    const TRIES: usize = 5;
    let mut found = Vec::new();
    for _ in 0..TRIES {
        found.clear();
        let outcome = socket.dump(
            kind::GET_ADDRESS,
            |writer| writer.raw(&[0; uapi::HEADER]),
            |message| {
                if message.kind == kind::NEW_ADDRESS {
                    found.extend(parse(message.payload));
                }
            },
        )?;
        if outcome == Dump::Complete {
            break;
        }
    }
    Ok(found)
}

/// Gives an interface an address with the longest prefix; `EEXIST` if it has it. Answers the request's index.
pub fn push_add(pipeline: &mut Pipeline, address: IpAddr, interface: u32) -> usize {
    pipeline
        .push(kind::NEW_ADDRESS, flags::CREATE | flags::EXCLUSIVE, |writer| write(writer, address, interface))
}

/// Takes an address with the longest prefix from an interface; `EADDRNOTAVAIL` if it does not have it.
pub fn push_delete(pipeline: &mut Pipeline, address: IpAddr, interface: u32) -> usize {
    pipeline.push(kind::DELETE_ADDRESS, 0, |writer| write(writer, address, interface))
}

fn write(writer: &mut Writer, address: IpAddr, interface: u32) {
    writer.raw(&[AddressFamily::of(address).number(), full_length(address), 0, 0]);
    writer.raw(&interface.to_ne_bytes());
    write_ip(writer, uapi::LOCAL, address);
    write_ip(writer, uapi::ADDRESS, address);
    if address.is_ipv6() {
        // The address is shared by many hosts on purpose; nobody is to be asked whether it is taken.
        writer.u32(uapi::FLAGS, uapi::NO_DETECTION);
    }
}

pub(crate) fn parse(payload: &[u8]) -> Option<InterfaceAddress> {
    let &[family, prefix, flags, scope, i0, i1, i2, i3] = payload.first_chunk::<{ uapi::HEADER }>()?;
    let attributes = crate::attr::Attributes::new(&payload[uapi::HEADER..]);
    let address = attributes.get(uapi::LOCAL).or_else(|| attributes.get(uapi::ADDRESS));
    let address = read_ip(&address?).filter(|address| AddressFamily::of(*address).number() == family)?;
    let flags = attributes.get(uapi::FLAGS).and_then(|flags| flags.u32()).unwrap_or_else(|| flags.into());
    let tentative = flags & uapi::TENTATIVE != 0 && flags & uapi::OPTIMISTIC == 0;
    let interface = u32::from_ne_bytes([i0, i1, i2, i3]);
    Some(InterfaceAddress {
        address,
        prefix,
        interface,
        scope,
        unusable: tentative || flags & uapi::DETECTION_FAILED != 0,
    })
}

/// Says when addresses come and go.
#[derive(Debug)]
pub struct AddressMonitor(Socket);

impl AddressMonitor {
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::join(Protocol::Route, group::IPV4_ADDRESS | group::IPV6_ADDRESS)?;
        Ok(Self(socket))
    }

    /// Waits until something changed, or until the time is up. Lost news count as a change.
    pub fn wait(&mut self, limit: Duration) -> Result<bool, Error> {
        self.0.set_patience(limit.max(Duration::from_millis(1)))?;
        let changed = match self.0.receive() {
            Ok(messages) => tells_of_address(messages),
            Err(Error::RepliesLost) => true,
            Err(Error::TimedOut) => false,
            Err(Error::Os { source, .. }) if source.kind() == io::ErrorKind::Interrupted => false,
            Err(error) => return Err(error),
        };
        // What is queued behind it is part of the same news.
        Ok(self.drain()? || changed)
    }

    /// Takes what is queued, without waiting: for a caller that polls the descriptor. Lost news count as a change.
    pub fn drain(&mut self) -> Result<bool, Error> {
        let mut changed = false;
        loop {
            match self.0.receive_now() {
                Ok(Some(messages)) => changed |= tells_of_address(messages),
                Ok(None) => return Ok(changed),
                Err(Error::RepliesLost) => changed = true,
                Err(error) => return Err(error),
            }
        }
    }
}

fn tells_of_address(mut messages: Messages<'_>) -> bool {
    messages.any(|message| matches!(message.kind, kind::NEW_ADDRESS | kind::DELETE_ADDRESS))
}

impl AsFd for AddressMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};
    use proptest::prelude::*;

    use super::*;

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
        assert!(status.success(), "ip {arguments}");
    }

    proptest! {
        #[test]
        fn any_payload_is_decoded_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&payload);
        }
    }

    #[test]
    fn addresses_are_listed_and_their_changes_are_told() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
        let mut monitor = AddressMonitor::open().expect("a monitor");
        ip("link set lo up");
        ip("address add 192.0.2.1/24 dev lo");
        assert!(monitor.wait(Duration::from_secs(5)).expect("news"));
        let mut socket = Socket::open(Protocol::Route).expect("a socket");
        let addresses: Vec<IpAddr> =
            list(&mut socket).expect("a list").iter().map(|found| found.address).collect();
        let expected: [IpAddr; 3] =
            ["127.0.0.1", "192.0.2.1", "::1"].map(|text| text.parse().expect("literal"));
        assert!(expected.iter().all(|address| addresses.contains(address)), "{addresses:?}");
        assert!(!monitor.wait(Duration::from_millis(50)).expect("silence"), "nothing changed meanwhile");
        ip("address del 192.0.2.1/24 dev lo");
        assert!(monitor.wait(Duration::from_secs(5)).expect("news"));
        assert!(!list(&mut socket).expect("a list").iter().any(|found| found.address == expected[1]));
    }
}
