//! Connections to an API server that is reached directly. Requests are sent at once.
//!
//! The client library leaves Nagle's algorithm on: the first request of a TLS connection then waits until the server
//! has acknowledged the end of the handshake, and Linux delays that by 40 ms. The stack is the library's otherwise.

use anyhow::Context as _;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{
    Config,
    client::{Body, ClientBuilder, ConfigExt as _, DynBody, retry::RetryPolicy},
};
use tower::{BoxError, ServiceBuilder, ServiceExt as _, retry::RetryLayer, util::BoxService};

pub(super) type Stack = BoxService<Request<Body>, Response<Box<DynBody>>, BoxError>;

/// `None` for what the client library alone can do: proxies, and credentials that a program hands out.
pub(super) fn builder(config: &Config) -> anyhow::Result<Option<ClientBuilder<Stack>>> {
    if config.proxy_url.is_some() || config.auth_info.exec.is_some() {
        return Ok(None);
    }
    let mut tcp = HttpConnector::new();
    // Whether TLS is wanted is the next connector's business.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let tls = config.rustls_https_connector_with_connector(tcp).context("TLS")?;
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let retry = config.default_retry.then(|| RetryLayer::new(RetryPolicy::server_retry()));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(retry)
        .option_layer(config.auth_layer().context("credentials")?)
        .layer(config.extra_headers_layer().context("headers")?)
        .map_err(BoxError::from)
        .service(client);
    let service = service.map_response(|response: Response<hyper::body::Incoming>| {
        response.map(|body| Box::new(body.map_err(BoxError::from)) as Box<DynBody>)
    });
    Ok(Some(ClientBuilder::new(service.boxed(), config.default_namespace.clone())))
}

#[cfg(test)]
mod tests {
    use std::{
        net::TcpStream,
        process::{Child, Command, Stdio},
        time::{Duration, Instant},
    };

    use super::*;

    struct Server {
        process: Child,
        folder: std::path::PathBuf,
    }

    impl Server {
        /// A TLS server that answers every request with a page about itself.
        fn start(port: u16) -> Self {
            let folder = std::env::temp_dir().join(format!("switchyard-direct-{}", std::process::id()));
            std::fs::create_dir_all(&folder).expect("a folder");
            let run = |arguments: &[&str]| {
                let mut command = Command::new("openssl");
                command.args(arguments).current_dir(&folder);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                command.spawn().expect("openssl starts")
            };
            let made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"];
            let made = run(&[&made[..], &["-keyout", "key.pem", "-out", "certificate.pem"]].concat()).wait();
            assert!(made.expect("openssl ends").success());
            let port_text = port.to_string();
            // A ticket after the handshake would carry the acknowledgement; kube-apiserver sends none then.
            let arguments = [
                "s_server",
                "-www",
                "-num_tickets",
                "0",
                "-key",
                "key.pem",
                "-cert",
                "certificate.pem",
                "-port",
            ];
            let process = run(&[&arguments[..], &[&port_text]].concat());
            let up = (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(20));
                TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            assert!(up, "no server on port {port}");
            Self { process, folder }
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            drop(self.process.kill());
            drop(self.process.wait());
            drop(std::fs::remove_dir_all(&self.folder));
        }
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "measures how long a request took")]
    async fn the_first_request_of_a_connection_does_not_wait_for_an_acknowledgement() {
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
        let _server = Server::start(port);
        let mut config = Config::new(format!("https://127.0.0.1:{port}").parse().expect("a URL"));
        config.accept_invalid_certs = true;
        let mut fastest = Duration::MAX;
        for _ in 0..10 {
            // A new client has no connection yet.
            let client = builder(&config).expect("it can be built").expect("no proxy").build();
            let begun = Instant::now();
            let answer = client.request_text(Request::get("/").body(Vec::new()).expect("a request")).await;
            fastest = fastest.min(begun.elapsed());
            assert!(answer.expect("a page").contains("s_server"));
        }
        // A delayed acknowledgement takes 40 ms.
        assert!(fastest < Duration::from_millis(30), "{fastest:?}");
    }

    #[test]
    fn proxies_are_left_to_the_library() {
        let mut config = Config::new("http://127.0.0.1:1".parse().expect("a URL"));
        config.proxy_url = Some("http://127.0.0.1:2".parse().expect("a URL"));
        assert!(builder(&config).expect("nothing was tried").is_none());
    }
}
