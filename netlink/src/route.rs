//! Routes: listing those of one owner, and adding or deleting many.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    attr::Writer,
    error::Error,
    ip::{family, full_length, read_ip, write_ip},
    message::{Message, flags},
    pipeline::Pipeline,
    socket::{Dump, Socket},
};

/// `struct rtmsg`.
const FAMILY_HEADER: usize = 12;
/// `RTM_*ROUTE`.
const NEW: u16 = 24;
const DELETE: u16 = 25;
const GET: u16 = 26;
/// `RTA_*`.
const DESTINATION: u16 = 1;
const OUTPUT: u16 = 4;
const TABLE: u16 = 15;

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    V4,
    V6,
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
        }
    }

    /// Adds to the pipeline that this route be added; `EEXIST` if it is there. Answers the request's index.
    pub fn push_add(&self, pipeline: &mut Pipeline) -> usize {
        pipeline.push(NEW, flags::CREATE | flags::EXCLUSIVE, |writer| self.write(writer))
    }

    /// The same, but beside other routes to the same destination; `EEXIST` only if this very route is there.
    pub fn push_append(&self, pipeline: &mut Pipeline) -> usize {
        pipeline.push(NEW, flags::CREATE | flags::APPEND, |writer| self.write(writer))
    }

    /// Adds to the pipeline that this route (of this protocol, table, interface) be deleted; `ESRCH` if it is not there.
    pub fn push_delete(&self, pipeline: &mut Pipeline) -> usize {
        pipeline.push(DELETE, 0, |writer| self.write(writer))
    }

    fn write(&self, writer: &mut Writer) {
        let Self { destination, prefix_length, table, protocol, kind, scope, output } = *self;
        header(writer, family(destination), prefix_length, table, [protocol, scope, kind]);
        write_ip(writer, DESTINATION, destination);
        writer.u32(TABLE, table);
        if let Some(output) = output {
            writer.u32(OUTPUT, output);
        }
    }

    fn decode(message: &Message<'_>) -> Option<Self> {
        (message.kind == NEW).then(|| Self::parse(message)).flatten()
    }

    /// Of news as of a list.
    pub(crate) fn parse(message: &Message<'_>) -> Option<Self> {
        let &[family, prefix_length, _, _, short_table, protocol, scope, kind, ..] = message.payload else {
            return None;
        };
        let attributes = message.attributes(FAMILY_HEADER);
        let destination = match attributes.get(DESTINATION) {
            Some(destination) => read_ip(&destination)?,
            None if family == 10 => Ipv6Addr::UNSPECIFIED.into(),
            None => Ipv4Addr::UNSPECIFIED.into(),
        };
        Some(Self {
            destination,
            prefix_length,
            table: attributes.get(TABLE).and_then(|table| table.u32()).unwrap_or_else(|| short_table.into()),
            protocol,
            kind,
            scope,
            output: attributes.get(OUTPUT).and_then(|output| output.u32()),
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
    let family = match filter.family {
        AddressFamily::V4 => 2,
        AddressFamily::V6 => 10,
    };
    let outcome = socket.dump(
        GET,
        |writer| {
            header(writer, family, 0, filter.table.unwrap_or(0), [filter.protocol.unwrap_or(0), 0, 0]);
            if let Some(table) = filter.table {
                writer.u32(TABLE, table);
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
            let message = Message { kind: NEW, flags: 0, sequence: 0, payload: &payload };
            let _ = Route::decode(&message);
        }
    }
}
