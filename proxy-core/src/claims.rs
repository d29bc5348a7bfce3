//! Who owns an address: one Service per (protocol, address, port), decided the same way on every node and every time.
//!
//! Authority goes before age. What the API server allocated (cluster IPs, node ports) goes before what a controller
//! assigned (`status.loadBalancer`), and that before what a Service's owner merely names (`externalIPs`): nobody takes
//! over another's address by writing it down. Among equals the oldest Service wins, then the lesser name.

use std::{
    collections::{BTreeSet, HashMap, hash_map},
    mem,
    net::IpAddr,
};

use crate::model::{Protocol, ServiceName};

/// What is claimed; `None` stands for a node port.
pub type ClaimKey = (Protocol, Option<IpAddr>, u16);

/// By what right an address is claimed; the lesser one goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    /// The API server allocated it to this Service: a cluster IP, or a node port.
    Allocated,
    /// A controller assigned it: `status.loadBalancer.ingress`.
    LoadBalancer,
    /// The Service's owner names it: `spec.externalIPs`.
    External,
}

/// A rank and an age in one word, the lesser of which goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Precedence(u64);

impl Precedence {
    /// `created` in seconds since the Unix epoch.
    pub fn new(rank: Rank, created: i64) -> Self {
        const AGES: u64 = (1 << 62) - 1;
        let age = u64::try_from(created).unwrap_or(0).min(AGES);
        Self((rank as u64) << 62 | age)
    }
}

/// A claimant; the order is the order of precedence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// By what right, and since when.
    pub precedence: Precedence,
    /// Who.
    pub service: ServiceName,
}

/// Mostly one claimant.
#[derive(Debug)]
#[expect(clippy::box_collection, reason = "rare, and it would make the usual case a third larger")]
enum Claimants {
    One(Claimant),
    Many(Box<BTreeSet<Claimant>>),
}

const _: () = assert!(size_of::<(ClaimKey, Claimants)>() == 48);

impl Claimants {
    fn winner(&self) -> &Claimant {
        match self {
            Self::One(claimant) => claimant,
            Self::Many(claimants) => claimants.first().expect("several"),
        }
    }
}

/// All claims of one family. Every operation takes logarithmic time in the number of claimants of one key.
#[derive(Debug, Default)]
pub struct Claims {
    all: HashMap<ClaimKey, Claimants>,
    contended: usize,
}

impl Claims {
    /// Who owns it.
    pub fn winner(&self, key: &ClaimKey) -> Option<&ServiceName> {
        self.all.get(key).map(|claimants| &claimants.winner().service)
    }

    /// How many keys have more than one claimant.
    pub fn contended(&self) -> usize {
        self.contended
    }

    /// Adds a claim. `moved` is told of the Services between which the address passes by it, if it does.
    pub fn claim(&mut self, key: ClaimKey, claimant: Claimant, moved: &mut Vec<ServiceName>) {
        match self.all.entry(key) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(Claimants::One(claimant));
            }
            hash_map::Entry::Occupied(mut occupied) => {
                let before = occupied.get().winner();
                if claimant < *before {
                    moved.extend([before.service.clone(), claimant.service.clone()]);
                }
                match occupied.get_mut() {
                    Claimants::One(known) if *known == claimant => {}
                    Claimants::One(known) => {
                        let both = BTreeSet::from([known.clone(), claimant]);
                        occupied.insert(Claimants::Many(Box::new(both)));
                        self.contended += 1;
                    }
                    Claimants::Many(all) => {
                        all.insert(claimant);
                    }
                }
            }
        }
    }

    /// Withdraws a claim as it was made. `moved` is told of the Service that gains the address by it, if any.
    pub fn release(&mut self, key: &ClaimKey, claimant: &Claimant, moved: &mut Vec<ServiceName>) {
        let hash_map::Entry::Occupied(mut occupied) = self.all.entry(*key) else { return };
        match occupied.get_mut() {
            Claimants::One(known) => {
                if known == claimant {
                    occupied.remove();
                }
            }
            Claimants::Many(all) => {
                let won = all.first() == Some(claimant);
                all.remove(claimant);
                if won {
                    moved.extend(all.first().map(|heir| heir.service.clone()));
                }
                if all.len() == 1 {
                    let last = mem::take(&mut **all).pop_first().expect("one");
                    occupied.insert(Claimants::One(last));
                    self.contended -= 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimant(rank: Rank, created: i64, name: &str) -> Claimant {
        Claimant { precedence: Precedence::new(rank, created), service: ServiceName::new("ns", name) }
    }

    const KEY: ClaimKey = (Protocol::Tcp, None, 80);

    /// The names of those between whom it passes, and who has it then.
    fn claim(claims: &mut Claims, claimant: Claimant) -> (Vec<String>, String) {
        let mut moved = Vec::new();
        claims.claim(KEY, claimant, &mut moved);
        let moved = moved.iter().map(|service| service.name().to_owned()).collect();
        (moved, claims.winner(&KEY).map(ServiceName::name).unwrap_or_default().to_owned())
    }

    fn release(claims: &mut Claims, claimant: &Claimant) -> Vec<String> {
        let mut moved = Vec::new();
        claims.release(&KEY, claimant, &mut moved);
        moved.iter().map(|service| service.name().to_owned()).collect()
    }

    #[test]
    fn the_oldest_wins_whatever_the_order_of_claims() {
        for order in [["old", "young"], ["young", "old"]] {
            let mut claims = Claims::default();
            for name in order {
                claim(&mut claims, claimant(Rank::External, if name == "old" { 1 } else { 2 }, name));
            }
            assert_eq!(claims.winner(&KEY).map(ServiceName::name), Some("old"));
        }
    }

    #[test]
    fn authority_goes_before_age() {
        let ranks =
            [(Rank::External, "named"), (Rank::LoadBalancer, "assigned"), (Rank::Allocated, "allocated")];
        let mut claims = Claims::default();
        let mut holder = String::new();
        for (age, (rank, name)) in ranks.into_iter().enumerate() {
            let (moved, winner) = claim(&mut claims, claimant(rank, age as i64, name));
            let expected: &[&str] = if age == 0 { &[] } else { &[&holder, name] };
            assert_eq!(
                (moved, winner.as_str()),
                (expected.iter().map(|name| (*name).to_owned()).collect(), name)
            );
            holder = winner;
        }
        let (moved, winner) = claim(&mut claims, claimant(Rank::External, -5, "oldest"));
        assert_eq!(
            (moved.len(), winner.as_str()),
            (0, "allocated"),
            "an age below zero reaches no other rank"
        );
        let (moved, winner) = claim(&mut claims, claimant(Rank::Allocated, i64::MAX, "youngest"));
        assert_eq!((moved.len(), winner.as_str()), (0, "allocated"));
    }

    #[test]
    fn a_released_address_goes_to_the_next() {
        let mut claims = Claims::default();
        let [a, b, c] = [(1, "a"), (2, "b"), (3, "c")].map(|(age, name)| claimant(Rank::External, age, name));
        for claimant in [&c, &a, &b] {
            claim(&mut claims, claimant.clone());
        }
        assert_eq!(claims.contended(), 1);
        assert_eq!(release(&mut claims, &b), [""; 0]);
        assert_eq!(release(&mut claims, &a), ["c"]);
        assert_eq!(claims.contended(), 0);
        assert_eq!(release(&mut claims, &a), [""; 0], "it is not a's any more");
        assert_eq!(release(&mut claims, &c), [""; 0]);
        assert_eq!(claims.winner(&KEY), None);
    }

    #[test]
    fn a_claim_made_twice_counts_once() {
        let mut claims = Claims::default();
        let a = claimant(Rank::External, 1, "a");
        claim(&mut claims, a.clone());
        claim(&mut claims, a.clone());
        assert_eq!(claims.contended(), 0);
        release(&mut claims, &a);
        assert_eq!(claims.winner(&KEY), None);
    }
}
