//! A node with two pods, a pod on another node and an outside client, each a network namespace.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns};
use vm_test::run;

/// Long enough for a busy machine, short enough to wait for what is dropped.
const PATIENCE: Duration = Duration::from_secs(2);
/// Whoever is connected to somebody is answered, however late on a busy machine.
const CONNECTED: Duration = Duration::from_secs(60);

/// Where a probe starts.
pub(crate) const NODE: &str = "node";
pub(crate) const CLIENT: &str = "client";
/// Endpoints: two pods here and one elsewhere.
pub(crate) const POD: &str = "pod";
pub(crate) const NEIGHBOUR: &str = "neighbour";
pub(crate) const REMOTE: &str = "remote";

/// Name, IPv4 network and IPv6 network of what is wired to the node; the node is .1, the other end .2.
const WIRES: [(&str, &str, &str); 4] = [
    (POD, "10.1.0", "fd01:0:0:1"),
    (NEIGHBOUR, "10.1.1", "fd01:0:0:2"),
    (REMOTE, "10.2.0", "fd02:0:0:1"),
    (CLIENT, "192.168.7", "fd07:0:0:1"),
];

/// What came of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Who answered, and the address it was asked from.
    From {
        who: String,
        source: IpAddr,
    },
    Refused,
    Silence,
}

impl Reply {
    pub(crate) fn who(&self) -> &str {
        match self {
            Self::From { who, .. } => who,
            other => panic!("no answer: {other:?}"),
        }
    }

    pub(crate) fn source(&self) -> IpAddr {
        match self {
            Self::From { source, .. } => *source,
            other => panic!("no answer: {other:?}"),
        }
    }
}

/// Wires everything up, and starts servers on port 8080, TCP and UDP, in every pod.
pub(crate) fn build() {
    run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0");
    // Refusals shall be seen however many there are.
    run(
        "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0; sysctl -qw net.ipv4.icmp_msgs_per_sec=100000 || true",
    );
    run("mkdir -p /run/netns && mount -t tmpfs none /run/netns");
    for (name, four, six) in WIRES {
        run(&format!(
            "ip netns add {name}
             ip link add to-{name} type veth peer name eth0 netns {name}
             ip link set to-{name} up && ip addr add {four}.1/24 dev to-{name} && ip addr add {six}::1/64 dev to-{name} nodad
             ip -n {name} link set lo up && ip -n {name} link set eth0 up
             ip -n {name} addr add {four}.2/24 dev eth0 && ip -n {name} addr add {six}::2/64 dev eth0 nodad
             ip -n {name} route add default via {four}.1 && ip -n {name} route add default via {six}::1"
        ));
    }
    for name in [POD, NEIGHBOUR, REMOTE] {
        serve(name, 8080);
    }
}

/// Servers that answer with their name and the address of who asks. They end with the process.
pub(crate) fn serve(name: &'static str, port: u16) {
    for any in ["0.0.0.0", "::"] {
        let at = SocketAddr::new(any.parse().expect("an address"), port);
        let tcp = within(name, move || listen(at));
        thread::spawn(move || {
            for connection in tcp.incoming().flatten() {
                thread::spawn(move || answer(name, connection));
            }
        });
        let udp = within(name, move || bind(at));
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                // Who asked may be gone.
                let _ = udp.send_to(format!("{name} {}", plain(from.ip())).as_bytes(), from);
            }
        });
    }
}

/// `::` would take IPv4, too, and then the IPv4 server could not bind.
fn listen(at: SocketAddr) -> TcpListener {
    use nix::sys::socket::{
        Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket, sockopt,
    };
    if at.is_ipv4() {
        return TcpListener::bind(at).expect("the port is free");
    }
    let fd = socket(nix::sys::socket::AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .expect("a socket");
    setsockopt(&fd, sockopt::Ipv6V6Only, &true).expect("IPv6 only");
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(at)).expect("the port is free");
    listen(&fd, Backlog::new(64).expect("a backlog")).expect("listening");
    fd.into()
}

fn bind(at: SocketAddr) -> UdpSocket {
    use nix::sys::socket::{SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt};
    if at.is_ipv4() {
        return UdpSocket::bind(at).expect("the port is free");
    }
    let fd = socket(nix::sys::socket::AddressFamily::Inet6, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .expect("a socket");
    setsockopt(&fd, sockopt::Ipv6V6Only, &true).expect("IPv6 only");
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(at)).expect("the port is free");
    fd.into()
}

/// A line for every line, until the other side has enough.
fn answer(name: &str, mut connection: TcpStream) {
    let Ok(peer) = connection.peer_addr() else { return };
    let mut byte = [0];
    while let Ok(1) = connection.read(&mut byte) {
        if byte == *b"\n"
            && connection.write_all(format!("{name} {}\n", plain(peer.ip())).as_bytes()).is_err()
        {
            return;
        }
    }
}

fn plain(addr: IpAddr) -> IpAddr {
    addr.to_canonical()
}

/// Runs something in another namespace: on a thread of its own, which is all that enters it.
pub(crate) fn within<T: Send + 'static>(name: &'static str, what: impl FnOnce() -> T + Send + 'static) -> T {
    if name == NODE {
        return what();
    }
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let namespace = std::fs::File::open(format!("/run/netns/{name}")).expect("the namespace is there");
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering a namespace");
        let _ = sender.send(what());
    });
    receiver.recv().expect("the thread ends well")
}

/// Asks once over TCP.
pub(crate) fn tcp(from: &'static str, to: &str) -> Reply {
    match connect(from, to) {
        Ok(mut connection) => reply(ask(&mut connection)),
        Err(error) => reply(Err(error)),
    }
}

/// Asks once over TCP from this port, which it leaves ready for use.
pub(crate) fn tcp_from(from: &'static str, port: u16, to: &str) -> Reply {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
    };
    let to: SocketAddr = to.parse().expect("an address and port");
    reply(within(from, move || {
        let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        // Closed by a reset, so that the port is free at once.
        setsockopt(&fd, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
        let raw = std::os::fd::AsRawFd::as_raw_fd(&fd);
        bind(raw, &SockaddrStorage::from(SocketAddr::from(([0, 0, 0, 0], port))))?;
        connect(raw, &SockaddrStorage::from(to))?;
        let mut connection = TcpStream::from(fd);
        connection.set_read_timeout(Some(CONNECTED))?;
        ask(&mut connection)
    }))
}

/// A connection that stays open.
pub(crate) fn connect(from: &'static str, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().expect("an address and port");
    within(from, move || {
        let connection = TcpStream::connect_timeout(&to, PATIENCE)?;
        connection.set_read_timeout(Some(CONNECTED))?;
        Ok(connection)
    })
}

/// Asks on a connection.
pub(crate) fn ask(connection: &mut TcpStream) -> io::Result<String> {
    connection.write_all(b"\n")?;
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if connection.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if byte == *b"\n" {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        line.extend(byte);
    }
}

/// Asks once over UDP, from a new port.
pub(crate) fn udp(from: &'static str, to: &str) -> Reply {
    let to: SocketAddr = to.parse().expect("an address and port");
    reply(within(from, move || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"?")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }))
}

fn reply(answer: io::Result<String>) -> Reply {
    match answer {
        Ok(line) => {
            let (who, source) = line.split_once(' ').expect("name and address");
            Reply::From { who: who.to_owned(), source: source.parse().expect("an address") }
        }
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => Reply::Refused,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Reply::Silence,
            _ => panic!("neither answered nor refused: {error}"),
        },
    }
}
