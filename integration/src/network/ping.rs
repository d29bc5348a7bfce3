//! Echo requests: answered, refused, or lost.

use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::namespace::Namespace;
use super::probe::BRIEF;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ping {
    Answered,
    /// ICMP says that the destination is unreachable.
    Refused,
    Silent,
}

/// Our mark in requests and answers: sockets of this kind see every ICMP message of their peer.
const IDENTIFIER: [u8; 2] = [0x5b, 0x1d];

pub(crate) fn send(namespace: &Namespace, to: IpAddr) -> io::Result<Ping> {
    let (domain, protocol, request, answer) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = namespace.run(|| {
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        Ok::<_, io::Error>(socket)
    })??;
    let mut packet = [request, 0, 0, 0, IDENTIFIER[0], IDENTIFIER[1], 0, 1];
    // The kernel fills in the sum of ICMPv6 only.
    if to.is_ipv4() {
        let words = packet.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX);
        packet[2..4].copy_from_slice(&(!folded).to_be_bytes());
    }
    match receive(&socket, &packet, to, answer) {
        Ok(()) => Ok(Ping::Answered),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Ping::Refused),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Ping::Silent),
        // A rule in the sender's own output hook fails the call.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Ping::Silent),
        Err(error) => Err(error),
    }
}

#[expect(clippy::disallowed_methods, reason = "waiting for an answer is a matter of real time")]
fn receive(mut socket: &Socket, packet: &[u8], to: IpAddr, answer: u8) -> io::Result<()> {
    socket.send(packet)?;
    let deadline = Instant::now() + BRIEF * 2;
    let mut bytes = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left))?;
        let length = socket.read(&mut bytes)?;
        // IPv4's header comes with it, 20 bytes where there are no options.
        let message = bytes[..length].get(if to.is_ipv4() { 20 } else { 0 }..).unwrap_or_default();
        if message.first() == Some(&answer) && message.get(4..6) == Some(&IDENTIFIER[..]) {
            return Ok(());
        }
    }
}
