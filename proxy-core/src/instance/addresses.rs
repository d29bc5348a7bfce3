//! Which Service owns each address and port in one family, and who wanted it too.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use crate::{
    claims::{ClaimKey, Claimant, Claims},
    model::{Family, Protocol, Service, ServiceName},
    route::{self, FrontendKind, NodeView},
    store::Store,
};

/// An address that two Services want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    pub service: ServiceName,
    pub winner: ServiceName,
    pub protocol: Protocol,
    /// `None`: a node port.
    pub at: Option<IpAddr>,
    pub port: u16,
}

#[derive(Debug)]
pub(super) struct Addresses {
    family: Family,
    claims: Claims,
    /// What each Service claims at present, to release it later.
    claimed: HashMap<ServiceName, Box<[ClaimKey]>>,
    /// Claims that another Service won.
    lost: HashMap<ServiceName, Vec<Conflict>>,
}

impl Addresses {
    pub(super) fn new(family: Family) -> Self {
        Self { family, claims: Claims::default(), claimed: HashMap::new(), lost: HashMap::new() }
    }

    /// How many claims another Service won.
    pub(super) fn conflicts(&self) -> usize {
        self.lost.values().map(Vec::len).sum()
    }

    /// Whether nobody else owns it.
    pub(super) fn grants(&self, key: &ClaimKey, service: &ServiceName) -> bool {
        self.claims.winner(key).is_none_or(|winner| winner == service)
    }

    /// Brings the claims of every Service in `work` up to date; Services that win or lose an address by it join.
    /// Returns the conflicts that are new.
    pub(super) fn settle(
        &mut self,
        work: &mut HashSet<ServiceName>,
        store: &Store,
        node: &NodeView,
    ) -> Vec<Conflict> {
        let mut moved: Vec<ServiceName> = Vec::new();
        for name in &*work {
            let service = store.entry(name).and_then(|entry| entry.service.as_ref());
            let wanted = service.map(|service| self.wanted(service, node)).unwrap_or_default();
            let same = |before: &[ClaimKey]| before.iter().eq(wanted.iter().map(|(key, _)| key));
            let before = self.claimed.remove(name).unwrap_or_default();
            if !same(&before) {
                let kept: HashSet<&ClaimKey> = wanted.iter().map(|(key, _)| key).collect();
                for key in before.iter().filter(|key| !kept.contains(key)) {
                    moved.extend(self.claims.release(key, name));
                }
            }
            if !wanted.is_empty() {
                self.claimed.insert(name.clone(), wanted.iter().map(|(key, _)| *key).collect());
            }
            // Those that it had before are claimed anew as well: its age may differ (deleted and created again).
            for (key, claimant) in wanted {
                moved.extend(self.claims.claim(key, claimant));
            }
        }
        work.extend(moved);
        self.note_conflicts(work)
    }

    fn wanted(&self, service: &Service, node: &NodeView) -> Vec<(ClaimKey, Claimant)> {
        let claimant = |kind| Claimant {
            external: kind != FrontendKind::ClusterIp,
            created: service.created,
            service: service.name.clone(),
        };
        let mut claims: Vec<(ClaimKey, Claimant)> = Vec::new();
        for port in &service.ports {
            for frontend in route::wanted_frontends(service, port, self.family, node).into_iter().flatten() {
                claims.push(((port.protocol, frontend.at, frontend.port), claimant(frontend.kind)));
            }
        }
        claims
    }

    fn note_conflicts(&mut self, work: &HashSet<ServiceName>) -> Vec<Conflict> {
        let mut news = Vec::new();
        for name in work {
            let claimed = self.claimed.get(name).into_iter().flatten();
            let lost: Vec<Conflict> = claimed
                .filter_map(|key| {
                    let winner = self.claims.winner(key).filter(|winner| *winner != name)?;
                    let (protocol, at, port) = *key;
                    Some(Conflict { service: name.clone(), winner: winner.clone(), protocol, at, port })
                })
                .collect();
            let known = self.lost.remove(name).unwrap_or_default();
            news.extend(lost.iter().filter(|conflict| !known.contains(conflict)).cloned());
            if !lost.is_empty() {
                self.lost.insert(name.clone(), lost);
            }
        }
        news
    }
}
