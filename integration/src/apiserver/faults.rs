//! What a test may ask the server to do wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Lasting misbehaviour; the default is none.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Answer `sendInitialEvents` with 422, as a server does whose WatchList feature is off.
    pub refuse_watch_list: bool,
    /// Answer every request for a resource (by plural name) with this code.
    pub refuse: BTreeMap<String, u16>,
    /// The same, of lists only.
    pub refuse_lists: BTreeMap<String, u16>,
    /// The same, of watches only; a streamed list is one.
    pub refuse_watches: BTreeMap<String, u16>,
    /// Accept lists and watches of these resources and end them at once.
    pub end_at_once: BTreeSet<String>,
    /// Accept lists and watches, send the head of an answer, and never more.
    pub mute: bool,
    /// Break every connection as soon as it is made.
    pub reset: bool,
    /// Answer from an older copy.
    pub lag: Option<Lag>,
    /// What a watch from a version that is yet to come meets.
    pub from_the_future: FromTheFuture,
    /// Wait this long before each answer.
    pub delay: Duration,
    /// Send bodies in small pieces with pauses between them.
    pub slow_body: Option<SlowBody>,
    /// Accept requests and never answer; watches fall silent without ending.
    pub hang: bool,
    /// Answer a watch from a forgotten version with HTTP 410 instead of an ERROR event.
    pub gone_as_http: bool,
    /// Whoever does not bring one of these tokens is answered 401.
    pub tokens: Option<BTreeSet<String>>,
}

/// A replica that has not heard of the latest changes.
#[derive(Debug, Clone, Copy)]
pub struct Lag {
    /// The newest version that it knows.
    pub version: u64,
    /// Whether it answers with what it has where a newer version was asked for, which no API server should do.
    pub lies: bool,
}

/// What a watch meets whose version is newer than the server's newest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FromTheFuture {
    /// Nothing, until that version has come: so does the watch cache of kube-apiserver 1.36.
    #[default]
    Silence,
    /// An ERROR event "Too large resource version".
    Event,
    /// The same by HTTP status.
    Status,
}

#[derive(Debug, Clone, Copy)]
pub struct SlowBody {
    pub piece: usize,
    pub pause: Duration,
}

/// The faults and the one-time commands, as running requests see them. A command is a counter: whoever sees it move obeys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Control {
    pub(crate) faults: Faults,
    pub(crate) close: u64,
    pub(crate) expire: u64,
    pub(crate) cut: u64,
    pub(crate) go_away: u64,
    pub(crate) tear: u64,
    pub(crate) down: bool,
}
