//! What a planner remembers of one generation, and how it is put back when a plan had no effect.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use proxy_core::model::{Protocol, ServicePortName};

use crate::{
    plan::{
        ids::{GroupIds, PortIds},
        placement::Placement,
        shared_keys::{Addresses, Counts, Sources},
    },
    schema::{
        class_chain::Class,
        element::{Element, Key, Place},
        name::{Affinity, Set},
        scaffold::{Optional, Parts},
        size_class::SizeClass,
        value::{MEMORIES, Meaning, Plain, meaning},
    },
};

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) placements: HashMap<ServicePortName, Placement>,
    pub(crate) groups: GroupIds,
    pub(crate) ports: PortIds,
    /// Ways to remember clients: a timeout in seconds, and the map. A sticky value names one by its place here.
    pub(crate) memories: Vec<(u32, u8)>,
    pub(crate) classes: HashMap<Class, Usage>,
    pub(crate) cluster_ips: Addresses,
    pub(crate) outside_vips: Addresses,
    pub(crate) sources: Sources,
    /// Elements by set, and how many the kernel has room for.
    pub(crate) counts: [u32; Set::ALL.len()],
    pub(crate) capacities: [Option<u32>; Set::ALL.len()],
    /// The optional rules that are there, and since when each serves nobody.
    pub(crate) parts: Parts,
    pub(crate) parts_idle: [Option<Instant>; Optional::ALL.len()],
    pub(crate) owed: VecDeque<Owed>,
    /// What the kernel still knows of sticky Service ports, by comment; only during a full plan.
    pub(crate) remembered: HashMap<Box<str>, Remembered>,
}

/// How many elements lead to the chains of a class, and since when none does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) elements: u32,
    pub(crate) idle_since: Option<Instant>,
}

/// Elements that nothing points to any more. They stay for a moment, for packets that are between two look-ups.
#[derive(Debug, Clone)]
pub(crate) struct Owed {
    pub(crate) due: Instant,
    pub(crate) what: Remains,
}

#[derive(Debug, Clone)]
pub(crate) enum Remains {
    Group {
        id: u32,
        protocol: Protocol,
        slots: Vec<Place>,
    },
    /// Elements of a sticky Service port, and the ids to give back.
    Sticky {
        elements: Vec<Element>,
        ports: Vec<(u16, bool)>,
    },
}

/// What a former generation knew of a sticky Service port, by its comment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Remembered {
    pub(crate) port: u16,
    /// Endpoint ids without the base of a narrow port, so those of a wide one may exceed 4,095.
    pub(crate) members: Vec<(u32, Place)>,
}

/// What to put back if a plan had no effect.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    pub(crate) placements: Vec<(ServicePortName, Option<Placement>)>,
    pub(crate) classes: Vec<(Class, Option<Usage>)>,
    pub(crate) owed_added: usize,
    pub(crate) owed_taken: Vec<Owed>,
    pub(crate) groups: u32,
    pub(crate) memories: usize,
    pub(crate) counts: [u32; Set::ALL.len()],
    pub(crate) parts: Parts,
    pub(crate) parts_idle: [Option<Instant>; Optional::ALL.len()],
}

impl State {
    /// Nothing, with room for so many lists of endpoints.
    pub(crate) fn new(v4: bool, lists: u32) -> Self {
        Self {
            placements: HashMap::new(),
            groups: GroupIds::new(lists),
            ports: PortIds::new(),
            memories: Vec::new(),
            classes: HashMap::new(),
            cluster_ips: Counts::new(),
            outside_vips: Counts::new(),
            sources: Sources::new(v4),
            counts: [0; Set::ALL.len()],
            capacities: [None; Set::ALL.len()],
            parts: Parts::default(),
            parts_idle: [None; Optional::ALL.len()],
            owed: VecDeque::new(),
            remembered: HashMap::new(),
        }
    }

    pub(crate) fn begin(&self) -> Undo {
        Undo {
            groups: self.groups.mark(),
            memories: self.memories.len(),
            counts: self.counts,
            parts: self.parts,
            parts_idle: self.parts_idle,
            ..Undo::default()
        }
    }

    pub(crate) fn keep(&mut self) {
        self.groups.keep();
        self.ports.keep();
        self.cluster_ips.keep();
        self.outside_vips.keep();
        self.sources.keep();
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        for (name, placement) in undo.placements.into_iter().rev() {
            match placement {
                Some(placement) => self.placements.insert(name, placement),
                None => self.placements.remove(&name),
            };
        }
        for (class, usage) in undo.classes.into_iter().rev() {
            match usage {
                Some(usage) => self.classes.insert(class, usage),
                None => self.classes.remove(&class),
            };
        }
        self.owed.truncate(self.owed.len() - undo.owed_added);
        for owed in undo.owed_taken.into_iter().rev() {
            self.owed.push_front(owed);
        }
        self.groups.undo(undo.groups);
        self.memories.truncate(undo.memories);
        self.counts = undo.counts;
        self.parts = undo.parts;
        self.parts_idle = undo.parts_idle;
        self.ports.undo();
        self.cluster_ips.undo();
        self.outside_vips.undo();
        self.sources.undo();
    }

    /// The number of a timeout with a map of clients. When there are more different ones than numbers, the nearest timeout
    /// does, with whatever map.
    pub(crate) fn memory(&mut self, seconds: u32, share: u8) -> u16 {
        let wanted = (seconds, share);
        if let Some(at) = self.memories.iter().position(|known| *known == wanted) {
            return at as u16;
        }
        if self.memories.len() < MEMORIES {
            self.memories.push(wanted);
            return (self.memories.len() - 1) as u16;
        }
        let nearest = (0..).zip(&self.memories).min_by_key(|(_, (known, _))| known.abs_diff(seconds));
        nearest.map_or(0, |(at, _)| at)
    }

    /// Prefix lengths of source ranges that have a set, sorted.
    pub(crate) fn prefixes(&self) -> Vec<u8> {
        let mut prefixes: Vec<u8> = self
            .classes
            .keys()
            .filter_map(|class| match class {
                Class::Allowed(prefix) => Some(*prefix),
                _ => None,
            })
            .collect();
        prefixes.sort_unstable();
        prefixes
    }

    /// Adds the optional rules that are needed, and notes which are not. Whether any was added.
    pub(crate) fn settle_parts(&mut self, now: Instant) -> bool {
        let before = self.parts;
        for part in Optional::ALL {
            let idle = &mut self.parts_idle[part as usize];
            if self.counts[part.set() as usize] > 0 {
                self.parts = self.parts.with(part);
                *idle = None;
            } else if self.parts.has(part) {
                idle.get_or_insert(now);
            }
        }
        self.parts != before
    }

    /// The class whose chains an element's value leads to.
    fn class_of(&self, element: &Element) -> Option<Class> {
        if let Key::Allowed(.., net) = element.key {
            return Some(Class::Allowed(net.prefix_len()));
        }
        let value = element.value()?;
        match element.set {
            Set::Vips | Set::NodePorts => match meaning(value)? {
                Meaning::Plain(kind, size) => Some(Class::Plain(kind, size)),
                Meaning::Sticky { memory, wide } => {
                    let (timeout, share) = self.memories[usize::from(memory)];
                    Some(Class::Sticky { memory, affinity: Affinity { timeout, share, wide } })
                }
            },
            Set::LocalGroups => match meaning(value)? {
                Meaning::Plain(Plain::Local, size) => Some(Class::Plain(Plain::Local, size)),
                _ => None,
            },
            Set::StickySizes | Set::StickyLocalSizes => {
                Some(Class::Pick(SizeClass::from_index((value & 0xff) as u8)))
            }
            _ => None,
        }
    }

    /// Notes an element that is added. Classes that did not exist go to `new`, those that others need first.
    pub(crate) fn added(&mut self, element: &Element, undo: &mut Undo, new: &mut Vec<Class>) {
        self.counts[element.set as usize] += 1;
        if let Some(class) = self.class_of(element) {
            self.used(class, undo, new);
        }
    }

    fn used(&mut self, class: Class, undo: &mut Undo, new: &mut Vec<Class>) {
        let before = self.classes.get(&class).copied();
        if before.is_none() {
            if let Some(needed) = class.needs() {
                self.used(needed, undo, new);
            }
            new.push(class);
        }
        undo.classes.push((class, before));
        let elements = before.map_or(0, |usage| usage.elements) + 1;
        self.classes.insert(class, Usage { elements, idle_since: None });
    }

    pub(crate) fn deleted(&mut self, element: &Element, now: Instant, undo: &mut Undo) {
        self.counts[element.set as usize] -= 1;
        if let Some(class) = self.class_of(element) {
            self.unused(class, now, undo);
        }
    }

    fn unused(&mut self, class: Class, now: Instant, undo: &mut Undo) {
        let Some(usage) = self.classes.get_mut(&class) else { return };
        undo.classes.push((class, Some(*usage)));
        usage.elements -= 1;
        // A prefix length stays: taking its rule out of the middle of a chain is not worth it.
        if usage.elements == 0 && !matches!(class, Class::Allowed(_)) {
            usage.idle_since = Some(now);
        }
    }

    /// Forgets a class whose chains are taken down.
    pub(crate) fn forget(&mut self, class: Class, undo: &mut Undo) {
        let usage = self.classes.remove(&class);
        undo.classes.push((class, usage));
        // What it needed has been idle for as long, as far as this class goes.
        if let (Some(needed), Some(since)) = (class.needs(), usage.and_then(|usage| usage.idle_since)) {
            self.unused(needed, since, undo);
        }
    }

    /// Whether some set is so full that a larger one must replace it.
    pub(crate) fn nearly_full(&self) -> bool {
        self.counts
            .iter()
            .zip(&self.capacities)
            .any(|(count, capacity)| capacity.is_some_and(|capacity| *count > capacity / 8 * 7))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_keeps_its_number_and_one_too_many_gets_the_nearest() {
        let mut state = State::new(true, 9);
        for number in 0..MEMORIES as u32 {
            assert_eq!(u32::from(state.memory(10 * (number / 2), (number % 2) as u8)), number);
        }
        assert_eq!(state.memory(70, 1), 15);
        assert_eq!(state.memory(78, 1), 16);
        assert_eq!(usize::from(state.memory(1_000_000, 0)), MEMORIES - 2);
    }
}
