//! Servers that tell who they are and whom they saw, for all endpoints on one background thread.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::namespace::Namespace;
use super::sctp;
use super::wire::Answer;

/// Stops all servers when dropped.
#[derive(Debug)]
pub(crate) struct Servers {
    bound: Option<mpsc::UnboundedSender<Bound>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

enum Bound {
    Tcp(String, TcpListener),
    Udp(String, UdpSocket),
}

impl Servers {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (bound, arriving) = mpsc::unbounded_channel();
        let main = thread::Builder::new()
            .name("servers".to_owned())
            .spawn(move || runtime.block_on(serve(arriving)))?;
        Ok(Self { bound: Some(bound), stop: Arc::default(), threads: vec![main] })
    }

    /// Serves TCP and UDP on each port of `address`, and SCTP when `sctp` is set.
    pub(crate) fn add(
        &mut self,
        namespace: &Namespace,
        name: &str,
        address: IpAddr,
        ports: &[u16],
        sctp: bool,
    ) -> io::Result<()> {
        let sockets = namespace.run(|| -> io::Result<Vec<Bound>> {
            let mut sockets = Vec::new();
            for port in ports {
                let at = SocketAddr::new(address, *port);
                let tcp = TcpListener::bind(at)?;
                tcp.set_nonblocking(true)?;
                let udp = UdpSocket::bind(at)?;
                udp.set_nonblocking(true)?;
                sockets.push(Bound::Tcp(name.to_owned(), tcp));
                sockets.push(Bound::Udp(name.to_owned(), udp));
            }
            Ok(sockets)
        })??;
        let bound = self.bound.as_ref().expect("only drop takes it");
        for socket in sockets {
            bound.send(socket).map_err(io::Error::other)?;
        }
        if sctp {
            let socket = namespace.run(|| sctp::socket(address))??;
            let (stop, name, ports) = (self.stop.clone(), name.to_owned(), ports.to_vec());
            self.threads.push(thread::spawn(move || {
                sctp::serve(&socket, &name, address, &ports, || stop.load(Ordering::Relaxed));
            }));
        }
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.bound = None;
        for thread in self.threads.drain(..) {
            drop(thread.join());
        }
    }
}

async fn serve(mut arriving: mpsc::UnboundedReceiver<Bound>) {
    while let Some(bound) = arriving.recv().await {
        match bound {
            Bound::Tcp(name, listener) => {
                let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime runs");
                tokio::spawn(serve_tcp(name, listener));
            }
            Bound::Udp(name, socket) => {
                let socket = tokio::net::UdpSocket::from_std(socket).expect("the runtime runs");
                tokio::spawn(serve_udp(name, socket));
            }
        }
    }
}

async fn serve_tcp(name: String, listener: tokio::net::TcpListener) {
    let Ok(local) = listener.local_addr() else { return };
    loop {
        let Ok((mut stream, source)) = listener.accept().await else { continue };
        let answer = Answer { by: name.clone(), port: local.port(), seen_source: source };
        tokio::spawn(async move {
            drop(stream.write_all(answer.to_string().as_bytes()).await);
            drop(stream.shutdown().await);
        });
    }
}

async fn serve_udp(name: String, socket: tokio::net::UdpSocket) {
    let Ok(local) = socket.local_addr() else { return };
    let mut request = [0_u8; 64];
    loop {
        // An ICMP error for an earlier answer is no reason to stop.
        let Ok((_, source)) = socket.recv_from(&mut request).await else { continue };
        let answer = Answer { by: name.clone(), port: local.port(), seen_source: source };
        drop(socket.send_to(answer.to_string().as_bytes(), source).await);
    }
}
