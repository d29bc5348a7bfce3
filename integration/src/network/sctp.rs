//! Just enough SCTP to see where an INIT arrives, over raw sockets: many kernels are built without SCTP itself.
//!
//! Formats: RFC 9260. The server's INIT ACK carries its answer in the State Cookie.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::wire::{Answer, even_if_filtered, plain};

const SCTP: i32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const STATE_COOKIE: u16 = 7;

/// What came back for an INIT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Answer(Answer),
    Refused,
    Silence,
}

pub(crate) fn socket(local: IpAddr) -> io::Result<Socket> {
    let domain = if local.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(SCTP)))?;
    socket.bind(&SockAddr::from(SocketAddr::new(local, 0)))?;
    Ok(socket)
}

/// How soon an INIT is sent again, in case the last was lost.
const AGAIN: Duration = Duration::from_secs(1);

/// Sends an INIT and waits for what it leads to; at least one more is sent meanwhile.
pub(crate) fn probe(
    socket: &Socket,
    from_port: u16,
    to: SocketAddr,
    patience: Duration,
) -> io::Result<Reply> {
    // Connected, so that an ICMP error for the INIT is reported here.
    socket.connect(&SockAddr::from(SocketAddr::new(to.ip(), 0)))?;
    let init = packet(from_port, to.port(), 0, &init_chunk(INIT, 0x1234_5678, &[]));
    let begin = now();
    let mut sent = 0;
    let mut aborted = None;
    loop {
        let elapsed = begin.elapsed();
        if elapsed >= patience || aborted.is_some_and(|at: Duration| elapsed > at + Duration::from_millis(60))
        {
            return Ok(if aborted.is_some() { Reply::Refused } else { Reply::Silence });
        }
        if sent == 0 || (elapsed > AGAIN.min(patience / 2) * sent && aborted.is_none()) {
            sent += 1;
            match socket.send(&init) {
                Err(error) if refused(&error) => return Ok(Reply::Refused),
                other => even_if_filtered(other)?,
            }
        }
        let (chunk, source) = match receive(socket, to.is_ipv4(), Duration::from_millis(20)) {
            Ok(Some(received)) => received,
            Ok(None) => continue,
            Err(error) if refused(&error) => return Ok(Reply::Refused),
            Err(error) => return Err(error),
        };
        if chunk.to_port != from_port || chunk.from_port != to.port() || plain(source) != to.ip() {
            continue;
        }
        match chunk.kind {
            INIT_ACK => {
                if let Some(answer) = cookie(&chunk.body).and_then(|text| text.parse().ok()) {
                    return Ok(Reply::Answer(answer));
                }
            }
            // The kernel's own SCTP may abort what it did not begin, beside our answer.
            ABORT => aborted = aborted.or(Some(elapsed)),
            _ => {}
        }
    }
}

/// Answers INITs for `address` on `ports` until `stop` says so.
pub(crate) fn serve(socket: &Socket, name: &str, address: IpAddr, ports: &[u16], stop: impl Fn() -> bool) {
    while !stop() {
        let Ok(Some((chunk, source))) = receive(socket, address.is_ipv4(), Duration::from_millis(100)) else {
            continue;
        };
        if chunk.kind != INIT || !ports.contains(&chunk.to_port) {
            continue;
        }
        let seen_source = SocketAddr::new(source, chunk.from_port);
        let answer = Answer { by: name.to_owned(), port: chunk.to_port, seen_source };
        let tag = chunk.body.get(..4).map_or(0, |tag| u32::from_be_bytes(tag.try_into().unwrap_or_default()));
        let ack = init_chunk(INIT_ACK, 0x8765_4321, answer.to_string().as_bytes());
        let packet = packet(chunk.to_port, chunk.from_port, tag, &ack);
        // A lost answer is asked for again by the prober.
        drop(socket.send_to(&packet, &SockAddr::from(SocketAddr::new(source, 0))));
    }
}

struct Chunk {
    from_port: u16,
    to_port: u16,
    kind: u8,
    body: Vec<u8>,
}

fn receive(socket: &Socket, ipv4: bool, wait: Duration) -> io::Result<Option<(Chunk, IpAddr)>> {
    socket.set_read_timeout(Some(wait))?;
    let mut buffer = [0_u8; 2048];
    let (length, source) = match recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer) {
        Ok(received) => received,
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let mut data = &buffer[..length];
    if ipv4 {
        // A raw IPv4 socket delivers the IP header, a raw IPv6 socket does not (raw(7), ipv6(7)).
        let header = usize::from(data.first().copied().unwrap_or(0) & 0x0f) * 4;
        data = data.get(header..).unwrap_or_default();
    }
    let source = source.and_then(|source| {
        let v4 = source.as_sockaddr_in().map(|source| IpAddr::V4(source.ip()));
        v4.or_else(|| source.as_sockaddr_in6().map(|source| IpAddr::V6(source.ip())))
    });
    let (Some(source), true) = (source, data.len() >= 16) else { return Ok(None) };
    let number = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
    let end = 12 + usize::from(number(14)).clamp(4, data.len() - 12);
    let chunk =
        Chunk { from_port: number(0), to_port: number(2), kind: data[12], body: data[16..end].to_vec() };
    Ok(Some((chunk, source)))
}

/// INIT and INIT ACK: tag, window, streams, first number, and the cookie if there is one.
fn init_chunk(kind: u8, tag: u32, cookie: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, 0, 0, 0];
    chunk.extend(tag.to_be_bytes());
    chunk.extend(65_535_u32.to_be_bytes());
    chunk.extend([0, 1, 0, 1]);
    chunk.extend(1_u32.to_be_bytes());
    if !cookie.is_empty() {
        chunk.extend(STATE_COOKIE.to_be_bytes());
        chunk.extend(short(cookie.len() + 4).to_be_bytes());
        chunk.extend(cookie);
    }
    let length = short(chunk.len());
    chunk[2..4].copy_from_slice(&length.to_be_bytes());
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

fn cookie(body: &[u8]) -> Option<&str> {
    let parameter = body.get(16..)?;
    let kind = u16::from_be_bytes(parameter.get(..2)?.try_into().ok()?);
    let length = usize::from(u16::from_be_bytes(parameter.get(2..4)?.try_into().ok()?));
    (kind == STATE_COOKIE).then(|| std::str::from_utf8(parameter.get(4..length)?).ok())?
}

fn packet(from_port: u16, to_port: u16, tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(12 + chunk.len());
    packet.extend(from_port.to_be_bytes());
    packet.extend(to_port.to_be_bytes());
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunk);
    // Little-endian, unlike everything else in the header: RFC 9260, appendix A.
    let sum = crc32c(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

fn crc32c(data: &[u8]) -> u32 {
    let mut sum = u32::MAX;
    for byte in data {
        sum ^= u32::from(*byte);
        for _ in 0..8 {
            sum = if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
        }
    }
    !sum
}

/// ICMP port unreachable, protocol unreachable, and ICMPv6's "unrecognized next header".
fn refused(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(nix::errno::Errno::from_raw),
        Some(nix::errno::Errno::ECONNREFUSED | nix::errno::Errno::ENOPROTOOPT | nix::errno::Errno::EPROTO)
    )
}

fn short(length: usize) -> u16 {
    u16::try_from(length).expect("our chunks are small")
}

#[expect(clippy::disallowed_methods, reason = "waiting for a packet is a matter of real time")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::{cookie, crc32c, init_chunk};

    #[test]
    fn the_checksum_is_crc32c() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn an_answer_travels_in_the_cookie() {
        let chunk = init_chunk(2, 7, b"pod 80 10.0.0.1:5");
        assert_eq!(chunk.len() % 4, 0);
        assert_eq!(cookie(&chunk[4..]), Some("pod 80 10.0.0.1:5"));
    }
}
