//! What a plan is made of: operations on the table, printable one a line.

use std::{fmt, sync::Arc};

use proxy_core::{
    model::{Family, Protocol},
    route::{Route, Target},
};

use crate::schema::{
    element::{Element, Key, Place},
    name::{Base, ChainName, Set, SetName, TABLE},
    statement::{Rule, RuleText},
    value::group_key,
};

/// One operation on `table ip kube-proxy` or `table ip6 kube-proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op(pub(crate) Operation);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Operation {
    Table {
        family: Family,
    },
    /// Adds a set or map; `capacity` where its size is given.
    AddSet {
        family: Family,
        name: SetName,
        capacity: Option<u32>,
    },
    AddBase {
        base: Base,
    },
    AddChain {
        name: ChainName,
    },
    AddRule {
        family: Family,
        chain: ChainName,
        rule: Arc<Rule>,
    },
    /// Removes the rules of a chain, whoever made it.
    FlushChain {
        name: Box<str>,
    },
    DeleteChain {
        name: Box<str>,
    },
    DeleteSet {
        name: Box<str>,
    },
    Add {
        generation: u32,
        element: Element,
    },
    Delete {
        generation: u32,
        element: Element,
    },
    /// Fills the slots of a group that is new.
    AddGroup {
        generation: u32,
        group: u32,
        route: Arc<Route>,
        list: List,
    },
    /// Adds the endpoints of a route to `endpoint-ports`: all of the list, none of them there yet.
    AddEndpoints {
        generation: u32,
        route: Arc<Route>,
        list: List,
    },
    /// Deletes the slots of a group that nothing points to any more.
    DeleteGroup {
        generation: u32,
        group: u32,
        protocol: Protocol,
        slots: Vec<Place>,
    },
    /// Lets packets from and to 127.0.0.0/8 be routed, or no longer, and never without the guard beside the table.
    Loopback {
        open: bool,
    },
    /// There is no number left for another list of endpoints: this Service port is told of, and not served.
    LeaveOut,
}

/// One of the two endpoint lists of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum List {
    Cluster,
    Local,
}

impl List {
    pub(crate) fn of(self, route: &Route) -> &[Target] {
        let targets = match self {
            Self::Cluster => &route.cluster,
            Self::Local => &route.local,
        };
        let longest = targets.len().min(crate::schema::size_class::SizeClass::LONGEST as usize);
        &targets[..longest]
    }
}

impl Op {
    /// How many objects of the kernel it touches: elements, rules, chains, sets. What prepares nothing and what is no part of
    /// the table counts for none.
    pub fn objects(&self) -> usize {
        match self.0 {
            Operation::Table { .. } | Operation::Loopback { .. } | Operation::LeaveOut => 0,
            _ => self.0.weight(),
        }
    }
}

impl Operation {
    /// How many objects of the kernel it touches, for cutting a load into transactions.
    pub(crate) fn weight(&self) -> usize {
        match self {
            Self::AddGroup { route, list, .. } | Self::AddEndpoints { route, list, .. } => {
                list.of(route).len()
            }
            Self::DeleteGroup { slots, .. } => slots.len(),
            _ => 1,
        }
    }

    /// Calls `each` with the elements that this operation adds or deletes.
    pub(crate) fn elements(&self, mut each: impl FnMut(Element)) {
        match self {
            Self::Add { element, .. } | Self::Delete { element, .. } => each(element.clone()),
            Self::AddGroup { group, route, list, .. } => {
                for (slot, target) in (0..).zip(list.of(route)) {
                    each(slot_element(*group, route.protocol, slot, (target.addr, target.port)));
                }
            }
            Self::AddEndpoints { route, list, .. } => {
                for target in list.of(route) {
                    let key = Key::Twice(target.addr, target.port);
                    each(Element::member(Set::EndpointPorts, key));
                }
            }
            Self::DeleteGroup { group, protocol, slots, .. } => {
                for (slot, place) in (0..).zip(slots) {
                    each(slot_element(*group, *protocol, slot, *place));
                }
            }
            _ => {}
        }
    }
}

/// The element that puts an endpoint into a slot of a group.
pub(crate) fn slot_element(group: u32, protocol: Protocol, slot: u32, (addr, port): Place) -> Element {
    let key = Key::IdProtocolSlot(group_key(group), protocol, slot);
    Element::target(Set::Endpoints, key, addr, port)
}

/// As nft text, several lines where several elements are meant.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Operation::Table { family } => {
                write!(f, "add table {} {TABLE}", if *family == Family::V4 { "ip" } else { "ip6" })
            }
            Operation::AddSet { name, capacity, .. } => {
                write!(f, "add set {name}")?;
                capacity.map_or(Ok(()), |capacity| write!(f, " size {capacity}"))
            }
            Operation::AddBase { base } => write!(f, "add chain {} {{ {} }}", base.as_str(), base.hook()),
            Operation::AddChain { name } => write!(f, "add chain {name}"),
            Operation::AddRule { family, chain, rule } => {
                write!(f, "add rule {chain} {}", RuleText { rule, v6: *family == Family::V6 })
            }
            Operation::FlushChain { name } => write!(f, "flush chain {name}"),
            Operation::DeleteChain { name } => write!(f, "delete chain {name}"),
            Operation::DeleteSet { name } => write!(f, "delete set {name}"),
            Operation::Loopback { open } => {
                write!(f, "{} loopback addresses to routing", if *open { "open" } else { "close" })
            }
            Operation::LeaveOut => f.write_str("leave out: no number is left for another list of endpoints"),
            elements => {
                let (verb, generation) = match elements {
                    Operation::Delete { generation, .. } | Operation::DeleteGroup { generation, .. } => {
                        ("delete", *generation)
                    }
                    Operation::Add { generation, .. }
                    | Operation::AddGroup { generation, .. }
                    | Operation::AddEndpoints { generation, .. } => ("add", *generation),
                    _ => return Ok(()),
                };
                let mut lines = Vec::new();
                elements.elements(|element| {
                    let name = element.set_name(generation);
                    lines.push(format!("{verb} element {name} {{ {element} }}"));
                });
                f.write_str(&lines.join("\n"))
            }
        }
    }
}
