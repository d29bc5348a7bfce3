//! Which flows a sync makes stale: by example, and against a table of flows that clients began at any time.

mod support;

use std::{collections::HashSet, net::IpAddr, time::Duration};

use proptest::{collection::vec, prelude::*};
use proxy_core::{
    conntrack::{Flow, FlowRule, FlowTracker, NodePortDestinations, StaleFlows, untranslated},
    environment::{Environment, EnvironmentSettings, NodeFacts, NodePortSettings},
    model::{
        Endpoint, Family, Input, Protocol, Service, ServicePort, Slice, SliceName, SlicePort, TrafficPolicy,
    },
};
use support::{LONG, Rig, ip, name, service, settings, slice};

/// The engine and a tracker that listens to it; IPv4.
struct Tracked {
    rig: Rig,
    tracker: FlowTracker,
}

impl Tracked {
    fn new(tcp: bool) -> Self {
        Self { rig: Rig::listed([]), tracker: FlowTracker::new(tcp) }
    }

    /// Rules of everything that was owed.
    fn rules(&mut self) -> Vec<FlowRule> {
        let mut rules = Vec::new();
        while let Some(at) = self.rig.engine.next_wakeup() {
            self.rig.now = self.rig.now.max(at);
            for report in self.rig.sync() {
                let instances = self.rig.engine.instances();
                let instance = instances.iter().find(|instance| instance.family() == report.family);
                let instance = instance.expect("there is one of each family");
                rules.extend(self.tracker.rules(&report, self.rig.engine.store(), instance));
            }
        }
        self.rig.pass(LONG);
        rules
    }

    fn stale(&mut self, inputs: impl IntoIterator<Item = Input>) -> StaleFlows {
        inputs.into_iter().for_each(|input| self.rig.put(input));
        let mut stale = StaleFlows::default();
        self.rules().into_iter().for_each(|rule| stale.add(rule));
        stale
    }
}

/// A DNS Service over UDP port 53 at 172.30.0.1, with a NodePort.
fn dns() -> Service {
    let port = ServicePort { name: "p".into(), protocol: Protocol::Udp, port: 53, node_port: Some(30053) };
    Service { cluster_ips: [ip("172.30.0.1")].into(), ports: [port].into(), ..service("dns", 1) }
}

fn dns_slice(last: &[u8]) -> Slice {
    let port = SlicePort { name: "p".into(), protocol: Protocol::Udp, port: 5353 };
    Slice { ports: [port].into(), ..slice("dns", last) }
}

fn with_state(mut slice: Slice, of: usize, ready: bool, serving: bool, terminating: bool) -> Input {
    let endpoint = &mut slice.endpoints[of];
    (endpoint.ready, endpoint.serving, endpoint.terminating) = (ready, serving, terminating);
    Input::Slice(slice.into())
}

fn at(text: &str) -> (IpAddr, u16) {
    let addr: std::net::SocketAddr = text.parse().expect("an address and a port");
    (addr.ip(), addr.port())
}

fn flow(destination: &str, replier: &str) -> Flow {
    Flow {
        protocol: Protocol::Udp,
        client: at("203.0.113.1:2000"),
        destination: at(destination),
        replier: at(replier),
        unanswered: true,
    }
}

fn node() -> NodePortDestinations {
    NodePortDestinations::of(&environment(settings()))
}

fn environment(settings: EnvironmentSettings) -> Environment {
    let interface_addresses = ["127.0.0.1", "192.168.0.10", "10.0.0.254"].map(ip).into();
    let node_ips = [ip("192.168.0.10")].into();
    settings.resolve(Family::V4, &NodeFacts { interface_addresses, node_ips, ..NodeFacts::default() })
}

#[track_caller]
fn assert_stale(stale: &StaleFlows, flows: &[(&str, &str, bool)]) {
    for (destination, replier, expected) in flows {
        let contained = stale.contains(&flow(destination, replier), &node());
        assert_eq!(contained, *expected, "{destination} answered by {replier}");
    }
}

#[test]
fn flows_older_than_the_process_are_judged_at_the_start() {
    let stale =
        Tracked::new(false).stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    assert_stale(
        &stale,
        &[
            ("172.30.0.1:53", "10.0.0.1:5353", false),
            ("172.30.0.1:53", "10.0.0.9:5353", true),
            ("172.30.0.1:53", "10.0.0.1:53", true),
            ("172.30.0.1:53", "172.30.0.1:53", true),
            ("172.30.0.1:54", "10.0.0.9:5353", false),
            ("192.168.0.10:30053", "10.0.0.9:5353", true),
            ("192.168.0.10:30053", "192.168.0.10:30053", true),
            ("192.168.0.10:30053", "10.0.0.1:5353", false),
        ],
    );
}

#[test]
fn a_flow_to_another_host_on_the_number_of_a_node_port_is_not_ours() {
    let stale =
        Tracked::new(false).stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    assert_stale(
        &stale,
        &[("203.0.113.5:30053", "203.0.113.5:30053", false), ("127.0.0.1:30053", "127.0.0.1:30053", false)],
    );
}

#[test]
fn node_port_destinations_follow_the_configuration() {
    let only = |addresses: &[&str]| {
        NodePortDestinations::of(&{
            let node_ports = NodePortSettings::Within(
                addresses.iter().map(|net| net.parse().expect("a network")).collect(),
            );
            environment(EnvironmentSettings { node_ports, ..settings() })
        })
    };
    assert!(node().contains(ip("10.0.0.254")));
    assert!(!node().contains(ip("10.0.0.253")));
    assert!(!only(&["192.168.0.0/16"]).contains(ip("10.0.0.254")));
    assert!(only(&["192.168.0.0/16"]).contains(ip("192.168.0.10")));
    let localhost = environment(EnvironmentSettings { localhost_node_ports: true, ..settings() });
    assert!(NodePortDestinations::of(&localhost).contains(ip("127.0.0.9")));
}

#[test]
fn an_endpoint_that_goes_takes_its_flows_with_it() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1, 2]).into())]);
    let stale = tracked.stale([Input::Slice(dns_slice(&[1]).into())]);
    assert_stale(
        &stale,
        &[("172.30.0.1:53", "10.0.0.2:5353", true), ("172.30.0.1:53", "10.0.0.1:5353", false)],
    );
}

#[test]
fn an_endpoint_that_terminates_keeps_its_flows_while_it_serves() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1, 2]).into())]);
    let stale = tracked.stale([with_state(dns_slice(&[1, 2]), 1, false, true, true)]);
    assert!(stale.is_empty(), "nothing went, so nothing is read");
    // Its end changes no route, for it had left that before: it must be noticed all the same.
    let stale = tracked.stale([with_state(dns_slice(&[1, 2]), 1, false, false, true)]);
    assert_stale(
        &stale,
        &[("172.30.0.1:53", "10.0.0.2:5353", true), ("172.30.0.1:53", "10.0.0.1:5353", false)],
    );
}

#[test]
fn an_endpoint_published_though_not_ready_keeps_its_flows() {
    let stale = Tracked::new(false)
        .stale([Input::Service(dns().into()), with_state(dns_slice(&[1]), 0, true, false, false)]);
    assert_stale(&stale, &[("172.30.0.1:53", "10.0.0.1:5353", false)]);
}

#[test]
fn a_service_that_loses_all_endpoints_loses_all_flows() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    let stale = tracked.stale([Input::SliceGone(SliceName::new("ns", "dns-1"))]);
    assert_stale(
        &stale,
        &[("172.30.0.1:53", "10.0.0.1:5353", true), ("192.168.0.10:30053", "10.0.0.1:5353", true)],
    );
}

#[test]
fn a_deleted_service_loses_what_was_translated_and_nothing_else() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    let stale = tracked.stale([Input::ServiceGone(name("dns"))]);
    assert_stale(
        &stale,
        &[
            ("172.30.0.1:53", "10.0.0.1:5353", true),
            ("192.168.0.10:30053", "10.0.0.1:5353", true),
            ("192.168.0.10:30053", "192.168.0.10:30053", false),
            ("203.0.113.5:30053", "10.0.0.1:5353", false),
        ],
    );
}

#[test]
fn a_service_that_changes_itself_only_is_noticed() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    let mut other_port = dns();
    other_port.ports[0].port = 54;
    let stale = tracked.stale([Input::Service(other_port.into())]);
    assert_stale(
        &stale,
        &[
            ("172.30.0.1:53", "10.0.0.1:5353", true),
            ("172.30.0.1:53", "172.30.0.1:53", false),
            ("172.30.0.1:54", "172.30.0.1:54", true),
        ],
    );
    let mut other_protocol = dns();
    other_protocol.ports[0].protocol = Protocol::Tcp;
    let stale = tracked.stale([Input::Service(other_protocol.into())]);
    assert_stale(&stale, &[("172.30.0.1:54", "10.0.0.1:5353", true)]);
    assert_eq!(stale.protocols().collect::<Vec<_>>(), [Protocol::Udp]);
}

#[test]
fn an_address_that_passes_to_another_service_keeps_the_flows_of_shared_endpoints() {
    let external = |mut service: Service, number| {
        service.external_ips = [ip("203.0.113.1")].into();
        service.created = number;
        service.ports[0].node_port = None;
        Input::Service(service.into())
    };
    let other = || Service { name: name("other"), cluster_ips: [ip("172.30.0.2")].into(), ..dns() };
    let other_slice =
        Slice { name: SliceName::new("ns", "o-1"), service: name("other"), ..dns_slice(&[1, 3]) };
    let mut tracked = Tracked::new(false);
    let slices = [Input::Slice(dns_slice(&[1, 2]).into()), Input::Slice(other_slice.into())];
    tracked.stale(slices.into_iter().chain([external(dns(), 1), external(other(), 2)]));
    let stale = tracked.stale([Input::ServiceGone(name("dns"))]);
    assert_stale(
        &stale,
        &[
            ("203.0.113.1:53", "10.0.0.1:5353", false),
            ("203.0.113.1:53", "10.0.0.2:5353", true),
            ("172.30.0.1:53", "10.0.0.1:5353", true),
        ],
    );
}

#[test]
fn a_host_network_endpoint_at_the_frontends_own_address_is_not_untranslated() {
    let mut service = dns();
    service.external_ips = [ip("192.168.0.10")].into();
    let mut slice = dns_slice(&[1]);
    slice.endpoints[0].addr = ip("192.168.0.10");
    slice.ports[0].port = 53;
    let stale = Tracked::new(false).stale([Input::Service(service.into()), Input::Slice(slice.into())]);
    assert_stale(&stale, &[("192.168.0.10:53", "192.168.0.10:53", false)]);
}

#[test]
fn an_endpoint_that_comes_is_known_to_rules_that_are_still_pending() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1, 2]).into())]);
    let mut stale = tracked.stale([Input::Slice(dns_slice(&[1]).into())]);
    tracked.rig.put(Input::Slice(dns_slice(&[1, 2]).into()));
    let rules = tracked.rules();
    assert!(!rules.is_empty() && rules.iter().all(|rule| !rule.urgent));
    let mut nothing_pending = StaleFlows::default();
    rules.iter().for_each(|rule| nothing_pending.add(rule.clone()));
    assert!(nothing_pending.is_empty(), "an endpoint that comes is no reason to read anything");
    let before = stale.len();
    rules.iter().for_each(|rule| stale.refresh(rule));
    assert_eq!(stale.len(), before);
    assert_stale(&stale, &[("172.30.0.1:53", "10.0.0.2:5353", false)]);
}

#[test]
fn a_pass_that_failed_does_not_replace_newer_rules() {
    let mut tracked = Tracked::new(false);
    let earlier = tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    let mut later = tracked.stale([Input::ServiceGone(name("dns"))]);
    later.add_earlier(earlier);
    assert_stale(
        &later,
        &[("172.30.0.1:53", "172.30.0.1:53", false), ("172.30.0.1:53", "10.0.0.1:5353", true)],
    );
}

#[test]
fn tcp_is_left_alone_unless_it_is_asked_for() {
    let tcp = |destination, replier| Flow {
        client: at("203.0.113.1:2000"),
        protocol: Protocol::Tcp,
        unanswered: false,
        ..flow(destination, replier)
    };
    let untranslated = tcp("172.30.0.1:80", "172.30.0.1:80");
    let opening = Flow { unanswered: true, ..untranslated };
    for asked in [false, true] {
        let mut tracked = Tracked::new(asked);
        let stale = tracked
            .stale([Input::Service(service("web", 1).into()), Input::Slice(slice("web", &[1, 2]).into())]);
        assert!(stale.contains(&opening, &node()), "it repeats its first packet past the rules");
        assert!(!stale.contains(&untranslated, &node()), "somebody serves it");
        let stale = tracked.stale([Input::Slice(slice("web", &[1]).into())]);
        assert_eq!(stale.contains(&tcp("172.30.0.1:80", "10.0.0.2:8080"), &node()), asked);
        assert!(!stale.contains(&tcp("172.30.0.1:80", "10.0.0.1:8080"), &node()));
        assert!(!stale.contains(&untranslated, &node()));
        let stale = tracked.stale([Input::ServiceGone(name("web"))]);
        assert!(!stale.contains(&tcp("172.30.0.1:80", "10.0.0.1:8080"), &node()), "its endpoint is not gone");
    }
}

#[test]
fn after_a_repair_every_frontend_is_looked_at_again() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    tracked.rig.v4().damaged = true;
    tracked.rig.engine.check_drift(tracked.rig.now);
    let stale = tracked.stale([]);
    assert_stale(
        &stale,
        &[("172.30.0.1:53", "172.30.0.1:53", true), ("172.30.0.1:53", "10.0.0.1:5353", false)],
    );
}

#[test]
fn a_sync_that_failed_makes_nothing_stale() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    tracked.rig.v4().faults.busy = 1;
    tracked.rig.put(Input::ServiceGone(name("dns")));
    let report = tracked.rig.sync().remove(0);
    assert!(report.error.is_some() && report.services.is_empty());
    let instance = &tracked.rig.engine.instances()[0];
    assert!(tracked.tracker.rules(&report, tracked.rig.engine.store(), instance).is_empty());
    let stale = tracked.stale([]);
    assert_stale(&stale, &[("172.30.0.1:53", "10.0.0.1:5353", true)]);
}

/// What happens to the cluster of two UDP Services, which compete for an external address.
#[derive(Debug, Clone)]
enum Event {
    Service {
        which: u8,
        port: u16,
        external: bool,
        node_port: bool,
    },
    ServiceGone(u8),
    /// For each of four endpoints: absent, ready, draining or finished.
    Slice {
        which: u8,
        states: [u8; 4],
    },
    /// The next transactions fail.
    Busy(u32),
    /// Everything pending is read and deleted.
    Pass,
}

fn event() -> impl Strategy<Value = Event> {
    let service = (0..2u8, 53..55u16, any::<bool>(), any::<bool>());
    prop_oneof![
        3 => service.prop_map(|(which, port, external, node_port)| Event::Service { which, port, external, node_port }),
        1 => (0..2u8).prop_map(Event::ServiceGone),
        4 => (0..2u8, any::<[u8; 4]>()).prop_map(|(which, states)| Event::Slice { which, states: states.map(|s| s % 4) }),
        1 => (1..3u32).prop_map(Event::Busy),
        2 => Just(Event::Pass),
    ]
}

fn put(event: &Event, rig: &mut Rig) {
    let name_of = |which: u8| format!("s{which}");
    match event {
        Event::Service { which, port, external, node_port } => {
            let port = ServicePort {
                name: "p".into(),
                protocol: Protocol::Udp,
                port: *port,
                node_port: node_port.then_some(30053 + u16::from(*which)),
            };
            rig.put(Input::Service(
                Service {
                    ports: [port].into(),
                    external_ips: if *external { [ip("203.0.113.1")].into() } else { [].into() },
                    cluster_ips: [IpAddr::from([172, 30, 0, 1 + which])].into(),
                    ..service(&name_of(*which), 1 + which)
                }
                .into(),
            ));
        }
        Event::ServiceGone(which) => rig.put(Input::ServiceGone(name(&name_of(*which)))),
        Event::Slice { which, states } => {
            let mut slice = Slice {
                ports: [SlicePort { name: "p".into(), protocol: Protocol::Udp, port: 5353 }].into(),
                ..slice(&name_of(*which), &[1, 2, 3, 4])
            };
            let endpoints = slice.endpoints.iter().zip(states).filter(|(_, state)| **state > 0);
            slice.endpoints = endpoints
                .map(|(endpoint, state)| Endpoint {
                    ready: *state == 1,
                    serving: *state < 3,
                    terminating: *state > 1,
                    ..endpoint.clone()
                })
                .collect();
            rig.put(Input::Slice(slice.into()));
        }
        Event::Busy(times) => rig.v4().faults.busy = *times,
        Event::Pass => {}
    }
}

/// Every destination that a client of these Services might use.
fn destinations() -> Vec<(IpAddr, u16)> {
    let hosts = ["172.30.0.1", "172.30.0.2", "203.0.113.1", "192.168.0.10", "198.51.100.77"];
    let ports = [53, 54, 30053, 30054];
    hosts.iter().flat_map(|host| ports.map(|port| (ip(host), port))).collect()
}

/// What the kernel's rules do with a first packet: to which endpoints it may go; `None`: they do not know it.
fn programmed(rig: &Rig, (addr, port): (IpAddr, u16)) -> Option<Vec<(IpAddr, u16)>> {
    let kernel = rig.v4();
    let local = addr == ip("192.168.0.10");
    let mut routes = kernel.routes.values();
    let route = routes.find(|route| {
        let answers = |at: Option<IpAddr>| at.map_or(local, |at| at == addr);
        route.frontends.iter().any(|frontend| answers(frontend.at) && frontend.port == port)
    })?;
    Some(route.cluster.iter().map(|target| (target.addr, target.port)).collect())
}

/// Destination and replier of each.
type Flows = HashSet<((IpAddr, u16), (IpAddr, u16))>;

/// Clients begin a flow to every destination that lets them.
fn begin_flows(rig: &Rig, flows: &mut Flows) {
    for destination in destinations() {
        match programmed(rig, destination) {
            None => drop(flows.insert((destination, destination))),
            Some(targets) => flows.extend(targets.into_iter().map(|target| (destination, target))),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_is_what_may_go_on(events in vec(event(), 1..40)) {
        let mut tracked = Tracked::new(false);
        let mut pending = StaleFlows::default();
        let mut flows = Flows::new();
        begin_flows(&tracked.rig, &mut flows);
        for event in events {
            put(&event, &mut tracked.rig);
            // A failing kernel: some of it is still owed when clients begin new flows.
            let now = tracked.rig.now;
            for report in tracked.rig.engine.sync_due(&mut || now) {
                let instances = tracked.rig.engine.instances();
                let instance = instances.iter().find(|instance| instance.family() == report.family);
                let rules = tracked.tracker.rules(
                    &report,
                    tracked.rig.engine.store(),
                    instance.expect("there is one of each family"),
                );
                rules.into_iter().for_each(|rule| pending.add(rule));
            }
            tracked.rig.pass(Duration::from_secs(20));
            begin_flows(&tracked.rig, &mut flows);
            if matches!(event, Event::Pass) {
                let stale = std::mem::take(&mut pending);
                flows.retain(|(destination, replier)| {
                    let flow = Flow { protocol: Protocol::Udp, client: at("203.0.113.1:2000"), destination: *destination, replier: *replier, unanswered: true };
                    !stale.contains(&flow, &node())
                });
            }
        }
        tracked.rules().into_iter().for_each(|rule| pending.add(rule));
        let before = flows.clone();
        flows.retain(|(destination, replier)| {
            let flow = Flow { protocol: Protocol::Udp, client: at("203.0.113.1:2000"), destination: *destination, replier: *replier, unanswered: true };
            !pending.contains(&flow, &node())
        });
        for (destination, replier) in before {
            let stays = match serving_now(&tracked.rig, destination) {
                Some(serving) => serving.contains(&replier),
                None => destination == replier,
            };
            prop_assert_eq!(flows.contains(&(destination, replier)), stays, "{:?} {:?}", destination, replier);
        }
    }
}

/// Endpoints that serve the frontend which is programmed at this destination, terminating or not.
fn serving_now(rig: &Rig, destination: (IpAddr, u16)) -> Option<Vec<(IpAddr, u16)>> {
    programmed(rig, destination)?;
    let kernel = rig.v4();
    let (port, _) = kernel.routes.iter().find(|(_, route)| {
        let local = destination.0 == ip("192.168.0.10");
        let answers = |at: Option<IpAddr>| at.map_or(local, |at| at == destination.0);
        route.frontends.iter().any(|frontend| answers(frontend.at) && frontend.port == destination.1)
    })?;
    let entry = rig.engine.store().entry(&port.service)?;
    let endpoints = entry.slices.iter().flat_map(|slice| slice.endpoints.iter());
    Some(endpoints.filter(|endpoint| endpoint.serving).map(|endpoint| (endpoint.addr, 5353)).collect())
}

/// Every way in which a frontend begins to translate somebody's packets: what began before, untranslated, is looked for.
#[test]
fn whatever_begins_to_be_translated_is_looked_at() {
    let web = |protocol| {
        let port = ServicePort { name: "p".into(), protocol, port: 53, node_port: Some(30053) };
        let load_balancer_ips = [ip("198.51.100.1")].into();
        Service { ports: [port].into(), load_balancer_ips, ..dns() }
    };
    let local = |service: Service| Service { external_policy: TrafficPolicy::Local, ..service };
    let inside = |service: Service| Service { internal_policy: TrafficPolicy::Local, ..service };
    let ranges = |service: Service, range: &str| Service {
        source_ranges: Some([range.parse().expect("a network")].into()),
        ..service
    };
    const CLUSTER: &str = "172.30.0.1:53";
    const VIP: &str = "198.51.100.1:53";
    const NODE_PORT: &str = "192.168.0.10:30053";
    for protocol in [Protocol::Udp, Protocol::Sctp, Protocol::Tcp] {
        let slice = |last: &[u8], here: bool| {
            let mut slice = dns_slice(last);
            slice.ports[0].protocol = protocol;
            slice.endpoints.iter_mut().for_each(|endpoint| endpoint.local = here);
            Input::Slice(slice.into())
        };
        let set = |service: Service| Input::Service(service.into());
        let web = || web(protocol);
        // What was there, what comes, and which frontends begin to translate.
        type Case<'a> = (&'a str, Vec<Input>, Input, &'a [&'a str]);
        #[rustfmt::skip]
        let cases: Vec<Case<'_>> = vec![
            ("a new Service", vec![slice(&[1], true)], set(web()), &[CLUSTER, VIP, NODE_PORT]),
            ("0 -> 1", vec![set(web())], slice(&[1], false), &[CLUSTER, VIP, NODE_PORT]),
            ("the first one here", vec![set(local(web())), slice(&[1], false)], slice(&[1], true), &[VIP, NODE_PORT]),
            ("the first one here, inside", vec![set(inside(web())), slice(&[1], false)], slice(&[1], true), &[CLUSTER]),
            ("Local -> Cluster", vec![set(local(web())), slice(&[1], false)], set(web()), &[VIP, NODE_PORT]),
            ("inside Local -> Cluster", vec![set(inside(web())), slice(&[1], false)], set(web()), &[CLUSTER]),
            ("other sources", vec![set(ranges(web(), "10.0.0.0/8")), slice(&[1], true)], set(ranges(web(), "10.0.0.0/7")), &[VIP]),
            ("no ranges any more", vec![set(ranges(web(), "10.0.0.0/8")), slice(&[1], true)], set(web()), &[VIP]),
            ("a type change", vec![set(Service { load_balancer_ips: [].into(), ..web() }), slice(&[1], true)], set(web()), &[VIP]),
            ("one more", vec![set(web()), slice(&[1], true)], slice(&[1, 2], true), &[]),
            ("1 -> 0", vec![set(web()), slice(&[1], true)], slice(&[], true), &[]),
        ];
        for (what, before, then, expected) in cases {
            let mut tracked = Tracked::new(false);
            tracked.stale(before);
            let stale = tracked.stale([then]);
            for frontend in [CLUSTER, VIP, NODE_PORT] {
                let flow = Flow { protocol, ..flow(frontend, frontend) };
                // Where one was lost of UDP, all of its frontends are looked at.
                let looked_at = stale.contains(&flow, &node());
                if what != "1 -> 0" {
                    assert_eq!(looked_at, expected.contains(&frontend), "{protocol}, {what}: {frontend}");
                }
                let answered = Flow { unanswered: false, ..flow };
                let tcp = protocol == Protocol::Tcp;
                assert!(!(tcp && stale.contains(&answered, &node())), "{what}: somebody serves it");
            }
        }
    }
}

#[test]
fn a_service_that_was_refused_for_a_while_is_looked_at_when_it_works() {
    let mut tracked = Tracked::new(false);
    tracked.rig.v4().faults.refuse.insert(name("dns"));
    tracked.rig.put(Input::Service(dns().into()));
    tracked.rig.put(Input::Slice(dns_slice(&[1]).into()));
    let end = tracked.rig.now + LONG;
    while let Some(at) = tracked.rig.engine.next_wakeup().filter(|at| *at < end) {
        tracked.rig.now = tracked.rig.now.max(at);
        for report in tracked.rig.sync() {
            let instance = &tracked.rig.engine.instances()[0];
            if report.family == Family::V4 {
                tracked.tracker.rules(&report, tracked.rig.engine.store(), instance);
            }
        }
    }
    tracked.rig.v4().faults.refuse.clear();
    let stale = tracked.stale([]);
    assert_stale(&stale, &[("172.30.0.1:53", "172.30.0.1:53", true)]);
}

#[test]
fn a_sweep_is_told_of_what_should_have_been_translated() {
    let mut tracked = Tracked::new(false);
    tracked.stale([Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())]);
    tracked.stale([Input::Service(service("empty", 7).into())]);
    tracked.stale([Input::Service(service("web", 8).into()), Input::Slice(slice("web", &[1]).into())]);
    let to = |protocol, text| (protocol, at(text).0, at(text).1);
    let destinations = [
        to(Protocol::Udp, "172.30.0.1:53"),
        to(Protocol::Udp, "192.168.0.10:30053"),
        to(Protocol::Udp, "203.0.113.5:53"),
        to(Protocol::Tcp, "172.30.0.7:80"),
        to(Protocol::Tcp, "172.30.0.8:80"),
    ];
    let instances = tracked.rig.engine.instances();
    let rules = untranslated(&HashSet::from(destinations), tracked.rig.engine.store(), &instances[0]);
    let mut stale = StaleFlows::default();
    rules.into_iter().for_each(|rule| stale.add(rule));
    assert_stale(
        &stale,
        &[
            ("172.30.0.1:53", "172.30.0.1:53", true),
            ("192.168.0.10:30053", "192.168.0.10:30053", true),
            // That is nobody's NodePort, but it has the number of one.
            ("203.0.113.5:30053", "203.0.113.5:30053", false),
            ("203.0.113.5:53", "203.0.113.5:53", false),
            // A sweep says nothing of what is translated: the rules of syncs do.
            ("172.30.0.1:53", "10.0.0.9:5353", false),
        ],
    );
    let opening = |text| Flow { protocol: Protocol::Tcp, ..flow(text, text) };
    assert!(stale.contains(&opening("172.30.0.8:80"), &node()));
    assert!(!stale.contains(&opening("172.30.0.7:80"), &node()), "nothing is translated there");
    assert_eq!(stale.len(), 3);
}

/// IPVS gives the client no other source port, so that its packets would clash with the flow that a late reply began.
#[test]
fn a_flow_that_a_late_reply_began_is_stale_where_it_is_in_the_way() {
    let mut tracked = Tracked::new(false);
    let inputs = [Input::Service(dns().into()), Input::Slice(dns_slice(&[1]).into())];
    inputs.into_iter().for_each(|input| tracked.rig.put(input));
    let rules = tracked.rules();
    let (mut with, mut without) = (StaleFlows::with_replies(), StaleFlows::default());
    rules.into_iter().for_each(|rule| {
        with.add(rule.clone());
        without.add(rule);
    });
    let reply = Flow { client: at("10.0.0.1:5353"), ..flow("203.0.113.1:2000", "203.0.113.1:2000") };
    assert!(with.contains(&reply, &node()) && !without.contains(&reply, &node()));
    let others = [
        Flow { client: at("10.0.0.1:5354"), ..reply },
        Flow { client: at("10.0.0.2:5353"), ..reply },
        Flow { unanswered: false, ..reply },
        Flow { protocol: Protocol::Sctp, ..reply },
        Flow { replier: at("10.0.0.9:1"), ..reply },
    ];
    for other in others {
        assert!(!with.contains(&other, &node()), "{other:?}");
    }
    let taken = with.take();
    assert!(taken.contains(&reply, &node()) && !with.contains(&reply, &node()));
    with.add_earlier(taken);
    assert!(with.contains(&reply, &node()));
}
