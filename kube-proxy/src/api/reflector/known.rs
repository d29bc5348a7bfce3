//! Which objects were told of, in which version: what a list no longer names is gone, and the past is known as such.

use std::collections::{HashMap, hash_map::Entry};

use proxy_core::model::ObjectName;

use super::request::Version;

/// So many objects of a streamed list may wait for its end to show whether it is of the past.
const MOST_HELD: usize = 4096;

#[derive(Debug)]
pub(super) struct Known<T> {
    objects: HashMap<ObjectName, Seen>,
    /// Objects of a streamed list that look as if it was of the past: believed when its end shows otherwise.
    held: Vec<(ObjectName, u64, T)>,
}

#[derive(Debug)]
struct Seen {
    version: u64,
    /// By the list that runs, or ran last.
    listed: bool,
}

impl<T> Known<T> {
    pub(super) fn new() -> Self {
        Self { objects: HashMap::new(), held: Vec::new() }
    }

    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.held = Vec::new();
        for seen in self.objects.values_mut() {
            seen.listed = false;
        }
    }

    pub(super) fn insert(&mut self, name: ObjectName, version: &Version) {
        let seen = Seen { version: version.number().unwrap_or(0), listed: true };
        match self.objects.entry(name) {
            Entry::Occupied(mut known) => drop(known.insert(seen)),
            Entry::Vacant(place) => drop(place.insert(seen)),
        }
    }

    /// It exists, but in which state is not known.
    pub(super) fn keep(&mut self, name: &ObjectName) {
        if let Some(seen) = self.objects.get_mut(name) {
            seen.listed = true;
        }
    }

    pub(super) fn remove(&mut self, name: &ObjectName) {
        self.objects.remove(name);
    }

    /// Whether an object of that version cannot be in a state as new as `last`, in which everything was known.
    pub(super) fn is_of_the_past(&self, name: &ObjectName, version: &Version, last: &Version) -> bool {
        let (Some(version), Some(last)) = (version.number(), last.number()) else { return false };
        version <= last && self.objects.get(name).is_none_or(|seen| seen.version > version)
    }

    /// Answers whether there was room.
    pub(super) fn hold(&mut self, name: ObjectName, version: &Version, object: T) -> bool {
        self.keep(&name);
        self.held.push((name, version.number().unwrap_or(0), object));
        self.held.len() <= MOST_HELD
    }

    pub(super) fn drop_held(&mut self) {
        self.held = Vec::new();
    }

    /// The list is complete and believed: what was held back, and what is gone.
    pub(super) fn end(&mut self) -> (Vec<T>, Vec<ObjectName>) {
        let held = std::mem::take(&mut self.held);
        let mut objects = Vec::with_capacity(held.len());
        for (name, version, object) in held {
            self.objects.insert(name, Seen { version, listed: true });
            objects.push(object);
        }
        let gone: Vec<ObjectName> =
            self.objects.iter().filter(|(_, seen)| !seen.listed).map(|(name, _)| name.clone()).collect();
        for name in &gone {
            self.objects.remove(name);
        }
        (objects, gone)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.objects.len() + self.held.len()
    }
}
