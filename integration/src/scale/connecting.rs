//! New connections as a measuring tool: whether one is answered, by whom, and how long it took.
//!
//! Call these on a thread inside the client's namespace. Connections end by a reset, so that neither side keeps state.

use std::io::{self, Read as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

/// Longer than any answer takes on one machine, shorter than the first repetition of a SYN (1 s).
pub const BRIEF: Duration = Duration::from_millis(50);

/// Opens a connection, which is reset when dropped, and tells how long it took.
pub(crate) fn open(to: SocketAddr, wait: Duration) -> io::Result<(TcpStream, Duration)> {
    let begun = Instant::now();
    let stream = TcpStream::connect_timeout(&to, wait)?;
    let elapsed = begun.elapsed();
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok((stream, elapsed))
}

/// Whether a new connection is answered at all.
pub(crate) fn answered(to: SocketAddr, wait: Duration) -> bool {
    open(to, wait).is_ok()
}

/// Which endpoint a new connection reaches.
pub(crate) fn reached(to: SocketAddr) -> io::Result<Ipv4Addr> {
    let (mut stream, _) = open(to, BRIEF)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    identity(&mut stream)
}

/// Reads how the server introduces itself.
pub(crate) fn identity(stream: &mut TcpStream) -> io::Result<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    stream.read_exact(&mut octets)?;
    Ok(octets.into())
}
