//! Service ports with session affinity: endpoint ids that stay the same as long as the endpoint does.

use std::sync::Arc;

use proxy_core::{
    model::{Protocol, ServicePortName},
    route::Route,
};

use crate::{
    plan::{
        draft::Draft,
        placement::{StickyPort, Uses, comment, places},
        slots::{difference, refill},
        state::Remains,
    },
    schema::{
        element::{Data, Element, Key, Place},
        name::{SHARES, Set},
        operation::List,
        size_class::SizeClass,
        value::{INDEX_BITS, base_mask, sticky_base},
    },
};

/// More endpoints than this make a Service port wide; it stays so down to half of it.
const NARROW: usize = (1 << INDEX_BITS) - 64;

impl Draft<'_> {
    /// `None` if there is no id left.
    pub(crate) fn place_sticky(
        &mut self,
        name: &ServicePortName,
        old: Option<&StickyPort>,
        route: &Arc<Route>,
        uses: Uses,
        seconds: u32,
    ) -> Option<Box<StickyPort>> {
        let list = |list: List, used| if used { places(list.of(route)) } else { Vec::new() };
        let (cluster, local) = (list(List::Cluster, uses.cluster), list(List::Local, uses.local));
        let mut all: Vec<Place> = cluster.iter().chain(&local).copied().collect();
        all.sort_unstable();
        all.dedup();
        let wide = match old {
            Some(old) if old.wide => all.len() > NARROW / 2,
            _ => all.len() > NARROW,
        };
        let kept = old.filter(|old| old.wide == wide);
        let local_port = match kept.and_then(|old| old.local.as_ref()) {
            Some((port, _)) => Some(*port),
            None if local.is_empty() => None,
            None => Some(self.state.ports.take(false)?),
        };
        let mut sticky = match kept {
            Some(old) => old.clone(),
            None => self.new_sticky(name, wide)?,
        };
        sticky.memory = self.state.memory(seconds, sticky.share());
        sticky.assign(&all);
        let protocol = route.protocol;
        let in_cluster = sticky.indices_of(&cluster);
        let (had, before) = kept.map_or((Vec::new(), None), |old| (sorted(&old.cluster), Some(old)));
        self.usable(Set::StickyEndpoints, &sticky, before, &had, &in_cluster, protocol);
        let mut slots = std::mem::take(&mut sticky.cluster);
        self.refill_sticky(sticky.port, sticky.base(), &mut slots, &had, &in_cluster);
        sticky.cluster = slots;

        let here = sticky.indices_of(&local);
        let had = kept.and_then(|old| old.local.as_ref()).map_or_else(Vec::new, |(_, slots)| sorted(slots));
        self.usable(Set::StickyLocal, &sticky, before, &had, &here, protocol);
        if let Some(port) = local_port {
            let mut slots = sticky.local.take().map_or_else(Vec::new, |(_, slots)| slots);
            self.refill_sticky(port, sticky.base(), &mut slots, &had, &here);
            sticky.local = Some((port, slots));
        }
        let had = kept.map_or_else(Vec::new, |old| heads(name, old, protocol));
        self.exchange(had, heads(name, &sticky, protocol));
        Some(Box::new(sticky))
    }

    /// A Service port that begins to be sticky, or was so in an earlier generation.
    fn new_sticky(&mut self, name: &ServicePortName, wide: bool) -> Option<StickyPort> {
        let mut sticky = StickyPort {
            port: 0,
            wide,
            memory: 0,
            members: Vec::new(),
            cursor: 1,
            cluster: Vec::new(),
            local: None,
        };
        let remembered = self.state.remembered.remove(&comment(name));
        match remembered {
            Some(remembered) if self.state.ports.claim(remembered.port, wide) => {
                sticky.port = remembered.port;
                sticky.members = remembered.members.iter().map(|(index, place)| (*place, *index)).collect();
                sticky.members.sort_unstable();
                sticky.members.dedup_by_key(|(place, _)| *place);
                let largest = sticky.members.iter().map(|(_, index)| *index).max();
                sticky.cursor = largest.map_or(1, |largest| largest + 1);
            }
            _ => sticky.port = self.state.ports.take(wide)?,
        }
        Some(sticky)
    }

    /// Which endpoint ids may be used, and where they lead.
    fn usable(
        &mut self,
        set: Set,
        sticky: &StickyPort,
        before: Option<&StickyPort>,
        had: &[u32],
        wanted: &[u32],
        protocol: Protocol,
    ) {
        let gone: Vec<u32> = difference(had, wanted).copied().collect();
        for element in before.into_iter().flat_map(|before| before.usable(set, &gone, protocol)) {
            self.delete(element);
        }
        let new: Vec<u32> = difference(wanted, had).copied().collect();
        for element in sticky.usable(set, &new, protocol) {
            self.add(element);
        }
    }

    fn refill_sticky(&mut self, port: u16, base: u32, slots: &mut Vec<u32>, had: &[u32], wanted: &[u32]) {
        let gone: Vec<u32> = difference(had, wanted).copied().collect();
        for change in refill(slots, &gone, difference(wanted, had).copied()) {
            let key = Key::IdSlot(sticky_base(port), change.slot);
            let element = |index: u32| Element::id(Set::StickySlots, key, base | index);
            if let Some(index) = change.before {
                self.delete(element(index));
            }
            if let Some(index) = change.after {
                self.add(element(index));
            }
        }
    }

    /// Takes a sticky Service port away, in a moment.
    pub(crate) fn retire_sticky(&mut self, name: &ServicePortName, sticky: &StickyPort, protocol: Protocol) {
        let mut elements = heads(name, sticky, protocol);
        let mut list = |set, port: u16, slots: &[u32]| {
            for (slot, index) in (0..).zip(slots) {
                let id = sticky.base() | index;
                elements.push(Element::id(Set::StickySlots, Key::IdSlot(sticky_base(port), slot), id));
            }
            elements.extend(sticky.usable(set, &sorted(slots), protocol));
        };
        list(Set::StickyEndpoints, sticky.port, &sticky.cluster);
        let mut ports = vec![(sticky.port, sticky.wide)];
        if let Some((port, slots)) = &sticky.local {
            list(Set::StickyLocal, *port, slots);
            ports.push((*port, false));
        }
        self.owe(Remains::Sticky { elements, ports });
    }
}

/// What there is once for each list of a sticky Service port: its size, and under the last index, which is nobody's, one
/// of its endpoints. That is for packets from under whom a commit took the endpoint they had chosen: found by one look-up, it
/// is there before and after any commit.
fn heads(name: &ServicePortName, sticky: &StickyPort, protocol: Protocol) -> Vec<Element> {
    let base = sticky.base();
    let mut elements = Vec::new();
    let mut head = |sizes, usable, port: u16, slots: &[u32]| {
        let Some((addr, number)) = slots.first().and_then(|index| sticky.place_of(*index)) else { return };
        let size = u32::from(SizeClass::of(slots.len()).index());
        let data = Data::Named(sticky_base(port) | size, comment(name));
        elements.push(Element { set: sizes, key: Key::Id(base), data });
        let last = base | !base_mask(sticky.wide);
        elements.push(Element::target(usable, Key::IdProtocol(last, protocol), addr, number));
    };
    head(Set::StickySizes, Set::StickyEndpoints, sticky.port, &sticky.cluster);
    if let Some((port, slots)) = &sticky.local {
        head(Set::StickyLocalSizes, Set::StickyLocal, *port, slots);
    }
    elements
}

fn sorted(indices: &[u32]) -> Vec<u32> {
    let mut indices = indices.to_vec();
    indices.sort_unstable();
    indices
}

impl StickyPort {
    /// Its map of clients. It follows from the id, which outlives restarts as the map does; consecutive ids have different ones.
    fn share(&self) -> u8 {
        ((self.port + self.port / SHARES) % SHARES) as u8
    }

    /// The elements that make endpoint ids (of these indices, sorted) usable. One pass over all members: looking for each
    /// would take time that grows with the square of their number.
    fn usable(&self, set: Set, indices: &[u32], protocol: Protocol) -> Vec<Element> {
        if indices.is_empty() {
            return Vec::new();
        }
        let wanted = self.members.iter().filter(|(_, index)| indices.binary_search(index).is_ok());
        wanted
            .map(|((addr, port), index)| {
                Element::target(set, Key::IdProtocol(self.base() | index, protocol), *addr, *port)
            })
            .collect()
    }

    /// The indices of these places (sorted), sorted.
    fn indices_of(&self, places: &[Place]) -> Vec<u32> {
        let mut places = places.iter().peekable();
        let mut indices = Vec::with_capacity(places.len());
        for (place, index) in &self.members {
            while places.next_if(|wanted| *wanted < place).is_some() {}
            if places.next_if_eq(&place).is_some() {
                indices.push(*index);
            }
        }
        indices.sort_unstable();
        indices
    }

    /// Gives every place an index: those that had one keep it; a freed one is not another's at once.
    fn assign(&mut self, all: &[Place]) {
        // Neither the first index nor the last.
        let limit = !base_mask(self.wide) - 1;
        let had: Vec<Place> = self.members.iter().map(|(place, _)| *place).collect();
        let new: Vec<Place> = difference(all, &had).copied().collect();
        if !new.is_empty() {
            let mut taken: Vec<u32> = self.members.iter().map(|(_, index)| *index).collect();
            taken.sort_unstable();
            let mut added = Vec::with_capacity(new.len());
            for place in new {
                let free = (0..limit)
                    .map(|step| (self.cursor - 1 + step) % limit + 1)
                    .find(|index| taken.binary_search(index).is_err());
                // The list is shorter than the range of indices, or there is none left until the next change.
                let Some(index) = free else { break };
                self.cursor = index % limit + 1;
                if let Err(at) = taken.binary_search(&index) {
                    taken.insert(at, index);
                }
                added.push((place, index));
            }
            self.members.extend(added);
        }
        let gone: Vec<Place> = difference(&had, all).copied().collect();
        if !gone.is_empty() {
            self.members.retain(|(place, _)| gone.binary_search(place).is_err());
        }
        self.members.sort_unstable();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    fn place(number: u32) -> Place {
        (IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number)), 8080)
    }

    fn port() -> StickyPort {
        StickyPort {
            port: 7,
            wide: false,
            memory: 0,
            members: Vec::new(),
            cursor: 1,
            cluster: Vec::new(),
            local: None,
        }
    }

    #[test]
    fn an_endpoint_keeps_its_index_and_a_freed_one_is_not_anothers_at_once() {
        let mut port = port();
        port.assign(&[place(1), place(2)]);
        assert_eq!(port.members, [(place(1), 1), (place(2), 2)]);
        port.assign(&[place(2)]);
        port.assign(&[place(2), place(3)]);
        assert_eq!(port.members, [(place(2), 2), (place(3), 3)]);
        assert_eq!(port.indices_of(&[place(1), place(3), place(4)]), [3]);
    }

    #[test]
    fn indices_go_round_without_meeting_one_in_use_nor_the_first_and_last() {
        let mut port = port();
        port.assign(&[place(0)]);
        for number in 1..10_000 {
            port.assign(&[place(0), place(number)]);
            assert_eq!(port.indices_of(&[place(0)]), [1]);
            let index = port.indices_of(&[place(number)])[0];
            assert!((2..(1 << INDEX_BITS) - 1).contains(&index), "{index}");
        }
    }

    #[test]
    fn a_full_port_leaves_out_what_has_no_room() {
        let all: Vec<Place> = (0..5000).map(place).collect();
        let mut port = port();
        port.assign(&all);
        assert_eq!(port.members.len(), (1 << INDEX_BITS) - 2);
        let indices: std::collections::BTreeSet<u32> = port.members.iter().map(|(_, index)| *index).collect();
        assert_eq!(indices.len(), port.members.len());
    }
}
