//! Carries what a [`Reflector`] asks to the API server, and what comes of it back. Nothing is cached here.

use std::{
    future::pending,
    hash::{BuildHasher, RandomState},
    time::Instant,
};

use http::header;
use kube::client::Body;
use tokio::time::{sleep_until, timeout_at};

use crate::{
    api::{
        events::Event as ClusterEvent,
        reflector::{Event, Go, Next, Note, Reflector, Request, Selection, Told},
        slim::Object,
        wire::{self, Broken, ListDecoder, ListPart, WatchDecoder, WatchPart},
    },
    telemetry::{first_sync::Listing, metrics},
};

mod beside;
mod exchange;

use beside::{Asked, Came, Found, ask_object, ask_version};
pub(crate) use exchange::{Source, chain};
use exchange::{encoding, is_connection_refused, next_piece, refusal, send};

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
            let part = match self.part(decoder.next::<K>()) {
                Ok(part) => part,
                Err(over) => return over,
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
            let beside = [self.reflector.again_at(), self.reflector.doubt_at()];
            let beside = beside.into_iter().flatten().min().filter(|_| asked.is_none());
            let wake = beside.map_or(deadline, |beside| beside.min(deadline));
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
                    asked = match self.reflector.doubt(now()) {
                        Some(request) => Some(ask_version(self.source, request)),
                        None => self.reflector.again(now()).map(|name| {
                            ask_object(self.source, &name, self.reflector.request_for(&name))
                        }),
                    };
                }
                found = async { match &mut asked { Some(asked) => asked.await, None => pending().await } } => {
                    asked = None;
                    if self.take_beside(found, tell) == Go::Away {
                        return;
                    }
                }
            }
            self.take_notes();
        }
    }

    /// What came of a question beside the watch.
    fn take_beside(&mut self, came: Came<K>, tell: &mut impl FnMut(Told<K>) -> bool) -> Go {
        let Self { reflector, state, .. } = self;
        match came {
            Came::Object(Ok(Some(Found { name, version, object }))) => {
                let mut tell = |told| state.pass(told, tell);
                reflector.came_again(&name, &version, object, &mut tell);
                Go::On
            }
            Came::Object(Ok(None)) => Go::On,
            Came::Object(Err(error)) => {
                tracing::debug!(kind = K::KIND, error, "An object could still not be read");
                Go::On
            }
            Came::Version(version) => reflector.doubt_answered(now(), &version),
            Came::Refused(refusal) => reflector.doubt_refused(now(), &refusal),
            Came::Nothing(error) => {
                tracing::debug!(
                    kind = K::KIND,
                    error,
                    "The version of the API server's storage was not told"
                );
                Go::On
            }
        }
    }

    /// Answers whether there is nothing more to come of it.
    fn take_watch(&mut self, decoder: &mut WatchDecoder, tell: &mut impl FnMut(Told<K>) -> bool) -> bool {
        loop {
            let part = match self.part(decoder.next::<K>()) {
                Ok(part) => part,
                Err(over) => return over,
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

    /// The next part of an answer, or whether there is nothing more to come of it.
    fn part<P>(&mut self, next: Result<Option<P>, Broken>) -> Result<P, bool> {
        match next {
            Ok(Some(part)) => Ok(part),
            Ok(None) => Err(false),
            Err(Broken(why)) => {
                self.reflector.ended(now(), Some(why));
                Err(true)
            }
        }
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

fn now() -> Instant {
    // Of the runtime, so that tests can hold it.
    tokio::time::Instant::now().into_std()
}
