//! An imprint of each virtual server as we left it, to notice what somebody else did to it: a few are compared with the
//! kernel at each check, in turn. The kernel tells nobody when a virtual server or a destination changes.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    ops::Bound,
};

use ipvs_netlink::{Destination, Forwarding, Service, ServiceKey};

use crate::schema::{
    found::FoundServer,
    mix::{mix, number},
    op::Op,
    ownership::is_ours,
};

#[derive(Debug, Default)]
pub(crate) struct Audit {
    servers: BTreeMap<ServiceKey, Imprint>,
    /// Destinations of servers that others made; they count once a server was taken over.
    foreign: HashMap<ServiceKey, u64>,
    /// The one that was looked at last.
    last: Option<ServiceKey>,
}

/// Two numbers in place of a virtual server and its destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Imprint {
    service: u64,
    /// Those of all destinations, exclusive or: in no order, and one can be taken out.
    destinations: u64,
}

impl Audit {
    /// Begins anew, with what the kernel was found to hold. What others made is theirs to change.
    pub(crate) fn learn(&mut self, found: &[FoundServer]) {
        self.servers.clear();
        self.foreign.clear();
        for server in found {
            let imprint = Imprint::of(&server.service, &server.destinations);
            if is_ours(&server.service) {
                self.servers.insert(server.service.key, imprint);
            } else {
                self.foreign.insert(server.service.key, imprint.destinations);
            }
        }
    }

    /// An operation was carried out.
    pub(crate) fn note(&mut self, op: &Op) {
        match op {
            Op::NewServer(service, destinations) => {
                self.servers.insert(service.key, Imprint::of(service, destinations));
            }
            Op::SetServer(service) => {
                let known = self.servers.get(&service.key).map(|imprint| imprint.destinations);
                if let Some(destinations) = known.or_else(|| self.foreign.remove(&service.key)) {
                    let imprint = Imprint { service: of_service(service), destinations };
                    self.servers.insert(service.key, imprint);
                }
            }
            Op::DeleteServer(key) => self.forget(key),
            Op::NewDestination(key, to) => self.toggle(key, to),
            Op::SetDestination { key, to, was } => {
                self.toggle(key, &Destination { weight: *was, ..*to });
                self.toggle(key, to);
            }
            Op::DeleteDestination(key, to) => self.toggle(key, to),
            _ => {}
        }
    }

    /// A destination came or went.
    pub(crate) fn toggle(&mut self, key: &ServiceKey, to: &Destination) {
        if let Some(imprint) = self.servers.get_mut(key) {
            imprint.destinations ^= of_destination(to);
        }
    }

    /// It is gone, or it is not known what became of it.
    pub(crate) fn forget(&mut self, key: &ServiceKey) {
        self.servers.remove(key);
    }

    /// The next ones to look at, at most `most`.
    pub(crate) fn next(&mut self, most: usize) -> Vec<ServiceKey> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.servers.range((after, Bound::Unbounded));
        let before = self.servers.iter();
        let keys: Vec<_> =
            behind.chain(before).map(|(key, _)| *key).take(most.min(self.servers.len())).collect();
        self.last = keys.last().copied();
        keys
    }

    /// Whether a virtual server of ours is as we left it.
    pub(crate) fn holds(&self, service: &Service, destinations: &[Destination]) -> bool {
        let imprint = Imprint::of(service, destinations);
        self.servers.get(&service.key).is_none_or(|known| *known == imprint)
    }
}

impl Imprint {
    fn of(service: &Service, destinations: &[Destination]) -> Self {
        Self {
            service: of_service(service),
            destinations: destinations.iter().map(of_destination).fold(0, |all, one| all ^ one),
        }
    }
}

fn of_service(service: &Service) -> u64 {
    let mut hasher = DefaultHasher::new();
    service.hash(&mut hasher);
    hasher.finish()
}

fn of_destination(to: &Destination) -> u64 {
    let masquerades = u64::from(to.forwarding == Forwarding::Masquerade);
    let rest = u64::from(to.weight) << 17 | u64::from(to.port) << 1 | masquerades;
    mix(mix(0, number(to.address)), rest)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use ipvs_netlink::{Protocol, Scheduler};

    use super::*;
    use crate::schema::ownership::OURS;

    fn service(last: u8) -> Service {
        let key = ServiceKey::new([10, 96, 0, last].into(), 80, Protocol::Tcp);
        Service { flags: OURS, ..Service::new(key, Scheduler::RR) }
    }

    fn to(last: u8, weight: u32) -> Destination {
        Destination::new([10, 1, 0, last].into(), 8080, weight)
    }

    #[test]
    fn whatever_was_done_to_a_server_it_is_known_as_it_is_now() {
        let (mut audit, key) = (Audit::default(), service(1).key);
        let ops = [
            Op::NewServer(service(1), [to(1, 1), to(2, 1)].into()),
            Op::NewDestination(key, to(3, 1)),
            Op::SetDestination { key, to: to(1, 0), was: 1 },
            Op::DeleteDestination(key, to(2, 1)),
            Op::SetServer(service(1).persistent(600)),
        ];
        ops.iter().for_each(|op| audit.note(op));
        let now = service(1).persistent(600);
        assert!(audit.holds(&now, &[to(3, 1), to(1, 0)]));
        for other in [&[to(3, 1)][..], &[to(3, 1), to(1, 1)], &[to(3, 1), to(1, 0), to(2, 1)], &[]] {
            assert!(!audit.holds(&now, other), "{other:?}");
        }
        assert!(!audit.holds(&service(1), &[to(3, 1), to(1, 0)]));
    }

    #[test]
    fn the_servers_of_others_are_theirs_until_they_are_taken_over() {
        let mut audit = Audit::default();
        let foreign = Service { flags: Default::default(), ..service(9) };
        audit.learn(&[FoundServer { service: foreign, destinations: vec![to(1, 1)] }]);
        assert_eq!(audit.next(10), []);
        assert!(audit.holds(&foreign, &[]));
        audit.note(&Op::SetServer(service(9)));
        assert_eq!(audit.next(10), [service(9).key]);
        assert!(audit.holds(&service(9), &[to(1, 1)]) && !audit.holds(&service(9), &[]));
    }

    #[test]
    fn every_server_has_its_turn_whatever_comes_and_goes() {
        let mut audit = Audit::default();
        assert_eq!(audit.next(4), []);
        (0..10).for_each(|last| audit.note(&Op::NewServer(service(last), Box::default())));
        let mut seen = BTreeSet::new();
        seen.extend(audit.next(4));
        seen.extend(audit.next(4));
        audit.forget(&service(7).key);
        seen.extend(audit.next(4));
        assert_eq!(seen.len(), 10);
        assert_eq!(audit.next(100).len(), 9, "none twice in one turn");
    }
}
