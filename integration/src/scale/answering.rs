//! The server behind all endpoints: says which address was reached, then repeats what it hears.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::thread::{self, JoinHandle};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// How many connections may wait: a flood of new ones must not be measured as the server's slowness.
const BACKLOG: u32 = 65_535;

/// Stops when dropped.
#[derive(Debug)]
pub(crate) struct Answering {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Answering {
    /// Serves on all addresses of the calling thread's namespace.
    pub(crate) fn start(port: u16) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = runtime.block_on(async {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))?;
            socket.listen(BACKLOG)
        })?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("endpoints".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

async fn serve(listener: TcpListener) {
    loop {
        // A client that reset its connection before it was accepted is no reason to stop.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(answer(stream));
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let IpAddr::V4(reached) = stream.local_addr()?.ip() else { return Ok(()) };
    stream.set_nodelay(true)?;
    stream.write_all(&reached.octets()).await?;
    let mut buffer = [0_u8; 256];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
