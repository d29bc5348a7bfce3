//! NodePorts on ::1: a listener for each, which connects to an endpoint and copies.
//!
//! On 127.0.0.1 the kernel translates (`route_localnet`). For IPv6 it cannot: it looks ::1 up on the interface that a
//! packet came in by and on no other (`rt6_need_strict` in net/ipv6/route.c), so an endpoint's answer is dropped. A
//! program that listens has no such trouble. TCP only, as in kube-proxy (KEP-6032): nobody listens for UDP and SCTP, and
//! the kernel refuses them.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    task::{AbortHandle, JoinSet},
    time::Instant,
};

use super::server::{self, RETRY, Stack};
use crate::telemetry::metrics;

/// How long connecting to endpoints may take, all tries together; kube-proxy gives its one try as long.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// An endpoint that refuses at once is not the only one: so many are tried.
const TRIES: usize = 3;
/// A peer that is gone is noticed after a minute or so, as with Go's listeners: seconds.
const KEEPALIVE: u32 = 15;

/// What a NodePort leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Not empty.
    pub(crate) endpoints: Arc<[SocketAddr]>,
    /// Session affinity: all clients are one, ::1, and stay with one endpoint until it was idle for so long.
    pub(crate) affinity: Option<Duration>,
}

/// Where changes are handed over; of each port the latest counts.
#[derive(Debug, Clone, Default)]
pub(crate) struct NodePorts(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    changes: Mutex<HashMap<u16, Option<Target>>>,
    news: Notify,
}

impl NodePorts {
    /// `None`: the port leads nowhere any more.
    pub(crate) fn set(&self, port: u16, target: Option<Target>) {
        self.changes().insert(port, target);
        self.0.news.notify_one();
    }

    fn changes(&self) -> MutexGuard<'_, HashMap<u16, Option<Target>>> {
        self.0.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn take(&self) -> HashMap<u16, Option<Target>> {
        std::mem::take(&mut *self.changes())
    }
}

/// The listeners. Connections outlive a change of endpoints, as translated ones do.
#[derive(Debug)]
pub(crate) struct Listeners {
    open: HashMap<u16, Listener>,
    failed: HashMap<u16, Target>,
    /// So many listeners, each of which costs a file.
    most: usize,
    connections: Arc<Semaphore>,
    tasks: JoinSet<(u16, io::Error)>,
}

#[derive(Debug)]
struct Listener {
    choice: Arc<Mutex<Choice>>,
    task: AbortHandle,
}

impl Listeners {
    /// At most so many listeners and so many connections, each of which costs two files.
    pub(crate) fn new(listeners: usize, connections: usize) -> Self {
        Self {
            open: HashMap::new(),
            failed: HashMap::new(),
            most: listeners,
            connections: Arc::new(Semaphore::new(connections)),
            tasks: JoinSet::new(),
        }
    }

    /// Follows what is handed over, for as long as the process runs.
    pub(crate) async fn run(mut self, wanted: NodePorts) {
        let mut again = Instant::now();
        loop {
            let changes = std::mem::take(&mut *wanted.changes());
            self.follow(changes);
            if Instant::now() >= again {
                let failed = std::mem::take(&mut self.failed);
                self.follow(failed.into_iter().map(|(port, target)| (port, Some(target))).collect());
                again = Instant::now() + RETRY;
            }
            metrics::localhost_node_port_listeners(self.open.len());
            tokio::select! {
                () = wanted.0.news.notified() => {}
                Some(ended) = self.tasks.join_next() => self.note(ended),
                () = tokio::time::sleep_until(again), if !self.failed.is_empty() => {}
            }
        }
    }

    fn follow(&mut self, changes: HashMap<u16, Option<Target>>) {
        for (port, target) in changes {
            self.failed.remove(&port);
            match (target, self.open.entry(port)) {
                (None, Entry::Occupied(open)) => open.remove().task.abort(),
                (None, Entry::Vacant(_)) => {}
                (Some(target), Entry::Occupied(open)) => lock(&open.get().choice).change(target),
                (Some(target), Entry::Vacant(_)) => self.open(port, target),
            }
        }
    }

    fn open(&mut self, port: u16, target: Target) {
        let listener = if self.open.len() < self.most {
            server::listen(SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port), Stack::Own)
        } else {
            Err(io::Error::other(format!(
                "there are {} of them, as many as the limit of open files allows",
                self.most
            )))
        };
        match listener {
            Ok(listener) => {
                let choice = Arc::new(Mutex::new(Choice { target, last: None }));
                let (ours, connections) = (Arc::clone(&choice), Arc::clone(&self.connections));
                let task = self.tasks.spawn(async move { (port, serve(listener, ours, connections).await) });
                self.open.insert(port, Listener { choice, task });
            }
            Err(error) => {
                tracing::warn!(port, %error, "A NodePort does not answer on ::1; trying again");
                metrics::localhost_node_port_listener_failed();
                self.failed.insert(port, target);
            }
        }
    }

    /// A listener broke, and is opened again; or it was stopped.
    fn note(&mut self, ended: Result<(u16, io::Error), tokio::task::JoinError>) {
        match ended {
            Ok((port, error)) => {
                tracing::warn!(port, %error, "A listener on ::1 broke; trying again");
                if let Some(listener) = self.open.remove(&port) {
                    let target = lock(&listener.choice).target.clone();
                    self.failed.insert(port, target);
                }
            }
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}

/// Which endpoint is next.
#[derive(Debug)]
struct Choice {
    target: Target,
    /// The endpoint of the last connection, and when that began.
    last: Option<(SocketAddr, Instant)>,
}

impl Choice {
    fn change(&mut self, target: Target) {
        if self.target.affinity != target.affinity {
            self.last = None;
        }
        self.target = target;
    }

    /// The endpoints to try, in order.
    fn order(&mut self, random: u64, now: Instant) -> Vec<SocketAddr> {
        let endpoints = &self.target.endpoints;
        let sticky = self.last.filter(|(endpoint, at)| {
            let lasts = self.target.affinity.is_some_and(|lasts| now.duration_since(*at) <= lasts);
            lasts && endpoints.contains(endpoint)
        });
        let count = endpoints.len().max(1);
        let first = usize::try_from(random % count as u64).unwrap_or_default();
        let others = endpoints.iter().cycle().skip(first).take(count).copied();
        let sticky = sticky.map(|(endpoint, _)| endpoint);
        let order = sticky.into_iter().chain(others.filter(|endpoint| Some(*endpoint) != sticky));
        order.take(TRIES).collect()
    }

    fn chosen(&mut self, endpoint: SocketAddr, now: Instant) {
        if self.target.affinity.is_some() {
            self.last = Some((endpoint, now));
        }
    }
}

fn lock(choice: &Mutex<Choice>) -> MutexGuard<'_, Choice> {
    choice.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, choice: Arc<Mutex<Choice>>, connections: Arc<Semaphore>) -> io::Error {
    let mut pause = Duration::ZERO;
    loop {
        match server::accept(&listener, &mut pause).await {
            Ok(Some(client)) => {
                // Beyond the limit a client is refused; those that are there may be idle for good reasons.
                let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else {
                    let _ = client.set_zero_linger();
                    continue;
                };
                tokio::spawn(relay(client, Arc::clone(&choice), permit));
            }
            Ok(None) => tokio::time::sleep(pause).await,
            Err(error) => return error,
        }
    }
}

/// Joins a client with an endpoint until both have said all.
async fn relay(mut client: TcpStream, choice: Arc<Mutex<Choice>>, permit: OwnedSemaphorePermit) {
    let order = lock(&choice).order(random(), Instant::now());
    let Ok(Some(mut endpoint)) = tokio::time::timeout(CONNECT_LIMIT, connect(&order)).await else {
        // As a translated connection to an endpoint that refuses.
        let _ = client.set_zero_linger();
        return;
    };
    if let Ok(address) = endpoint.peer_addr() {
        lock(&choice).chosen(address, Instant::now());
    }
    for stream in [&client, &endpoint] {
        let _ = stream.set_nodelay(true);
        let _ = setsockopt(stream, sockopt::KeepAlive, &true);
        let _ = setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE);
        let _ = setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE);
    }
    // Each side's end of data is passed on; a reset of either ends both.
    if tokio::io::copy_bidirectional(&mut client, &mut endpoint).await.is_err() {
        let _ = client.set_zero_linger();
        let _ = endpoint.set_zero_linger();
    }
    drop(permit);
}

async fn connect(order: &[SocketAddr]) -> Option<TcpStream> {
    for endpoint in order {
        match TcpStream::connect(endpoint).await {
            Ok(stream) => return Some(stream),
            Err(error) => {
                tracing::debug!(%endpoint, %error, "An endpoint does not take a connection from ::1")
            }
        }
    }
    None
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0_u8)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::serve::server::tests::{free_port, own_network};

    /// An endpoint that says its number, and then what it hears.
    async fn endpoint(number: u8) -> SocketAddr {
        let listener = TcpListener::bind("[::1]:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a client");
                tokio::spawn(async move {
                    let mut heard = Vec::new();
                    stream.write_all(&[number]).await.expect("a greeting");
                    stream.read_to_end(&mut heard).await.expect("everything");
                    stream.write_all(&heard).await.expect("the echo");
                });
            }
        });
        address
    }

    async fn ask(port: u16) -> io::Result<u8> {
        let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await?;
        let (number, echo) = all.split_first().ok_or(io::ErrorKind::UnexpectedEof)?;
        assert_eq!(echo, b"hello", "both directions, and the end of each");
        Ok(*number)
    }

    /// Asks until it answers so, for as long as "never" takes.
    async fn eventually(port: u16, expected: Option<u8>) {
        for _ in 0..1000 {
            if ask(port).await.ok() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{port} never answered {expected:?}");
    }

    fn target(endpoints: &[SocketAddr]) -> Option<Target> {
        Some(Target { endpoints: endpoints.into(), affinity: None })
    }

    fn start(listeners: usize, connections: usize) -> NodePorts {
        let ports = NodePorts::default();
        tokio::spawn(Listeners::new(listeners, connections).run(ports.clone()));
        ports
    }

    #[tokio::test]
    async fn a_port_answers_on_localhost_from_its_endpoints() {
        own_network();
        let (first, second) = (endpoint(1).await, endpoint(2).await);
        let port = free_port();
        let ports = start(10, 100);
        ports.set(port, target(&[first]));
        eventually(port, Some(1)).await;
        ports.set(port, target(&[second]));
        eventually(port, Some(2)).await;
        ports.set(port, target(&[first, second]));
        let mut seen = [0; 3];
        for _ in 0..100 {
            seen[usize::from(ask(port).await.expect("an answer"))] += 1;
        }
        assert!(seen[1] > 10 && seen[2] > 10, "{seen:?}");
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err(), "IPv4 is the kernel's");
        ports.set(port, None);
        eventually(port, None).await;
    }

    #[tokio::test]
    async fn an_endpoint_that_refuses_is_not_the_only_one() {
        own_network();
        let gone: SocketAddr = format!("[::1]:{}", free_port()).parse().expect("an address");
        let port = free_port();
        let ports = start(10, 100);
        ports.set(port, target(&[gone, endpoint(1).await]));
        eventually(port, Some(1)).await;
        for _ in 0..50 {
            assert_eq!(ask(port).await.expect("an answer"), 1);
        }
        ports.set(port, target(&[gone]));
        eventually(port, None).await;
    }

    #[tokio::test]
    async fn a_port_that_somebody_has_harms_no_other_and_is_served_in_the_end() {
        own_network();
        let endpoint = endpoint(1).await;
        let taken = std::net::TcpListener::bind("[::1]:0").expect("a port");
        let (port, other) = (taken.local_addr().expect("an address").port(), free_port());
        let ports = start(10, 100);
        ports.set(port, target(&[endpoint]));
        ports.set(other, target(&[endpoint]));
        eventually(other, Some(1)).await;
        drop(taken);
        eventually(port, Some(1)).await;
    }

    #[tokio::test]
    async fn listeners_and_connections_are_bounded() {
        own_network();
        let endpoint = endpoint(1).await;
        let ports = start(1, 2);
        let (first, second) = (free_port(), free_port());
        ports.set(first, target(&[endpoint]));
        eventually(first, Some(1)).await;
        ports.set(second, target(&[endpoint]));
        ports.set(first, target(&[endpoint]));
        eventually(first, Some(1)).await;
        assert!(ask(second).await.is_err(), "one listener");
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, first)).await.expect("a listener");
            assert_eq!(stream.read_u8().await.expect("a greeting"), 1);
            held.push(stream);
        }
        assert!(ask(first).await.is_err(), "two connections");
        held.pop();
        eventually(first, Some(1)).await;
    }

    #[test]
    fn with_affinity_the_endpoint_stays_while_it_serves_and_is_used() {
        let address = |number: u16| SocketAddr::new(Ipv6Addr::LOCALHOST.into(), number);
        let endpoints: Arc<[SocketAddr]> = (1..=10).map(address).collect();
        let lasts = Duration::from_secs(100);
        let target = Target { endpoints, affinity: Some(lasts) };
        let mut choice = Choice { target: target.clone(), last: None };
        let now = Instant::now();
        assert_eq!(choice.order(3, now), [4, 5, 6].map(address));
        choice.chosen(address(4), now);
        assert_eq!(choice.order(9, now + lasts), [4, 10, 1].map(address), "then another, should it refuse");
        choice.chosen(address(4), now + lasts);
        assert_eq!(choice.order(9, now + lasts * 2)[0], address(4), "each use counts");
        assert_eq!(choice.order(9, now + lasts * 3)[0], address(10));
        choice.change(Target { endpoints: [address(7), address(8)].into(), ..target });
        assert_eq!(choice.order(0, now + lasts), [7, 8].map(address), "it does not serve any more");
        choice.change(Target { affinity: None, ..target });
        choice.chosen(address(4), now);
        assert_eq!(choice.order(9, now)[0], address(10));
    }
}
