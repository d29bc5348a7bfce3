//! What follows from a request that was refused, failed or ended.

use std::{
    mem,
    time::{Duration, Instant},
};

use super::{
    Go, LIVED, LONGEST_RETRY_AFTER, NOT_OFFERED, NOT_STREAMED, Need, Note, ORDINARY, Reflector, Refusal,
    State, WATCH_SPACING, WELL,
    request::{From, Request, Verb, Version},
};

impl Refusal {
    /// The version asked for is not known any more.
    fn is_expired(&self) -> bool {
        self.code == 410 || self.reason == "Expired" || self.reason == "Gone"
    }

    fn is_of_streaming(&self) -> bool {
        self.code == 422 || (self.code == 400 && self.message.contains("sendInitialEvents"))
    }
}

impl<T> Reflector<T> {
    /// The server refused, by an HTTP status or within a watch.
    pub(crate) fn refused(&mut self, now: Instant, refusal: &Refusal) {
        self.last_word = now;
        self.note_life(now);
        let state = self.leave(now);
        let what = format!("{} ({}): {}", refusal.code, refusal.reason, refusal.message);
        if refusal.code == 429 {
            // Not worse than before, only too busy: the same again.
            let need = match state {
                State::Watching { .. } => Need::Watch,
                _ => Need::List,
            };
            let least = refusal.retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
            return self.fail(now, need, what, least);
        }
        if self.selection.optional && matches!(refusal.code, 403 | 404) {
            self.notes.push(Note::NotOffered(what));
            self.state = State::Due { at: now + NOT_OFFERED, need: Need::List };
            return;
        }
        let streaming = matches!(state, State::Streaming { .. });
        if streaming && refusal.is_of_streaming() {
            self.not_streamed_until = Some(now + NOT_STREAMED);
            self.notes.push(Note::NotStreamed(what.clone()));
            return self.promptly(now, Need::List, what);
        }
        if refusal.code == 400 && self.selection.fields_may_be_unknown && !self.fields_unknown {
            self.fields_unknown = true;
            self.notes.push(Note::FieldsUnknown(what.clone()));
            return self.promptly(now, Need::List, what);
        }
        match state {
            State::Listing { is_page: true, .. } if refusal.is_expired() => {
                self.promptly(now, Need::WholeList, what);
            }
            State::Listing { from: From::NotBefore(_), .. }
            | State::Streaming { from: From::NotBefore(_), .. }
                if refusal.is_expired() || refusal.too_large =>
            {
                self.unavailable = true;
                self.promptly(now, Need::List, what);
            }
            State::Watching { .. } if refusal.too_large => {
                self.unavailable = true;
                self.promptly(now, Need::List, what);
            }
            State::Watching { .. } if refusal.is_expired() => self.fail_as_usual(now, Need::List, what),
            _ => {
                self.plain = streaming;
                self.fail(now, Need::List, what, Duration::ZERO);
            }
        }
    }

    /// There was no answer. `connection_refused`: nobody listens there.
    pub(crate) fn unreachable(&mut self, now: Instant, connection_refused: bool, what: String) {
        self.note_life(now);
        let state = self.leave(now);
        let need = match state {
            State::Watching { .. } if connection_refused => Need::Watch,
            _ => Need::List,
        };
        self.doubt.rise();
        self.plain = !connection_refused && matches!(state, State::Streaming { .. });
        self.fail(now, need, what, Duration::ZERO);
    }

    /// The response ended before it was complete, or, of a watch, well or not.
    pub(crate) fn ended(&mut self, now: Instant, why: Option<String>) {
        self.note_life(now);
        let state = self.leave(now);
        match state {
            State::Watching { since, delivered, .. } => {
                let lived = now.saturating_duration_since(since);
                if why.is_some() || lived + ORDINARY < self.asked_for {
                    self.doubt.rise();
                }
                if lived >= LIVED || delivered {
                    self.back_off.rested();
                    let spacing = WATCH_SPACING.saturating_sub(lived);
                    self.state = State::Due { at: now + spacing, need: Need::Watch };
                } else {
                    let what = why.unwrap_or_else(|| "a watch ended as soon as it had begun".to_owned());
                    self.fail(now, Need::List, what, Duration::ZERO);
                }
            }
            State::Streaming { .. } | State::Listing { .. } => {
                self.plain = matches!(state, State::Streaming { .. });
                let what = why.unwrap_or_else(|| "a list ended before it was complete".to_owned());
                self.fail(now, Need::List, what, Duration::ZERO);
            }
            State::Due { .. } => self.state = state,
        }
    }

    /// Nothing was heard until `deadline`.
    pub(crate) fn silent(&mut self, now: Instant) {
        self.note_life(now);
        self.doubt.rise();
        let state = self.leave(now);
        match state {
            State::Watching { heard: true, .. } => {
                self.state = State::Due { at: now, need: Need::Watch };
            }
            State::Watching { .. } => {
                // Such is a watch from a version that a restored storage does not have yet.
                self.fail(now, Need::List, "nothing was ever heard of a watch".to_owned(), Duration::ZERO);
            }
            State::Streaming { spoke: true, .. } => {
                let what = "a streamed list was never completed".to_owned();
                self.not_streamed_until = Some(now + NOT_STREAMED);
                self.notes.push(Note::NotStreamed(what.clone()));
                self.promptly(now, Need::List, what);
            }
            State::Streaming { .. } | State::Listing { .. } => {
                self.plain = matches!(state, State::Streaming { .. });
                self.fail(now, Need::List, "the answer did not come".to_owned(), Duration::ZERO);
            }
            State::Due { .. } => self.state = state,
        }
    }

    fn leave(&mut self, now: Instant) -> State {
        self.known.drop_held();
        mem::replace(&mut self.state, State::Due { at: now, need: Need::List })
    }

    fn fail(&mut self, now: Instant, need: Need, what: String, least: Duration) {
        let wait = self.pause(now, need, least);
        self.notes.push(Note::Failed { what, wait, usual: false });
    }

    fn fail_as_usual(&mut self, now: Instant, need: Need, what: String) {
        let wait = self.pause(now, need, Duration::ZERO);
        self.notes.push(Note::Failed { what, wait, usual: true });
    }

    fn pause(&mut self, now: Instant, need: Need, least: Duration) -> Duration {
        let random = self.random();
        let wait = self.back_off.wait(now, random).max(least);
        self.state = State::Due { at: now + wait, need };
        wait
    }

    /// At once, unless that was done too often.
    pub(super) fn promptly(&mut self, now: Instant, need: Need, what: String) {
        if self.back_off.prompt() {
            self.notes.push(Note::Failed { what, wait: Duration::ZERO, usual: true });
            self.state = State::Due { at: now, need };
        } else {
            self.fail(now, need, what, Duration::ZERO);
        }
    }

    pub(super) fn fail_with_the_past(&mut self, now: Instant, what: String) {
        let _ = self.leave(now);
        self.fail_as_usual(now, Need::List, what);
    }

    /// The storage seems to have been put back: the server is asked whether it can still answer for what was seen.
    pub(super) fn list_anew(&mut self, now: Instant, what: String) {
        self.note_life(now);
        let _ = self.leave(now);
        self.promptly(now, Need::List, what);
    }

    /// A watch that was heard of for long, or that delivered and lived, shows that the server is well.
    pub(super) fn note_life(&mut self, now: Instant) {
        let State::Watching { since, heard, delivered } = self.state else { return };
        let lived = now.saturating_duration_since(since);
        if lived < LIVED {
            return;
        }
        self.back_off.rested();
        let failures = if heard && self.last_word.min(now).saturating_duration_since(since) >= WELL {
            self.back_off.lived()
        } else if delivered {
            self.back_off.delivered()
        } else {
            0
        };
        if failures > 0 {
            self.notes.push(Note::Recovered(failures));
        }
    }

    /// When to ask whether the server knows the version that the running watch began from.
    pub(crate) fn doubt_at(&self) -> Option<Instant> {
        matches!(self.state, State::Watching { .. }).then(|| self.doubt.at())?
    }

    /// The request that asks so now.
    pub(crate) fn doubt(&mut self, now: Instant) -> Option<Request> {
        self.doubt_at()?;
        let seen = self.seen.clone().filter(|_| self.doubt.take_due(now))?;
        // With a limit it is asked of the storage, whatever the server has in its memory.
        Some(self.request(Verb::List { from: From::NotBefore(seen), page: None, limit: Some(1) }))
    }

    /// What the server said to that: the version of its list.
    pub(crate) fn doubt_answered(&mut self, now: Instant, version: &Version) -> Go {
        match &self.seen {
            Some(seen) if version.is_before(seen) => {
                let what = format!("version {} after {}", version.as_str(), seen.as_str());
                self.list_anew(now, what);
                Go::Away
            }
            _ => {
                self.doubt.settle();
                Go::On
            }
        }
    }

    /// It did not answer that. Only where it says that it has never known the version does that mean anything.
    pub(crate) fn doubt_refused(&mut self, now: Instant, refusal: &Refusal) -> Go {
        if !refusal.too_large {
            return Go::On;
        }
        self.unavailable = true;
        self.list_anew(now, format!("{} ({}): {}", refusal.code, refusal.reason, refusal.message));
        Go::Away
    }
}
