//! Connections: accepted, spoken on, and broken where a test wants it.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Extension;
use axum::Router;
use axum::routing::any;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::faults::Control;
use super::journal::Peer;
use super::routing;
use super::security::Security;
use super::shared::Shared;

/// Accepts connections until stopped; while down there is no listener and no connection.
pub(crate) async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    address: SocketAddr,
    security: Option<Security>,
    mut stopped: watch::Receiver<bool>,
) {
    let router = Router::new().fallback(any(routing::serve)).with_state(shared.clone());
    let mut control = shared.control.subscribe();
    let mut connections = JoinSet::new();
    let mut listener = Some(listener);
    while !*stopped.borrow_and_update() {
        let (down, reset) = {
            let control = control.borrow_and_update();
            (control.down, control.faults.reset)
        };
        if down || reset {
            connections.abort_all();
        }
        if down {
            listener = None;
        } else if listener.is_none() {
            match TcpListener::bind(address).await {
                Ok(bound) => listener = Some(bound),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            continue;
        }
        let next = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = next => {
                let Ok((stream, _)) = accepted else { continue };
                if reset {
                    // Closed with a reset instead of an end.
                    drop(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
                    continue;
                }
                drop(stream.set_nodelay(true));
                connections.spawn(serve(stream, router.clone(), security.clone(), shared.control.subscribe()));
            }
            _ = control.changed() => {}
            _ = stopped.changed() => {}
            _ = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn serve(
    stream: TcpStream,
    router: Router,
    security: Option<Security>,
    control: watch::Receiver<Control>,
) {
    let stream = Breakable::new(stream, control.clone());
    let Some(security) = security else {
        let peer = Peer { encrypted: false, certificate: None };
        return speak(stream, router, peer, false, control).await;
    };
    let Ok(stream) = TlsAcceptor::from(security.config()).accept(stream).await else { return };
    let session = stream.get_ref().1;
    let certificate = session.peer_certificates().and_then(|chain| Some(chain.first()?.to_vec()));
    let http2 = session.alpn_protocol() == Some(b"h2");
    let peer = Peer { encrypted: true, certificate };
    speak(stream, router, peer, http2, control).await;
}

/// Until the client or the server ends it; a `go_away` tells the client to make a new connection for what is new.
async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    peer: Peer,
    http2: bool,
    mut control: watch::Receiver<Control>,
) {
    let begun_under = control.borrow_and_update().go_away;
    let told = async move { drop(control.wait_for(|control| control.go_away != begun_under).await) };
    let service = TowerToHyperService::new(router.layer(Extension(peer)));
    let io = TokioIo::new(stream);
    // Whoever breaks it is the test or the client.
    if http2 {
        let connection =
            hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = told => connection.as_mut().graceful_shutdown(),
        }
        drop(connection.await);
    } else {
        let connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            () = told => connection.as_mut().graceful_shutdown(),
        }
        drop(connection.await);
    }
}

/// A connection that is reset in the middle of what is written next, where the test says so. Below TLS, so that neither a
/// record nor a frame in it is whole.
struct Breakable {
    stream: TcpStream,
    control: watch::Receiver<Control>,
    begun_under: u64,
}

impl Breakable {
    fn new(stream: TcpStream, control: watch::Receiver<Control>) -> Self {
        let begun_under = control.borrow().tear;
        Self { stream, control, begun_under }
    }
}

impl AsyncRead for Breakable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Breakable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.control.borrow().tear == self.begun_under {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        let half = &bytes[..bytes.len() / 2];
        if !half.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_write(context, half))?;
        }
        drop(socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "torn by the test")))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
