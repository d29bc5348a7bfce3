//! Connections whose packets vanish, in a network of their own, on every way to the server.

use std::{
    io::{Read, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use http_body_util::BodyExt as _;
use kube::Client;
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::api::client;

/// Long enough to tell "never" on a busy machine.
const NEVER: Duration = Duration::from_secs(60);

/// The shape of the real ones, in little time.
const BRIEF: Liveness = Liveness {
    idle: Duration::from_secs(1),
    interval: Duration::from_secs(1),
    unacknowledged: Duration::from_secs(2),
    ping: Duration::from_secs(1),
    pong: Duration::from_secs(1),
    connect: Duration::from_secs(10),
};

/// Reads to the end of a request's head; `None`: the other end is gone.
fn head(stream: &mut TcpStream) -> Option<String> {
    let (mut text, mut byte) = (Vec::new(), [0]);
    while !text.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        text.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Tells the port of everybody who comes, and serves each on a thread.
fn serve(serve: fn(TcpStream) -> Option<()>) -> (u16, Receiver<u16>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let (told, come): (Sender<u16>, _) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let peer = stream.peer_addr().expect("connected").port();
            thread::spawn(move || serve(stream));
            if told.send(peer).is_err() {
                return;
            }
        }
    });
    (port, come)
}

/// A watch that begins and says no more, and short answers to everything else.
fn api(mut stream: TcpStream) -> Option<()> {
    loop {
        let watch = head(&mut stream)?.starts_with("GET /watch ");
        let answer: &[u8] = if watch {
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n"
        } else {
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        };
        stream.write_all(answer).ok()?;
    }
}

fn join(near: TcpStream, far: TcpStream) -> Option<()> {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        drop(std::io::copy(&mut from, &mut to));
        drop(to.shutdown(Shutdown::Both));
    };
    let (near_too, far_too) = (near.try_clone().ok()?, far.try_clone().ok()?);
    thread::spawn(move || copy(near_too, far_too));
    copy(far, near);
    Some(())
}

fn http_proxy(mut stream: TcpStream) -> Option<()> {
    let asked = head(&mut stream)?;
    let target = asked.strip_prefix("CONNECT ")?.split(' ').next()?.to_owned();
    // "user:a secret", as the proxy's URL has it.
    assert!(asked.contains("Proxy-Authorization: Basic dXNlcjphIHNlY3JldA=="), "{asked}");
    let far = TcpStream::connect(target).ok()?;
    stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
    join(stream, far)
}

fn socks_proxy(mut stream: TcpStream) -> Option<()> {
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    // RFC 1928: version and methods, then version, command, 0, kind of address (1: IPv4), address, port.
    let methods = take(2)?[1];
    take(methods.into())?;
    let mut answer = stream.try_clone().ok()?;
    answer.write_all(&[5, 0]).ok()?;
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        stream.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let kind = take(4)?[3];
    let ip = match kind {
        1 => <[u8; 4]>::try_from(take(4)?).ok()?,
        _ => {
            let length = take(1)?[0];
            String::from_utf8(take(length.into())?).ok()?.parse::<Ipv4Addr>().ok()?.octets()
        }
    };
    let port = take(2)?;
    let far = TcpStream::connect(SocketAddr::from((ip, u16::from_be_bytes([port[0], port[1]])))).ok()?;
    answer.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
    join(stream, far)
}

/// All packets of one connection are gone from now on.
fn vanish(client: u16) {
    let rules = format!(
        "add table ip vanish\n\
         add chain ip vanish in {{ type filter hook input priority -300; }}\n\
         add rule ip vanish in tcp sport {client} drop\n\
         add rule ip vanish in tcp dport {client} drop\n"
    );
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().expect("nft starts");
    nft.stdin.take().expect("piped").write_all(rules.as_bytes()).expect("read");
    assert!(nft.wait().expect("it ends").success());
}

/// In a network where nobody else is. One test at a time, where they are threads of one process.
fn alone(test: impl Future<Output = ()>) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests run as root)");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
    assert!(up.success());
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(test);
}

fn client(server: u16, proxy: Option<String>) -> Client {
    let mut config = Config::new(format!("http://127.0.0.1:{server}").parse().expect("a URL"));
    config.proxy_url = proxy.map(|proxy| proxy.parse().expect("a URL"));
    client::client(&config, None, BRIEF).expect("a client").0
}

fn get(path: &str) -> Request<Body> {
    Request::get(path).body(Body::empty()).expect("a request")
}

/// A watch, and a connection that is used again after it vanished, are found dead; what is asked next is answered.
async fn is_found(client: Client, come: &Receiver<u16>) {
    let mut watch = client.send(get("/watch")).await.expect("it begins").into_body();
    let first = watch.frame().await.expect("a part").expect("data");
    assert_eq!(first.into_data().expect("data"), "begun");
    vanish(come.recv().expect("it came"));
    let next = tokio::time::timeout(NEVER, watch.frame()).await.expect("the end is found");
    assert!(next.is_some_and(|part| part.is_err()));

    client.send(get("/")).await.expect("answered").into_body().collect().await.expect("all of it");
    vanish(come.recv().expect("another one"));
    let unanswered = tokio::time::timeout(NEVER, client.send(get("/"))).await.expect("the end is found");
    assert!(unanswered.is_err());
    client.send(get("/")).await.expect("answered, on a new connection");
    come.recv().expect("a third one");
}

#[test]
fn a_server_that_is_reached_directly() {
    alone(async {
        let (server, come) = serve(api);
        is_found(client(server, None), &come).await;
    });
}

#[test]
fn behind_an_http_proxy() {
    alone(async {
        let ((server, _come), (proxy, come)) = (serve(api), serve(http_proxy));
        is_found(client(server, Some(format!("http://user:a%20secret@127.0.0.1:{proxy}"))), &come).await;
    });
}

#[test]
fn behind_a_socks_proxy() {
    alone(async {
        let ((server, _come), (proxy, come)) = (serve(api), serve(socks_proxy));
        is_found(client(server, Some(format!("socks5://127.0.0.1:{proxy}"))), &come).await;
    });
}
