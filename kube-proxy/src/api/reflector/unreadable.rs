//! Objects that could not be decoded: told of once, and asked for again one by one, a few times.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use proxy_core::model::ObjectName;

use super::request::Version;

/// So many are asked for again; further ones are counted only.
const MOST: usize = 64;
/// After so many tries it is left alone until it changes.
const TRIES: u32 = 6;
const FIRST: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Unreadables {
    objects: HashMap<ObjectName, Entry>,
    /// One at a time, and no other before then.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    version: Version,
    tries: u32,
    at: Instant,
}

impl Unreadables {
    /// Answers whether this version of it is news.
    pub(super) fn note(&mut self, name: &ObjectName, version: &Version, now: Instant) -> bool {
        match self.objects.get(name) {
            Some(entry) if entry.version == *version => return false,
            None if self.objects.len() >= MOST => return false,
            _ => {}
        }
        let entry = Entry { version: version.clone(), tries: 0, at: now + FIRST };
        self.objects.insert(name.clone(), entry);
        true
    }

    /// It was read or is gone.
    pub(super) fn forget(&mut self, name: &ObjectName) {
        self.objects.remove(name);
    }

    /// When one is to be asked for.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let at = self.waiting().map(|(_, entry)| entry.at).min()?;
        Some(self.not_before.map_or(at, |not_before| at.max(not_before)))
    }

    /// The one to ask for now.
    pub(super) fn take_due(&mut self, now: Instant) -> Option<ObjectName> {
        self.next_at().filter(|at| *at <= now)?;
        let name = self.waiting().min_by_key(|(_, entry)| entry.at)?.0.clone();
        let entry = self.objects.get_mut(&name)?;
        entry.tries += 1;
        entry.at = now + FIRST * (1 << entry.tries.min(5));
        self.not_before = Some(now + FIRST);
        Some(name)
    }

    /// Whether what came for it may be believed: nothing newer was told of since.
    pub(super) fn is_for(&self, name: &ObjectName, version: &Version) -> bool {
        self.objects.get(name).is_some_and(|entry| !version.is_before(&entry.version))
    }

    fn waiting(&self) -> impl Iterator<Item = (&ObjectName, &Entry)> {
        self.objects.iter().filter(|(_, entry)| entry.tries < TRIES)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }
}
