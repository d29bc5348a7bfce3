//! A map whose changes can be taken back until they are confirmed.

use std::{collections::HashMap, hash::Hash};

#[derive(Debug, Clone)]
pub(crate) struct Journal<K, V> {
    map: HashMap<K, V>,
    /// What each change replaced, oldest first.
    replaced: Vec<(K, Option<V>)>,
}

impl<K, V> Default for Journal<K, V> {
    fn default() -> Self {
        Self { map: HashMap::new(), replaced: Vec::new() }
    }
}

impl<K: Hash + Eq + Clone, V> Journal<K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.map.iter()
    }

    pub(crate) fn set(&mut self, key: K, value: Option<V>) {
        let before = match value {
            Some(value) => self.map.insert(key.clone(), value),
            None => self.map.remove(&key),
        };
        self.replaced.push((key, before));
    }

    /// The changes stay.
    pub(crate) fn commit(&mut self) {
        self.replaced.clear();
    }

    /// The changes since the last commit never were.
    pub(crate) fn roll_back(&mut self) {
        while let Some((key, before)) = self.replaced.pop() {
            match before {
                Some(value) => self.map.insert(key, value),
                None => self.map.remove(&key),
            };
        }
    }
}

/// How often something is wanted; present while it is wanted at all.
pub(crate) type Counts<K> = Journal<K, u32>;

impl<K: Hash + Eq + Clone> Counts<K> {
    /// Adds `by`; returns whether the key appeared (`Some(true)`) or disappeared (`Some(false)`).
    pub(crate) fn count(&mut self, key: K, by: i32) -> Option<bool> {
        let before = self.get(&key).copied().unwrap_or_default();
        // A count never falls below what was counted up; saturating keeps a slip from wrapping.
        let after = before.saturating_add_signed(by);
        self.set(key, (after > 0).then_some(after));
        ((before > 0) != (after > 0)).then_some(after > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_roll_back_restores_what_the_last_commit_left() {
        let mut counts = Counts::default();
        assert_eq!(counts.count("kept", 2), Some(true));
        counts.commit();
        assert_eq!(counts.count("kept", -1), None);
        assert_eq!(counts.count("kept", -1), Some(false));
        assert_eq!(counts.count("new", 1), Some(true));
        counts.roll_back();
        assert_eq!(counts.get(&"kept"), Some(&2));
        assert_eq!(counts.get(&"new"), None);
    }
}
