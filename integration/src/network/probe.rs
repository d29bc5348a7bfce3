//! New connections from a namespace: who answered, or how it was turned away.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures::future::join_all;
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::namespace::Namespace;
use super::sctp::{self, Reply};
use super::wire::{Answer, Protocol, even_if_filtered};

/// How long to wait when an answer or a refusal is expected: on the busiest machine, only what never comes takes longer.
pub const PATIENT: Duration = Duration::from_secs(60);
/// Tries of something that comes sooner or later: with [`BRIEF`] between them they last a minute.
pub const ALWAYS: usize = 200;
/// How long silence must last to count as a drop.
pub const BRIEF: Duration = Duration::from_millis(300);

/// One new connection to try.
#[derive(Debug, Clone)]
pub struct Probe {
    pub protocol: Protocol,
    /// Address and port to send from; the unspecified address and port 0 leave them to the kernel.
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub patience: Duration,
}

/// What became of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// `sent_from` is the source that the prober's own socket had.
    Answered { answer: Answer, sent_from: SocketAddr },
    /// RST or ICMP port unreachable.
    Refused,
    /// Nothing came back in time.
    Silent,
    /// Any other error.
    Failed(String),
}

impl Probe {
    pub fn new(protocol: Protocol, to: SocketAddr) -> Self {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        Self { protocol, from: SocketAddr::new(any, 0), to, patience: PATIENT }
    }

    pub fn from_address(mut self, source: IpAddr) -> Self {
        self.from.set_ip(source);
        self
    }

    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { answer, sent_from } => {
                write!(
                    f,
                    "answered by {}:{} which saw {} (sent from {})",
                    answer.by,
                    answer.port,
                    answer.seen_source.ip(),
                    sent_from.ip()
                )
            }
            Self::Refused => f.write_str("refused"),
            Self::Silent => f.write_str("no answer"),
            Self::Failed(error) => write!(f, "failed: {error}"),
        }
    }
}

enum Prepared {
    Tcp(TcpSocket),
    Udp(std::net::UdpSocket),
    Sctp(socket2::Socket),
}

/// Tries all probes at the same time from one namespace.
pub(crate) fn send(namespace: &Namespace, probes: &[Probe]) -> io::Result<Vec<Outcome>> {
    let prepared: Vec<io::Result<Prepared>> = namespace.run(|| probes.iter().map(prepare).collect())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // An ICMP error reaches every raw socket connected to its address, so those take turns.
    let mut turns: HashMap<IpAddr, Arc<Mutex<()>>> = HashMap::new();
    let attempts = probes.iter().zip(prepared).map(|(probe, prepared)| {
        let turn = turns.entry(probe.to.ip()).or_default().clone();
        attempt(probe.clone(), prepared, turn)
    });
    Ok(runtime.block_on(join_all(attempts)))
}

fn prepare(probe: &Probe) -> io::Result<Prepared> {
    Ok(match probe.protocol {
        Protocol::Tcp => {
            let socket = if probe.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if probe.from.port() != 0 {
                socket.set_reuseaddr(true)?;
            }
            if probe.from.port() != 0 || !probe.from.ip().is_unspecified() {
                socket.bind(probe.from)?;
            }
            Prepared::Tcp(socket)
        }
        Protocol::Udp => {
            let socket = std::net::UdpSocket::bind(probe.from)?;
            socket.set_nonblocking(true)?;
            Prepared::Udp(socket)
        }
        Protocol::Sctp => Prepared::Sctp(sctp::socket(probe.from.ip())?),
    })
}

async fn attempt(probe: Probe, prepared: io::Result<Prepared>, turn: Arc<Mutex<()>>) -> Outcome {
    let outcome = match prepared {
        Ok(Prepared::Tcp(socket)) => timeout(probe.patience, tcp(socket, probe.to)).await,
        Ok(Prepared::Udp(socket)) => timeout(probe.patience, udp(socket, probe.to)).await,
        Ok(Prepared::Sctp(socket)) => {
            let _turn = turn.lock().await;
            let probing = tokio::task::spawn_blocking(move || sctp_probe(&socket, &probe));
            Ok(probing.await.map_err(io::Error::other).and_then(|outcome| outcome))
        }
        Err(error) => Ok(Err(error)),
    };
    match outcome {
        Err(_) => Outcome::Silent,
        Ok(Ok(outcome)) => outcome,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Refused,
        Ok(Err(error)) => Outcome::Failed(error.to_string()),
    }
}

async fn tcp(socket: TcpSocket, to: SocketAddr) -> io::Result<Outcome> {
    let mut stream = socket.connect(to).await?;
    let sent_from = stream.local_addr()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    answered(&text, sent_from)
}

async fn udp(socket: std::net::UdpSocket, to: SocketAddr) -> io::Result<Outcome> {
    let socket = UdpSocket::from_std(socket)?;
    socket.connect(to).await?;
    let sent_from = socket.local_addr()?;
    even_if_filtered(socket.send(b"?").await)?;
    let mut text = [0_u8; 256];
    let length = socket.recv(&mut text).await?;
    answered(&String::from_utf8_lossy(&text[..length]), sent_from)
}

fn sctp_probe(socket: &socket2::Socket, probe: &Probe) -> io::Result<Outcome> {
    // Raw sockets have no ports of their own: any will do that no other probe of this process uses now.
    let unique =
        std::sync::atomic::AtomicU16::fetch_add(&NEXT_SCTP_PORT, 1, std::sync::atomic::Ordering::Relaxed);
    let from_port = if probe.from.port() == 0 { 20_000 + unique % 40_000 } else { probe.from.port() };
    Ok(match sctp::probe(socket, from_port, probe.to, probe.patience)? {
        Reply::Answer(answer) => {
            let local = socket.local_addr()?.as_socket().map(|local| local.ip());
            let sent_from = SocketAddr::new(local.unwrap_or_else(|| probe.from.ip()), from_port);
            Outcome::Answered { answer, sent_from }
        }
        Reply::Refused => Outcome::Refused,
        Reply::Silence => Outcome::Silent,
    })
}

static NEXT_SCTP_PORT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);

fn answered(text: &str, sent_from: SocketAddr) -> io::Result<Outcome> {
    let answer = text.parse().map_err(io::Error::other)?;
    Ok(Outcome::Answered { answer, sent_from })
}

/// A UDP socket that stays: for flows that are older than the rules.
#[derive(Debug)]
pub struct UdpFlow {
    socket: std::net::UdpSocket,
}

impl UdpFlow {
    pub(crate) fn open(namespace: &Namespace, to: SocketAddr) -> io::Result<Self> {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = namespace.run(|| {
            let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
            socket.connect(to)?;
            Ok::<_, io::Error>(socket)
        })??;
        Ok(Self { socket })
    }

    /// Sends one datagram on the flow and waits for the answer to it.
    pub fn ask(&self, patience: Duration) -> Outcome {
        // What an earlier datagram led to is not an answer to this one.
        drop(self.socket.set_nonblocking(true));
        let mut text = [0_u8; 256];
        while self.socket.recv(&mut text).is_ok() {}
        drop(self.socket.set_nonblocking(false));
        let mut exchange = || {
            self.socket.set_read_timeout(Some(patience))?;
            even_if_filtered(self.socket.send(b"?"))?;
            let length = self.socket.recv(&mut text)?;
            answered(&String::from_utf8_lossy(&text[..length]), self.socket.local_addr()?)
        };
        match exchange() {
            Ok(outcome) => outcome,
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Refused,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Silent,
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    /// Asks until an answer satisfies, for at most `tries` times `pause`; see [`ALWAYS`].
    pub fn ask_until(
        &self,
        tries: usize,
        pause: Duration,
        mut good: impl FnMut(&Outcome) -> bool,
    ) -> Outcome {
        let mut outcome = self.ask(pause);
        for _ in 1..tries {
            if good(&outcome) {
                break;
            }
            thread::sleep(pause / 10);
            outcome = self.ask(pause);
        }
        outcome
    }
}
