//! Divides what was refused together, so that who is to blame is found in a few steps.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::installed::{Installed, Wanted};
use crate::model::{Protocol, ServiceName};

/// Two halves. Services between which an address passes stay together: before and after each half, an address belongs to
/// one Service. A batch that cannot be divided comes back whole, with nothing beside it.
pub(super) fn halves(wanted: Wanted, installed: &Installed) -> (Wanted, Wanted) {
    let mut names: Vec<&ServiceName> = wanted.keys().collect();
    names.sort_unstable();
    let mut groups = Groups::new(names.len());
    let mut had: HashMap<(Protocol, Option<IpAddr>, u16), usize> = HashMap::new();
    for (at, name) in names.iter().enumerate() {
        for (_, route) in installed.of(name) {
            had.extend(
                route.frontends.iter().map(|frontend| ((route.protocol, frontend.at, frontend.port), at)),
            );
        }
    }
    for (at, name) in names.iter().enumerate() {
        for (_, route) in &wanted[*name] {
            for frontend in &route.frontends {
                if let Some(before) = had.get(&(route.protocol, frontend.at, frontend.port)) {
                    groups.join(at, *before);
                }
            }
        }
    }
    // In the order of names, so that the same refusals lead the same way.
    let mut together: BTreeMap<&ServiceName, Vec<ServiceName>> = BTreeMap::new();
    for (at, name) in names.iter().enumerate() {
        together.entry(names[groups.head(at)]).or_default().push((*name).clone());
    }
    let together: Vec<Vec<ServiceName>> = together.into_values().collect();
    let mut first = Wanted::new();
    let mut second = wanted;
    let half = second.len() / 2;
    for group in together.into_iter().rev().skip(1).rev() {
        if first.len() >= half.max(1) {
            break;
        }
        first.extend(group.into_iter().filter_map(|name| second.remove_entry(&name)));
    }
    if first.is_empty() { (second, first) } else { (first, second) }
}

/// Which ones belong together.
struct Groups(Vec<usize>);

impl Groups {
    fn new(count: usize) -> Self {
        Self((0..count).collect())
    }

    fn head(&mut self, mut at: usize) -> usize {
        while self.0[at] != at {
            // Each look-up shortens the way for the next.
            self.0[at] = self.0[self.0[at]];
            at = self.0[at];
        }
        at
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.head(a), self.head(b));
        self.0[a.max(b)] = a.min(b);
    }
}
