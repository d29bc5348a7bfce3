//! Connections that are in use, as `/proc/net/ip_vs_conn` lists them. The kernel's two counts of a destination do not tell
//! a connection half closed, over which one side still sends, from one that is over and waits for its time to pass.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, BufRead, BufReader},
    net::IpAddr,
};

use ipvs_netlink::Protocol;

/// This thread's network namespace, not that of the process's first thread.
const LIST: &str = "/proc/thread-self/net/ip_vs_conn";

/// States in which nobody sends any more (`ip_vs_proto_tcp.c`, `ip_vs_proto_sctp.c`). `NONE` is that of no connection yet.
const OVER: [&str; 5] = ["TIME_WAIT", "CLOSE", "CLOSED", "NONE", "LISTEN"];

/// An address and a port.
type Place = (IpAddr, u16);

/// Connections in use, by where they go.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// By protocol, virtual address and port, and destination.
    by_server: HashMap<(Protocol, Place, Place), u32>,
    /// By destination alone: a virtual server of a mark has no address.
    by_destination: HashMap<Place, u32>,
    /// Virtual addresses with connections.
    pub(crate) addresses: HashSet<IpAddr>,
}

impl Usage {
    /// Reads the whole list; only numbers are kept of it.
    pub(crate) fn read() -> io::Result<Self> {
        Self::of(BufReader::new(File::open(LIST)?))
    }

    fn of(lines: impl BufRead) -> io::Result<Self> {
        let mut usage = Self::default();
        for line in lines.lines() {
            if let Some(Connection { protocol, server, destination }) = connection(&line?) {
                *usage.by_server.entry((protocol, server, destination)).or_default() += 1;
                *usage.by_destination.entry(destination).or_default() += 1;
                usage.addresses.insert(server.0);
            }
        }
        Ok(usage)
    }

    /// Connections of a virtual server to one of its destinations; `None` stands for one of a mark.
    pub(crate) fn of_destination(&self, server: Option<(Protocol, Place)>, destination: Place) -> u32 {
        let count = match server {
            Some((protocol, server)) => self.by_server.get(&(protocol, server, destination)),
            None => self.by_destination.get(&destination),
        };
        count.copied().unwrap_or_default()
    }
}

struct Connection {
    protocol: Protocol,
    server: Place,
    destination: Place,
}

/// A line of the list: protocol, client, virtual address and destination, state, rest of its life.
fn connection(line: &str) -> Option<Connection> {
    let mut fields = line.split_ascii_whitespace();
    let protocol = match fields.next()? {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => return None,
    };
    let mut place = || Some((address(fields.next()?)?, u16::from_str_radix(fields.next()?, 16).ok()?));
    let (client, server, destination) = (place()?, place()?, place()?);
    let state = fields.next()?;
    // The entries that keep a client on its destination have port 0.
    (client.1 != 0 && !OVER.contains(&state)).then_some(Connection { protocol, server, destination })
}

/// IPv4 as eight digits, IPv6 as eight groups.
fn address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.trim_matches(['[', ']']).parse().ok();
    }
    u32::from_str_radix(text, 16).ok().map(|bits| IpAddr::V4(bits.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP C0A83202 D5A8 AC1E0001 0050 0A00010B 1F90 ESTABLISHED     897
TCP C0A83202 D5AA AC1E0001 0050 0A00010B 1F90 FIN_WAIT        118
TCP C0A83202 D5AC AC1E0001 0050 0A00010B 1F90 TIME_WAIT        57
TCP C0A83202 0000 AC1E0002 0050 0A00010B 1F90 ASSURED         299
UDP C0A83202 8F12 AC1E0003 0035 0A00010C 0035 UDP             287
TCP fd000050000000000000000000000002 1234 x
TCP fd00:0050:0000:0000:0000:0000:0000:0002 D5AC fd00:0030:0000:0000:0000:0000:0000:0001 0050 fd00:0010:0001:0000:0000:0000:0000:0011 1F90 ESTABLISHED     899
";

    #[test]
    fn what_is_over_and_what_is_no_connection_does_not_count() {
        let usage = Usage::of(LIST.as_bytes()).expect("text");
        let place = |addr: &str, port| (addr.parse().expect("an address"), port);
        let (web, pod) = (place("172.30.0.1", 80), place("10.0.1.11", 8080));
        assert_eq!(usage.of_destination(Some((Protocol::Tcp, web)), pod), 2);
        assert_eq!(usage.of_destination(Some((Protocol::Udp, web)), pod), 0);
        assert_eq!(usage.of_destination(None, pod), 2);
        let dns = (Protocol::Udp, place("172.30.0.3", 53));
        assert_eq!(usage.of_destination(Some(dns), place("10.0.1.12", 53)), 1);
        let web6 = (Protocol::Tcp, place("fd00:30::1", 80));
        assert_eq!(usage.of_destination(Some(web6), place("fd00:10:1::11", 8080)), 1);
        let addresses = ["172.30.0.1", "172.30.0.3", "fd00:30::1"].map(|addr| place(addr, 0).0);
        assert_eq!(usage.addresses, HashSet::from(addresses));
    }
}
