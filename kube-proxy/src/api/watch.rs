//! Carries what a [`Reflector`] asks to the API server, and what comes of it back. Nothing is cached here.

use std::{
    future::{Future, pending},
    hash::{BuildHasher, RandomState},
    io,
    pin::Pin,
    time::{Duration, Instant},
};

use http::header;
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use proxy_core::model::ObjectName;
use tokio::time::{sleep_until, timeout_at};

use crate::{
    api::{
        events::{Event as ClusterEvent, Events},
        reflector::{Event, Go, Next, Note, Reflector, Refusal, Request, Selection, Told, Version},
        slim::Object,
        wire::{self, Broken, Encoding, ListDecoder, ListPart, WatchDecoder, WatchPart},
    },
    telemetry::{first_sync::Listing, metrics},
};

/// Of the body of a refusal, no more is read than this.
const LARGEST_REFUSAL: usize = 64 * 1024;
/// How long a request for one object, or the body of a refusal, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where objects come from.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) client: Client,
    /// Which encodings to ask for (`wire::accept`).
    pub(crate) accept: &'static str,
    /// Told where an object cannot be read.
    pub(crate) events: Option<Events>,
}

/// Lists and watches for ever; what is to be believed goes to `tell`. Returns only when that says that nobody listens any
/// more. `first` takes the time of the first list.
pub(crate) async fn reflect<K: Object>(
    source: &Source,
    selection: Selection,
    first: Option<Listing>,
    mut tell: impl FnMut(Told<K>) -> bool,
) {
    let seed = RandomState::new().hash_one(K::KIND);
    let mut carrier = Carrier {
        source,
        first,
        reflector: Reflector::new(selection, seed, now()),
        state: Listening::default(),
    };
    while !carrier.state.over {
        match carrier.reflector.next(now()) {
            Next::Wait(at) => sleep_until(at.into()).await,
            Next::Ask(request) => carrier.carry(&request, &mut tell).await,
        }
        carrier.take_notes();
    }
}

struct Carrier<'a, K> {
    source: &'a Source,
    first: Option<Listing>,
    reflector: Reflector<K>,
    state: Listening,
}

#[derive(Debug, Clone, Copy, Default)]
struct Listening {
    /// Nobody wants to be told any more.
    over: bool,
    /// A list is complete.
    listed: bool,
}

impl Listening {
    fn pass<K>(&mut self, told: Told<K>, tell: &mut impl FnMut(Told<K>) -> bool) {
        self.listed |= matches!(told, Told::Listed);
        self.over |= !tell(told);
    }
}

type Asked<K> = Pin<Box<dyn Future<Output = Result<Option<Found<K>>, String>> + Send>>;

/// An object that was asked for by its name.
struct Found<K> {
    name: ObjectName,
    version: Version,
    object: K,
}

impl<K: Object> Carrier<'_, K> {
    async fn carry(&mut self, request: &Request, tell: &mut impl FnMut(Told<K>) -> bool) {
        let sent = send(self.source, K::path(""), request);
        let response = match timeout_at(self.reflector.deadline().into(), sent).await {
            Err(_) => return self.reflector.silent(now()),
            Ok(Err(error)) => {
                let refused = is_connection_refused(&error);
                return self.reflector.unreachable(now(), refused, chain(&error));
            }
            Ok(Ok(response)) => response,
        };
        self.reflector.opened(now());
        if !response.status().is_success() {
            let refusal = refusal(response).await;
            return self.reflector.refused(now(), &refusal);
        }
        let Some(encoding) = encoding(&response) else {
            let kind = response.headers().get(header::CONTENT_TYPE);
            return self.reflector.ended(now(), Some(format!("an answer of type {kind:?}")));
        };
        let body = response.into_body();
        if request.is_list() {
            self.list(body, ListDecoder::new(encoding), tell).await;
        } else {
            self.watch(body, WatchDecoder::new(encoding), tell).await;
        }
    }

    async fn list(
        &mut self,
        mut body: Body,
        mut decoder: ListDecoder,
        tell: &mut impl FnMut(Told<K>) -> bool,
    ) {
        let mut token = None;
        loop {
            let piece = match timeout_at(self.reflector.deadline().into(), next_piece(&mut body)).await {
                Err(_) => return self.reflector.silent(now()),
                Ok(Err(error)) => return self.reflector.ended(now(), Some(error)),
                Ok(Ok(piece)) => piece,
            };
            let begun = now();
            self.reflector.heard(begun);
            decoder.feed(piece.as_deref());
            let over = self.take_list(&mut decoder, &mut token, tell);
            self.decoded(begun);
            self.take_notes();
            if over || self.state.over {
                return;
            }
        }
    }

    /// Answers whether there is nothing more to come of it.
    fn take_list(
        &mut self,
        decoder: &mut ListDecoder,
        token: &mut Option<String>,
        tell: &mut impl FnMut(Told<K>) -> bool,
    ) -> bool {
        loop {
            let part = match decoder.next::<K>() {
                Ok(Some(part)) => part,
                Ok(None) => return false,
                Err(Broken(why)) => {
                    self.reflector.ended(now(), Some(why));
                    return true;
                }
            };
            let Self { reflector, state, .. } = self;
            let mut tell = |told| state.pass(told, tell);
            match part {
                ListPart::Head { version, token: next } => {
                    *token = next;
                    if reflector.page(now(), &version) == Go::Away {
                        return true;
                    }
                }
                ListPart::Item(Ok(object)) => {
                    let metadata = object.metadata();
                    let (name, version) = (metadata.name(), metadata.version());
                    reflector.listed(name, &version, object, &mut tell);
                }
                ListPart::Item(Err(unreadable)) => {
                    reflector.unreadable(now(), &unreadable.name, &unreadable.version, unreadable.why);
                }
                ListPart::End => {
                    reflector.page_end(now(), token.take(), &mut tell);
                    return true;
                }
            }
        }
    }

    async fn watch(
        &mut self,
        mut body: Body,
        mut decoder: WatchDecoder,
        tell: &mut impl FnMut(Told<K>) -> bool,
    ) {
        let mut asked: Option<Asked<K>> = None;
        loop {
            let deadline = self.reflector.deadline();
            let again = self.reflector.again_at().filter(|_| asked.is_none());
            let wake = again.map_or(deadline, |again| again.min(deadline));
            tokio::select! {
                piece = next_piece(&mut body) => {
                    let piece = match piece {
                        Err(error) => return self.reflector.ended(now(), Some(error)),
                        Ok(None) => return self.reflector.ended(now(), None),
                        Ok(Some(piece)) => piece,
                    };
                    let begun = now();
                    self.reflector.heard(begun);
                    decoder.feed(&piece);
                    let over = self.take_watch(&mut decoder, tell);
                    self.decoded(begun);
                    if over || self.state.over {
                        return;
                    }
                }
                () = sleep_until(wake.into()) => {
                    if now() >= deadline {
                        return self.reflector.silent(now());
                    }
                    asked = self.reflector.again(now()).map(|name| self.ask_again(name));
                }
                found = async { match &mut asked { Some(asked) => asked.await, None => pending().await } } => {
                    asked = None;
                    match found {
                        Ok(Some(Found { name, version, object })) => {
                            let Self { reflector, state, .. } = self;
                            let mut tell = |told| state.pass(told, tell);
                            reflector.came_again(&name, &version, object, &mut tell);
                        }
                        Ok(None) => {}
                        Err(error) => tracing::debug!(kind = K::KIND, error, "An object could still not be read"),
                    }
                }
            }
            self.take_notes();
        }
    }

    /// Answers whether there is nothing more to come of it.
    fn take_watch(&mut self, decoder: &mut WatchDecoder, tell: &mut impl FnMut(Told<K>) -> bool) -> bool {
        loop {
            let part = match decoder.next::<K>() {
                Ok(Some(part)) => part,
                Ok(None) => return false,
                Err(Broken(why)) => {
                    self.reflector.ended(now(), Some(why));
                    return true;
                }
            };
            let event = match part {
                WatchPart::Applied(Ok(object)) => {
                    let metadata = object.metadata();
                    Event::Applied { name: metadata.name(), version: metadata.version(), object }
                }
                WatchPart::Applied(Err(wire::Unreadable { name, version, why })) => {
                    Event::Unreadable { name, version, why }
                }
                WatchPart::Deleted(metadata) => {
                    Event::Deleted { name: metadata.name(), version: metadata.version() }
                }
                WatchPart::Bookmark { version, ends_list } => Event::Bookmark { version, ends_list },
                WatchPart::Error(refusal) => Event::Error(refusal),
            };
            let Self { reflector, state, .. } = self;
            let mut tell = |told| state.pass(told, tell);
            if reflector.event(now(), event, &mut tell) == Go::Away {
                return true;
            }
        }
    }

    /// Asks for one object by its name; a list, as a proxy has the right to list, not to get.
    fn ask_again(&self, name: ObjectName) -> Asked<K> {
        let request = self.reflector.request_for(&name);
        let source = self.source.clone();
        Box::pin(async move {
            let path = K::path(name.namespace());
            let asked = async {
                let response = send(&source, path, &request).await.map_err(|error| chain(&error))?;
                if !response.status().is_success() {
                    return Err(refusal(response).await.message);
                }
                let encoding = encoding(&response).ok_or("an unknown encoding")?;
                only::<K>(response.into_body(), encoding).await
            };
            tokio::time::timeout(PATIENCE, asked).await.map_err(|_| "no answer".to_owned())?
        })
    }

    /// What has come since `begun` was decoded and told.
    fn decoded(&mut self, begun: Instant) {
        let Some(mut first) = self.first.take() else { return };
        first.decoded(now().saturating_duration_since(begun));
        if self.state.listed { first.complete() } else { self.first = Some(first) }
    }

    fn take_notes(&mut self) {
        let kind = K::KIND;
        for note in self.reflector.take_notes() {
            match note {
                Note::Failed { what, wait, usual: false } => {
                    tracing::warn!(kind, error = what, retryAfter = ?wait, "Watch failed; trying again");
                }
                Note::Failed { what, wait, usual: true } => {
                    tracing::debug!(kind, reason = what, retryAfter = ?wait, "Listing again");
                }
                Note::NotStreamed(why) => {
                    tracing::info!(
                        kind,
                        why,
                        "The API server does not stream lists; listing and watching instead"
                    );
                }
                Note::FieldsUnknown(why) => {
                    tracing::info!(
                        kind,
                        why,
                        "The API server does not know the field selector; filtering here instead"
                    );
                }
                Note::NotOffered(why) => {
                    tracing::debug!(kind, why, "The API server does not offer this kind")
                }
                Note::Past { seen, answered } => tracing::warn!(
                    kind,
                    seen = seen.as_str(),
                    answered = answered.as_str(),
                    "The API server answered with a state older than what was seen; it is not believed"
                ),
                Note::Unreadable { name, why } => {
                    metrics::object_unreadable(kind);
                    tracing::error!(kind, object = %name, field = why, "An object cannot be read; its last state stays");
                    if let Some(events) = &self.source.events {
                        events.send(ClusterEvent::unreadable(kind, &name, &why));
                    }
                }
                Note::Recovered(failures) => tracing::info!(kind, failures, "The watch works again"),
            }
        }
    }
}

async fn send(source: &Source, path: String, request: &Request) -> Result<http::Response<Body>, kube::Error> {
    let request = http::Request::get(format!("{path}?{}", request.query()))
        .header(header::ACCEPT, source.accept)
        .body(Body::empty())
        .map_err(kube::Error::HttpError)?;
    source.client.send(request).await
}

fn encoding(response: &http::Response<Body>) -> Option<Encoding> {
    Encoding::of(response.headers().get(header::CONTENT_TYPE)?.to_str().ok()?)
}

/// `None` at the end.
async fn next_piece(body: &mut Body) -> Result<Option<impl std::ops::Deref<Target = [u8]>>, String> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(chain(&error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// What the server says about a request that it refused.
async fn refusal(response: http::Response<Body>) -> Refusal {
    let code = response.status().as_u16();
    let encoding = encoding(&response);
    let seconds =
        response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = response.into_body();
    let mut text = Vec::new();
    let read = async {
        while let Ok(Some(piece)) = next_piece(&mut body).await {
            text.extend_from_slice(&piece);
            if text.len() > LARGEST_REFUSAL {
                break;
            }
        }
    };
    // What the code alone says will do.
    let _ = tokio::time::timeout(PATIENCE, read).await;
    let refusal = wire::refusal(encoding, code, &text);
    Refusal { retry_after: seconds.map(Duration::from_secs).or(refusal.retry_after), ..refusal }
}

/// The only object of a list.
async fn only<K: Object>(mut body: Body, encoding: Encoding) -> Result<Option<Found<K>>, String> {
    let mut decoder = ListDecoder::new(encoding);
    let mut found = None;
    loop {
        let piece = next_piece(&mut body).await?;
        decoder.feed(piece.as_deref());
        while let Some(part) = decoder.next::<K>().map_err(|error| error.to_string())? {
            match part {
                ListPart::Item(Ok(object)) => {
                    let metadata = object.metadata();
                    found = Some(Found { name: metadata.name(), version: metadata.version(), object });
                }
                ListPart::Item(Err(unreadable)) => return Err(unreadable.why),
                ListPart::Head { .. } => {}
                ListPart::End => return Ok(found),
            }
        }
    }
}

fn is_connection_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        if cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            return true;
        }
        error = cause.source();
    }
    false
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn now() -> Instant {
    // Of the runtime, so that tests can hold it.
    tokio::time::Instant::now().into_std()
}
