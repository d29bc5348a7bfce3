//! A plan in the making: what all changes come to together, and operations by when they must happen.

use std::{collections::BTreeMap, net::IpAddr};

use ipvs_netlink::ServiceKey;
use proxy_core::backend::{Plan, Step};

use crate::schema::{
    op::{Element, Op},
    render::{Rendered, Server},
};

/// A virtual server before and after, and whose change it is.
#[derive(Debug, Default)]
pub(crate) struct Pair {
    pub(crate) before: Option<Server>,
    pub(crate) after: Option<Server>,
    /// Its address was found bound.
    pub(crate) bound: bool,
    pub(crate) owner: Option<u32>,
}

/// What all changes come to together: one Service may give what another takes.
#[derive(Default)]
pub(crate) struct Net {
    pub(crate) servers: BTreeMap<ServiceKey, Pair>,
    pub(crate) vips: Tally<IpAddr>,
    pub(crate) elements: Tally<Element>,
    pub(crate) host_endpoints: Tally<IpAddr>,
}

impl Net {
    pub(crate) fn minus(&mut self, rendered: Rendered, owner: Option<u32>) {
        let Rendered { servers, vips, elements, host_endpoints } = rendered;
        for server in servers {
            let pair = self.servers.entry(server.service.key).or_default();
            pair.before = Some(server);
            pair.owner = pair.owner.or(owner);
        }
        self.count((vips, elements, host_endpoints), -1, owner);
    }

    pub(crate) fn plus(&mut self, rendered: Rendered, owner: Option<u32>) {
        let Rendered { servers, vips, elements, host_endpoints } = rendered;
        for server in servers {
            let pair = self.servers.entry(server.service.key).or_default();
            pair.after = Some(server);
            pair.owner = owner;
        }
        self.count((vips, elements, host_endpoints), 1, owner);
    }

    fn count(
        &mut self,
        (vips, elements, host_endpoints): (Vec<IpAddr>, Vec<Element>, Vec<IpAddr>),
        by: i32,
        owner: Option<u32>,
    ) {
        self.vips.add(vips, by, owner);
        self.elements.add(elements, by, owner);
        self.host_endpoints.add(host_endpoints, by, owner);
    }
}

/// What is wanted more or less often, and who said so last.
pub(crate) struct Tally<K>(Vec<(K, i32, Option<u32>)>);

impl<K> Default for Tally<K> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord> Tally<K> {
    fn add(&mut self, keys: Vec<K>, by: i32, owner: Option<u32>) {
        self.0.extend(keys.into_iter().map(|key| (key, by, owner)));
    }

    /// Each key once, in order.
    pub(crate) fn sums(self) -> impl Iterator<Item = (K, i32, Option<u32>)> {
        let Self(mut all) = self;
        // Sorting once is faster than a map for the tens of thousands of a full plan. It keeps the last owner last.
        all.sort_by(|one, other| one.0.cmp(&other.0));
        let mut rest = all.into_iter().peekable();
        std::iter::from_fn(move || {
            let mut sum = rest.next()?;
            while let Some((_, by, owner)) = rest.next_if(|next| next.0 == sum.0) {
                (sum.1, sum.2) = (sum.1 + by, owner);
            }
            Some(sum)
        })
    }
}

/// A plan in the making: operations by when they must happen.
#[derive(Default)]
pub(crate) struct Draft {
    pub(crate) device: Step<Op>,
    /// Elements that make room, in one transaction with `prepare`.
    pub(crate) replace: Step<Op>,
    /// What guards a virtual server: in force before it.
    pub(crate) prepare: Step<Op>,
    pub(crate) servers: Step<Op>,
    /// Marks: after the virtual servers that they lead to.
    pub(crate) circuits: Step<Op>,
    /// Now packets come.
    pub(crate) bind: Step<Op>,
    /// And from here on no more.
    pub(crate) unbind: Step<Op>,
    pub(crate) delete: Step<Op>,
    pub(crate) clear: Step<Op>,
    /// Addresses that no longer are held for a draining virtual server.
    pub(crate) let_go: Vec<IpAddr>,
    /// The rules in force take connections past every virtual server, and go with `prepare`: not before the virtual
    /// servers can be reached.
    pub(crate) translated: bool,
}

impl Draft {
    pub(crate) fn into_plan(mut self) -> Plan<Op> {
        // Rules come before the elements of the sets that they make.
        let rebuild = |op: &Op| matches!(op, Op::Rebuild(..) | Op::Rules(..) | Op::DropOtherTable);
        let at = self.prepare.ops.iter().take_while(|owned| rebuild(&owned.op)).count();
        self.prepare.ops.splice(at..at, self.replace.ops);
        // A map's key goes before it comes with another value.
        self.circuits.ops.sort_by_key(|owned| matches!(owned.op, Op::AddElement(_)));
        let (guards_first, guards_last) =
            if self.translated { (Step::default(), self.prepare) } else { (self.prepare, Step::default()) };
        let steps = [
            self.device,
            guards_first,
            self.servers,
            self.circuits,
            self.bind,
            guards_last,
            self.unbind,
            self.delete,
            self.clear,
        ];
        Plan { steps: steps.into_iter().filter(|step| !step.ops.is_empty()).collect() }
    }
}
