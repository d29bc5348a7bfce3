//! A packet of a server that does not belong into its connection's window.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd, OwnedFd},
    sync::mpsc,
    time::Duration,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv, sendto, socket,
};

/// Connects to a Service whose one endpoint is a server on `server`; has the server's host send a packet far outside the
/// window; says whether the connection still works.
pub fn connection_survives(
    from: Option<&str>,
    service: SocketAddr,
    server: &str,
    endpoint: SocketAddr,
) -> bool {
    let (ready, is_ready) = mpsc::channel();
    let host = server.to_owned();
    let serving = std::thread::spawn(move || {
        super::within(Some(&host), move || {
            let listener = TcpListener::bind(("::", endpoint.port())).expect("the port is free");
            let family = if endpoint.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            // Sees a copy of every segment that comes in.
            let raw = socket(family, SockType::Raw, SockFlag::empty(), SockProtocol::Tcp)
                .expect("tests run as root");
            ready.send(()).expect("the test waits");
            let (mut stream, client) = listener.accept().expect("the client comes");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout can be set");
            let mut one = [0; 1];
            stream.read_exact(&mut one).expect("the client says something");
            let (sequence, acknowledged) = last_numbers(&raw, client.port(), endpoint.is_ipv4());
            let client = SocketAddr::new(client.ip().to_canonical(), client.port());
            // Far beyond the window (conntrack forgives what lies before it), but with the right acknowledgement.
            send_stray(
                &raw,
                endpoint,
                client,
                acknowledged.wrapping_add(100_000_000),
                sequence.wrapping_add(1),
            );
            std::thread::sleep(Duration::from_millis(200));
            let _ = stream.write_all(b"still here");
        });
    });
    is_ready.recv().expect("the server starts");
    let alive = super::within(from, move || {
        let mut stream = TcpStream::connect_timeout(&service, Duration::from_secs(60)).expect("it is served");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout can be set");
        stream.write_all(b"?").expect("it is connected");
        let mut text = String::new();
        stream.read_to_string(&mut text).is_ok() && text == "still here"
    });
    serving.join().expect("the server does not panic");
    alive
}

/// Sequence and acknowledgement numbers of the client's segment that carries data.
fn last_numbers(raw: &OwnedFd, client: u16, v4: bool) -> (u32, u32) {
    let mut buffer = [0; 2048];
    loop {
        let length = recv(raw.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).expect("the segment came in");
        // Raw sockets of IPv4 show the IP header, those of IPv6 do not.
        let header = if v4 { usize::from(buffer[0] & 0xf) * 4 } else { 0 };
        let segment = &buffer[header..length];
        let data = segment.len() - usize::from(segment[12] >> 4) * 4;
        if segment[0..2] == client.to_be_bytes() && data == 1 {
            let number = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("four bytes"));
            return (number(4), number(8));
        }
    }
}

fn send_stray(raw: &OwnedFd, from: SocketAddr, to: SocketAddr, sequence: u32, acknowledged: u32) {
    let mut segment = [0_u8; 24];
    segment[0..2].copy_from_slice(&from.port().to_be_bytes());
    segment[2..4].copy_from_slice(&to.port().to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    segment[12] = 5 << 4;
    // PSH and ACK.
    segment[13] = 0x18;
    segment[14..16].copy_from_slice(&1000_u16.to_be_bytes());
    segment[20..24].copy_from_slice(b"data");
    let checksum = checksum(from.ip(), to.ip(), &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    let sent = match to {
        SocketAddr::V4(mut to) => {
            to.set_port(0);
            sendto(raw.as_raw_fd(), &segment, &SockaddrIn::from(to), MsgFlags::empty())
        }
        SocketAddr::V6(mut to) => {
            to.set_port(0);
            sendto(raw.as_raw_fd(), &segment, &SockaddrIn6::from(to), MsgFlags::empty())
        }
    };
    sent.expect("it can be sent");
}

/// The Internet checksum over the pseudo header and the segment.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    for addr in [from, to] {
        match addr {
            IpAddr::V4(addr) => bytes.extend(addr.octets()),
            IpAddr::V6(addr) => bytes.extend(addr.octets()),
        }
    }
    bytes.extend([0, 6]);
    bytes.extend((segment.len() as u16).to_be_bytes());
    bytes.extend(segment);
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
