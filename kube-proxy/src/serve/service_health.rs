//! Health check node ports: for every Service that has one, a server that says how many of its endpoints are here.
//!
//! One task owns all the servers. It is told what is wanted, opens and closes what differs, and tries again what
//! could not be bound; the numbers that are answered change without touching a server.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use http::{HeaderName, HeaderValue, Request, StatusCode};
use hyper::body::Incoming;
use proxy_core::{
    health::HealthCheck,
    model::{Family, ServiceName},
};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinError, JoinSet},
};

use super::{
    answer::{self, Answer},
    connections::Connections,
    server::{self, RETRY, Stack},
};
use crate::{
    api::events::{Event, Events},
    telemetry::{health::HealthState, metrics},
};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What is to be served.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) checks: HashMap<ServiceName, HealthCheck>,
    /// Addresses of this node, of both families; unspecified ones stand for all.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Wanted {
    /// What one family's engine knows, in place of what it knew.
    pub(crate) fn set_checks(&mut self, family: Family, of_family: &HashMap<ServiceName, HealthCheck>) {
        for check in self.checks.values_mut() {
            *local_mut(check, family) = None;
        }
        for (name, check) in of_family {
            let known = self.checks.entry(name.clone()).or_insert(HealthCheck {
                port: check.port,
                local_v4: None,
                local_v6: None,
            });
            known.port = check.port;
            *local_mut(known, family) = local(check, family);
        }
        self.checks.retain(|_, check| check.local_v4.is_some() || check.local_v6.is_some());
    }

    /// Where to listen in one family. Whether that is new.
    pub(crate) fn set_addresses(&mut self, family: Family, of_family: Vec<IpAddr>) -> bool {
        let known: Vec<IpAddr> =
            self.addresses.iter().copied().filter(|addr| Family::of(*addr) == family).collect();
        if known == of_family {
            return false;
        }
        self.addresses.retain(|addr| Family::of(*addr) != family);
        self.addresses.extend(of_family);
        true
    }
}

/// A listener: the Service that it answers for, and where.
type Key = (ServiceName, SocketAddr);

enum Open {
    Serving(AbortHandle),
    /// The reason was reported.
    Failed,
}

fn local_mut(check: &mut HealthCheck, family: Family) -> &mut Option<usize> {
    match family {
        Family::V4 => &mut check.local_v4,
        Family::V6 => &mut check.local_v6,
    }
}

/// How many endpoints are here; nothing where the Service is not of that family.
fn local(check: &HealthCheck, family: Family) -> Option<usize> {
    match family {
        Family::V4 => check.local_v4,
        Family::V6 => check.local_v6,
    }
}

/// The servers of all Services.
pub(crate) struct Servers {
    node: String,
    state: HealthState,
    events: Events,
    /// All of them share these.
    connections: Connections,
    counts: HashMap<(ServiceName, Family), Arc<AtomicUsize>>,
    open: HashMap<Key, Open>,
    /// What serves; each ends only when its listener breaks or it is stopped.
    tasks: JoinSet<(Key, io::Error)>,
}

impl Servers {
    pub(crate) fn new(node: &str, state: &HealthState, events: &Events, connections: &Connections) -> Self {
        Self {
            node: node.to_owned(),
            state: state.clone(),
            events: events.clone(),
            connections: connections.clone(),
            counts: HashMap::new(),
            open: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Follows `wanted` until its sender is gone.
    pub(crate) async fn run(mut self, mut wanted: watch::Receiver<Wanted>) {
        loop {
            let now = wanted.borrow_and_update().clone();
            let failed = self.follow(&now).await;
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() {
                    return;
                },
                Some(ended) = self.tasks.join_next() => self.note(ended),
                () = tokio::time::sleep(RETRY), if failed => {}
            }
        }
    }

    /// A listener broke: it is opened again. What it was stopped for is known.
    fn note(&mut self, ended: Result<(Key, io::Error), JoinError>) {
        match ended {
            Ok((key, error)) => {
                report(&self.node, &key.0, key.1, &error, &self.events);
                self.open.insert(key, Open::Failed);
            }
            Err(error) => {
                if let Ok(panic) = error.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }

    /// Opens and closes what differs. Whether something could not be opened.
    async fn follow(&mut self, wanted: &Wanted) -> bool {
        let is_wanted = |service: &ServiceName, address: &SocketAddr| {
            wanted.addresses.contains(&address.ip())
                && wanted.checks.get(service).is_some_and(|check| {
                    check.port == address.port() && local(check, Family::of(address.ip())).is_some()
                })
        };
        let unwanted = self.open.extract_if(|(service, address), _| !is_wanted(service, address));
        let closing: Vec<(Key, Open)> = unwanted.collect();
        let mut stopped = Vec::new();
        for ((service, address), open) in closing {
            if let Open::Serving(task) = open {
                tracing::debug!(%service, %address, "Closing healthcheck");
                task.abort();
                stopped.push(task);
            }
        }
        // What is opened next may need the same port, which is free only when the task is gone.
        while stopped.iter().any(|task| !task.is_finished())
            && let Some(ended) = self.tasks.join_next().await
        {
            self.note(ended);
        }
        self.counts.retain(|(service, _), _| wanted.checks.contains_key(service));
        for (service, check) in &wanted.checks {
            for family in Family::BOTH {
                let Some(local) = local(check, family) else { continue };
                let count = self.counts.entry((service.clone(), family)).or_default();
                count.store(local, Ordering::Relaxed);
                let count = Arc::clone(count);
                for ip in wanted.addresses.iter().filter(|ip| Family::of(**ip) == family) {
                    self.open(service, SocketAddr::new(*ip, check.port), &count);
                }
            }
        }
        let failed = self.open.values().filter(|open| matches!(open, Open::Failed)).count();
        metrics::health_check_node_ports(self.open.len() - failed, failed);
        failed > 0
    }

    fn open(&mut self, service: &ServiceName, address: SocketAddr, count: &Arc<AtomicUsize>) {
        let entry = self.open.entry((service.clone(), address));
        if let Entry::Occupied(open) = &entry
            && let Open::Serving(_) = open.get()
        {
            return;
        }
        match server::listen(address, Stack::Own) {
            Ok(listener) => {
                tracing::debug!(%service, %address, "Opening healthcheck");
                let handler = handler(service.clone(), Arc::clone(count), self.state.clone());
                let (connections, key) = (self.connections.clone(), (service.clone(), address));
                let task = self.tasks.spawn(async move {
                    let error = server::serve(listener, &connections, handler).await;
                    (key, error)
                });
                entry.insert_entry(Open::Serving(task));
            }
            Err(error) => {
                if matches!(entry, Entry::Vacant(_)) {
                    report(&self.node, service, address, &error, &self.events);
                }
                entry.insert_entry(Open::Failed);
            }
        }
    }
}

/// Once per listener, however often it is tried again.
fn report(node: &str, service: &ServiceName, address: SocketAddr, error: &io::Error, events: &Events) {
    tracing::error!(node, %service, %address, %error, "Failed to start healthcheck");
    events.send(Event::service_health_check_failed(
        service,
        format!(
            "node {node} failed to start healthcheck \"{service}\" on port {}: listen {address}: {error}",
            address.port()
        ),
    ));
}

pub(super) fn handler(
    service: ServiceName,
    count: Arc<AtomicUsize>,
    state: HealthState,
) -> impl Fn(Request<Incoming>) -> std::future::Ready<Answer> + Clone + Send + 'static {
    move |_| std::future::ready(respond(&service, count.load(Ordering::Relaxed), &state))
}

/// Any path, any method.
#[expect(clippy::disallowed_methods, reason = "the moment of the question")]
fn respond(service: &ServiceName, local: usize, state: &HealthState) -> Answer {
    let healthy = state.health(Instant::now()).healthy;
    let code = if local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{}\",\n\t\t\"name\": \"{}\"\n\t}},\n\t\"localEndpoints\": {local},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        service.namespace(),
        service.name()
    );
    answer::with_header(answer::json(code, body), WEIGHT, HeaderValue::from(local))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        api::events,
        serve::server::tests::{free_port, own_network, try_ask},
    };

    struct Rig {
        wanted: watch::Sender<Wanted>,
        state: HealthState,
        events: Events,
    }

    fn start() -> Rig {
        own_network();
        let (wanted, receiver) = watch::channel(Wanted::default());
        let state = HealthState::new(Duration::from_secs(60));
        let (events, _) = events::channel("node-1");
        let connections = Connections::new(100);
        tokio::spawn(Servers::new("node-1", &state, &events, &connections).run(receiver));
        Rig { wanted, state, events }
    }

    fn wanted(checks: &[(&str, u16, usize)], addresses: &[&str]) -> Wanted {
        Wanted {
            checks: checks
                .iter()
                .map(|&(name, port, local)| {
                    let (local_v4, local_v6) = (Some(local), Some(local + 1));
                    (ServiceName::new("ns", name), HealthCheck { port, local_v4, local_v6 })
                })
                .collect(),
            addresses: addresses.iter().map(|text| text.parse().expect("an address")).collect(),
        }
    }

    /// How often something is asked for that is not there yet: a minute and more.
    const TRIES: usize = 6_000;

    /// Asks until the answer is as expected.
    async fn eventually(address: SocketAddr, expected: &str) -> (String, String) {
        for _ in 0..TRIES {
            let answer = try_ask(address, "GET", "/any/path", "").await;
            if let Ok(answer) = answer
                && answer.0.starts_with(&format!("http/1.1 {expected}"))
            {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{address} never answered {expected}");
    }

    async fn eventually_closed(address: SocketAddr) {
        for _ in 0..TRIES {
            if tokio::net::TcpStream::connect(address).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{address} is still open");
    }

    #[tokio::test]
    async fn the_answer_is_byte_for_byte_that_of_kube_proxy() {
        let rig = start();
        let port = free_port();
        let address: SocketAddr = ([127, 0, 0, 1], port).into();
        rig.wanted.send_replace(wanted(&[("web", port, 2)], &["127.0.0.1"]));
        let (head, body) = eventually(address, "200").await;
        for line in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ] {
            assert!(head.contains(line), "{head}");
        }
        assert_eq!(
            body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        rig.wanted.send_replace(wanted(&[("web", port, 0)], &["127.0.0.1"]));
        let (head, _) = eventually(address, "503").await;
        assert!(head.contains("x-load-balancing-endpoint-weight: 0"), "{head}");
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the real server has the real clock")]
    async fn a_stuck_data_plane_fails_every_service_but_an_ineligible_node_does_not() {
        let rig = start();
        let port = free_port();
        rig.state.set_eligible(false);
        rig.wanted.send_replace(wanted(&[("web", port, 2)], &["127.0.0.1"]));
        eventually(([127, 0, 0, 1], port).into(), "200").await;
        rig.state.started(Family::V4, Instant::now());
        rig.state.queued(Family::V4, Instant::now() - Duration::from_secs(100));
        let (_, body) = eventually(([127, 0, 0, 1], port).into(), "503").await;
        assert!(body.contains("\"serviceProxyHealthy\": false"), "{body}");
    }

    #[tokio::test]
    async fn each_family_counts_its_own_endpoints_on_one_port() {
        let rig = start();
        let port = free_port();
        rig.wanted.send_replace(wanted(&[("web", port, 1)], &["0.0.0.0", "::"]));
        let (head, _) = eventually(([127, 0, 0, 1], port).into(), "200").await;
        assert!(head.contains("endpoint-weight: 1"), "{head}");
        let v6: SocketAddr = format!("[::1]:{port}").parse().expect("an address");
        let (head, _) = eventually(v6, "200").await;
        assert!(head.contains("endpoint-weight: 2"), "{head}");
    }

    #[tokio::test]
    async fn a_family_that_the_service_is_not_of_is_not_served() {
        let rig = start();
        let port = free_port();
        let v4: SocketAddr = ([127, 0, 0, 1], port).into();
        let v6: SocketAddr = format!("[::1]:{port}").parse().expect("an address");
        let dual = wanted(&[("web", port, 1)], &["0.0.0.0", "::"]);
        let mut single = dual.clone();
        for check in single.checks.values_mut() {
            check.local_v6 = None;
        }
        rig.wanted.send_replace(single.clone());
        eventually(v4, "200").await;
        eventually_closed(v6).await;
        rig.wanted.send_replace(dual);
        eventually(v6, "200").await;
        rig.wanted.send_replace(single);
        eventually_closed(v6).await;
        eventually(v4, "200").await;
    }

    #[tokio::test]
    async fn servers_follow_ports_addresses_and_services() {
        let rig = start();
        let (first, second) = (free_port(), free_port());
        rig.wanted.send_replace(wanted(&[("web", first, 1)], &["127.0.0.1"]));
        eventually(([127, 0, 0, 1], first).into(), "200").await;
        rig.wanted.send_replace(wanted(&[("web", second, 1)], &["127.0.0.1"]));
        eventually(([127, 0, 0, 1], second).into(), "200").await;
        eventually_closed(([127, 0, 0, 1], first).into()).await;
        rig.wanted.send_replace(wanted(&[("web", second, 1)], &["127.0.0.2"]));
        eventually(([127, 0, 0, 2], second).into(), "200").await;
        eventually_closed(([127, 0, 0, 1], second).into()).await;
        rig.wanted.send_replace(wanted(&[], &["127.0.0.2"]));
        eventually_closed(([127, 0, 0, 2], second).into()).await;
    }

    #[tokio::test]
    async fn a_port_passes_from_one_listener_to_the_next_without_a_failure() {
        let rig = start();
        let port = free_port();
        rig.wanted.send_replace(wanted(&[("web", port, 1)], &["127.0.0.1"]));
        eventually(([127, 0, 0, 1], port).into(), "200").await;
        for (service, address) in [("web", "0.0.0.0"), ("other", "127.0.0.1"), ("web", "127.0.0.1")] {
            rig.wanted.send_replace(wanted(&[(service, port, 1)], &[address]));
            for _ in 0..TRIES {
                let (_, body) = eventually(([127, 0, 0, 1], port).into(), "200").await;
                if body.contains(&format!("\"name\": \"{service}\"")) {
                    break;
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(rig.events.take_waiting(), [], "nothing failed");
    }

    #[tokio::test]
    async fn a_taken_port_is_an_event_and_harms_no_other() {
        let rig = start();
        let taken = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let port = taken.local_addr().expect("an address").port();
        let other = free_port();
        rig.wanted
            .send_replace(wanted(&[("web", port, 1), ("other", other, 1)], &["127.0.0.1", "127.0.0.2"]));
        eventually(([127, 0, 0, 1], other).into(), "200").await;
        eventually(([127, 0, 0, 2], port).into(), "200").await;
        let waiting = rig.events.take_waiting();
        let [event] = &waiting[..] else { panic!("not once: {waiting:?}") };
        assert_eq!(event.reason, "FailedToStartServiceHealthcheck");
        assert!(
            event
                .note
                .starts_with(&format!("node node-1 failed to start healthcheck \"ns/web\" on port {port}: ")),
            "{}",
            event.note
        );
        drop(taken);
        rig.wanted.send_replace(wanted(&[("web", port, 1)], &["127.0.0.1", "127.0.0.2"]));
        eventually(([127, 0, 0, 1], port).into(), "200").await;
    }
}
