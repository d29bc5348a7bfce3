//! Routes: listing those of one owner, and adding or deleting many.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use crate::ip::AddressFamily;
use crate::{
    attr::Writer,
    error::Error,
    ip::{full_length, read_ip, write_ip},
    message::{Message, flags},
    pipeline::Pipeline,
    rtnetlink::{message, route as uapi},
    socket::{Dump, Socket},
};

/// `RT_TABLE_*`.
pub mod table {
    pub const MAIN: u32 = 254;
    pub const LOCAL: u32 = 255;
}

/// `RT_SCOPE_*`
pub mod scope {
    pub const UNIVERSE: u8 = 0;
    pub const LINK: u8 = 253;
    pub const HOST: u8 = 254;
}

/// `RTPROT_*`: who made a route.
pub mod protocol {
    pub const KERNEL: u8 = 2;
    pub const BOOT: u8 = 3;
    pub const STATIC: u8 = 4;
}

/// `RTN_*`.
pub mod kind {
    pub const UNICAST: u8 = 1;
    pub const LOCAL: u8 = 2;
    pub const BROADCAST: u8 = 3;
    pub const BLACKHOLE: u8 = 6;
}

/// A route to a prefix through one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    pub destination: IpAddr,
    pub prefix_length: u8,
    /// [`table`]
    pub table: u32,
    /// [`protocol`], or a number of one's own
    pub protocol: u8,
    /// [`kind`]
    pub kind: u8,
    /// [`scope`]
    pub scope: u8,
    /// Index of the interface.
    pub output: Option<u32>,
    /// What this host's own packets have as their source unless they say otherwise (`RTA_PREFSRC`).
    pub source: Option<IpAddr>,
}

impl Route {
    /// Makes an address one of this host's without an interface having it: `ip route add local A dev D table local`.
    pub const fn local(address: IpAddr, output: u32, protocol: u8) -> Self {
        Self {
            destination: address,
            prefix_length: full_length(address),
            table: table::LOCAL,
            protocol,
            kind: kind::LOCAL,
            scope: match address {
                IpAddr::V4(_) => scope::HOST,
                // IPv6 routes have no scope; the kernel ignores and lists 0.
                IpAddr::V6(_) => scope::UNIVERSE,
            },
            output: Some(output),
            source: None,
        }
    }

    /// The same, with a source for this host's own packets. Without one, packets to a local address have that address as
    /// their source.
    #[must_use]
    pub const fn with_source(self, source: Option<IpAddr>) -> Self {
        Self { source, ..self }
    }

    /// Adds to the pipeline that this route be added; `EEXIST` if it is there. Answers the request's index.
    pub fn push_add(&self, pipeline: &mut Pipeline) -> usize {
        pipeline.push(message::NEW_ROUTE, flags::CREATE | flags::EXCLUSIVE, |writer| self.write(writer))
    }

    /// The same, but beside other routes to the same destination; `EEXIST` only if this very route is there.
    pub fn push_append(&self, pipeline: &mut Pipeline) -> usize {
        pipeline.push(message::NEW_ROUTE, flags::CREATE | flags::APPEND, |writer| self.write(writer))
    }

    /// Adds to the pipeline that this route (of this protocol, table, interface) be deleted; `ESRCH` if it is not there.
    pub fn push_delete(&self, pipeline: &mut Pipeline) -> usize {
        pipeline.push(message::DELETE_ROUTE, 0, |writer| self.write(writer))
    }

    fn write(&self, writer: &mut Writer) {
        let Self { destination, prefix_length, table, protocol, kind, scope, output, source } = *self;
        header(
            writer,
            AddressFamily::of(destination).number(),
            prefix_length,
            table,
            [protocol, scope, kind],
        );
        write_ip(writer, uapi::DESTINATION, destination);
        writer.u32(uapi::TABLE, table);
        if let Some(output) = output {
            writer.u32(uapi::OUTPUT, output);
        }
        if let Some(source) = source {
            write_ip(writer, uapi::SOURCE, source);
        }
    }

    fn decode(message: &Message<'_>) -> Option<Self> {
        (message.kind == message::NEW_ROUTE).then(|| Self::parse(message)).flatten()
    }

    /// Of news as of a list.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let &[family, prefix_length, _, _, short_table, protocol, scope, kind, ..] = message.payload else {
            return None;
        };
        let attributes = message.attributes(uapi::HEADER);
        let destination = match attributes.get(uapi::DESTINATION) {
            Some(destination) => read_ip(&destination)?,
            None if family == AddressFamily::V6.number() => Ipv6Addr::UNSPECIFIED.into(),
            None => Ipv4Addr::UNSPECIFIED.into(),
        };
        Some(Self {
            destination,
            prefix_length,
            table: attributes
                .get(uapi::TABLE)
                .and_then(|table| table.u32())
                .unwrap_or_else(|| short_table.into()),
            protocol,
            kind,
            scope,
            output: attributes.get(uapi::OUTPUT).and_then(|output| output.u32()),
            source: attributes.get(uapi::SOURCE).and_then(|source| read_ip(&source)),
        })
    }
}

/// Which routes to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    pub family: AddressFamily,
    pub table: Option<u32>,
    pub protocol: Option<u8>,
}

/// Hands every route that the filter lets through to `each`. Since Linux 4.20 the kernel does the filtering.
pub fn list(socket: &mut Socket, filter: Filter, mut each: impl FnMut(Route)) -> Result<Dump, Error> {
    let outcome = socket.dump(
        message::GET_ROUTE,
        |writer| {
            header(
                writer,
                filter.family.number(),
                0,
                filter.table.unwrap_or(0),
                [filter.protocol.unwrap_or(0), 0, 0],
            );
            if let Some(table) = filter.table {
                writer.u32(uapi::TABLE, table);
            }
        },
        |message| {
            let wanted = |route: &Route| {
                filter.table.is_none_or(|table| table == route.table)
                    && filter.protocol.is_none_or(|protocol| protocol == route.protocol)
            };
            if let Some(route) = Route::decode(message).filter(wanted) {
                each(route);
            }
        },
    );
    match outcome {
        // A table that was never used does not exist.
        Err(error) if error.refused() == Some(nix::libc::ENOENT) => Ok(Dump::Complete),
        outcome => outcome,
    }
}

fn header(writer: &mut Writer, family: u8, prefix_length: u8, table: u32, [protocol, scope, kind]: [u8; 3]) {
    // A table beyond 255 does not fit here: RT_TABLE_UNSPEC, and the attribute says it.
    let table = u8::try_from(table).unwrap_or(0);
    writer.raw(&[family, prefix_length, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_payload_is_decoded_without_panic(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let message = Message { kind: message::NEW_ROUTE, flags: 0, sequence: 0, payload: &payload };
            let _ = Route::decode(&message);
        }
    }
}
