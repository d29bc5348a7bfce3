//! The one copy of what the cluster says, and which Services an input makes worth a second look.

use std::{
    collections::{HashMap, HashSet, hash_map},
    mem,
    net::IpAddr,
    sync::Arc,
};

use crate::model::{Endpoint, Family, Kind, Protocol, Service, ServiceName, Slice, SliceName};

/// Services and EndpointSlices, keyed by the Service they belong to.
#[derive(Debug, Default)]
pub struct Store {
    entries: HashMap<ServiceName, Entry>,
    /// The Service a slice counts for: a delete names the slice only, and a label may move it to another Service.
    slice_owner: HashMap<SliceName, ServiceName>,
    services: Listing<ServiceName>,
    slices: Listing<SliceName>,
}

/// One Service name's worth of input. Slices may come before their Service and outlive it.
#[derive(Debug, Default)]
pub struct Entry {
    pub service: Option<Service>,
    pub slices: Vec<Slice>,
}

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
    pub service: ServiceName,
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

    pub fn entry(&self, service: &ServiceName) -> Option<&Entry> {
        self.entries.get(service)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.entries.values().filter_map(|entry| entry.service.as_ref())
    }

    /// Names of all Services that exist.
    pub fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.entries.iter().filter(|(_, entry)| entry.service.is_some()).map(|(name, _)| name)
    }

    pub fn set_service(&mut self, service: Service) -> Option<Touched> {
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

    pub fn remove_service(&mut self, name: &ServiceName) -> Option<Touched> {
        let hash_map::Entry::Occupied(mut entry) = self.entries.entry(name.clone()) else { return None };
        entry.get_mut().service.take()?;
        if entry.get().slices.is_empty() {
            entry.remove();
        }
        Some(Touched::both(name.clone()))
    }

    /// At most two are touched: the Service that the slice left and the one it joined.
    pub fn set_slice(&mut self, slice: Slice) -> Vec<Touched> {
        if let Some(seen) = &mut self.slices.seen {
            seen.insert(slice.name.clone());
        }
        let mut touched = Vec::new();
        if let Some(owner) = self.slice_owner.get(&slice.name)
            && *owner != slice.service
        {
            touched.extend(self.remove_slice(&slice.name.clone()));
        }
        let joined = Touched { service: slice.service.clone(), family: Some(slice.family) };
        let entry = self.entries.entry(slice.service.clone()).or_default();
        match entry.slices.iter_mut().find(|known| known.name == slice.name) {
            Some(known) if *known == slice => return touched,
            Some(known) => {
                if known.family != slice.family {
                    touched.push(Touched { service: slice.service.clone(), family: Some(known.family) });
                }
                *known = slice;
            }
            None => {
                self.slice_owner.insert(slice.name.clone(), slice.service.clone());
                entry.slices.push(slice);
            }
        }
        touched.push(joined);
        touched
    }

    pub fn remove_slice(&mut self, name: &SliceName) -> Option<Touched> {
        let owner = self.slice_owner.remove(name)?;
        let hash_map::Entry::Occupied(mut entry) = self.entries.entry(owner.clone()) else { return None };
        let at = entry.get().slices.iter().position(|slice| slice.name == *name)?;
        let family = entry.get_mut().slices.swap_remove(at).family;
        if entry.get().slices.is_empty() && entry.get().service.is_none() {
            entry.remove();
        }
        Some(Touched { service: owner, family: Some(family) })
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
                let gone: Vec<_> =
                    self.slice_owner.keys().filter(|name| !seen.contains(*name)).cloned().collect();
                gone.iter().filter_map(|name| self.remove_slice(name)).collect()
            }
        }
    }
}

impl Entry {
    /// The endpoints of one Service port in one family with the port each listens on. One address and port counts
    /// once; of two that share them, the one that is not terminating is taken (a pod's address may be reused before
    /// the old pod is gone). Else the order of slice names decides, not the order of events: of two that do not terminate the
    /// later one, of two that terminate the first.
    pub fn endpoints(&self, family: Family, port: &str, protocol: Protocol) -> Vec<(&Endpoint, u16)> {
        let mut slices: Vec<&Slice> = self.slices.iter().filter(|slice| slice.family == family).collect();
        slices.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let mut found: Vec<(&Endpoint, u16)> = slices
            .iter()
            .flat_map(|slice| {
                let ports = slice
                    .ports
                    .iter()
                    .filter(move |candidate| *candidate.name == *port && candidate.protocol == protocol);
                ports.flat_map(|port| slice.endpoints.iter().map(move |endpoint| (endpoint, port.port)))
            })
            .collect();
        // Stable: within one address and port the order of slices stays.
        found.sort_by_key(|(endpoint, port)| (endpoint.addr, *port));
        found.dedup_by(|later, earlier| {
            let same = (later.0.addr, later.1) == (earlier.0.addr, earlier.1);
            if same && !later.0.terminating {
                *earlier = *later;
            }
            same
        });
        found
    }

    /// Distinct addresses of ready endpoints on this node: what a load balancer's health check asks.
    pub fn ready_local_addresses(&self, family: Family) -> usize {
        let mut addresses: Vec<IpAddr> = self
            .slices
            .iter()
            // Without a port that it names, an endpoint cannot answer anybody.
            .filter(|slice| slice.family == family && !slice.ports.is_empty())
            .flat_map(|slice| slice.endpoints.iter())
            .filter(|endpoint| endpoint.local && endpoint.ready)
            .map(|endpoint| endpoint.addr)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.len()
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
