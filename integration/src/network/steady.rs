//! Clients that send without pause, each from one source port: whatever is decided for one packet of theirs, connection
//! tracking applies to the next.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::{sleep, timeout};

use super::namespace::Namespace;
use super::probe::Outcome;
use super::sctp::{self, Reply};
use super::wire::{Answer, Protocol};

/// The pause between two packets of one client.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a connection or an INIT waits for an answer.
const PATIENCE: Duration = Duration::from_millis(150);

/// One client, while it sends.
#[derive(Debug, Clone)]
pub struct Steady {
    pub protocol: Protocol,
    pub to: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

/// What a client has seen so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Packets, connections or INITs sent.
    pub sent: u64,
    /// The number of the one after which the last answer came.
    pub answered: u64,
    pub last: Option<Outcome>,
}

impl Steady {
    pub fn seen(&self) -> Seen {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self) {
        self.lock().sent += 1;
    }

    fn answered(&self, answer: Answer, sent_from: SocketAddr) {
        let mut seen = self.lock();
        seen.answered = seen.sent;
        seen.last = Some(Outcome::Answered { answer, sent_from });
    }
}

/// Clients of one namespace. They stop when it is dropped.
#[derive(Debug)]
pub struct SteadyClients {
    pub clients: Vec<Steady>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl SteadyClients {
    /// The clients have the source ports from `first_port` on.
    pub(crate) fn start(
        namespace: &Namespace,
        targets: &[(Protocol, SocketAddr)],
        first_port: u16,
    ) -> io::Result<Self> {
        let client = |(protocol, to): &(Protocol, SocketAddr)| Steady {
            protocol: *protocol,
            to: *to,
            seen: Arc::default(),
        };
        let clients: Vec<Steady> = targets.iter().map(client).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let ports = first_port..;
        let (sctp, others): (Vec<_>, Vec<_>) =
            clients.iter().cloned().zip(ports).partition(|(client, _)| client.protocol == Protocol::Sctp);
        let threads = namespace.run(|| {
            let mut threads = Vec::new();
            let flag = stop.clone();
            threads.push(thread::spawn(move || drop(run(others, &flag))));
            if !sctp.is_empty() {
                let flag = stop.clone();
                threads.push(thread::spawn(move || send_inits(&sctp, &flag)));
            }
            threads
        })?;
        Ok(Self { clients, stop, threads })
    }
}

impl Drop for SteadyClients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

fn run(clients: Vec<(Steady, u16)>, stop: &Arc<AtomicBool>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks: Vec<_> = clients
            .into_iter()
            .map(|(client, port)| {
                let stop = stop.clone();
                tokio::spawn(async move {
                    let sent = match client.protocol {
                        Protocol::Tcp => connect_again_and_again(&client, port, &stop).await,
                        _ => send_datagrams(&client, port, &stop).await,
                    };
                    if let Err(error) = sent {
                        client.lock().last = Some(Outcome::Failed(error.to_string()));
                    }
                })
            })
            .collect();
        for task in tasks {
            drop(task.await);
        }
    });
    Ok(())
}

fn own(to: SocketAddr, port: u16) -> SocketAddr {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    SocketAddr::new(any, port)
}

async fn send_datagrams(client: &Steady, port: u16, stop: &AtomicBool) -> io::Result<()> {
    let socket = UdpSocket::bind(own(client.to, port)).await?;
    socket.connect(client.to).await?;
    let mut text = [0_u8; 256];
    while !stop.load(Ordering::Relaxed) {
        client.send();
        // An ICMP error for an earlier datagram is reported here, or one by a rule: the next is sent all the same.
        drop(socket.send(b"?").await);
        sleep(PAUSE).await;
        while let Ok(length) = socket.try_recv(&mut text) {
            if let Ok(answer) = String::from_utf8_lossy(&text[..length]).parse() {
                client.answered(answer, socket.local_addr()?);
            }
        }
    }
    Ok(())
}

async fn connect_again_and_again(client: &Steady, port: u16, stop: &AtomicBool) -> io::Result<()> {
    while !stop.load(Ordering::Relaxed) {
        let socket = if client.to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        // Closed by a reset, so that the port is free at once.
        socket.set_zero_linger()?;
        socket.bind(own(client.to, port))?;
        client.send();
        let exchange = async {
            let mut stream = socket.connect(client.to).await?;
            let sent_from = stream.local_addr()?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok::<_, io::Error>((text, sent_from))
        };
        if let Ok(Ok((text, sent_from))) = timeout(PATIENCE, exchange).await
            && let Ok(answer) = text.parse()
        {
            client.answered(answer, sent_from);
        }
        sleep(PAUSE).await;
    }
    Ok(())
}

/// In turns: an ICMP error reaches every raw socket connected to its address.
fn send_inits(clients: &[(Steady, u16)], stop: &AtomicBool) {
    let sockets: Vec<_> = clients.iter().map(|(client, _)| sctp::socket(own(client.to, 0).ip())).collect();
    while !stop.load(Ordering::Relaxed) {
        for ((client, port), socket) in clients.iter().zip(&sockets) {
            let Ok(socket) = socket else { continue };
            client.send();
            if let Ok(Reply::Answer(answer)) = sctp::probe(socket, *port, client.to, PATIENCE) {
                let local = socket.local_addr().ok().and_then(|local| local.as_socket());
                client.answered(
                    answer,
                    SocketAddr::new(local.map_or_else(|| client.to.ip(), |at| at.ip()), *port),
                );
            }
        }
        thread::sleep(PAUSE);
    }
}
