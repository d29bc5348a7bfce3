//! The chains of one size class or one affinity timeout, shared by all Services that need it.

use std::sync::Arc;

use crate::{
    element::{Data, Element, Key as ElementKey},
    name::{Affinity, ChainName, Place, Set, StickyPlace},
    scaffold::{Scaffold, shared},
    size_class::SizeClass,
    statement::{Part, Priority, Rule, Statement},
    value::{INDEX_BITS, MARKED, PLAIN_CLASS, Plain, STICKY_BASE, Sticky, base_mask},
};

/// What a value, or an element of `sticky-sizes`, needs to find in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Picks an endpoint of a group; every [`Class::Plain`] of the size needs it.
    Balance(SizeClass),
    Plain(Plain, SizeClass),
    Pick(SizeClass),
    /// All chains of a timeout (by its number, and by its seconds).
    Sticky {
        timeout: u16,
        affinity: Affinity,
    },
    /// Source ranges of this prefix length: a set and a rule.
    Allowed(u8),
}

/// A chain with its rules.
pub(crate) type Chain = (ChainName, Vec<Arc<Rule>>);

impl Class {
    /// The class whose chains this one's chains go on to.
    pub(crate) fn needs(self) -> Option<Self> {
        match self {
            Self::Plain(_, size) => Some(Self::Balance(size)),
            _ => None,
        }
    }
}

impl Scaffold<'_> {
    /// The chains of a class, each after those that it refers to.
    pub(crate) fn class_chains(&self, class: Class) -> Vec<Chain> {
        match class {
            Class::Balance(size) => vec![self.made(Place::Balance(size), self.balance(size))],
            Class::Plain(Plain::ClusterIp, size) => {
                vec![self.made(Place::ClusterIp(size), self.cluster_ip(size))]
            }
            Class::Plain(Plain::External, size) => {
                vec![self.made(Place::External(size), self.external(size))]
            }
            Class::Plain(Plain::ExternalLocal, size) => {
                vec![self.made(Place::ExternalLocal(size), self.external_local(size))]
            }
            Class::Plain(Plain::Local, size) => {
                let rules = vec![vec![mark_group()], vec![self.goto(Place::Balance(size))]];
                vec![self.made(Place::Local(size), rules)]
            }
            Class::Pick(size) => vec![self.made(Place::Pick(size), self.pick(size))],
            Class::Sticky { affinity, .. } => self.sticky(affinity),
            Class::Allowed(_) => Vec::new(),
        }
    }

    /// The elements that lead to the chains of a class.
    pub(crate) fn class_elements(&self, class: Class) -> Vec<Element> {
        let goto = |set, key, place| {
            let data = Data::Goto(self.chain(place));
            Element { set, key: ElementKey::Id(key), data }
        };
        match class {
            Class::Balance(_) | Class::Allowed(_) => Vec::new(),
            Class::Plain(kind, size) => {
                let (set, place) = match kind {
                    Plain::ClusterIp => (Set::Dispatch, Place::ClusterIp(size)),
                    Plain::External => (Set::Dispatch, Place::External(size)),
                    Plain::ExternalLocal => (Set::Dispatch, Place::ExternalLocal(size)),
                    // A map of its own: the kernel follows every verdict of a map, not only those that can be
                    // reached, and refuses a loop with EMLINK.
                    Plain::Local => (Set::DispatchLocal, Place::Local(size)),
                };
                vec![goto(set, kind.class(size), place)]
            }
            Class::Pick(size) => {
                let data = Data::Jump(self.chain(Place::Pick(size)));
                vec![Element { set: Set::Picks, key: ElementKey::Id(size.index().into()), data }]
            }
            Class::Sticky { timeout, affinity } => [
                (Sticky::ClusterIp, StickyPlace::ClusterIp),
                (Sticky::ClusterIpLocal, StickyPlace::ClusterIpLocal),
                (Sticky::External, StickyPlace::External),
                (Sticky::ExternalLocal, StickyPlace::ExternalLocal),
            ]
            .into_iter()
            .map(|(kind, place)| {
                let place = Place::Sticky(place, affinity);
                goto(Set::DispatchSticky, kind.class(timeout, affinity.wide), place)
            })
            .collect(),
        }
    }

    fn made(&self, place: Place, rules: Vec<Vec<Statement>>) -> Chain {
        (self.chain(place), shared(rules))
    }

    fn goto(&self, place: Place) -> Statement {
        Statement::Goto(self.chain(place))
    }

    fn set_mark(&self) -> Statement {
        Statement::SetMarkBit(self.environment.masquerade_mark)
    }

    /// The bounds to draw slots below, in this order: a slot that does not exist fails its rule. Above 64 endpoints
    /// the upper bound may miss (once in nine at most), the lower one never does. Slot 0 comes last: it exists
    /// even when a commit shortened the list between a packet's two look-ups.
    fn tries(size: SizeClass) -> Vec<u32> {
        match (size.exact(), size.upper()) {
            (true, 1) => vec![1],
            (true, upper) => vec![upper, 1],
            (false, upper) => vec![upper, upper, upper, size.lower(), 1],
        }
    }

    fn balance(&self, size: SizeClass) -> Vec<Vec<Statement>> {
        let mut rules: Vec<_> = Self::tries(size)
            .into_iter()
            .map(|below| {
                // The protocol is the same for all endpoints of a group: it is part of the key because nft parses
                // the rule only with it (so that a listing can be loaded), and takes no room.
                let key = vec![Part::Priority, Part::Protocol, Part::Random(below)];
                vec![Statement::TranslateTo { key, map: self.set(Set::Endpoints) }]
            })
            .collect();
        rules.push(vec![Statement::SetPriority(Priority::Zero)]);
        rules
    }

    fn cluster_ip(&self, size: SizeClass) -> Vec<Vec<Statement>> {
        let mut rules = vec![vec![mark_group()]];
        rules.extend(self.masquerade_cluster_ip());
        rules.push(vec![self.goto(Place::Balance(size))]);
        rules
    }

    fn masquerade_cluster_ip(&self) -> Option<Vec<Statement>> {
        let mut rule = self.masquerades_cluster_ip()?;
        rule.push(self.set_mark());
        Some(rule)
    }

    fn external(&self, size: SizeClass) -> Vec<Vec<Statement>> {
        vec![vec![mark_group(), self.set_mark()], vec![self.goto(Place::Balance(size))]]
    }

    fn external_local(&self, size: SizeClass) -> Vec<Vec<Statement>> {
        let mut rules = vec![vec![mark_group()]];
        rules.extend(self.short_circuits(Place::Balance(size)));
        let find = Priority::Found { key: vec![Part::Priority], map: self.set(Set::LocalGroups) };
        rules.push(vec![
            Statement::SetPriority(find),
            Statement::Dispatch {
                key: vec![Part::PriorityAnd(PLAIN_CLASS)],
                map: self.set(Set::DispatchLocal),
            },
        ]);
        // No endpoint here.
        rules.push(vec![Statement::Drop]);
        rules
    }

    /// External traffic under policy Local that may go anywhere all the same: from this node's pods, unmasqueraded,
    /// and from the node itself, masqueraded.
    fn short_circuits(&self, to: Place) -> Vec<Vec<Statement>> {
        let mut rules: Vec<_> =
            self.local_pod_matches().into_iter().map(|from| vec![from, self.goto(to)]).collect();
        rules.push(vec![Statement::SourceIsOurs, self.set_mark(), self.goto(to)]);
        rules
    }

    /// Entered with `base | size class`, returns with an endpoint id.
    fn pick(&self, size: SizeClass) -> Vec<Vec<Statement>> {
        let base = Priority::And(u32::MAX << INDEX_BITS);
        let mut rules = vec![vec![Statement::SetPriority(base)]];
        rules.extend(Self::tries(size).into_iter().map(|below| {
            let key = vec![Part::Priority, Part::Random(below)];
            let find = Priority::Found { key, map: self.set(Set::StickySlots) };
            vec![Statement::SetPriority(find), Statement::Return]
        }));
        rules
    }

    fn sticky(&self, affinity: Affinity) -> Vec<Chain> {
        let place = |place| Place::Sticky(place, affinity);
        let base = || vec![Statement::SetPriority(Priority::AndOr { and: STICKY_BASE, or: MARKED })];
        let cluster_ip = |to| {
            let mut rules = vec![base()];
            rules.extend(self.masquerade_cluster_ip());
            rules.push(vec![self.goto(place(to))]);
            rules
        };
        let mut external_local = vec![base()];
        external_local.extend(self.short_circuits(place(StickyPlace::Balance)));
        external_local.push(vec![self.goto(place(StickyPlace::BalanceLocal))]);
        let mut external = base();
        external.push(self.set_mark());
        let balance = self.sticky_balance(affinity, Set::StickyEndpoints, Set::StickySizes);
        let mut balance_local = self.sticky_balance(affinity, Set::StickyLocal, Set::StickyLocalSizes);
        // No endpoint here.
        balance_local.push(vec![Statement::Drop]);
        let mut balance = balance;
        balance.push(vec![Statement::SetPriority(Priority::Zero)]);
        vec![
            self.made(place(StickyPlace::Balance), balance),
            self.made(place(StickyPlace::BalanceLocal), balance_local),
            self.made(place(StickyPlace::ClusterIp), cluster_ip(StickyPlace::Balance)),
            self.made(place(StickyPlace::ClusterIpLocal), cluster_ip(StickyPlace::BalanceLocal)),
            self.made(
                place(StickyPlace::External),
                vec![external, vec![self.goto(place(StickyPlace::Balance))]],
            ),
            self.made(place(StickyPlace::ExternalLocal), external_local),
        ]
    }

    /// Entered with a sticky Service port's base in the priority. A full map of clients fails `update`, which ends
    /// that rule only.
    fn sticky_balance(&self, affinity: Affinity, usable: Set, sizes: Set) -> Vec<Vec<Statement>> {
        let clients = self.set(Set::Clients);
        let mask = base_mask(affinity.wide);
        let update = Statement::UpdateClient { set: clients, mask, timeout: affinity.timeout };
        let known = Priority::Found { key: vec![Part::Source, Part::Priority], map: clients };
        let translate = || {
            let key = vec![Part::Priority, Part::Protocol];
            vec![Statement::TranslateTo { key, map: self.set(usable) }]
        };
        // Index 0 is none: nothing was picked.
        let picked = || Statement::PriorityIs { mask: !mask, value: 0, not: true };
        let to_base = || vec![Statement::SetPriority(Priority::And(mask))];
        let pick = || {
            let size = Priority::Found { key: vec![Part::Priority], map: self.set(sizes) };
            let key = vec![Part::PriorityAnd(!(u32::MAX << INDEX_BITS))];
            vec![Statement::SetPriority(size), Statement::Dispatch { key, map: self.set(Set::Picks) }]
        };
        vec![
            // A known client: refreshed in the same rule, so that an unknown one is not entered here.
            vec![Statement::SetPriority(known), update.clone()],
            translate(),
            // An unknown client, or its endpoint is gone. `update` never changes an element's data: delete first.
            to_base(),
            vec![Statement::DeleteClient { set: clients }],
            pick(),
            vec![picked(), update].into_iter().chain(translate()).collect(),
            // The map of clients is full: this one is translated, but not remembered.
            vec![picked(), Statement::Count],
            translate(),
            // Reached when a commit took the endpoint between two look-ups: the last index leads to one in any state.
            vec![Statement::SetPriority(Priority::Or(!mask))],
            translate(),
        ]
    }
}

/// Turns a plain value into the key of its group.
fn mark_group() -> Statement {
    Statement::SetPriority(Priority::Or(PLAIN_CLASS))
}
