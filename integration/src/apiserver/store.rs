//! The newest version of every object, one version counter for all of them, and a bounded history for watches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

use super::clock;
use super::resource::RESOURCES;
use super::selector::Selector;
use super::status::Refusal;
use super::stored::{Key, Stored, key_of};

/// How many changes of one resource a watch may lag behind before it is told 410 Gone.
const HISTORY: usize = 100_000;

/// One step of the history. `before` is what the object was, `after` what it became or was when it went.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) version: u64,
    pub(crate) before: Option<Arc<Stored>>,
    pub(crate) after: Arc<Stored>,
    pub(crate) deleted: bool,
}

#[derive(Debug)]
struct Collection {
    objects: BTreeMap<Key, Arc<Stored>>,
    history: VecDeque<Step>,
    /// The newest version that the history no longer reaches back from.
    forgotten: u64,
    newest: watch::Sender<u64>,
}

/// All resources. The caller holds the lock.
#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    uids: u64,
    collections: Vec<Collection>,
}

impl Store {
    pub(crate) fn new() -> Self {
        let collection = || Collection {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            forgotten: 0,
            newest: watch::Sender::new(0),
        };
        Self { version: 1, uids: 0, collections: RESOURCES.iter().map(|_| collection()).collect() }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Wakes whenever the resource changes.
    pub(crate) fn subscribe(&self, resource: usize) -> watch::Receiver<u64> {
        self.collections[resource].newest.subscribe()
    }

    pub(crate) fn find(&self, resource: usize, key: &Key) -> Option<&Arc<Stored>> {
        self.collections[resource].objects.get(key)
    }

    pub(crate) fn len(&self, resource: usize) -> usize {
        self.collections[resource].objects.len()
    }

    pub(crate) fn matching(&self, resource: usize, selector: &Selector) -> Vec<Arc<Stored>> {
        self.collections[resource]
            .objects
            .values()
            .filter(|object| selector.matches(object))
            .cloned()
            .collect()
    }

    /// The objects as they stood at `version`, or `None` when the history does not reach back so far.
    pub(crate) fn at(
        &self,
        resource: usize,
        version: u64,
        selector: &Selector,
    ) -> Option<BTreeMap<Key, Arc<Stored>>> {
        let collection = &self.collections[resource];
        if version < collection.forgotten {
            return None;
        }
        let mut objects = collection.objects.clone();
        for step in collection.history.iter().rev().take_while(|step| step.version > version) {
            match &step.before {
                Some(before) => objects.insert(before.key.clone(), before.clone()),
                None => objects.remove(&step.after.key),
            };
        }
        objects.retain(|_, object| selector.matches(object));
        Some(objects)
    }

    /// The next steps after `version`, at most `limit`; `None` when some of them are forgotten.
    pub(crate) fn steps_after(&self, resource: usize, version: u64, limit: usize) -> Option<Vec<Step>> {
        let collection = &self.collections[resource];
        if version < collection.forgotten {
            return None;
        }
        let first = collection.history.partition_point(|step| step.version <= version);
        Some(collection.history.iter().skip(first).take(limit).cloned().collect())
    }

    /// Forgets all history, as a compaction of etcd does: a watch or list from an older version gets 410.
    pub(crate) fn compact(&mut self) {
        self.version += 1;
        for collection in &mut self.collections {
            collection.history.clear();
            collection.forgotten = self.version;
        }
    }

    /// Goes back to the state of an older version and counts on from there, as etcd does when it is restored from a
    /// copy. Answers whether that version is still known.
    pub(crate) fn restore(&mut self, version: u64) -> bool {
        let everything = Selector::default();
        let states: Option<Vec<_>> =
            (0..self.collections.len()).map(|resource| self.at(resource, version, &everything)).collect();
        let Some(states) = states else { return false };
        self.version = version;
        for (collection, objects) in self.collections.iter_mut().zip(states) {
            collection.objects = objects;
            collection.history.retain(|step| step.version <= version);
            collection.newest.send_replace(version);
        }
        true
    }

    /// Stores a new object. Fails when one of that name exists.
    pub(crate) fn create(&mut self, resource: usize, mut object: Value) -> Result<Arc<Stored>, Refusal> {
        if let (Some(prefix), None) =
            (object["metadata"]["generateName"].as_str(), object["metadata"]["name"].as_str())
        {
            object["metadata"]["name"] = json!(format!("{prefix}{:05x}", self.uids + 1));
        }
        let key = key_of(&object);
        if self.find(resource, &key).is_some() {
            return Err(Refusal::already_exists(&RESOURCES[resource], &key.name));
        }
        Ok(self.put(resource, object))
    }

    /// Replaces an existing object, if the version it names, when it names one, is the current one.
    pub(crate) fn replace(&mut self, resource: usize, object: Value) -> Result<Arc<Stored>, Refusal> {
        let key = key_of(&object);
        let Some(current) = self.find(resource, &key) else {
            return Err(Refusal::not_found(&RESOURCES[resource], &key.name));
        };
        match object["metadata"]["resourceVersion"].as_str() {
            Some(version) if !version.is_empty() && version != current.version.to_string() => {
                Err(Refusal::conflict(&RESOURCES[resource], &key.name))
            }
            _ => Ok(self.put(resource, object)),
        }
    }

    /// Creates or replaces, whatever version the object names. Without a change nothing happens.
    pub(crate) fn put(&mut self, resource: usize, mut object: Value) -> Arc<Stored> {
        let kind = &RESOURCES[resource];
        if !kind.namespaced
            && let Some(metadata) = object["metadata"].as_object_mut()
        {
            metadata.remove("namespace");
        }
        let key = key_of(&object);
        let before = self.find(resource, &key).cloned();
        self.fill_metadata(&mut object, before.as_ref().map(|before| before.value(kind)));
        if let Some(before) = before.as_ref() {
            object["metadata"]["resourceVersion"] = json!(before.version.to_string());
            let same = Stored::new(kind, object.clone(), before.version);
            if same.item == before.item {
                return before.clone();
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = Arc::new(Stored::new(kind, object, self.version));
        self.collections[resource].objects.insert(key, after.clone());
        self.record(resource, Step { version: self.version, before, after: after.clone(), deleted: false });
        after
    }

    pub(crate) fn delete(&mut self, resource: usize, key: &Key) -> Result<Arc<Stored>, Refusal> {
        let kind = &RESOURCES[resource];
        let Some(before) = self.collections[resource].objects.remove(key) else {
            return Err(Refusal::not_found(kind, &key.name));
        };
        self.version += 1;
        let mut last = before.value(kind);
        last["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = Arc::new(Stored::new(kind, last, self.version));
        let step = Step { version: self.version, before: Some(before), after: after.clone(), deleted: true };
        self.record(resource, step);
        Ok(after)
    }

    fn record(&mut self, resource: usize, step: Step) {
        let collection = &mut self.collections[resource];
        let version = step.version;
        collection.history.push_back(step);
        if collection.history.len() > HISTORY
            && let Some(oldest) = collection.history.pop_front()
        {
            collection.forgotten = oldest.version;
        }
        collection.newest.send_replace(version);
    }

    fn fill_metadata(&mut self, object: &mut Value, before: Option<Value>) {
        if !object["metadata"].is_object() {
            object["metadata"] = json!({});
        }
        for (field, fresh) in [
            ("uid", self.fresh_uid(before.is_none())),
            ("creationTimestamp", clock::rfc3339(clock::now_since_epoch())),
        ] {
            let kept =
                before.as_ref().and_then(|before| before["metadata"][field].as_str().map(str::to_owned));
            match (kept, object["metadata"][field].as_str()) {
                (None, Some(given)) if !given.is_empty() => {}
                (kept, _) => object["metadata"][field] = json!(kept.unwrap_or(fresh)),
            }
        }
    }

    fn fresh_uid(&mut self, take: bool) -> String {
        self.uids += u64::from(take);
        // The shape of a version 4 UUID; unique within this server is all that anyone asks of it.
        format!("{:08x}-0000-4000-8000-{:012x}", std::process::id(), self.uids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, color: &str) -> Value {
        json!({"metadata": {"namespace": "a", "name": name, "labels": {"color": color}}})
    }

    #[test]
    fn writing_the_same_again_makes_no_new_version() {
        let mut store = Store::new();
        let first = store.put(0, named("x", "red"));
        let again = store.put(0, named("x", "red"));
        assert_eq!(first.version, again.version);
        assert!(store.put(0, named("x", "blue")).version > first.version);
    }

    #[test]
    fn the_past_can_be_read_until_it_is_compacted() {
        let mut store = Store::new();
        let first = store.put(0, named("x", "red")).version;
        store.put(0, named("x", "blue"));
        store.put(0, named("y", "red"));
        store.delete(0, &Key { namespace: "a".into(), name: "x".into() }).expect("x exists");
        let then = store.at(0, first, &Selector::default()).expect("still known");
        assert_eq!(then.len(), 1);
        assert_eq!(then.values().next().map(|object| object.version), Some(first));
        store.compact();
        assert!(store.at(0, first, &Selector::default()).is_none());
        assert!(store.steps_after(0, first, 10).is_none());
        assert_eq!(store.steps_after(0, store.version(), 10).map(|steps| steps.len()), Some(0));
    }

    #[test]
    fn a_restored_store_knows_nothing_of_what_came_after() {
        let mut store = Store::new();
        let first = store.put(0, named("x", "red")).version;
        store.put(0, named("x", "blue"));
        store.put(0, named("y", "red"));
        assert!(store.restore(first));
        assert_eq!((store.version(), store.len(0)), (first, 1));
        assert_eq!(store.steps_after(0, 0, 10).map(|steps| steps.len()), Some(1));
        assert_eq!(store.put(0, named("z", "red")).version, first + 1);
        store.compact();
        assert!(!store.restore(first));
    }

    #[test]
    fn a_stale_update_conflicts_and_identity_survives_updates() {
        let mut store = Store::new();
        let first = store.create(0, named("x", "red")).expect("new").value(&RESOURCES[0]);
        assert!(store.create(0, named("x", "red")).is_err());
        let second = store.put(0, named("x", "blue")).value(&RESOURCES[0]);
        assert_eq!(first["metadata"]["uid"], second["metadata"]["uid"]);
        assert_eq!(first["metadata"]["creationTimestamp"], second["metadata"]["creationTimestamp"]);
        assert_eq!(store.replace(0, first).unwrap_err().code, 409);
        assert!(store.replace(0, second).is_ok());
    }
}
