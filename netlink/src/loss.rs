//! News of what went: routes of one owner, addresses, and interfaces that went or went down.

use socket2::{SockFilter, SockRef};

use crate::{
    address::{self, InterfaceAddress},
    error::Error,
    link::Link,
    message::{HEADER, Message},
    route::{Route, table},
    rtnetlink::{group, message as kind},
    socket::{Protocol, Socket},
};

/// Where `nlmsg_type` is, and `rtm_table` and `rtm_protocol` behind the header.
const KIND_AT: u32 = 4;
const TABLE_AT: u32 = HEADER as u32 + 4;
const PROTOCOL_AT: u32 = HEADER as u32 + 5;

/// Opcodes of linux/bpf_common.h: load a half word or a byte from a fixed place, jump if equal, return a constant.
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Something that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A route in the table `local`.
    Route(Route),
    Address(InterfaceAddress),
    /// The interface with this index went, or is down.
    Interface(u32),
}

/// Tells what went in the network namespace in which it was opened. The kernel queues nothing else, so it costs nothing
/// while others come and go.
#[derive(Debug)]
pub struct LossMonitor(Socket);

impl LossMonitor {
    /// For the routes in the table `local` that carry this protocol number.
    pub fn open(protocol: u8) -> Result<Self, Error> {
        let groups =
            group::LINK | group::IPV4_ADDRESS | group::IPV4_ROUTE | group::IPV6_ADDRESS | group::IPV6_ROUTE;
        let socket = Socket::join(Protocol::Route, groups)?;
        SockRef::from(&socket)
            .attach_filter(&filter(protocol))
            .map_err(|source| Error::Os { doing: "filter the news on a netlink socket", source })?;
        Ok(Self(socket))
    }

    /// Hands everything that went since the last time to `each`. False: some news were lost.
    pub fn drain(&mut self, mut each: impl FnMut(Loss)) -> Result<bool, Error> {
        let mut complete = true;
        loop {
            match self.0.receive_now() {
                Ok(Some(messages)) => messages.filter_map(|message| read(&message)).for_each(&mut each),
                Ok(None) => return Ok(complete),
                Err(Error::RepliesLost) => complete = false,
                Err(error) => return Err(error),
            }
        }
    }
}

fn read(message: &Message<'_>) -> Option<Loss> {
    match message.kind {
        kind::DELETE_ROUTE => Route::parse(message).map(Loss::Route),
        kind::DELETE_ADDRESS => address::parse(message.payload).map(Loss::Address),
        kind::NEW_LINK | kind::DELETE_LINK => {
            let link = Link::parse(message)?;
            (message.kind == kind::DELETE_LINK || !link.is_up()).then_some(Loss::Interface(link.index))
        }
        _ => None,
    }
}

/// The socket's filter, which the kernel applies before it queues a message (`do_one_broadcast` of `af_netlink.c`).
fn filter(protocol: u8) -> [SockFilter; 11] {
    // The filter loads half words in network byte order; netlink's are in the machine's.
    let swapped = |kind: u16| u32::from(kind.to_be());
    let operation = |code, to_if, to_else, value| SockFilter::new(code, to_if, to_else, value);
    [
        operation(LOAD_HALF, 0, 0, KIND_AT),
        operation(JUMP_IF_EQUAL, 7, 0, swapped(kind::NEW_LINK)),
        operation(JUMP_IF_EQUAL, 6, 0, swapped(kind::DELETE_LINK)),
        operation(JUMP_IF_EQUAL, 5, 0, swapped(kind::DELETE_ADDRESS)),
        operation(JUMP_IF_EQUAL, 0, 5, swapped(kind::DELETE_ROUTE)),
        operation(LOAD_BYTE, 0, 0, TABLE_AT),
        operation(JUMP_IF_EQUAL, 0, 3, table::LOCAL),
        operation(LOAD_BYTE, 0, 0, PROTOCOL_AT),
        operation(JUMP_IF_EQUAL, 0, 1, u32::from(protocol)),
        operation(RETURN, 0, 0, u32::MAX),
        operation(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_payload_is_read_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            for kind in [kind::NEW_LINK, kind::DELETE_LINK, kind::DELETE_ADDRESS, kind::DELETE_ROUTE] {
                let _ = read(&Message { kind, flags: 0, sequence: 0, payload: &payload });
            }
        }
    }

    fn ip(arguments: &str) {
        let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
        assert!(status.success(), "ip {arguments}");
    }

    fn losses(monitor: &mut LossMonitor) -> Vec<Loss> {
        let mut all = Vec::new();
        assert!(monitor.drain(|loss| all.push(loss)).expect("readable"));
        all
    }

    #[test]
    fn only_what_went_is_told_and_of_routes_only_those_of_the_owner() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
        let mut monitor = LossMonitor::open(89).expect("a monitor");
        ip("link set lo up");
        for destination in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
            ip(&format!("route add local {destination} dev lo table local proto 89"));
        }
        ip("route add local 192.0.2.4 dev lo table local proto 90");
        ip("route add 192.0.2.5 dev lo proto 89");
        ip("-6 route add local 2001:db8::1 dev lo table local proto 89");
        ip("address add 198.51.100.1/32 dev lo");
        assert_eq!(losses(&mut monitor), []);
        ip("route del local 192.0.2.4 dev lo table local");
        ip("route del 192.0.2.5 dev lo");
        assert_eq!(losses(&mut monitor), [], "these are somebody else's");
        ip("route del local 192.0.2.2 dev lo table local");
        ip("-6 route del local 2001:db8::1 dev lo table local");
        let gone: Vec<_> = losses(&mut monitor)
            .into_iter()
            .map(|loss| match loss {
                Loss::Route(route) => route.destination.to_string(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(gone, ["192.0.2.2", "2001:db8::1"]);
        ip("address del 198.51.100.1/32 dev lo");
        let [Loss::Address(gone)] = losses(&mut monitor)[..] else { panic!("one address") };
        assert_eq!((gone.address.to_string().as_str(), gone.interface), ("198.51.100.1", 1));
        ip("link set lo down");
        assert!(losses(&mut monitor).contains(&Loss::Interface(1)));
    }
}
