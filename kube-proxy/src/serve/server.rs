//! Binds a port and serves HTTP/1 on it; says what happens when it cannot be bound.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Request;
use hyper::{
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
    time::sleep_until,
};

use super::{
    answer::Answer,
    connections::{Connections, Entry, Progress},
};

/// How long until a port that cannot be bound is tried again, as kube-proxy does.
pub(crate) const RETRY: Duration = Duration::from_secs(5);
/// The head of a request may have so many bytes.
const LARGEST_HEAD: usize = 16 << 10;
/// Connections that wait for a turn of this program; the kernel has a bound of its own, `net.core.somaxconn`.
const BACKLOG: u32 = 4096;
/// How long the kernel goes on trying to deliver what a peer does not confirm, in milliseconds.
const UNCONFIRMED: u32 = 15_000;
/// After a failure to accept: the first pause, and the longest (as Go's server has them).
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
    // tcp(7): the sockets that accept(2) returns inherit it.
    setsockopt(&socket, sockopt::TcpUserTimeout, &UNCONFIRMED)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the listener breaks. Its connections end with it, as with a Go server: nobody goes on asking over a
/// connection to something that is gone.
pub(crate) async fn serve<H, F>(listener: TcpListener, connections: &Connections, handler: H) -> io::Error
where
    H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let ours = connections.listener();
    let mut tasks = JoinSet::new();
    let mut pause = Duration::ZERO;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // What an answer panics with is in the log; as in Go, it ends that connection and no other.
            Some(_) = tasks.join_next() => continue,
        };
        let stream = match of_accept(accepted, &mut pause) {
            Ok(Some(stream)) => stream,
            Ok(None) => {
                if !pause.is_zero() {
                    ours.give_up_one();
                    tokio::time::sleep(pause).await;
                }
                continue;
            }
            Err(error) => return error,
        };
        ours.make_room();
        let progress = Arc::new(Progress::new());
        let entry = ours.entry();
        let id = entry.id();
        let task = tasks.spawn(connection(stream, Arc::clone(&progress), entry, handler.clone()));
        ours.add(id, progress, task);
    }
}

/// Serves one connection until it ends or takes too long.
async fn connection<H, F>(stream: TcpStream, progress: Arc<Progress>, entry: Entry, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let (entry, asked) = (Arc::new(entry), Arc::clone(&progress));
    let service = service_fn(move |request| {
        asked.asked();
        let answer = handler(request);
        let (entry, progress) = (Arc::clone(&entry), Arc::clone(&asked));
        async move {
            let answer = answer.await;
            let size = answer.body().size_hint().exact().and_then(|size| usize::try_from(size).ok());
            entry.holds(&progress, size.unwrap_or_default());
            Ok::<_, Infallible>(answer.map(|body| Watched { body, progress }))
        }
    });
    let stream = Watching { stream, progress: Arc::clone(&progress) };
    let serving = http1::Builder::new()
        // The limits are those of `Progress`.
        .header_read_timeout(None)
        .max_buf_size(LARGEST_HEAD)
        // As Go's servers write them: scripts look for `X-Load-Balancing-Endpoint-Weight` as it stands.
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let mut armed = progress.deadline();
    let mut limit = pin!(sleep_until(armed));
    poll_fn(|cx| {
        // A client that goes away is its own business.
        if serving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let deadline = progress.deadline();
        if deadline != armed {
            armed = deadline;
            limit.as_mut().reset(deadline);
        }
        limit.as_mut().poll(cx)
    })
    .await;
}

/// A stream that notes what happens on it.
struct Watching {
    stream: TcpStream,
    progress: Arc<Progress>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        // The kernel would keep what was not read and go on trying; nobody is served by that.
        if self.progress.answering() {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Watching {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.progress.received();
        }
        result
    }
}

impl AsyncWrite for Watching {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The HTTP implementation asks for it when it has written all it holds.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(result, Poll::Ready(Ok(()))) {
            self.progress.flushed();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// An answer's body that notes when the HTTP implementation has done with it.
struct Watched<B> {
    body: B,
    progress: Arc<Progress>,
}

impl<B> Drop for Watched<B> {
    fn drop(&mut self) {
        self.progress.body_taken();
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The next connection; nothing where there may be one after `pause`. The error is the listener's.
pub(super) async fn accept(listener: &TcpListener, pause: &mut Duration) -> io::Result<Option<TcpStream>> {
    of_accept(listener.accept().await, pause)
}

/// accept(2), "Error handling": Linux hands on network errors that are pending on the new socket; the next one may be
/// there already. Where files or memory are lacking, of this process or of the machine, it takes a while.
fn of_accept(
    accepted: io::Result<(TcpStream, SocketAddr)>,
    pause: &mut Duration,
) -> io::Result<Option<TcpStream>> {
    let error = match accepted {
        Ok((stream, _)) => {
            *pause = Duration::ZERO;
            return Ok(Some(stream));
        }
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::EAGAIN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENONET,
        ) => {
            *pause = Duration::ZERO;
            Ok(None)
        }
        // The last one: somebody forbids it for now.
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM | libc::EPERM) => {
            if pause.is_zero() {
                tracing::warn!(%error, "No connection can be accepted; trying again");
            }
            *pause = (*pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            Ok(None)
        }
        _ => Err(error),
    }
}

/// Binds and serves for ever. A port that cannot be bound is logged and tried again, or, with `hard_fail`, is the
/// error that this returns.
pub(crate) async fn keep_serving<H, F>(
    what: &str,
    address: SocketAddr,
    hard_fail: bool,
    connections: &Connections,
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
                serve(listener, connections, handler.clone()).await
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
        try_ask(address, method, path, body).await.expect("an answer")
    }

    /// As [`ask`], of a server that may be about to come or to go.
    pub(crate) async fn try_ask(
        address: SocketAddr,
        method: &str,
        path: &str,
        body: &str,
    ) -> io::Result<(String, String)> {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok((head.to_lowercase(), body.to_owned()))
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

    /// A server for few connections.
    pub(crate) fn start<H, F>(listener: TcpListener, handler: H) -> tokio::task::JoinHandle<io::Error>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        tokio::spawn(async move { serve(listener, &Connections::new(10), handler).await })
    }

    async fn hello(_: Request<Incoming>) -> Answer {
        answer::plain(StatusCode::OK, "hello")
    }

    #[tokio::test]
    async fn a_bound_port_is_fatal_only_where_that_is_asked_for() {
        let taken = std::net::TcpListener::bind(loopback()).expect("a port");
        let address = taken.local_addr().expect("an address");
        let error = keep_serving("proxy healthz", address, true, &Connections::new(10), hello).await;
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
        let server =
            tokio::spawn(
                async move { keep_serving("test", address, false, &Connections::new(10), hello).await },
            );
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
            let server = start(listen(address, Stack::Both).expect("a port"), hello);
            for ip in [v4, v6] {
                assert_eq!(ask(SocketAddr::new(ip, address.port()), "GET", "/", "").await.1, "hello", "{ip}");
            }
            server.abort();
        }
        let one = SocketAddr::new(v4, free_port());
        let _listener = listen(one, Stack::Both).expect("a port");
        assert!(TcpStream::connect(SocketAddr::new(v6, one.port())).await.is_err());
    }

    #[tokio::test]
    async fn connections_end_with_their_server() {
        let listener = listen(loopback(), Stack::Both).expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = start(listener, hello);
        let mut kept = TcpStream::connect(address).await.expect("a server");
        kept.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("a request");
        let mut buffer = [0; 1024];
        assert!(kept.read(&mut buffer).await.expect("an answer") > 0);
        server.abort();
        let rest = tokio::time::timeout(Duration::from_secs(60), kept.read(&mut buffer)).await;
        assert!(matches!(rest.expect("the end"), Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn an_answer_carries_what_a_go_server_sends() {
        let listener = listen(loopback(), Stack::Both).expect("a port");
        let address = listener.local_addr().expect("an address");
        start(listener, |_| async { answer::not_found() });
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
