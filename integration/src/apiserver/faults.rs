//! What a test may ask the server to do wrong.

use std::collections::BTreeMap;
use std::time::Duration;

/// Lasting misbehaviour; the default is none.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Answer `sendInitialEvents` with 422, as a server does whose WatchList feature is off.
    pub refuse_watch_list: bool,
    /// Answer every request for a resource (by plural name) with this code.
    pub refuse: BTreeMap<String, u16>,
    /// Wait this long before each answer.
    pub delay: Duration,
    /// Send bodies in small pieces with pauses between them.
    pub slow_body: Option<SlowBody>,
    /// Accept requests and never answer; watches fall silent without ending.
    pub hang: bool,
    /// Answer a watch from a forgotten version with HTTP 410 instead of an ERROR event.
    pub gone_as_http: bool,
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
    pub(crate) down: bool,
}
