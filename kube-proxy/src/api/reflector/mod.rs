//! What to ask the API server next and what to believe of its answers: one state machine for each kind of object,
//! without I/O and without a clock.
//!
//! Whoever carries the requests (`api/watch.rs`) asks `next`, and hands in what came of it: `refused`, `unreachable`,
//! pages and objects of a list, events of a watch, `ended`, or `silent` when `deadline` has passed. What is to be
//! believed comes out as [`Told`].
//!
//! The rules, which are those of Kubernetes' own clients where both have one:
//! - The objects are streamed first (KEP-3157) and listed where the server does not stream; then they are watched.
//! - A list is never older than what was seen. Only where the server says that this version is not to be had (it was
//!   compacted, or the storage was put back to an older copy), it is asked for the newest, and that is believed.
//! - A watch that could not be started leads to a new list, unless the server was busy (429) or not there (connection
//!   refused). One that ends is started again where it ended, at once if it had lived.
//! - Every failure leads to a pause (`back_off.rs`), and only a watch that works ends the growth of the pauses.
//! - A watch that follows an interruption and is silent may be one from a version that is yet to come (`doubt.rs`).
//! - Deletions that a list implies are told at its end; what was told before stays true if it never ends.

use std::time::{Duration, Instant};

use proxy_core::model::ObjectName;

mod answers;
mod back_off;
mod doubt;
mod known;
mod objects;
mod request;
mod unreadable;

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;

use back_off::BackOff;
use doubt::Doubt;
use known::Known;
pub(crate) use request::{From, Request, Verb, Version};
use unreadable::Unreadables;

/// How many objects a page of a list holds, where the server pages at all.
const PAGE: u32 = 500;
/// A watch that ends earlier, without having told of anything new, has failed.
const LIVED: Duration = Duration::from_secs(1);
/// A watch that lived so long shows that the server is well.
const WELL: Duration = Duration::from_secs(30);
/// A watch that ends so much before its time was interrupted.
const ORDINARY: Duration = Duration::from_secs(10);
/// Two watches begin at least so far apart.
const WATCH_SPACING: Duration = Duration::from_millis(800);
/// How long a list may be silent; the API server itself gives up a list after 60 s.
const LIST_SILENCE: Duration = Duration::from_secs(65);
/// How long a streamed list may be silent before it is taken for a server that does not know streamed lists (it ignores
/// the parameter and never says that the list is complete).
const STREAM_SILENCE: Duration = Duration::from_secs(20);
/// How long a watch may be silent: the API server sends a bookmark about once a minute.
const WATCH_SILENCE: Duration = Duration::from_secs(90);
/// For so long a server that does not stream lists is not asked to.
const NOT_STREAMED: Duration = Duration::from_secs(600);
/// A kind that the server does not offer is asked for again after this.
const NOT_OFFERED: Duration = Duration::from_secs(300);
/// The server may ask for a pause of at most this.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);
/// After so many lists of the past in a row the newest is asked for, which the server must ask its storage for.
const PATIENCE_WITH_THE_PAST: u32 = 8;

/// What to ask for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    pub(crate) labels: Option<&'static str>,
    pub(crate) fields: Option<String>,
    /// An older server may not know the field selector; then it is left out.
    pub(crate) fields_may_be_unknown: bool,
    /// An older server may not offer the kind, or not to everybody.
    pub(crate) optional: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    Ask(Request),
    /// Nothing is to be asked before then.
    Wait(Instant),
}

/// Why the server did not do what it was asked, from a Status object or an HTTP status.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// The version asked for is newer than any that the server knows.
    pub(crate) too_large: bool,
    pub(crate) retry_after: Option<Duration>,
}

/// What a watch tells of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event<T> {
    /// Added or modified.
    Applied {
        name: ObjectName,
        version: Version,
        object: T,
    },
    Deleted {
        name: ObjectName,
        version: Version,
    },
    /// Added or modified, but it could not be decoded.
    Unreadable {
        name: ObjectName,
        version: Version,
        why: String,
    },
    Bookmark {
        version: Version,
        ends_list: bool,
    },
    Error(Refusal),
}

/// What is to be believed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told<T> {
    Applied(T),
    Gone(ObjectName),
    /// Everything that exists was told.
    Listed,
}

/// Whether to go on with the response that an event came from.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Go {
    On,
    /// It is of no more use: close it and ask `next`.
    Away,
}

/// What is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Note {
    Failed {
        what: String,
        wait: Duration,
        /// It is nothing unusual.
        usual: bool,
    },
    NotStreamed(String),
    FieldsUnknown(String),
    NotOffered(String),
    /// The server answered with a state older than what was seen.
    Past {
        seen: Version,
        answered: Version,
    },
    /// An object could not be decoded; told once for each version of it.
    Unreadable {
        name: ObjectName,
        why: String,
    },
    /// A watch works again after so many failures.
    Recovered(u32),
}

#[derive(Debug, Clone)]
enum Need {
    List,
    /// Without pages: one of them had expired.
    WholeList,
    Page {
        from: From,
        version: Version,
        token: String,
    },
    Watch,
}

#[derive(Debug)]
enum State {
    Due {
        at: Instant,
        need: Need,
    },
    Listing {
        from: From,
        /// Of the list, once it is told.
        version: Option<Version>,
        is_page: bool,
    },
    Streaming {
        from: From,
        /// Whether there was an object.
        spoke: bool,
    },
    Watching {
        since: Instant,
        /// Whether there was anything at all.
        heard: bool,
        /// Whether there was anything new.
        delivered: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Reflector<T> {
    selection: Selection,
    fields_unknown: bool,
    state: State,
    last_word: Instant,
    /// Everything up to this was told.
    seen: Option<Version>,
    /// `seen` is not to be had from the server.
    unavailable: bool,
    not_streamed_until: Option<Instant>,
    /// The last streamed list failed: the next one is not streamed.
    plain: bool,
    /// Lists of the past in a row.
    past: u32,
    back_off: BackOff,
    doubt: Doubt,
    /// How long the watch that runs, or ran last, was asked to last.
    asked_for: Duration,
    known: Known<T>,
    unreadable: Unreadables,
    random: u64,
    notes: Vec<Note>,
}

impl<T> Reflector<T> {
    pub(crate) fn new(selection: Selection, seed: u64, now: Instant) -> Self {
        Self {
            selection,
            fields_unknown: false,
            state: State::Due { at: now, need: Need::List },
            last_word: now,
            seen: None,
            unavailable: false,
            not_streamed_until: None,
            plain: false,
            past: 0,
            back_off: BackOff::new(),
            doubt: Doubt::default(),
            asked_for: Duration::ZERO,
            known: Known::new(),
            unreadable: Unreadables::default(),
            random: seed,
            notes: Vec::new(),
        }
    }

    /// What to ask now. A request that was handed out is over when `refused`, `unreachable`, `ended` or `silent` were
    /// called, a page of a list was complete, or an answer was [`Go::Away`].
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        let State::Due { at, need } = &self.state else { return Next::Wait(self.deadline()) };
        if now < *at {
            return Next::Wait(*at);
        }
        let need = need.clone();
        self.last_word = now;
        let verb = match (need, self.seen.clone()) {
            (Need::Watch, Some(from)) => {
                self.state = State::Watching { since: now, heard: false, delivered: false };
                Verb::Watch { from, seconds: self.watch_seconds() }
            }
            (Need::Page { from, version, token }, _) => {
                self.state = State::Listing { from: from.clone(), version: Some(version), is_page: true };
                Verb::List { from, page: Some(token), limit: Some(PAGE) }
            }
            (Need::List, _) if !self.plain && self.not_streamed_until.is_none_or(|until| until <= now) => {
                let from = self.from();
                self.known.begin();
                self.state = State::Streaming { from: from.clone(), spoke: false };
                Verb::Stream { from, seconds: self.watch_seconds() }
            }
            (need, _) => {
                let from = self.from();
                self.state = State::Listing { from: from.clone(), version: None, is_page: false };
                // A server answers from its memory where no limit is sent, or any state will do.
                let paged = !matches!(need, Need::WholeList) && !matches!(from, From::NotBefore(_));
                Verb::List { from, page: None, limit: paged.then_some(PAGE) }
            }
        };
        Next::Ask(self.request(verb))
    }

    /// The same selection, but of one object only.
    pub(crate) fn request_for(&self, name: &ObjectName) -> Request {
        let one = format!("metadata.name={}", name.name());
        let fields = match self.fields() {
            Some(fields) if !fields.starts_with("metadata.name=") => format!("{fields},{one}"),
            _ => one,
        };
        let verb = Verb::List { from: From::Newest, page: None, limit: None };
        Request { verb, labels: self.selection.labels, fields: Some(fields) }
    }

    fn request(&self, verb: Verb) -> Request {
        Request { verb, labels: self.selection.labels, fields: self.fields() }
    }

    fn fields(&self) -> Option<String> {
        self.selection.fields.clone().filter(|_| !self.fields_unknown)
    }

    /// When the running request is to be given up (`silent`).
    pub(crate) fn deadline(&self) -> Instant {
        let silence = match &self.state {
            State::Due { at, .. } => return *at,
            State::Listing { .. } => LIST_SILENCE,
            State::Streaming { .. } => STREAM_SILENCE,
            State::Watching { .. } => WATCH_SILENCE,
        };
        self.last_word + silence
    }

    /// The head of an answer came.
    pub(crate) fn opened(&mut self, now: Instant) {
        self.last_word = now;
        if let State::Watching { .. } = self.state {
            let random = self.random();
            self.doubt.watch_began(now, random);
        }
    }

    /// A part of an answer's body came.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.last_word = now;
        if let State::Watching { heard, .. } = &mut self.state {
            *heard = true;
        }
        self.note_life(now);
    }

    /// What is worth a line in the log since this was asked last.
    pub(crate) fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Which state to list.
    fn from(&self) -> From {
        match &self.seen {
            _ if self.unavailable => From::Newest,
            Some(seen) => From::NotBefore(seen.clone()),
            None => From::Any,
        }
    }

    /// From 0 to 1 (SplitMix64, after Steele, Lea and Flood 2014).
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let top = u32::try_from((mixed ^ (mixed >> 31)) >> 32).expect("32 bits");
        f64::from(top) / f64::from(u32::MAX)
    }

    /// 5 to 10 minutes, so that the nodes of a cluster do not come back all at once.
    fn watch_seconds(&mut self) -> u32 {
        let part = Duration::from_secs(300).mul_f64(self.random());
        let seconds = 300 + u32::try_from(part.as_secs()).expect("below 300");
        self.asked_for = Duration::from_secs(seconds.into());
        seconds
    }
}
