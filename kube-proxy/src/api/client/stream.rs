//! A connection that notes when something was heard on it, and that ends when the credentials are others.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use tokio::sync::watch;

use super::{contact::Contact, tls::explain};

/// All connections of a client.
#[derive(Debug, Clone)]
pub(super) struct Connections(Arc<watch::Sender<u64>>);

impl Connections {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// Ends those that there are: who the client is was settled when they began.
    pub(super) fn renew(&self) {
        self.0.send_modify(|renewals| *renewals += 1);
    }

    /// To hear when they are to end.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }
}

/// What hyper wants of a connection.
pub(super) trait Io: Read + Write + Connection + Send + Unpin {}

impl<T: Read + Write + Connection + Send + Unpin> Io for T {}

pub(super) struct Stream {
    io: Box<dyn Io>,
    renewed: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
    contact: Contact,
}

impl fmt::Debug for Stream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Stream {
    pub(super) fn new(io: Box<dyn Io>, connections: &Connections, contact: Contact) -> Self {
        contact.connected(io.connected().is_negotiated_h2());
        let mut renewals = connections.subscribe();
        let renewed = Box::pin(async move {
            // The sender lives as long as the client.
            if renewals.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        Self { io, renewed, over: false, contact }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.over && self.renewed.as_mut().poll(context).is_ready() {
            self.over = true;
        }
        if self.over {
            let text = "the credentials were renewed: a new connection begins with them";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, text)));
        }
        let polled = Pin::new(&mut *self.io).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = polled {
            self.contact.heard_something();
        }
        polled.map_err(explain::explained)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(context, bytes).map_err(explain::explained)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(context).map_err(explain::explained)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write_vectored(context, buffers).map_err(explain::explained)
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}
