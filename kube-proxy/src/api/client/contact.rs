//! When the API server was last heard from, and when that is too long ago.
//!
//! A node that hears nothing goes on with the rules that it has. Nobody notices at first, so it is said in a metric, in
//! the log, in the body of `/healthz` and, as soon as one can be sent again, in an Event.

use std::{
    error::Error as StdError,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::{Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use jiff::Timestamp;
use tokio::time::Sleep;
use tower::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    api::events::{Event, Events},
    telemetry::health::HealthState,
};

/// How long an answer, or the next part of one, may take. The API server sends a bookmark on every watch about once a minute; a
/// server that is silent for longer is asked anew, whatever its connection looks like.
const SILENCE: Duration = Duration::from_secs(150);
/// After this time without a word, where asking again has failed or the connection asks by itself.
const TOO_LONG: Duration = Duration::from_secs(60);
/// The same where only bookmarks can be expected: they come every minute, and a little late.
const BOOKMARKS: Duration = Duration::from_secs(75);
const INTERVAL: Duration = Duration::from_secs(5);

/// What a node lives on.
const KINDS: [(&str, &str); 4] = [
    ("services", "Service"),
    ("endpointslices", "EndpointSlice"),
    ("nodes", "Node"),
    ("servicecidrs", "ServiceCIDR"),
];
/// Without these two the rules are out of date.
const NEEDED: usize = 2;

#[derive(Debug, Clone)]
pub(super) struct Contact(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    kinds: [Word; KINDS.len()],
    /// Anything at all, on any connection.
    something: Instant,
    /// The connection asks by itself when nothing is heard.
    asks: bool,
    /// Since when nothing is heard, where that was found to be too long.
    silent: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Word {
    last: Instant,
    /// The last request failed, or its answer ended early.
    failed: bool,
}

#[expect(clippy::disallowed_methods, reason = "silence is time that passes")]
fn now() -> Instant {
    Instant::now()
}

fn gauge(kind: &'static str) -> metrics::Gauge {
    metrics::gauge!("switchyard_api_last_contact_timestamp_seconds", "kind" => kind)
}

fn kind_of(method: &Method, path: &str) -> Option<usize> {
    let resource = path.trim_end_matches('/').rsplit('/').next();
    (method == Method::GET).then(|| KINDS.iter().position(|(plural, _)| Some(*plural) == resource)).flatten()
}

/// What `State::judge` finds.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Unchanged,
    /// Nothing is heard, since then.
    Silent(Instant),
    /// It was silent, for so long.
    Back(Duration),
}

impl State {
    fn new(now: Instant) -> Self {
        let word = Word { last: now, failed: false };
        Self { kinds: [word; KINDS.len()], something: now, asks: false, silent: None }
    }

    fn judge(&mut self, now: Instant) -> Verdict {
        let since = |at: Instant| now.saturating_duration_since(at);
        let failing = self.kinds[..NEEDED].iter().filter(|kind| kind.failed && since(kind.last) >= TOO_LONG);
        let failing = failing.map(|kind| kind.last).min();
        let limit = if self.asks { TOO_LONG } else { BOOKMARKS };
        let quiet = (since(self.something) >= limit).then_some(self.something);
        match (self.silent, failing.or(quiet)) {
            (None, Some(last)) => {
                self.silent = Some(last);
                Verdict::Silent(last)
            }
            (Some(last), None) => {
                self.silent = None;
                Verdict::Back(since(last))
            }
            _ => Verdict::Unchanged,
        }
    }
}

impl Contact {
    pub(super) fn new() -> Self {
        // Those that were never heard of stand out as well.
        for (_, kind) in &KINDS[..NEEDED] {
            gauge(kind).set(0.0);
        }
        Self(Arc::new(Mutex::new(State::new(now()))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection is there; `asks`: it finds out by itself whether the other end lives.
    pub(super) fn connected(&self, asks: bool) {
        self.state().asks = asks;
    }

    pub(super) fn heard_something(&self) {
        self.state().something = now();
    }

    fn heard(&self, kind: Option<usize>) {
        let Some(kind) = kind else { return };
        self.state().kinds[kind] = Word { last: now(), failed: false };
        let seconds = Timestamp::now().as_duration().as_secs_f64();
        gauge(KINDS[kind].1).set(seconds);
    }

    fn failed(&self, kind: Option<usize>) {
        if let Some(kind) = kind {
            self.state().kinds[kind].failed = true;
        }
    }

    /// Tells about silence, and about its end, for ever.
    pub(super) async fn report(&self, health: &HealthState, events: &Events) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            let verdict = self.state().judge(now());
            match verdict {
                Verdict::Unchanged => {}
                Verdict::Silent(last) => {
                    health.set_api_silent(Some(last));
                    tracing::error!(
                        "Nothing was heard from the API server for {} s: Services are served as they were then",
                        now().saturating_duration_since(last).as_secs()
                    );
                }
                Verdict::Back(passed) => {
                    health.set_api_silent(None);
                    let seconds = passed.as_secs();
                    tracing::info!("The API server is heard from again, after {seconds} s");
                    events.send(Event::api_silent(format!(
                        "nothing was heard from the API server for {seconds} s; all that time Services were served as they were before"
                    )));
                }
            }
        }
    }
}

impl<S> Layer<S> for Contact {
    type Service = Noted<S>;

    fn layer(&self, inner: S) -> Noted<S> {
        Noted { inner, contact: self.clone() }
    }
}

/// Notes every answer, and ends the wait for one that does not come.
#[derive(Debug, Clone)]
pub(super) struct Noted<S> {
    inner: S,
    contact: Contact,
}

impl<S, B, R> Service<Request<B>> for Noted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
{
    type Response = Response<NotedBody<R>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let kind = kind_of(request.method(), request.uri().path());
        let contact = self.contact.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match tokio::time::timeout(SILENCE, answer).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    contact.failed(kind);
                    return Err(error.into());
                }
                Err(_) => {
                    contact.failed(kind);
                    return Err(silence().into());
                }
            };
            if answer.status().is_success() {
                contact.heard(kind);
            } else {
                contact.failed(kind);
            }
            let successful = answer.status().is_success();
            Ok(answer.map(|body| NotedBody {
                body,
                // What is said about a failure is no news of the kind.
                kind: kind.filter(|_| successful),
                contact,
                silence: Box::pin(tokio::time::sleep(SILENCE)),
            }))
        })
    }
}

fn silence() -> io::Error {
    let text = format!("the API server said nothing for {} s", SILENCE.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

/// A body that notes when its parts come.
#[derive(Debug)]
pub(super) struct NotedBody<B> {
    body: B,
    kind: Option<usize>,
    contact: Contact,
    silence: Pin<Box<Sleep>>,
}

impl<B> Body for NotedBody<B>
where
    B: Body + Unpin,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Pending => {
                std::task::ready!(self.silence.as_mut().poll(context));
                self.contact.failed(self.kind);
                Poll::Ready(Some(Err(silence().into())))
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.silence.as_mut().reset(tokio::time::Instant::now() + SILENCE);
                self.contact.heard(self.kind);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.contact.failed(self.kind);
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn lists_and_watches_of_what_a_node_lives_on_count() {
        for (method, path, kind) in [
            (Method::GET, "/api/v1/services", Some("Service")),
            (Method::GET, "/k8s/apis/discovery.k8s.io/v1/endpointslices", Some("EndpointSlice")),
            (Method::GET, "/api/v1/nodes", Some("Node")),
            (Method::POST, "/api/v1/services", None),
            (Method::POST, "/apis/events.k8s.io/v1/namespaces/a/events", None),
        ] {
            assert_eq!(kind_of(&method, path).map(|kind| KINDS[kind].1), kind, "{path}");
        }
    }

    #[test]
    fn a_minute_of_failing_is_silence_once_and_its_end_is_told_once() {
        let begun = now();
        let mut state = State::new(begun);
        state.asks = true;
        state.kinds[1].failed = true;
        // Refusals are heard.
        state.something = begun + seconds(59);
        assert_eq!(state.judge(begun + seconds(59)), Verdict::Unchanged);
        assert_eq!(state.judge(begun + seconds(60)), Verdict::Silent(begun));
        assert_eq!(state.judge(begun + seconds(65)), Verdict::Unchanged);
        state.kinds[1] = Word { last: begun + seconds(90), failed: false };
        state.something = begun + seconds(90);
        assert_eq!(state.judge(begun + seconds(93)), Verdict::Back(seconds(93)));
        assert_eq!(state.judge(begun + seconds(94)), Verdict::Unchanged);
    }

    #[test]
    fn a_quiet_cluster_is_no_silence_and_a_missing_bookmark_is() {
        let begun = now();
        let mut state = State::new(begun);
        // Nothing fails, and something is heard now and then: an answer to a ping, a bookmark.
        state.something = begun + seconds(500);
        assert_eq!(state.judge(begun + seconds(530)), Verdict::Unchanged);
        assert_eq!(state.judge(begun + seconds(574)), Verdict::Unchanged);
        assert_eq!(state.judge(begun + seconds(575)), Verdict::Silent(begun + seconds(500)));
        let mut state = State::new(begun);
        state.asks = true;
        assert_eq!(state.judge(begun + seconds(60)), Verdict::Silent(begun));
    }
}
