//! What was asked, when, and what came of it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::{Version, header};

/// How many of the latest requests are remembered.
const REQUESTS: usize = 10_000;

/// One request. Times are since the server's start.
#[derive(Debug, Clone)]
pub struct Asked {
    pub at: Duration,
    pub method: String,
    pub path: String,
    pub query: String,
    /// The status of the answer; none yet, or none at all.
    pub code: Option<u16>,
    /// When it was over; a watch that runs is not.
    pub ended: Option<Duration>,
    /// How many changes a watch told of.
    pub changes: usize,
    /// Whether HTTP/2 was spoken.
    pub is_http2: bool,
    /// The bearer token.
    pub token: Option<String>,
    pub peer: Peer,
}

/// Who is at the other end of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    pub encrypted: bool,
    /// The client certificate that was shown, as DER.
    pub certificate: Option<Vec<u8>>,
}

impl Asked {
    pub fn is_watch(&self) -> bool {
        self.query.contains("watch=true") || self.query.contains("watch=1")
    }

    pub fn is_streamed_list(&self) -> bool {
        self.query.contains("sendInitialEvents=true")
    }
}

#[derive(Debug)]
pub(crate) struct Journal {
    begun: Instant,
    entries: Mutex<VecDeque<Entry>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    begun: Instant,
    asked: Arc<Mutex<Asked>>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self { begun: now(), entries: Mutex::default() }
    }

    pub(crate) fn note(&self, request: &Request) -> Entry {
        let uri = request.uri();
        let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let asked = Asked {
            at: now() - self.begun,
            method: request.method().to_string(),
            path: uri.path().to_owned(),
            query: uri.query().unwrap_or_default().to_owned(),
            code: None,
            ended: None,
            changes: 0,
            is_http2: request.version() == Version::HTTP_2,
            token: token.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned),
            peer: request.extensions().get::<Peer>().cloned().unwrap_or_default(),
        };
        let entry = Entry { begun: self.begun, asked: Arc::new(Mutex::new(asked)) };
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == REQUESTS {
            entries.pop_front();
        }
        entries.push_back(entry.clone());
        entry
    }

    pub(crate) fn all(&self) -> Vec<Asked> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.iter().map(|entry| entry.get(|asked| asked.clone())).collect()
    }

    /// Since the server's start.
    pub(crate) fn now(&self) -> Duration {
        now() - self.begun
    }
}

impl Entry {
    fn get<T>(&self, read: impl FnOnce(&mut Asked) -> T) -> T {
        read(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn token(&self) -> Option<String> {
        self.get(|asked| asked.token.clone())
    }

    pub(crate) fn is_watch(&self) -> bool {
        self.get(|asked| asked.is_watch())
    }

    /// The head of the answer is sent; of a watch, more follows.
    pub(crate) fn answered(&self, code: u16, goes_on: bool) {
        let at = now() - self.begun;
        self.get(|asked| {
            asked.code = Some(code);
            asked.ended = (!goes_on).then_some(at);
        });
    }

    pub(crate) fn told_of_change(&self) {
        self.get(|asked| asked.changes += 1);
    }

    pub(crate) fn ended(&self) {
        let at = now() - self.begun;
        self.get(|asked| asked.ended = Some(at));
    }
}

#[expect(clippy::disallowed_methods, reason = "when something was asked is a matter of real time")]
fn now() -> Instant {
    Instant::now()
}
