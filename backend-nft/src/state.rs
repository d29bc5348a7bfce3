//! What a planner remembers of one generation, and how it is put back when a plan had no effect.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use proxy_core::model::{Protocol, ServicePortName};

use crate::{
    class_chain::Class,
    element::{Element, Key},
    ids::{GroupIds, PortIds},
    name::{Affinity, Set},
    placement::{Place, Placement},
    shared_keys::{ClusterIps, Counts, Hairpins, Sources},
    size_class::SizeClass,
    sticky::Remembered,
    value::{Meaning, Plain, TIMEOUTS, meaning},
};

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) placements: HashMap<ServicePortName, Placement>,
    pub(crate) groups: GroupIds,
    pub(crate) ports: PortIds,
    /// Affinity timeouts in seconds; a sticky value names one by its place here.
    pub(crate) timeouts: Vec<u32>,
    pub(crate) classes: HashMap<Class, Usage>,
    pub(crate) cluster_ips: ClusterIps,
    pub(crate) hairpins: Hairpins,
    pub(crate) sources: Sources,
    /// Elements by set, and how many the kernel has room for.
    pub(crate) counts: [u32; Set::ALL.len()],
    pub(crate) capacities: [Option<u32>; Set::ALL.len()],
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

/// What to put back if a plan had no effect.
#[derive(Debug, Default)]
pub(crate) struct Undo {
    pub(crate) placements: Vec<(ServicePortName, Option<Placement>)>,
    pub(crate) classes: Vec<(Class, Option<Usage>)>,
    pub(crate) owed_added: usize,
    pub(crate) owed_taken: Vec<Owed>,
    pub(crate) groups: u32,
    pub(crate) timeouts: usize,
    pub(crate) counts: [u32; Set::ALL.len()],
}

impl State {
    pub(crate) fn new(v4: bool) -> Self {
        Self {
            placements: HashMap::new(),
            groups: GroupIds::new(),
            ports: PortIds::new(),
            timeouts: Vec::new(),
            classes: HashMap::new(),
            cluster_ips: Counts::new(),
            hairpins: Counts::new(),
            sources: Sources::new(v4),
            counts: [0; Set::ALL.len()],
            capacities: [None; Set::ALL.len()],
            owed: VecDeque::new(),
            remembered: HashMap::new(),
        }
    }

    pub(crate) fn begin(&self) -> Undo {
        Undo {
            groups: self.groups.mark(),
            timeouts: self.timeouts.len(),
            counts: self.counts,
            ..Undo::default()
        }
    }

    pub(crate) fn keep(&mut self) {
        self.ports.keep();
        self.cluster_ips.keep();
        self.hairpins.keep();
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
        self.groups.back_to(undo.groups);
        self.timeouts.truncate(undo.timeouts);
        self.counts = undo.counts;
        self.ports.undo();
        self.cluster_ips.undo();
        self.hairpins.undo();
        self.sources.undo();
    }

    /// The number of an affinity timeout. When there are more different ones than numbers, the nearest does.
    pub(crate) fn timeout(&mut self, seconds: u32) -> u16 {
        if let Some(at) = self.timeouts.iter().position(|known| *known == seconds) {
            return at as u16;
        }
        if self.timeouts.len() < TIMEOUTS {
            self.timeouts.push(seconds);
            return (self.timeouts.len() - 1) as u16;
        }
        let nearest = (0..).zip(&self.timeouts).min_by_key(|(_, known)| known.abs_diff(seconds));
        nearest.map_or(0, |(at, _)| at)
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
                Meaning::Sticky { timeout, wide } => {
                    let affinity = Affinity { timeout: self.timeouts[usize::from(timeout)], wide };
                    Some(Class::Sticky { timeout, affinity })
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
        let mut state = State::new(true);
        for seconds in 0..TIMEOUTS as u32 {
            assert_eq!(u32::from(state.timeout(10 * seconds)), seconds);
        }
        assert_eq!(state.timeout(70), 7);
        assert_eq!(state.timeout(78), 8);
        assert_eq!(usize::from(state.timeout(1_000_000)), TIMEOUTS - 1);
    }
}
