//! The chains of one size class or one affinity timeout, shared by all Services that need it.

use std::sync::Arc;

use crate::schema::{
    element::{Data, Element, Key as ElementKey},
    name::{Affinity, ChainName, Place, Set, SetName, StickyPlace},
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
    /// All chains of a way to remember clients (by its number, and as it is).
    Sticky {
        memory: u16,
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
            Self::Plain(Plain::RestrictedOnly, _) => None,
            Self::Plain(Plain::RestrictedExternal, size) => Some(Self::Plain(Plain::External, size)),
            Self::Plain(Plain::RestrictedExternalLocal, size) => {
                Some(Self::Plain(Plain::ExternalLocal, size))
            }
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
            Class::Plain(Plain::RestrictedExternal, size) => {
                let rules = self.restricted(Place::External(size));
                vec![self.made(Place::RestrictedExternal(size), rules)]
            }
            Class::Plain(Plain::RestrictedExternalLocal, size) => {
                let rules = self.restricted(Place::ExternalLocal(size));
                vec![self.made(Place::RestrictedExternalLocal(size), rules)]
            }
            Class::Plain(Plain::RestrictedOnly, _) => {
                let rules = vec![vec![self.check_source()], vec![Statement::SetPriority(Priority::Zero)]];
                vec![self.made(Place::RestrictedOnly, rules)]
            }
            Class::Pick(size) => vec![
                self.made(Place::Pick(size), Self::pick(self.set(Set::StickySlots), Self::tries(size))),
                self.made(
                    Place::PickBySource(size),
                    Self::pick(
                        self.set(Set::StickySlots),
                        if self.hash { Self::tries_by_source(size) } else { Self::tries(size) },
                    ),
                ),
            ],
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
                    Plain::RestrictedExternal => (Set::Dispatch, Place::RestrictedExternal(size)),
                    Plain::RestrictedExternalLocal => (Set::Dispatch, Place::RestrictedExternalLocal(size)),
                    Plain::RestrictedOnly => (Set::Dispatch, Place::RestrictedOnly),
                    // A map of its own: the kernel follows every verdict of a map, not only those that can be
                    // reached, and refuses a loop with EMLINK.
                    Plain::Local => (Set::DispatchLocal, Place::Local(size)),
                };
                vec![goto(set, kind.class(size), place)]
            }
            Class::Pick(size) => {
                [(Set::Picks, Place::Pick(size)), (Set::PicksBySource, Place::PickBySource(size))]
                    .into_iter()
                    .map(|(set, place)| {
                        let data = Data::Jump(self.chain(place));
                        Element { set, key: ElementKey::Id(size.index().into()), data }
                    })
                    .collect()
            }
            Class::Sticky { memory, affinity } => [
                (Sticky::ClusterIp, StickyPlace::ClusterIp),
                (Sticky::ClusterIpLocal, StickyPlace::ClusterIpLocal),
                (Sticky::External, StickyPlace::External),
                (Sticky::ExternalLocal, StickyPlace::ExternalLocal),
                (Sticky::RestrictedExternal, StickyPlace::RestrictedExternal),
                (Sticky::RestrictedExternalLocal, StickyPlace::RestrictedExternalLocal),
            ]
            .into_iter()
            .map(|(kind, place)| {
                let place = Place::Sticky(place, affinity);
                goto(Set::DispatchSticky, kind.class(memory, affinity.wide), place)
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
    fn bounds(size: SizeClass) -> Vec<u32> {
        match (size.exact(), size.upper()) {
            (true, 1) => vec![1],
            (true, upper) => vec![upper, 1],
            (false, upper) => vec![upper, upper, upper, size.lower(), 1],
        }
    }

    /// The first rules of a chain that not every source may enter.
    fn restricted(&self, then: Place) -> Vec<Vec<Statement>> {
        vec![vec![self.check_source()], vec![self.goto(then)]]
    }

    /// The address and the sources it allows are found by one look-up and what follows from it: a packet that came before the
    /// restriction does not meet the address either.
    fn check_source(&self) -> Statement {
        Statement::Jump(self.chain(Place::SourceCheck))
    }

    fn balance(&self, size: SizeClass) -> Vec<Vec<Statement>> {
        let mut rules: Vec<_> = Self::tries(size)
            .into_iter()
            .map(|slot| {
                // The protocol is the same for all endpoints of a group: it is part of the key because nft parses
                // the rule only with it (so that a listing can be loaded), and takes no room.
                let key = vec![Part::Priority, Part::Protocol, slot];
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

    fn tries(size: SizeClass) -> Vec<Part> {
        Self::bounds(size).into_iter().map(Part::Random).collect()
    }

    /// The same for the same source; another seed for each, lest a miss be repeated.
    fn tries_by_source(size: SizeClass) -> Vec<Part> {
        let seeded = |(seed, below)| Part::SourceHash { below, seed };
        (SEED..).zip(Self::bounds(size)).map(seeded).collect()
    }

    /// Entered with `base | size class`, returns with an endpoint id.
    fn pick(slots: SetName, tries: Vec<Part>) -> Vec<Vec<Statement>> {
        let base = Priority::And(u32::MAX << INDEX_BITS);
        let mut rules = vec![vec![Statement::SetPriority(base)]];
        rules.extend(tries.into_iter().map(|slot| {
            let find = Priority::Found { key: vec![Part::Priority, slot], map: slots };
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
            self.made(place(StickyPlace::RestrictedExternal), self.restricted(place(StickyPlace::External))),
            self.made(
                place(StickyPlace::RestrictedExternalLocal),
                self.restricted(place(StickyPlace::ExternalLocal)),
            ),
        ]
    }

    /// Entered with a sticky Service port's base in the priority. A full map of clients fails `update`, which ends
    /// that rule only.
    fn sticky_balance(&self, affinity: Affinity, usable: Set, sizes: Set) -> Vec<Vec<Statement>> {
        let clients = SetName::clients(affinity.share);
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
        let pick = |picks| {
            let size = Priority::Found { key: vec![Part::Priority], map: self.set(sizes) };
            let key = vec![Part::PriorityAnd(!(u32::MAX << INDEX_BITS))];
            vec![Statement::SetPriority(size), Statement::Dispatch { key, map: self.set(picks) }]
        };
        vec![
            // A known client: refreshed in the same rule, so that an unknown one is not entered here.
            vec![Statement::SetPriority(known), update.clone()],
            translate(),
            // An unknown client, or its endpoint is gone. `update` never changes an element's data: delete first.
            to_base(),
            vec![Statement::DeleteClient { set: clients }],
            pick(Set::Picks),
            vec![picked(), update].into_iter().chain(translate()).collect(),
            // The map of clients is full: this one is not remembered, but led to the same endpoint every time, for as long as
            // the same endpoints serve.
            vec![picked(), Statement::Count],
            to_base(),
            pick(Set::PicksBySource),
            translate(),
            // Reached when a commit took the endpoint between two look-ups: the last index leads to one in any state.
            vec![Statement::SetPriority(Priority::Or(!mask))],
            translate(),
        ]
    }
}

/// Of the hash by which a client that is not remembered is led to the same endpoint every time.
const SEED: u32 = 1;

/// Turns a plain value into the key of its group.
fn mark_group() -> Statement {
    Statement::SetPriority(Priority::Or(PLAIN_CLASS))
}
