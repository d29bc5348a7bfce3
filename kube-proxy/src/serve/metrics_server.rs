//! The metrics server: metrics, the mode, the configuration, and pages for people.

use std::{fmt::Write as _, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Bytes, Incoming};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{
    answer::{self, Answer},
    connections::Connections,
    debug, gzip,
    page::{Page, Pages},
    server,
};
use crate::{
    settings::{effective::Settings, feature_gates::Feature, version},
    telemetry::{
        logging::LogControl,
        metrics::{Metrics, start_time_seconds},
    },
};

/// As the Go client of Prometheus says it.
const EXPOSITION: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8; escaping=underscores");
const PEOPLE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const PROCESS_START: HeaderName = HeaderName::from_static("process-start-time-unix");
const LARGEST_BODY: usize = 4096;
/// How long the body of a request may take to arrive.
const BODY_LIMIT: Duration = Duration::from_secs(5);
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.\n";

/// What the server shows.
#[derive(Debug, Clone)]
pub(crate) struct MetricsServer {
    metrics: Metrics,
    pages: Arc<Pages>,
    /// As they are in force; they change when the configuration file does.
    settings: watch::Receiver<Arc<Settings>>,
    log: LogControl,
    started: Timestamp,
}

impl MetricsServer {
    pub(crate) fn new(metrics: Metrics, settings: watch::Receiver<Arc<Settings>>, log: LogControl) -> Self {
        Self { metrics, pages: Arc::default(), settings, log, started: Timestamp::now() }
    }

    /// Serves for ever; returns only with `hard_fail`, when the port cannot be bound.
    pub(crate) async fn serve(
        self,
        address: SocketAddr,
        hard_fail: bool,
        connections: &Connections,
    ) -> io::Error {
        let handler = move |request| self.clone().handle(request);
        server::keep_serving("metrics server", address, hard_fail, connections, handler).await
    }

    pub(super) async fn handle(self, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let body = match tokio::time::timeout(BODY_LIMIT, Limited::new(body, LARGEST_BODY).collect()).await {
            Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            Ok(Err(error)) => {
                let text = format!("error reading request body: {error}");
                return answer::plain(StatusCode::BAD_REQUEST, text);
            }
            Err(_) => return answer::plain(StatusCode::REQUEST_TIMEOUT, "the request body did not arrive\n"),
        };
        if head.uri.path() == "/metrics" {
            let page = self.pages.get(|| self.metrics.render()).await;
            return exposition(&page, gzip::accepted(&head.headers));
        }
        self.respond(&head.method, head.uri.path(), head.uri.query().unwrap_or_default(), &body)
    }

    fn respond(&self, method: &Method, path: &str, query: &str, body: &str) -> Answer {
        let settings = Arc::clone(&self.settings.borrow());
        match path {
            "/metrics/slis" => shown_as_exposition(self.metrics.render_slis()),
            "/healthz" => {
                self.metrics.health_checked();
                let verbose = query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="));
                let excluded = query.split('&').any(|part| part == "exclude=ping");
                let text = match (verbose, excluded) {
                    (false, _) => "ok",
                    (true, false) => "[+]ping ok\nhealthz check passed\n",
                    (true, true) => "[+]ping excluded: ok\nhealthz check passed\n",
                };
                answer::plain(StatusCode::OK, text)
            }
            "/healthz/ping" => answer::with_type(StatusCode::OK, PEOPLE, "ok"),
            "/proxyMode" => answer::plain(StatusCode::OK, settings.mode.as_str()),
            "/configz" => answer::json(StatusCode::OK, configz(&settings).to_string()),
            "/statusz" if settings.feature_gates.enabled(Feature::ComponentStatusz) => {
                answer::with_type(StatusCode::OK, PEOPLE, self.statusz(&settings))
            }
            "/flagz" if settings.feature_gates.enabled(Feature::ComponentFlagz) => {
                answer::with_type(StatusCode::OK, PEOPLE, flagz(&settings))
            }
            path if settings.profiling && path.starts_with("/debug/") => {
                debug::respond(method, path, body, &self.log).unwrap_or_else(answer::not_found)
            }
            _ => answer::not_found(),
        }
    }

    fn statusz(&self, settings: &Settings) -> String {
        let up = Timestamp::now().duration_since(self.started).as_secs();
        format!(
            "\nkube-proxy statusz\n{WARNING}\n\
             Started: {}\n\
             Up: {} hr {:02} min {:02} sec\n\
             Binary version: {} (Switchyard {})\n\
             Mode: {}\n\
             Paths: /configz /flagz /healthz /metrics /metrics/slis /proxyMode /statusz\n",
            self.started,
            up / 3600,
            up / 60 % 60,
            up % 60,
            version::COMPATIBLE.trim_start_matches('v'),
            version::OWN,
            settings.mode.as_str(),
        )
    }
}

fn exposition(page: &Page, compressed: bool) -> Answer {
    match page.compressed().filter(|_| compressed) {
        Some(small) => gzip::marked(shown_as_exposition(small)),
        None => shown_as_exposition(page.text()),
    }
}

fn shown_as_exposition(text: impl Into<Bytes>) -> Answer {
    let answer = answer::with_type(StatusCode::OK, EXPOSITION, text);
    match start_time_seconds() {
        Some(start) => answer::with_header(answer, PROCESS_START, HeaderValue::from(start as u64)),
        None => answer,
    }
}

fn configz(settings: &Settings) -> Value {
    json!({ "kubeproxy.config.k8s.io": settings.document })
}

fn flagz(settings: &Settings) -> String {
    let mut text = format!("\nkube-proxy flagz\n{WARNING}\n");
    for (name, value) in &settings.flags {
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Read as _;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::{
        serve::server::{
            Stack, listen,
            tests::{self, ask, loopback},
        },
        settings::{self, Command},
        telemetry::logging,
    };

    /// One server per process: its metrics are the process's.
    async fn start(arguments: &[&str]) -> (SocketAddr, watch::Sender<Arc<Settings>>) {
        let (server, sender) = of_this_process(arguments);
        let listener = listen(loopback(), Stack::Both).expect("a port");
        let address = listener.local_addr().expect("an address");
        tests::start(listener, move |request| server.clone().handle(request));
        (address, sender)
    }

    pub(crate) fn of_this_process(arguments: &[&str]) -> (MetricsServer, watch::Sender<Arc<Settings>>) {
        let Command::Run(settings) = settings::load(arguments).expect("good arguments").command else {
            panic!("not to be run");
        };
        let metrics = Metrics::install(&settings).expect("the first one");
        let log = logging::init(&settings.logging).expect("the first one");
        let (sender, settings) = watch::channel(Arc::new(*settings));
        (MetricsServer::new(metrics, settings, log), sender)
    }

    #[tokio::test]
    async fn every_path_answers_as_kube_proxy_does() {
        let (address, _sender) = start(&["--mode=nftables"]).await;
        let plain = "content-type: text/plain; charset=utf-8";
        for (path, code, kind, sniff, body) in [
            ("/proxyMode", "200", plain, true, "nftables"),
            ("/healthz", "200", plain, true, "ok"),
            (
                "/healthz?verbose=1&exclude=ping",
                "200",
                plain,
                true,
                "[+]ping excluded: ok\nhealthz check passed\n",
            ),
            ("/healthz?verbose", "200", plain, true, "[+]ping ok\nhealthz check passed\n"),
            ("/livez", "404", plain, true, "404 page not found\n"),
            ("/nope", "404", plain, true, "404 page not found\n"),
            ("/", "404", plain, true, "404 page not found\n"),
            ("/debug/pprof/", "404", plain, true, "404 page not found\n"),
            ("/debug/flags/v", "404", plain, true, "404 page not found\n"),
            ("/statusz", "200", plain, false, "\nkube-proxy statusz"),
            ("/flagz", "200", plain, false, "\nkube-proxy flagz"),
            ("/configz", "200", "content-type: application/json", true, "{\"kubeproxy.config.k8s.io\":{"),
            (
                "/metrics",
                "200",
                "content-type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
                false,
                "# HELP ",
            ),
        ] {
            let (head, text) = ask(address, "GET", path, "").await;
            assert_eq!(&head[9..12], code, "{path}");
            assert!(head.contains(kind), "{path}: {head}");
            assert_eq!(head.contains("x-content-type-options: nosniff"), sniff, "{path}: {head}");
            assert!(text.starts_with(body), "{path}: {text}");
        }
        let (head, text) = ask(address, "GET", "/metrics", "").await;
        assert!(head.contains("process-start-time-unix: "), "{head}");
        assert!(text.contains("kubeproxy_sync_proxy_rules_service_changes_total 0"));
        assert!(text.contains("process_resident_memory_bytes"));
        let (_, slis) = ask(address, "GET", "/metrics/slis", "").await;
        assert!(
            slis.contains(
                "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 3"
            ),
            "{slis}"
        );
        let (_, flags) = ask(address, "GET", "/flagz", "").await;
        assert!(flags.contains("\nproxy-mode=nftables\n"), "{flags}");
    }

    #[tokio::test]
    async fn metrics_are_compressed_for_who_asks_and_labels_are_in_order() {
        let (address, _sender) = start(&["--mode=nftables"]).await;
        let (plain_head, text) = ask(address, "GET", "/metrics", "").await;
        assert!(!plain_head.contains("content-encoding"), "{plain_head}");
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("a server");
        let request =
            "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.expect("an answer");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
        assert!(head.contains("content-encoding: gzip"), "{head}");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        let mut back = String::new();
        flate2::read::GzDecoder::new(&answer[end + 4..]).read_to_string(&mut back).expect("gzip");
        assert_eq!(back.lines().count(), text.lines().count());
        assert!(answer.len() * 3 < text.len(), "{} of {}", answer.len(), text.len());
        let build = text.lines().find(|line| line.starts_with("kubernetes_build_info{")).expect("a series");
        let labels: Vec<&str> =
            build.split(['{', ',']).filter_map(|part| part.split_once('=')).map(|pair| pair.0).collect();
        assert!(labels.len() > 5 && labels.is_sorted(), "{labels:?}");
    }

    #[tokio::test]
    async fn the_configuration_shown_is_the_one_in_force() {
        let (address, sender) = start(&["--mode=nftables", "--feature-gates=ComponentStatusz=false"]).await;
        let shown = || async {
            let (_, text) = ask(address, "GET", "/configz", "").await;
            serde_json::from_str::<Value>(&text).expect("JSON")["kubeproxy.config.k8s.io"]["oomScoreAdj"]
                .clone()
        };
        assert_eq!(shown().await, json!(-999));
        let Command::Run(settings) = settings::load(&["--oom-score-adj=7"]).expect("good arguments").command
        else {
            panic!("not to be run");
        };
        sender.send_replace(Arc::new(*settings));
        assert_eq!(shown().await, json!(7));
        let (head, _) = ask(address, "GET", "/statusz", "").await;
        assert_eq!(&head[9..12], "200", "the gates of the new settings count");
    }

    #[tokio::test]
    async fn profiling_opens_the_debug_paths() {
        let (address, _sender) = start(&["--profiling", "--mode=ipvs"]).await;
        let (head, body) = ask(address, "PUT", "/debug/flags/v", "4").await;
        assert_eq!((&head[9..12], body.as_str()), ("200", "successfully set klog.logging.verbosity to 4\n"));
        let (head, _) = ask(address, "PUT", "/debug/flags/v", "x").await;
        assert_eq!(&head[9..12], "400");
        let (head, body) = ask(address, "GET", "/debug/flags/v", "").await;
        assert_eq!((&head[9..12], body.as_str()), ("406", "unsupported http method\n"));
        let (_, body) = ask(address, "GET", "/debug/pprof/threads", "").await;
        assert!(body.lines().any(|line| line.split('\t').count() == 4), "{body}");
        let (head, _) = ask(address, "GET", "/debug/pprof/profile", "").await;
        assert_eq!(&head[9..12], "501");
        let (head, _) = ask(address, "GET", "/debug/nope", "").await;
        assert_eq!(&head[9..12], "404");
    }
}
