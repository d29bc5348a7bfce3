//! The one copy of what the cluster says, and which Services an input makes worth a second look.

mod entry;

use std::{
    borrow::Borrow,
    collections::{HashMap, HashSet, hash_map},
    hash::{Hash, Hasher},
    mem,
    sync::Arc,
};

pub use entry::{Endpoints, Entry, Slices};

use crate::model::{Family, Kind, Service, ServiceName, Slice, SliceName};

/// Services and EndpointSlices, keyed by the Service they belong to.
#[derive(Debug, Default)]
pub struct Store {
    entries: HashMap<ServiceName, Entry>,
    /// Every slice by its own name: a delete names the slice only, and a label may move it to another Service.
    by_name: HashSet<ByName>,
    services: Listing<ServiceName>,
    slices: Listing<SliceName>,
}

/// A slice that is found by its name.
#[derive(Debug)]
struct ByName(Arc<Slice>);

impl Borrow<SliceName> for ByName {
    fn borrow(&self) -> &SliceName {
        &self.0.name
    }
}

impl Hash for ByName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.name.hash(state);
    }
}

impl PartialEq for ByName {
    fn eq(&self, other: &Self) -> bool {
        self.0.name == other.0.name
    }
}

impl Eq for ByName {}

/// How far the watch of one kind has come.
#[derive(Debug)]
struct Listing<Name> {
    complete_once: bool,
    /// Names seen since the present (re-)list began.
    seen: Option<HashSet<Name>>,
}

impl<Name> Default for Listing<Name> {
    fn default() -> Self {
        Self { complete_once: false, seen: None }
    }
}

/// A Service whose routes may have changed, in one family or (`None`) both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    /// Which one.
    pub service: ServiceName,
    /// The family concerned; `None`: both.
    pub family: Option<Family>,
}

impl Touched {
    fn both(service: ServiceName) -> Self {
        Self { service, family: None }
    }
}

impl Store {
    /// Both kinds have been listed completely at least once.
    pub fn is_complete(&self) -> bool {
        self.services.complete_once && self.slices.complete_once
    }

    /// What is known of a Service and its endpoints.
    pub fn entry(&self, service: &ServiceName) -> Option<&Entry> {
        self.entries.get(service)
    }

    /// All Services that exist, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.entries.values().filter_map(|entry| entry.service.as_deref())
    }

    /// Names of all Services that exist.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.entries.iter().filter(|(_, entry)| entry.service.is_some()).map(|(name, _)| name)
    }

    /// Names of everything that is remembered, slices without a Service too.
    pub fn all_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.entries.keys()
    }

    /// Remembers a Service. `None`: it is as it was.
    pub fn set_service(&mut self, service: impl Into<Arc<Service>>) -> Option<Touched> {
        let service = service.into();
        if let Some(seen) = &mut self.services.seen {
            seen.insert(service.name.clone());
        }
        let entry = self.entries.entry(service.name.clone()).or_default();
        if entry.service.as_ref() == Some(&service) {
            return None;
        }
        let name = service.name.clone();
        entry.service = Some(service);
        Some(Touched::both(name))
    }

    /// Forgets a Service. `None`: it was not there.
    pub fn remove_service(&mut self, name: &ServiceName) -> Option<Touched> {
        let hash_map::Entry::Occupied(mut entry) = self.entries.entry(name.clone()) else { return None };
        entry.get_mut().service.take()?;
        if entry.get().slices.is_empty() {
            entry.remove();
        }
        Some(Touched::both(name.clone()))
    }

    /// Remembers a slice. At most two Services are touched: the one that the slice left and the one it joined.
    pub fn set_slice(&mut self, slice: impl Into<Arc<Slice>>) -> Vec<Touched> {
        let slice = slice.into();
        if let Some(seen) = &mut self.slices.seen {
            seen.insert(slice.name.clone());
        }
        let mut touched = Vec::new();
        if let Some(ByName(known)) = self.by_name.get(&slice.name) {
            if *known == slice {
                return touched;
            }
            if (&known.service, known.family) != (&slice.service, slice.family) {
                touched.extend(self.remove_slice(&slice.name));
            }
        }
        touched.push(Touched { service: slice.service.clone(), family: Some(slice.family) });
        self.by_name.replace(ByName(slice.clone()));
        self.entries.entry(slice.service.clone()).or_default().slices.set(slice);
        touched
    }

    /// Forgets a slice. `None`: it was not there.
    pub fn remove_slice(&mut self, name: &SliceName) -> Option<Touched> {
        let ByName(slice) = self.by_name.take(name)?;
        let owner = slice.service.clone();
        let hash_map::Entry::Occupied(mut entry) = self.entries.entry(owner.clone()) else { return None };
        entry.get_mut().slices.remove(name);
        if entry.get().slices.is_empty() && entry.get().service.is_none() {
            entry.remove();
        }
        Some(Touched { service: owner, family: Some(slice.family) })
    }

    /// A (re-)list begins: from now on names are noted.
    pub fn begin_listing(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.services.seen = Some(HashSet::new()),
            Kind::Slice => self.slices.seen = Some(HashSet::new()),
        }
    }

    /// The list is complete: what it did not name is gone.
    pub fn end_listing(&mut self, kind: Kind) -> Vec<Touched> {
        match kind {
            Kind::Service => {
                self.services.complete_once = true;
                let Some(seen) = mem::take(&mut self.services.seen) else { return Vec::new() };
                let gone: Vec<_> = self.names().filter(|name| !seen.contains(*name)).cloned().collect();
                gone.iter().filter_map(|name| self.remove_service(name)).collect()
            }
            Kind::Slice => {
                self.slices.complete_once = true;
                let Some(seen) = mem::take(&mut self.slices.seen) else { return Vec::new() };
                let gone: Vec<_> = self
                    .by_name
                    .iter()
                    .map(|ByName(slice)| &slice.name)
                    .filter(|name| !seen.contains(*name))
                    .cloned()
                    .collect();
                gone.iter().filter_map(|name| self.remove_slice(name)).collect()
            }
        }
    }
}

/// Keeps one allocation per distinct list of zones while a slice is parsed.
pub fn share_zones(zones: Vec<Box<str>>, last: &mut Option<Arc<[Box<str>]>>) -> Arc<[Box<str>]> {
    match last {
        Some(shared) if **shared == *zones => shared.clone(),
        _ => {
            let shared: Arc<[Box<str>]> = zones.into();
            *last = Some(shared.clone());
            shared
        }
    }
}

#[cfg(test)]
mod tests;
