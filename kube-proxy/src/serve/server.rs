//! Binds a port and serves HTTP/1 on it; says what happens when it cannot be bound.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::Semaphore,
    task::JoinSet,
};

use super::answer::Answer;

/// How long until a port that cannot be bound is tried again, as kube-proxy does.
pub(crate) const RETRY: Duration = Duration::from_secs(5);
/// A client that has not sent a whole request head by then is dropped.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// The ports are open to the network; more connections than this wait in the kernel.
const MOST_CONNECTIONS: usize = 512;
const BACKLOG: u32 = 1024;

/// Which packets reach a listener on an unspecified address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stack {
    /// Both families, as with Go's `tcp` network: there, `0.0.0.0` and `[::]` mean the same.
    Both,
    /// The family of the address, as with Go's `tcp4` and `tcp6` networks.
    Own,
}

pub(crate) fn listen(address: SocketAddr, stack: Stack) -> io::Result<TcpListener> {
    if stack == Stack::Both && address.ip() == Ipv4Addr::UNSPECIFIED {
        match bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port()), stack) {
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            bound => return bound,
        }
    }
    bind(address, stack)
}

fn bind(address: SocketAddr, stack: Stack) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &(stack == Stack::Own))?;
    }
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the listener breaks. Its connections end with it, as with a Go server: nobody goes on asking over a
/// connection to something that is gone.
pub(crate) async fn serve<H, F>(listener: TcpListener, handler: H) -> io::Error
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return io::Error::other("the connection limit is gone");
        };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if is_passing(&error) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
            Err(error) => return error,
        };
        let handler = handler.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            // A client that goes away is its own business.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                // As Go's servers write them: scripts look for `X-Load-Balancing-Endpoint-Weight` as it stands.
                .title_case_headers(true)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(slot);
        });
    }
}

/// Whether the next connection may fare better (accept(2): errors of the connection, and lack of files or memory).
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNABORTED
                | libc::EINTR
                | libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EPROTO
                | libc::ENETDOWN
                | libc::EPERM
        )
    )
}

/// Binds and serves for ever. A port that cannot be bound is logged and tried again, or, with `hard_fail`, is the
/// error that this returns.
pub(crate) async fn keep_serving<H, F>(
    what: &str,
    address: SocketAddr,
    hard_fail: bool,
    handler: H,
) -> io::Error
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    loop {
        let error = match listen(address, Stack::Both) {
            Ok(listener) => {
                tracing::debug!(server = what, %address, "Starting HTTP server");
                serve(listener, handler.clone()).await
            }
            Err(error) => error,
        };
        if hard_fail {
            return io::Error::new(error.kind(), format!("failed to start {what} on {address}: {error}"));
        }
        tracing::error!(server = what, %address, %error, "The HTTP server could not be started; it is tried again");
        tokio::time::sleep(RETRY).await;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use http::StatusCode;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::serve::answer;

    /// Sends one request and returns the head and the body of the answer.
    pub(crate) async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> (String, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("a server");
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut text = String::new();
        stream.read_to_string(&mut text).await.expect("an answer");
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
        (head.to_lowercase(), body.to_owned())
    }

    pub(crate) fn loopback() -> SocketAddr {
        ([127, 0, 0, 1], 0).into()
    }

    /// Puts the calling thread, on which the test's runtime runs too, into a network of its own: a port that is free
    /// there is taken by nobody else.
    pub(crate) fn own_network() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
            .expect("a network namespace (tests run as root)");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "a loopback interface");
    }

    /// A port that was free a moment ago, in a network of one's own.
    pub(crate) fn free_port() -> u16 {
        let listener = std::net::TcpListener::bind(loopback()).expect("a port");
        listener.local_addr().expect("an address").port()
    }

    async fn hello(_: Request<Incoming>) -> Answer {
        answer::plain(StatusCode::OK, "hello")
    }

    #[tokio::test]
    async fn a_bound_port_is_fatal_only_where_that_is_asked_for() {
        let taken = std::net::TcpListener::bind(loopback()).expect("a port");
        let address = taken.local_addr().expect("an address");
        let error = keep_serving("proxy healthz", address, true, hello).await;
        assert!(
            error.to_string().starts_with(&format!("failed to start proxy healthz on {address}: ")),
            "{error}"
        );
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bound_port_is_tried_again_every_five_seconds() {
        own_network();
        let taken = std::net::TcpListener::bind(loopback()).expect("a port");
        let address = taken.local_addr().expect("an address");
        let server = tokio::spawn(keep_serving("test", address, false, hello));
        tokio::time::sleep(RETRY * 2).await;
        drop(taken);
        tokio::time::sleep(RETRY).await;
        tokio::time::resume();
        assert_eq!(ask(address, "GET", "/", "").await.1, "hello");
        server.abort();
    }

    #[tokio::test]
    async fn families_may_share_a_port_where_each_keeps_to_its_own() {
        own_network();
        let port = free_port();
        let v4 = listen(([0, 0, 0, 0], port).into(), Stack::Own).expect("IPv4");
        let v6 = listen(format!("[::]:{port}").parse().expect("an address"), Stack::Own).expect("IPv6");
        drop((v4, v6));
    }

    #[tokio::test]
    async fn the_unspecified_address_of_either_family_answers_both() {
        own_network();
        let [v4, v6] = ["127.0.0.1", "::1"].map(|ip| ip.parse::<std::net::IpAddr>().expect("an address"));
        for unspecified in ["0.0.0.0", "::"] {
            let address = SocketAddr::new(unspecified.parse().expect("an address"), free_port());
            let server = tokio::spawn(serve(listen(address, Stack::Both).expect("a port"), hello));
            for ip in [v4, v6] {
                assert_eq!(ask(SocketAddr::new(ip, address.port()), "GET", "/", "").await.1, "hello", "{ip}");
            }
            server.abort();
        }
        let one = SocketAddr::new(v4, free_port());
        let _listener = listen(one, Stack::Both).expect("a port");
        assert!(tokio::net::TcpStream::connect(SocketAddr::new(v6, one.port())).await.is_err());
    }

    #[tokio::test]
    async fn connections_end_with_their_server() {
        let listener = listen(loopback(), Stack::Both).expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(serve(listener, hello));
        let mut kept = tokio::net::TcpStream::connect(address).await.expect("a server");
        kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
        let mut buffer = [0; 1024];
        assert!(kept.read(&mut buffer).await.expect("an answer") > 0);
        server.abort();
        let rest = tokio::time::timeout(Duration::from_secs(5), kept.read(&mut buffer)).await;
        assert!(matches!(rest.expect("the end"), Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn an_answer_carries_what_a_go_server_sends() {
        let listener = listen(loopback(), Stack::Both).expect("a port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(serve(listener, |_| async { answer::not_found() }));
        let (head, body) = ask(address, "GET", "/nope", "").await;
        assert!(head.starts_with("http/1.1 404 not found"), "{head}");
        for line in [
            "content-type: text/plain; charset=utf-8",
            "x-content-type-options: nosniff",
            "content-length: 19",
            "date: ",
        ] {
            assert!(head.contains(line), "{line}: {head}");
        }
        assert_eq!(body, "404 page not found\n");
    }
}
