//! One Service with its slices.

use std::{collections::BTreeMap, mem, net::IpAddr, sync::Arc};

use crate::model::{Endpoint, Family, Protocol, Service, Slice, SliceName};

/// One Service name's worth of input. Slices may come before their Service and outlive it.
#[derive(Debug, Default)]
pub struct Entry {
    /// The Service, once it is known.
    pub service: Option<Arc<Service>>,
    /// Its slices of both families.
    pub slices: Slices,
}

const _: () = assert!(size_of::<Entry>() == 24);

/// The slices of one Service, in the order of their names; mostly one.
#[derive(Debug, Default)]
pub enum Slices {
    /// None is known.
    #[default]
    None,
    /// Exactly one.
    One(Arc<Slice>),
    /// Several, by name.
    Many(Box<BTreeMap<SliceName, Arc<Slice>>>),
}

impl Slices {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::None)
    }

    /// Adds one, or takes the place of the one that has its name.
    pub fn set(&mut self, slice: Arc<Slice>) {
        *self = match mem::take(self) {
            Self::None => Self::One(slice),
            Self::One(known) if known.name == slice.name => Self::One(slice),
            Self::One(known) => {
                let both = [known, slice].map(|slice| (slice.name.clone(), slice));
                Self::Many(Box::new(BTreeMap::from(both)))
            }
            Self::Many(mut all) => {
                all.insert(slice.name.clone(), slice);
                Self::Many(all)
            }
        };
    }

    /// Takes one away, if it is there.
    pub fn remove(&mut self, name: &SliceName) {
        *self = match mem::take(self) {
            Self::One(known) if known.name == *name => Self::None,
            Self::Many(mut all) => {
                all.remove(name);
                match all.len() {
                    0 => Self::None,
                    1 => Self::One(all.pop_first().expect("one").1),
                    _ => Self::Many(all),
                }
            }
            other => other,
        };
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Slice> {
        self.shared().map(|slice| &**slice)
    }

    /// The same, to be kept.
    pub fn shared(&self) -> impl Iterator<Item = &Arc<Slice>> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(slice) => (Some(slice), None),
            Self::Many(all) => (None, Some(all.values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }
}

impl FromIterator<Slice> for Slices {
    fn from_iter<T: IntoIterator<Item = Slice>>(iter: T) -> Self {
        let mut all = Self::None;
        iter.into_iter().for_each(|slice| all.set(slice.into()));
        all
    }
}

/// The slices of a Service in one family by the ports they are for, so that each port finds its own without looking at
/// those of the others.
#[derive(Debug)]
pub struct Endpoints<'a> {
    /// Sorted by name and protocol; then in the order of slices.
    by_port: Vec<(&'a str, Protocol, u16, &'a Slice)>,
}

impl Entry {
    /// The endpoints of one family.
    pub fn endpoints(&self, family: Family) -> Endpoints<'_> {
        let slices = self.slices.iter().filter(|slice| slice.family == family);
        let ports = slices.flat_map(|slice| {
            slice.ports.iter().map(move |port| (&*port.name, port.protocol, port.port, slice))
        });
        let mut by_port: Vec<_> = ports.collect();
        by_port.sort_by_key(|(name, protocol, ..)| (*name, *protocol));
        Endpoints { by_port }
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

impl<'a> Endpoints<'a> {
    /// The endpoints of one Service port with the port each listens on. One address and port counts
    /// once; of two that share them, the one that is not terminating is taken (a pod's address may be reused before
    /// the old pod is gone). Else the order of slice names decides, not the order of events: of two that do not terminate the
    /// later one, of two that terminate the first.
    pub fn of(&self, port: &str, protocol: Protocol) -> Vec<(&'a Endpoint, u16)> {
        let from = self.by_port.partition_point(|(name, of, ..)| (*name, *of) < (port, protocol));
        let own = self.by_port[from..].iter().take_while(|(name, of, ..)| (*name, *of) == (port, protocol));
        let endpoints =
            own.flat_map(|(.., port, slice)| slice.endpoints.iter().map(|endpoint| (endpoint, *port)));
        let mut found: Vec<(&Endpoint, u16)> = endpoints.collect();
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
}
