//! What lists and watches tell of, and how much of it is believed.

use std::time::Instant;

use proxy_core::model::ObjectName;

use super::{
    Event, Go, Need, Note, PATIENCE_WITH_THE_PAST, Reflector, State, Told,
    request::{From, Version},
};

impl<T> Reflector<T> {
    /// A page of a list begins; its objects follow. Not to be asked for other than lists.
    pub(crate) fn page(&mut self, now: Instant, answered: &Version) -> Go {
        let State::Listing { from, version, .. } = &mut self.state else { return Go::Away };
        if let From::NotBefore(seen) = from
            && answered.is_before(seen)
        {
            let seen = seen.clone();
            self.is_past(now, seen, answered);
            return Go::Away;
        }
        if version.replace(answered.clone()).is_none() {
            self.known.begin();
        }
        Go::On
    }

    /// An object of the list.
    pub(crate) fn listed(
        &mut self,
        name: ObjectName,
        version: &Version,
        object: T,
        tell: &mut impl FnMut(Told<T>),
    ) {
        self.unreadable.forget(&name);
        self.known.insert(name, version);
        tell(Told::Applied(object));
    }

    /// An object of a list or a watch that could not be decoded: it exists, and its last state stays.
    pub(crate) fn unreadable(&mut self, now: Instant, name: &ObjectName, version: &Version, why: String) {
        self.known.keep(name);
        if self.unreadable.note(name, version, now) {
            self.notes.push(Note::Unreadable { name: name.clone(), why });
        }
    }

    /// The page is complete; `token` says where the next one begins.
    pub(crate) fn page_end(&mut self, now: Instant, token: Option<String>, tell: &mut impl FnMut(Told<T>)) {
        let State::Listing { from, version: Some(version), .. } = &self.state else {
            return self.ended(now, None);
        };
        let (from, version) = (from.clone(), version.clone());
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            self.state = State::Due { at: now, need: Need::Page { from, version, token } };
            return;
        }
        self.complete(version, tell);
        self.state = State::Due { at: now, need: Need::Watch };
    }

    /// An event of a watch or of a streamed list.
    pub(crate) fn event(&mut self, now: Instant, event: Event<T>, tell: &mut impl FnMut(Told<T>)) -> Go {
        self.heard(now);
        match &mut self.state {
            State::Streaming { .. } => self.streamed(now, event, tell),
            State::Watching { .. } => self.watched(now, event, tell),
            _ => Go::Away,
        }
    }

    fn streamed(&mut self, now: Instant, event: Event<T>, tell: &mut impl FnMut(Told<T>)) -> Go {
        let State::Streaming { from, spoke } = &mut self.state else { return Go::Away };
        match event {
            Event::Applied { name, version, object } => {
                *spoke = true;
                if let From::NotBefore(seen) = from
                    && self.known.is_of_the_past(&name, &version, seen)
                {
                    if self.known.hold(name, &version, object) {
                        return Go::On;
                    }
                    // Too much of it is older than what was seen: only the newest state can settle that.
                    self.unavailable = true;
                    self.list_anew(now, "a streamed list is of the past".to_owned());
                    return Go::Away;
                }
                self.listed(name, &version, object, tell);
                Go::On
            }
            Event::Unreadable { name, version, why } => {
                *spoke = true;
                self.unreadable(now, &name, &version, why);
                Go::On
            }
            Event::Deleted { name, .. } => {
                self.unreadable.forget(&name);
                self.known.remove(&name);
                tell(Told::Gone(name));
                Go::On
            }
            Event::Bookmark { ends_list: false, .. } => Go::On,
            Event::Bookmark { version, ends_list: true } => {
                if let From::NotBefore(seen) = from
                    && version.is_before(seen)
                {
                    let seen = seen.clone();
                    self.is_past(now, seen, &version);
                    return Go::Away;
                }
                self.complete(version, tell);
                self.state = State::Watching { since: now, heard: true, delivered: false };
                Go::On
            }
            Event::Error(refusal) => {
                self.refused(now, &refusal);
                Go::Away
            }
        }
    }

    fn watched(&mut self, now: Instant, event: Event<T>, tell: &mut impl FnMut(Told<T>)) -> Go {
        let version = match &event {
            Event::Error(refusal) => {
                self.refused(now, refusal);
                return Go::Away;
            }
            Event::Applied { version, .. }
            | Event::Deleted { version, .. }
            | Event::Unreadable { version, .. }
            | Event::Bookmark { version, .. } => version.clone(),
        };
        if let Some(seen) = &self.seen
            && version.is_before(seen)
        {
            let what = format!("a watch from version {} told of version {}", seen.as_str(), version.as_str());
            self.list_anew(now, what);
            return Go::Away;
        }
        let news = self.seen.as_ref() != Some(&version);
        self.seen = Some(version.clone());
        self.doubt.settle();
        match event {
            Event::Applied { name, object, .. } => {
                self.unreadable.forget(&name);
                self.known.insert(name, &version);
                tell(Told::Applied(object));
            }
            Event::Deleted { name, .. } => {
                self.unreadable.forget(&name);
                self.known.remove(&name);
                tell(Told::Gone(name));
            }
            Event::Unreadable { name, why, .. } => self.unreadable(now, &name, &version, why),
            Event::Bookmark { .. } | Event::Error(_) => return Go::On,
        }
        if news && let State::Watching { delivered, .. } = &mut self.state {
            *delivered = true;
        }
        Go::On
    }

    /// When an object that could not be decoded is to be asked for again; only while a watch runs.
    pub(crate) fn again_at(&self) -> Option<Instant> {
        matches!(self.state, State::Watching { .. }).then(|| self.unreadable.next_at())?
    }

    /// The object to ask for again now.
    pub(crate) fn again(&mut self, now: Instant) -> Option<ObjectName> {
        self.again_at()?;
        self.unreadable.take_due(now)
    }

    /// An object that was asked for again came, and could be decoded.
    pub(crate) fn came_again(
        &mut self,
        name: &ObjectName,
        version: &Version,
        object: T,
        tell: &mut impl FnMut(Told<T>),
    ) {
        if self.unreadable.is_for(name, version) {
            self.listed(name.clone(), version, object, tell);
        }
    }

    fn is_past(&mut self, now: Instant, seen: Version, answered: &Version) {
        self.past += 1;
        if self.past >= PATIENCE_WITH_THE_PAST {
            self.past = 0;
            self.unavailable = true;
        }
        let what = format!("version {} after {}", answered.as_str(), seen.as_str());
        self.notes.push(Note::Past { seen, answered: answered.clone() });
        self.fail_with_the_past(now, what);
    }

    fn complete(&mut self, version: Version, tell: &mut impl FnMut(Told<T>)) {
        let (held, gone) = self.known.end();
        held.into_iter().for_each(|object| tell(Told::Applied(object)));
        for name in gone {
            self.unreadable.forget(&name);
            tell(Told::Gone(name));
        }
        self.seen = Some(version);
        self.unavailable = false;
        self.plain = false;
        self.past = 0;
        self.doubt.settle();
        self.back_off.listed();
        tell(Told::Listed);
    }
}
