//! Which Service owns each address and port in one family, and who wanted it too.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use crate::{
    claims::{ClaimKey, Claimant, Claims, Precedence},
    limits::{self, Excess},
    model::{Family, ServiceName, ServicePortName},
    route::{Asked, Route, asked},
    store::{Entry, Store},
};

/// Addresses that two Services want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The one that goes without them.
    pub service: ServiceName,
    /// The one that has them.
    pub winner: ServiceName,
    /// One of them (the protocol, the address or `None` for a node port, the port).
    pub first: ClaimKey,
    /// How many there are.
    pub count: usize,
}

/// What settling some Services found out that was not known before.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) conflicts: Vec<Conflict>,
    pub(super) excesses: Vec<(ServiceName, Excess)>,
}

#[derive(Debug)]
pub(super) struct Addresses {
    family: Family,
    claims: Claims,
    /// What each Service asks for at present: to decide what it gets, and to release it later.
    asking: HashMap<ServiceName, Asking>,
    /// Claims that another Service won, one entry for each winner.
    lost: HashMap<ServiceName, Vec<Conflict>>,
    /// How many claims that is.
    conflicts: usize,
    /// Services that ask for more than one may. What they asked for before they did is theirs still.
    excesses: HashMap<ServiceName, (Excess, Instant)>,
    /// Addresses that are in the kernel for a Service that does not ask for them any more, because what it asks for now was
    /// refused: whoever claims one next takes it.
    kept: HashMap<ClaimKey, ServiceName>,
    keeping: HashMap<ServiceName, Vec<ClaimKey>>,
}

#[derive(Debug, Default)]
struct Asking {
    created: i64,
    asked: Box<[Asked]>,
}

impl Asking {
    fn claims<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = (ClaimKey, Claimant)> + 'a {
        self.asked.iter().filter(|asked| asked.counts).map(|asked| {
            let precedence = Precedence::new(asked.rank(), self.created);
            (asked.key(), Claimant { precedence, service: service.clone() })
        })
    }
}

impl Addresses {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            claims: Claims::default(),
            asking: HashMap::new(),
            lost: HashMap::new(),
            conflicts: 0,
            excesses: HashMap::new(),
            kept: HashMap::new(),
            keeping: HashMap::new(),
        }
    }

    /// A Service keeps what is installed for it, whatever it asks for.
    pub(super) fn keep(&mut self, service: &ServiceName, installed: &[(ServicePortName, Arc<Route>)]) {
        self.keep_no_more(service);
        let asked: HashSet<ClaimKey> = self.asked(service).iter().map(Asked::key).collect();
        let keys = installed.iter().flat_map(|(_, route)| {
            route.frontends.iter().map(|frontend| (route.protocol, frontend.at, frontend.port))
        });
        let keys: Vec<ClaimKey> = keys.filter(|key| !asked.contains(key)).collect();
        if !keys.is_empty() {
            self.kept.extend(keys.iter().map(|key| (*key, service.clone())));
            self.keeping.insert(service.clone(), keys);
        }
    }

    /// What is installed for it is what it asks for.
    pub(super) fn keep_no_more(&mut self, service: &ServiceName) {
        for key in self.keeping.remove(service).into_iter().flatten() {
            if self.kept.get(&key) == Some(service) {
                self.kept.remove(&key);
            }
        }
    }

    /// How many claims another Service won.
    pub(super) fn conflicts(&self) -> usize {
        self.conflicts
    }

    /// Who owns it.
    pub(super) fn owner(&self, key: &ClaimKey) -> Option<&ServiceName> {
        self.claims.winner(key)
    }

    /// Whether nobody else owns it.
    pub(super) fn grants(&self, key: &ClaimKey, service: &ServiceName) -> bool {
        self.claims.winner(key).is_none_or(|winner| winner == service)
    }

    /// Everything that a Service asks for, port by port.
    pub(super) fn asked(&self, service: &ServiceName) -> &[Asked] {
        self.asking.get(service).map_or(&[], |asking| &asking.asked)
    }

    /// Whether a Service gets what it asks for here.
    pub(super) fn granted(&self, asked: &Asked, service: &ServiceName) -> bool {
        // Where nothing is claimed twice, everybody owns what is asked for at present.
        asked.counts && (self.claims.contended() == 0 || self.grants(&asked.key(), service))
    }

    /// Addresses that a Service asks for and that others have, by whom has them.
    pub(super) fn lost(&self, service: &ServiceName) -> &[Conflict] {
        self.lost.get(service).map_or(&[], |lost| lost)
    }

    /// Services that ask for more than one may, and since when.
    pub(super) fn excesses(&self) -> &HashMap<ServiceName, (Excess, Instant)> {
        &self.excesses
    }

    /// Brings the claims of every Service in `work` up to date; Services that win or lose an address by it join.
    pub(super) fn settle(&mut self, work: &mut HashSet<ServiceName>, store: &Store, now: Instant) -> News {
        let mut news = News::default();
        let mut moved: Vec<ServiceName> = Vec::new();
        for name in &*work {
            let entry = store.entry(name);
            let excess =
                entry.and_then(|entry| limits::excess(entry, entry.service.as_deref()?, self.family));
            if let Some(excess) = excess {
                let (known, _) = self.excesses.entry(name.clone()).or_insert_with(|| {
                    news.excesses.push((name.clone(), excess));
                    (excess, now)
                });
                if *known != excess {
                    *known = excess;
                    news.excesses.push((name.clone(), excess));
                }
            } else {
                self.excesses.remove(name);
                self.ask(name, entry, &mut moved);
            }
        }
        work.extend(moved);
        self.note_conflicts(work, &mut news.conflicts);
        news
    }

    fn ask(&mut self, name: &ServiceName, entry: Option<&Entry>, moved: &mut Vec<ServiceName>) {
        let service = entry.and_then(|entry| entry.service.as_deref());
        let wanted = service.map_or_else(Asking::default, |service| Asking {
            created: service.created,
            asked: asked(service, self.family),
        });
        let known = self.asking.get(name);
        if known.is_some_and(|known| known.created == wanted.created && known.asked == wanted.asked) {
            return;
        }
        let before = if wanted.asked.is_empty() {
            self.asking.remove(name)
        } else {
            self.asking.insert(name.clone(), wanted)
        };
        let after = self.asking.get(name);
        // Those that it had before are claimed anew as well: its age may differ (deleted and created again).
        let kept: HashMap<ClaimKey, Claimant> = if before.is_none() {
            HashMap::new()
        } else {
            after.into_iter().flat_map(|after| after.claims(name)).collect()
        };
        for (key, claimant) in before.iter().flat_map(|before| before.claims(name)) {
            if kept.get(&key) != Some(&claimant) {
                self.claims.release(&key, &claimant, moved);
            }
        }
        for (key, claimant) in after.into_iter().flat_map(|after| after.claims(name)) {
            moved.extend(self.kept.get(&key).filter(|keeper| *keeper != name).cloned());
            self.claims.claim(key, claimant, moved);
        }
    }

    fn note_conflicts(&mut self, work: &HashSet<ServiceName>, news: &mut Vec<Conflict>) {
        if self.claims.contended() == 0 && self.lost.is_empty() {
            return;
        }
        for name in work {
            let known = self.lost.remove(name).unwrap_or_default();
            self.conflicts -= known.iter().map(|conflict| conflict.count).sum::<usize>();
            let mut lost: HashMap<&ServiceName, Conflict> = HashMap::new();
            for asked in self.asked(name).iter().filter(|asked| asked.counts) {
                let first = asked.key();
                let Some(winner) = self.claims.winner(&first).filter(|winner| *winner != name) else {
                    continue;
                };
                let conflict = || Conflict { service: name.clone(), winner: winner.clone(), first, count: 0 };
                lost.entry(winner).or_insert_with(conflict).count += 1;
            }
            let known: HashMap<&ServiceName, usize> =
                known.iter().map(|conflict| (&conflict.winner, conflict.count)).collect();
            let grew = |conflict: &&Conflict| {
                known.get(&conflict.winner).is_none_or(|known| *known < conflict.count)
            };
            news.extend(lost.values().filter(grew).cloned());
            let mut lost: Vec<Conflict> = lost.into_values().collect();
            lost.shrink_to_fit();
            self.conflicts += lost.iter().map(|conflict| conflict.count).sum::<usize>();
            if !lost.is_empty() {
                self.lost.insert(name.clone(), lost);
            }
        }
        // As a stable text: the largest first.
        news.sort_unstable_by(|a, b| {
            b.count.cmp(&a.count).then_with(|| (&a.service, &a.winner).cmp(&(&b.service, &b.winner)))
        });
    }
}
