//! What clients do to an HTTP server that is open to the network. Counted, not timed: the limits are those of a clock that
//! the tests put forward.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicUsize},
    time::Duration,
};

use http::StatusCode;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_core::model::ServiceName;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use super::{
    answer,
    capacity::Capacity,
    connections::{ANSWER_LIMIT, Connections, HEAD_LIMIT, IDLE_LIMIT},
    healthz, metrics_server,
    server::{self, Stack, listen, tests::ask},
    service_health,
};
use crate::telemetry::health::HealthState;

const ASK: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
const CLOSE: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

struct Server {
    address: SocketAddr,
    connections: Connections,
    task: JoinHandle<io::Error>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a server with this handler.
macro_rules! serve {
    ($ip:expr, $connections:expr, $handler:expr) => {{
        let listener = listen(address($ip), Stack::Own).expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = $connections.clone();
        let handler = $handler;
        let ours = connections.clone();
        let task = tokio::spawn(async move { server::serve(listener, &ours, handler).await });
        Server { address, connections, task }
    }};
}

fn address(ip: &str) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), 0)
}

/// A server whose answers have so many bytes.
fn start(ip: &str, connections: &Connections, size: usize) -> Server {
    let handler = move |_| std::future::ready(answer::plain(StatusCode::OK, vec![b'x'; size]));
    serve!(ip, connections, handler)
}

/// Lets tasks run until `done`, or for as long as "never" takes.
async fn eventually(what: &str, done: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if done() {
            return;
        }
        tokio::task::yield_now().await;
        std::thread::sleep(Duration::from_micros(100));
    }
    panic!("{what} never came about");
}

/// Everything until the end of the connection; how it ends is of no interest.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        all.extend_from_slice(&buffer[..count]);
    }
    all
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.expect("a server")
}

/// The clock stands still but for what `pass` lets go by.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time + Duration::from_millis(1)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn five_thousand_idle_connections_leave_every_server_answering() {
    server::tests::own_network();
    let capacity = Capacity::of_this_process();
    let state = HealthState::new(Duration::from_secs(60));
    state.set_eligible(true);
    let (metrics, _settings) = metrics_server::tests::of_this_process(&["--mode=nftables"]);
    for ip in ["127.0.0.1", "::1"] {
        let local = Arc::new(AtomicUsize::new(1));
        let service = service_health::handler(ServiceName::new("ns", "web"), local, state.clone());
        let metrics = metrics.clone();
        for server in [
            serve!(ip, &capacity.health, healthz::handler(state.clone())),
            serve!(ip, &capacity.services, service),
            serve!(ip, &capacity.metrics, move |request| metrics.clone().handle(request)),
        ] {
            let mut idle = Vec::new();
            for _ in 0..5_000 {
                idle.push(connect(server.address).await);
            }
            for _ in 0..20 {
                let (head, _) = ask(server.address, "GET", "/healthz", "").await;
                assert!(head.starts_with("http/1.1 200"), "{head}");
            }
            assert!(server.connections.len() <= 1024, "{}", server.connections.len());
            drop(idle);
        }
    }
}

#[tokio::test]
async fn idle_connections_and_heads_that_never_end_are_closed() {
    for ip in ["127.0.0.1", "::1"] {
        let server = start(ip, &Connections::new(100), 5);
        let silent = connect(server.address).await;
        let mut slow = connect(server.address).await;
        let mut kept = connect(server.address).await;
        kept.write_all(ASK).await.expect("a request");
        let mut buffer = [0; 1024];
        assert!(kept.read(&mut buffer).await.expect("an answer") > 0);
        for byte in &ASK[..4] {
            slow.write_all(&[*byte]).await.expect("a byte");
        }
        eventually("three connections", || server.connections.len() == 3).await;
        // The server has read the bytes when the next request, of another connection, is answered.
        ask(server.address, "GET", "/", "").await;
        pass(HEAD_LIMIT).await;
        eventually("who has asked nothing goes", || server.connections.len() == 1).await;
        assert_eq!((rest(silent).await.len(), rest(slow).await.len()), (0, 0));
        kept.write_all(ASK).await.expect("a request");
        assert!(kept.read(&mut buffer).await.expect("an answer") > 0, "between requests there is more time");
        pass(IDLE_LIMIT).await;
        eventually("who asks nothing more goes", || server.connections.len() == 0).await;
    }
}

#[tokio::test]
async fn bodies_that_never_end_hold_nobody_up() {
    let (metrics, _settings) = metrics_server::tests::of_this_process(&["--mode=nftables"]);
    let connections = Connections::new(64);
    let server = serve!("127.0.0.1", &connections, move |request| metrics.clone().handle(request));
    let mut endless = Vec::new();
    for _ in 0..300 {
        let mut stream = connect(server.address).await;
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n{")
            .await
            .expect("a part of a request");
        endless.push(stream);
    }
    for path in ["/metrics", "/healthz"] {
        let (head, _) = ask(server.address, "GET", path, "").await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
    }
    assert!(server.connections.len() <= 64);
    pass(ANSWER_LIMIT).await;
    eventually("all are given up", || server.connections.len() == 0).await;
    // The last one was still there when its time was up: it is told.
    let told = rest(endless.pop().expect("300")).await;
    assert!(told.is_empty() || told.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&told));
}

#[tokio::test]
async fn a_body_that_nobody_wants_is_not_waited_for() {
    let server = start("127.0.0.1", &Connections::new(10), 5);
    let mut stream = connect(server.address).await;
    stream
        .write_all(b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n{")
        .await
        .expect("a part of a request");
    let answer = rest(stream).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn who_asks_and_does_not_read_is_closed() {
    for ip in ["127.0.0.1", "::1"] {
        let server = start(ip, &Connections::new(10), 1 << 20);
        let mut stream = connect(server.address).await;
        stream.write_all(&ASK.repeat(200)).await.expect("requests");
        // The answers fill what the kernel holds, and the server waits.
        let asked = ask(server.address, "GET", "/", "").await;
        assert_eq!(asked.1.len(), 1 << 20);
        pass(ANSWER_LIMIT).await;
        eventually("it is closed", || server.connections.len() == 0).await;
        assert!(rest(stream).await.len() < 100 << 20, "far from all answers were made");
    }
}

#[tokio::test]
async fn requests_that_come_at_once_are_answered_one_after_the_other() {
    let server = start("127.0.0.1", &Connections::new(10), 5);
    let mut stream = connect(server.address).await;
    let (mut reader, mut writer) = stream.split();
    let ask_all = async {
        writer.write_all(&ASK.repeat(999)).await.expect("requests");
        writer.write_all(CLOSE).await.expect("the last one");
    };
    let read_all = async {
        let mut text = String::new();
        reader.read_to_string(&mut text).await.expect("answers");
        text
    };
    let ((), text) = tokio::join!(ask_all, read_all);
    assert_eq!(text.matches("HTTP/1.1 200 OK").count(), 1000);
}

#[tokio::test]
async fn a_head_without_end_is_refused() {
    let server = start("127.0.0.1", &Connections::new(10), 5);
    let mut stream = connect(server.address).await;
    stream.write_all(b"GET / HTTP/1.1\r\nX: ").await.expect("a beginning");
    let mut sent = 0_usize;
    while sent < 64 << 20 && stream.write_all(&[b'x'; 4096]).await.is_ok() {
        sent += 4096;
    }
    assert!(sent < 64 << 20, "it was taken in");
    eventually("it is closed", || server.connections.len() == 0).await;
}

/// Where no file is left, what has been idle longest makes way, and who asks is answered.
#[tokio::test]
async fn without_files_connections_are_served_one_after_the_other() {
    let listener = listen(address("127.0.0.1"), Stack::Both).expect("a port");
    let at = listener.local_addr().expect("an address");
    let mut clients = Vec::new();
    for number in 0..60 {
        let mut stream = connect(at).await;
        if number >= 30 {
            stream.write_all(CLOSE).await.expect("a request");
        }
        clients.push(stream);
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let open = std::fs::read_dir("/proc/self/fd").expect("a list").count() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, open + 5, hard).expect("lowered");
    let connections = Connections::new(1000);
    let task = {
        let connections = connections.clone();
        let handler = |_| std::future::ready(answer::plain(StatusCode::OK, "x"));
        tokio::spawn(async move { server::serve(listener, &connections, handler).await })
    };
    for client in clients.split_off(30) {
        let answer = rest(client).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert!(!task.is_finished(), "it goes on");
    task.abort();
}

#[tokio::test]
async fn half_open_connections_end_by_the_clock() {
    let server = start("127.0.0.1", &Connections::new(10), 5);
    let mut stream = connect(server.address).await;
    stream.write_all(&ASK[..10]).await.expect("a part");
    // The peer has said that it sends nothing more; what it began will never be complete.
    stream.shutdown().await.expect("half closed");
    eventually("it is closed", || server.connections.len() == 0).await;
}
