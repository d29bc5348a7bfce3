//! Endpoints that are gone but may still have connections: weight 0 now, deleted when idle or after a limit.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use ipvs_netlink::ServiceKey;

use crate::{plan::journal::Journal, schema::op::Reaped};

/// The first look for connections comes soon, later ones ever more rarely.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// A virtual server that is to go holds an address that may be somebody else's by now: it is looked at sooner, and
/// goes at the latest after this.
const FIRST_LOOK_AT_SERVER: Duration = Duration::from_secs(1);
const SERVER_LIMIT: Duration = Duration::from_secs(120);
const RAREST_LOOK: Duration = Duration::from_secs(60);

/// A virtual server with destinations to get rid of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Draining {
    /// Address and port, and when the endpoint went.
    destinations: Vec<((IpAddr, u16), Instant)>,
    /// Since when the virtual server itself is to go.
    server: Option<Instant>,
    next: Instant,
    wait: Duration,
}

/// A piece of work that is due.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) key: ServiceKey,
    pub(crate) destinations: Box<[(IpAddr, u16)]>,
    pub(crate) force: bool,
    pub(crate) server: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Drains {
    servers: Journal<ServiceKey, Draining>,
    /// Hints of when to look at what; an entry whose instant is not the server's `next` is out of date.
    queue: BinaryHeap<Reverse<(Instant, ServiceKey)>>,
}

impl Drains {
    pub(crate) fn get(&self, key: &ServiceKey) -> Option<&Draining> {
        self.servers.get(key)
    }

    /// How many destinations drain.
    pub(crate) fn destinations(&self) -> usize {
        self.servers.iter().map(|(_, draining)| draining.destinations.len()).sum()
    }

    /// Destinations begin to drain.
    pub(crate) fn begin(&mut self, key: ServiceKey, gone: &[(IpAddr, u16)], now: Instant) {
        if gone.is_empty() {
            return;
        }
        let mut draining = self.servers.get(&key).cloned().unwrap_or_else(|| Draining {
            destinations: Vec::new(),
            server: None,
            next: now + FIRST_LOOK,
            wait: FIRST_LOOK,
        });
        let known: HashSet<(IpAddr, u16)> = draining.destinations.iter().map(|(at, _)| *at).collect();
        let new = gone.iter().filter(|at| !known.contains(*at));
        draining.destinations.extend(new.map(|at| (*at, now)));
        // A new one is looked at soon although older ones are looked at rarely by now.
        draining.wait = FIRST_LOOK;
        draining.next = draining.next.min(now + FIRST_LOOK);
        self.put(key, draining);
    }

    /// A destination is wanted again; returns whether it was draining.
    pub(crate) fn restore(&mut self, key: ServiceKey, addr: IpAddr, port: u16) -> bool {
        let Some(draining) = self.servers.get(&key).filter(|draining| draining.holds(addr, port)) else {
            return false;
        };
        let mut draining = draining.clone();
        draining.destinations.retain(|(at, _)| *at != (addr, port));
        self.put(key, draining);
        true
    }

    /// The virtual server is deleted with everything in it.
    pub(crate) fn forget(&mut self, key: ServiceKey) {
        if self.servers.get(&key).is_some() {
            self.servers.set(key, None);
        }
    }

    /// The virtual server itself is to go.
    pub(crate) fn end_server(&mut self, key: ServiceKey, now: Instant) {
        if let Some(draining) = self.servers.get(&key).filter(|draining| draining.server.is_none()) {
            let draining = Draining {
                server: Some(now),
                next: now + FIRST_LOOK_AT_SERVER,
                wait: FIRST_LOOK_AT_SERVER,
                ..draining.clone()
            };
            self.put(key, draining);
        }
    }

    /// The virtual server is to stay after all.
    pub(crate) fn keep_server(&mut self, key: ServiceKey) {
        if let Some(draining) = self.servers.get(&key).filter(|draining| draining.server.is_some()) {
            let draining = Draining { server: None, ..draining.clone() };
            self.put(key, draining);
        }
    }

    /// Takes in what the executor reaped. Returns whether the virtual server was to go and has gone.
    pub(crate) fn reaped(&mut self, reaped: &Reaped) -> Option<ServiceKey> {
        match *reaped {
            Reaped::Destination(key, addr, port) => {
                self.restore(key, addr, port);
                None
            }
            Reaped::Server(key) => {
                let went = self.servers.get(&key).is_some_and(Draining::ends_server);
                self.servers.set(key, None);
                went.then_some(key)
            }
        }
    }

    /// What to look at now; each is looked at again later unless it is reported as reaped.
    ///
    /// By force only beyond `limit`: a connection that is in use to a pod that lives is nobody's to end.
    pub(crate) fn due(&mut self, now: Instant, limit: Option<Duration>) -> Vec<Due> {
        let mut due = Vec::new();
        while let Some(Reverse((at, key))) = self.queue.peek().copied() {
            if at > now {
                break;
            }
            self.queue.pop();
            let Some(draining) = self.servers.get(&key).filter(|draining| draining.next == at) else {
                continue;
            };
            let mut draining = draining.clone();
            draining.wait = (draining.wait * 2).min(RAREST_LOOK);
            draining.next = now + draining.wait;
            let late = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
            let server_limit = limit.map_or(SERVER_LIMIT, |limit| limit.min(SERVER_LIMIT));
            let server_is_late = draining.server.is_some_and(|since| late(since, server_limit));
            let (expired, waiting): (Vec<_>, Vec<_>) = draining
                .destinations
                .iter()
                .partition(|(_, since)| server_is_late || limit.is_some_and(|limit| late(*since, limit)));
            let bare = draining.destinations.is_empty();
            for (destinations, force) in [(expired, true), (waiting, false)] {
                // Without destinations there is still the server to delete: once, not twice.
                if !destinations.is_empty() || (bare && !force) {
                    let destinations = destinations.into_iter().map(|(at, _)| at).collect();
                    due.push(Due { key, destinations, force, server: draining.ends_server() });
                }
            }
            self.put(key, draining);
        }
        due
    }

    /// When `due` next has something.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    pub(crate) fn commit(&mut self) {
        self.servers.commit();
    }

    pub(crate) fn roll_back(&mut self) {
        self.servers.roll_back();
        self.queue = self.servers.iter().map(|(key, draining)| Reverse((draining.next, *key))).collect();
    }

    fn put(&mut self, key: ServiceKey, draining: Draining) {
        if draining.destinations.is_empty() && !draining.ends_server() {
            self.servers.set(key, None);
            return;
        }
        if self.servers.get(&key).is_none_or(|before| before.next != draining.next) {
            self.queue.push(Reverse((draining.next, key)));
        }
        self.servers.set(key, Some(draining));
    }
}

impl Draining {
    /// The virtual server itself is to go after its last destination.
    pub(crate) fn ends_server(&self) -> bool {
        self.server.is_some()
    }

    /// Addresses and ports of what drains.
    pub(crate) fn all(&self) -> impl Iterator<Item = (IpAddr, u16)> {
        self.destinations.iter().map(|(at, _)| *at)
    }

    pub(crate) fn holds(&self, addr: IpAddr, port: u16) -> bool {
        self.destinations.iter().any(|(at, _)| *at == (addr, port))
    }
}

#[cfg(test)]
mod tests {
    use ipvs_netlink::Protocol;

    use super::*;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(600));

    fn key() -> ServiceKey {
        ServiceKey::new([10, 96, 0, 1].into(), 80, Protocol::Tcp)
    }

    fn addr(last: u8) -> IpAddr {
        [10, 1, 0, last].into()
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do as the origin of virtual time")]
    fn start() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_draining_endpoint_is_looked_at_ever_more_rarely_and_by_force_at_the_limit() {
        let mut drains = Drains::default();
        let start = start();
        drains.begin(key(), &[(addr(2), 80)], start);
        let mut looks = Vec::new();
        while let Some(at) = drains.next() {
            let [due] = drains.due(at, LIMIT).try_into().expect("one server drains");
            looks.push((at - start).as_secs());
            assert_eq!(*due.destinations, [(addr(2), 80)]);
            if due.force {
                drains.reaped(&Reaped::Destination(key(), addr(2), 80));
                drains.due(at + RAREST_LOOK, LIMIT);
            }
        }
        assert_eq!(looks[..5], [5, 15, 35, 75, 135]);
        let last = *looks.last().expect("looked at");
        assert!((600..=660).contains(&last), "{last}");
        assert_eq!(drains.get(&key()), None);
    }

    #[test]
    fn without_a_limit_an_endpoint_keeps_its_connections_for_ever() {
        let mut drains = Drains::default();
        let start = start();
        drains.begin(key(), &[(addr(2), 80)], start);
        for _ in 0..1000 {
            let at = drains.next().expect("it is looked at again");
            assert!(drains.due(at, None).iter().all(|due| !due.force));
        }
        assert!(drains.next().expect("again") - start > Duration::from_secs(12 * 3600));
    }

    #[test]
    fn an_endpoint_that_returns_is_left_alone() {
        let mut drains = Drains::default();
        let start = start();
        drains.begin(key(), &[(addr(2), 80)], start);
        drains.begin(key(), &[(addr(3), 80)], start);
        assert!(drains.restore(key(), addr(2), 80));
        assert!(!drains.restore(key(), addr(2), 80));
        let due = drains.due(start + FIRST_LOOK, LIMIT);
        assert_eq!(due.len(), 1);
        assert_eq!(*due[0].destinations, [(addr(3), 80)]);
    }

    #[test]
    fn what_was_rolled_back_drains_as_before() {
        let mut drains = Drains::default();
        let start = start();
        drains.begin(key(), &[(addr(2), 80)], start);
        drains.commit();
        drains.restore(key(), addr(2), 80);
        assert_eq!(drains.due(start + FIRST_LOOK, LIMIT), []);
        drains.roll_back();
        assert_eq!(drains.due(start + FIRST_LOOK, LIMIT).len(), 1);
    }

    #[test]
    fn a_server_that_is_to_go_does_not_wait_for_the_limit_of_endpoints() {
        let mut drains = Drains::default();
        let start = start();
        drains.begin(key(), &[(addr(2), 80)], start);
        drains.end_server(key(), start);
        let looks = std::iter::from_fn(|| {
            let now = drains.next()?;
            Some((now, drains.due(now, LIMIT)))
        });
        let forced = looks.take(20).find(|(_, due)| due.iter().any(|due| due.force && due.server));
        let (at, _) = forced.expect("it goes at last");
        assert!(at - start <= SERVER_LIMIT + RAREST_LOOK, "{:?}", at - start);
    }

    #[test]
    fn a_server_that_is_to_go_is_reported_once_its_last_endpoint_went() {
        let mut drains = Drains::default();
        let start = start();
        drains.begin(key(), &[(addr(2), 80)], start);
        drains.end_server(key(), start);
        assert_eq!(drains.next(), Some(start + FIRST_LOOK_AT_SERVER));
        assert_eq!(drains.reaped(&Reaped::Destination(key(), addr(2), 80)), None);
        assert!(drains.get(&key()).is_some(), "the server itself is still owed");
        assert_eq!(drains.reaped(&Reaped::Server(key())), Some(key()));
        assert_eq!(drains.get(&key()), None);
    }
}
