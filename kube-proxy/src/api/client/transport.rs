//! Connections to the API server, on every way there is: straight, through an HTTP proxy, through SOCKS.
//!
//! A connection whose packets vanish is found within 45 seconds on each of them:
//!
//! - Nothing to send: TCP asks after 15 s of silence, and every 10 s again (`TCP_KEEPIDLE`, `TCP_KEEPINTVL`, tcp(7)); with
//!   30 s of `TCP_USER_TIMEOUT` the connection ends at the third question, 35 s after the last word.
//! - Something is sent and not acknowledged: `TCP_USER_TIMEOUT` ends it after 30 s.
//! - A proxy, or a load balancer, acknowledges in the place of a server that is gone: HTTP/2 asks the server itself after 30 s
//!   of silence and waits 15 s (PING, RFC 9113, 6.7), as client-go does. kube-apiserver speaks HTTP/2 wherever it speaks TLS.
//!
//! Requests are sent at once: with Nagle's algorithm, the first request of a TLS connection waits until the server has
//! acknowledged the end of the handshake, and Linux delays that by 40 ms.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Request, Response, Uri};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{
            Connection, HttpConnector,
            proxy::{SocksV5, Tunnel},
        },
    },
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Config,
    client::{Body, ConfigExt as _},
};
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;
use tower::{
    BoxError, ServiceBuilder, ServiceExt as _,
    util::{BoxCloneSyncService, BoxService},
};
use tower_service::Service;

use super::{
    contact::Contact,
    credentials::Credentials,
    stream::{Connections, Io, Stream},
    tls::explain,
};

pub(super) type Stack = BoxService<Request<Body>, Response<Incoming>, BoxError>;

/// How long a connection may be silent, and what is asked when it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Liveness {
    pub(super) idle: Duration,
    pub(super) interval: Duration,
    pub(super) unacknowledged: Duration,
    pub(super) ping: Duration,
    pub(super) pong: Duration,
    /// For a connection to begin, with proxy and TLS.
    pub(super) connect: Duration,
}

impl Default for Liveness {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(15),
            interval: Duration::from_secs(10),
            unacknowledged: Duration::from_secs(30),
            ping: Duration::from_secs(30),
            pong: Duration::from_secs(15),
            connect: Duration::from_secs(30),
        }
    }
}

/// Probes beyond `TCP_USER_TIMEOUT`; with it the kernel does not count them (`tcp_keepalive_timer`), without it they are the limit.
const PROBES: u32 = 2;
/// What a list may be ahead of its reader: Go's HTTP/2 client allows 4 MiB a stream.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// What every connection of a client is given.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) liveness: Liveness,
    pub(super) connections: Connections,
    pub(super) contact: Contact,
    pub(super) credentials: Credentials,
}

/// The service that a `kube::Client` sends its requests to.
pub(super) fn stack(config: &Config, tls: ClientConfig, way: Way) -> anyhow::Result<Stack> {
    let connector = Connector { dialer: dialer(config, tls, way.liveness)?, way: way.clone() };
    let client = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(way.liveness.ping)
        .http2_keep_alive_timeout(way.liveness.pong)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(config.extra_headers_layer().context("headers")?)
        .layer(way.credentials)
        .map_err(BoxError::from)
        .service(client);
    Ok(service.boxed())
}

type Dialer = BoxCloneSyncService<Uri, Box<dyn Io>, BoxError>;

/// Whatever the way is, what comes out is a connection to the API server itself.
fn dialer(config: &Config, tls: ClientConfig, liveness: Liveness) -> anyhow::Result<Dialer> {
    let mut tcp = HttpConnector::new();
    // Whether TLS is wanted is the next connector's business.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(liveness.connect));
    tcp.set_keepalive(Some(liveness.idle));
    tcp.set_keepalive_interval(Some(liveness.interval));
    tcp.set_keepalive_retries(Some(PROBES));
    tcp.set_tcp_user_timeout(Some(liveness.unacknowledged));
    let name = config.tls_server_name.as_deref().filter(|name| !name.is_empty());
    let Some(proxy) = &config.proxy_url else { return secured(tcp, tls, name) };
    match proxy.scheme_str() {
        Some("http") => secured(tunnel(proxy, tcp)?, tls, name),
        Some("https") => {
            let outer = HttpsConnectorBuilder::new().with_tls_config(tls.clone()).https_or_http();
            secured(tunnel(proxy, outer.enable_http1().wrap_connector(tcp))?, tls, name)
        }
        Some("socks5" | "socks5h") => {
            let mut socks = SocksV5::new(proxy.clone(), tcp);
            if let Some((user, password)) = user(proxy)? {
                socks = socks.with_auth(user, password);
            }
            secured(socks, tls, name)
        }
        other => anyhow::bail!(
            "the proxy for the API server has the scheme {:?}: http, https, socks5 and socks5h are known",
            other.unwrap_or_default()
        ),
    }
}

fn tunnel<C>(proxy: &Uri, connector: C) -> anyhow::Result<Tunnel<C>> {
    let tunnel = Tunnel::new(proxy.clone(), connector);
    Ok(match user(proxy)? {
        Some((user, password)) => {
            let text = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            tunnel.with_auth(HeaderValue::from_str(&text).context("the proxy's user")?)
        }
        None => tunnel,
    })
}

/// User and password of a proxy's URL.
fn user(proxy: &Uri) -> anyhow::Result<Option<(String, String)>> {
    let authority = proxy.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    let Some((both, _)) = authority.rsplit_once('@') else { return Ok(None) };
    let (user, password) = both.split_once(':').unwrap_or((both, ""));
    let plain = |text: &str| percent_decode_str(text).decode_utf8().map(|text| text.into_owned());
    let pair = plain(user).and_then(|user| Ok((user, plain(password)?)));
    pair.map(Some).ok().context("the proxy's user or password is not UTF-8")
}

/// TLS inside whatever `inner` connects, where the server's address asks for it.
fn secured<C>(inner: C, tls: ClientConfig, name: Option<&str>) -> anyhow::Result<Dialer>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Read + Write + Connection + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let mut builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    if let Some(name) = name {
        let name = name.to_owned().try_into().with_context(|| format!("tls-server-name {name:?}"))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let connector = builder.enable_all_versions().wrap_connector(inner);
    let boxed = connector.map_response(|stream| Box::new(stream) as Box<dyn Io>);
    Ok(BoxCloneSyncService::new(boxed))
}

/// Dials, within a time, and says in words why it failed.
#[derive(Clone)]
struct Connector {
    dialer: Dialer,
    way: Way,
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.dialer.poll_ready(context)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let dialed = self.dialer.call(server);
        let way = self.way.clone();
        Box::pin(async move {
            let limit = way.liveness.connect;
            let io = match tokio::time::timeout(limit, dialed).await {
                Ok(Ok(io)) => io,
                Ok(Err(error)) => {
                    let words = explain::words(&*error);
                    return Err(words.map_or(error, BoxError::from));
                }
                Err(_) => return Err(format!("no connection within {} s", limit.as_secs()).into()),
            };
            Ok(Stream::new(io, &way.connections, way.contact))
        })
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vanishing;
