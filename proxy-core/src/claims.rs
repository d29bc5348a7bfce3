//! Who owns an address: one Service per (protocol, address, port), decided the same way on every node and every time.
//!
//! A cluster IP goes before any other claim (nobody takes over a Service's own address by naming it as an external
//! IP); then the oldest Service wins; then the lesser name.

use std::{
    collections::{HashMap, hash_map},
    net::IpAddr,
};

use crate::model::{Protocol, ServiceName};

/// What is claimed; `None` stands for a node port.
pub type ClaimKey = (Protocol, Option<IpAddr>, u16);

/// A claimant; the order is the order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// False for a cluster IP, which goes first.
    pub external: bool,
    pub created: i64,
    pub service: ServiceName,
}

/// Mostly one claimant; the list is sorted.
#[derive(Debug)]
enum Claimants {
    One(Claimant),
    Many(Vec<Claimant>),
}

impl Claimants {
    fn winner(&self) -> &Claimant {
        match self {
            Self::One(claimant) => claimant,
            Self::Many(claimants) => &claimants[0],
        }
    }
}

#[derive(Debug, Default)]
pub struct Claims(HashMap<ClaimKey, Claimants>);

impl Claims {
    pub fn winner(&self, key: &ClaimKey) -> Option<&ServiceName> {
        self.0.get(key).map(|claimants| &claimants.winner().service)
    }

    /// Adds a claim, or changes its rank. Returns the Service that loses the address by it, if any.
    pub fn claim(&mut self, key: ClaimKey, claimant: Claimant) -> Vec<ServiceName> {
        match self.0.entry(key) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Claimants::One(claimant));
                Vec::new()
            }
            hash_map::Entry::Occupied(mut occupied) => {
                let before = occupied.get().winner().service.clone();
                let mut all = match occupied.get_mut() {
                    Claimants::One(known) if known.service == claimant.service => {
                        *known = claimant;
                        return Vec::new();
                    }
                    Claimants::One(known) => vec![known.clone()],
                    Claimants::Many(all) => std::mem::take(all),
                };
                all.retain(|known| known.service != claimant.service);
                let at = all.partition_point(|known| *known < claimant);
                all.insert(at, claimant);
                let after = all[0].service.clone();
                occupied.insert(Claimants::Many(all));
                if before == after { Vec::new() } else { vec![before, after] }
            }
        }
    }

    /// Withdraws a claim. Returns the Service that gains the address by it, if any.
    pub fn release(&mut self, key: &ClaimKey, service: &ServiceName) -> Option<ServiceName> {
        let hash_map::Entry::Occupied(mut occupied) = self.0.entry(*key) else { return None };
        match occupied.get_mut() {
            Claimants::One(known) => {
                if known.service == *service {
                    occupied.remove();
                }
                None
            }
            Claimants::Many(all) => {
                let won = all[0].service == *service;
                all.retain(|known| known.service != *service);
                let heir = all[0].clone();
                let gained = won.then(|| heir.service.clone());
                if all.len() == 1 {
                    occupied.insert(Claimants::One(heir));
                }
                gained
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(external: bool, created: i64, name: &str) -> Claimant {
        Claimant { external, created, service: ServiceName::new("ns", name) }
    }

    const KEY: ClaimKey = (Protocol::Tcp, None, 80);

    #[test]
    fn the_oldest_wins_whatever_the_order_of_claims() {
        for order in [["old", "young"], ["young", "old"]] {
            let mut claims = Claims::default();
            for name in order {
                claims.claim(KEY, claimant(true, if name == "old" { 1 } else { 2 }, name));
            }
            assert_eq!(claims.winner(&KEY).map(ServiceName::name), Some("old"));
        }
    }

    #[test]
    fn a_cluster_ip_goes_before_an_older_external_ip() {
        let mut claims = Claims::default();
        claims.claim(KEY, claimant(true, 1, "thief"));
        let moved = claims.claim(KEY, claimant(false, 2, "owner"));
        assert_eq!(moved.len(), 2, "both are looked at again");
        assert_eq!(claims.winner(&KEY).map(ServiceName::name), Some("owner"));
    }

    #[test]
    fn a_released_address_goes_to_the_next() {
        let mut claims = Claims::default();
        for (age, name) in [(1, "a"), (2, "b"), (3, "c")] {
            claims.claim(KEY, claimant(true, age, name));
        }
        assert_eq!(claims.release(&KEY, &ServiceName::new("ns", "b")), None);
        assert_eq!(
            claims.release(&KEY, &ServiceName::new("ns", "a")).as_ref().map(ServiceName::name),
            Some("c")
        );
        assert_eq!(claims.release(&KEY, &ServiceName::new("ns", "c")), None);
        assert_eq!(claims.winner(&KEY), None);
    }
}
