//! An HTTP proxy that speaks TLS to its clients and knows one method: CONNECT (RFC 9110, 9.3.6).

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use crate::apiserver::Security;

/// The longest head of a request.
const LONGEST_HEAD: usize = 8 * 1024;

/// A running proxy. It stops when dropped.
#[derive(Debug)]
pub struct ConnectProxy {
    address: SocketAddr,
    tunnels: Arc<AtomicUsize>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl ConnectProxy {
    /// Serves on `address`, in the network namespace of the calling thread, and shows what the API server shows.
    pub fn start(address: SocketAddr, security: &Security) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let tunnels = Arc::new(AtomicUsize::new(0));
        let (stop, stopped) = oneshot::channel();
        let (security, counted) = (security.clone(), Arc::clone(&tunnels));
        let thread = thread::Builder::new().name("connect-proxy".to_owned()).spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = stopped => {}
                    () = accept(listener, security, counted) => {}
                }
            });
        })?;
        Ok(Self { address, tunnels, stop: Some(stop), thread: Some(thread) })
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// How many tunnels there have been.
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::Relaxed)
    }
}

impl Drop for ConnectProxy {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn accept(listener: TcpListener, security: Security, tunnels: Arc<AtomicUsize>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (acceptor, tunnels) = (TlsAcceptor::from(security.config()), Arc::clone(&tunnels));
        // Whoever breaks a tunnel is one of its ends.
        tokio::spawn(async move { drop(tunnel(stream, acceptor, &tunnels).await) });
    }
}

async fn tunnel(stream: TcpStream, acceptor: TlsAcceptor, tunnels: &AtomicUsize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut client = acceptor.accept(stream).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == LONGEST_HEAD {
            return Err(io::Error::other("a head without an end"));
        }
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    let mut words = head.split(' ');
    let (Some("CONNECT"), Some(server)) = (words.next(), words.next()) else {
        client.write_all(b"HTTP/1.1 405 Method Not Allowed\r\n\r\n").await?;
        return client.shutdown().await;
    };
    let Ok(mut server) = TcpStream::connect(server).await else {
        client.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await?;
        return client.shutdown().await;
    };
    server.set_nodelay(true)?;
    tunnels.fetch_add(1, Ordering::Relaxed);
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
