//! Any history of changes ends where a fresh start begins, and both where the routes say.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use proptest::{prelude::*, sample::subsequence};
use proxy_core::{
    backend::{Change, Effect, Planned, Planner as _},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, ObjectName, Protocol, ServicePortName, TrafficPolicy},
    route::{AllowedSources, Answer, Frontend, FrontendKind, Policy, Route, Target},
};

use crate::{
    model::table::{Fate, Model, Packet},
    plan::Planner,
};

const SERVICES: u8 = 4;
pub(super) const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 50, 254));
pub(super) const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 50, 1));
pub(super) const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 77));

pub(super) fn name(number: u8) -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("test", &format!("service-{number}")),
        port: "http".into(),
        protocol: Protocol::Tcp,
    }
}

/// Endpoint 0 is the pod itself; every third is on this node.
fn endpoint(number: u8) -> Target {
    let local = number.is_multiple_of(3);
    let addr = if number == 0 { POD } else { Ipv4Addr::new(10, 0, if local { 1 } else { 2 }, number).into() };
    Target { addr, port: 8080, local }
}

pub(super) fn cluster_ip(number: u8) -> IpAddr {
    Ipv4Addr::new(172, 30, 0, number + 1).into()
}

pub(super) fn load_balancer(number: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, number + 1).into()
}

/// An address that goes from Service to Service.
const WANDERING: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 99));

#[derive(Debug, Clone)]
struct Wish {
    endpoints: Vec<u8>,
    extra_local: Vec<u8>,
    elsewhere: bool,
    internal_local: bool,
    external_local: bool,
    affinity: Option<u32>,
    load_balancer: bool,
    ranges: Option<Vec<IpNet>>,
    node_port: bool,
    wandering: bool,
}

fn wish() -> impl Strategy<Value = Wish> {
    let few = subsequence((0..12).collect::<Vec<u8>>(), 0..6);
    let many = subsequence((0..90).collect::<Vec<u8>>(), 60..90);
    let nets = ["192.168.50.0/24", "192.168.50.0/25", "192.168.50.1/32", "203.0.113.0/24", "10.0.0.0/8"];
    let nets = nets.map(|net| net.parse().expect("a network")).to_vec();
    (
        prop_oneof![8 => few, 1 => many],
        subsequence(vec![0, 3, 6], 0..2),
        any::<(bool, bool, bool)>(),
        prop_oneof![3 => Just(None), 1 => Just(Some(60)), 1 => Just(Some(10_800))],
        any::<bool>(),
        proptest::option::of(subsequence(nets, 0..4)),
        any::<(bool, bool)>(),
    )
        .prop_map(|(endpoints, extra_local, policies, affinity, load_balancer, ranges, more)| Wish {
            endpoints,
            extra_local,
            elsewhere: policies.0,
            internal_local: policies.1,
            external_local: policies.2,
            affinity,
            load_balancer,
            ranges,
            node_port: more.0,
            wandering: more.1,
        })
}

fn route(number: u8, wish: &Wish) -> Route {
    let cluster: Vec<Target> = {
        let mut targets: Vec<_> = wish.endpoints.iter().copied().map(endpoint).collect();
        targets.sort_unstable();
        targets
    };
    let mut local: Vec<Target> = cluster.iter().copied().filter(|target| target.local).collect();
    local.extend(wish.extra_local.iter().copied().map(endpoint));
    local.sort_unstable();
    local.dedup();
    let at = |kind, at, port| Frontend { kind, at, port };
    let mut frontends = vec![at(FrontendKind::ClusterIp, Some(cluster_ip(number)), 80)];
    if wish.load_balancer {
        frontends.push(at(FrontendKind::LoadBalancerIp, Some(load_balancer(number)), 80));
    }
    if wish.wandering {
        frontends.push(at(FrontendKind::ExternalIp, Some(WANDERING), 80));
    }
    if wish.node_port {
        frontends.push(at(FrontendKind::NodePort, None, 30_000 + u16::from(number)));
    }
    let external = frontends.len() > 1;
    let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
    let sources = |ranges: &Vec<IpNet>| AllowedSources {
        ranges: ranges.clone().into(),
        own_vips: Box::new([load_balancer(number)]),
    };
    let shared = Policy {
        internal: policy(wish.internal_local),
        affinity: wish.affinity,
        sources: wish.ranges.as_ref().map(|ranges| Arc::new(sources(ranges))),
        ..Policy::default()
    };
    Route {
        policy: shared.into(),
        protocol: Protocol::Tcp,
        frontends: frontends.into(),
        external_policy: policy(wish.external_local && external),
        any_endpoint: !cluster.is_empty() || !local.is_empty() || wish.elsewhere,
        cluster: cluster.into(),
        local: local.into(),
        lost: Box::default(),
        endpoints: 0,
        kept: Box::default(),
    }
}

#[derive(Debug, Clone)]
enum Act {
    Change { wishes: Vec<(u8, Option<Wish>)>, refused: bool },
    StartOver { refused: bool },
    Wait(u64),
    Cidrs(bool),
}

fn act() -> impl Strategy<Value = Act> {
    let wishes = proptest::collection::btree_map(0..SERVICES, proptest::option::weighted(0.8, wish()), 1..4);
    let refused = proptest::bool::weighted(0.2);
    prop_oneof![
        8 => (wishes, refused).prop_map(|(wishes, refused)| Act::Change {
            wishes: wishes.into_iter().collect(),
            refused
        }),
        1 => proptest::bool::weighted(0.3).prop_map(|refused| Act::StartOver { refused }),
        2 => prop_oneof![Just(2), Just(100)].prop_map(Act::Wait),
        1 => any::<bool>().prop_map(Act::Cidrs),
    ]
}

pub(super) fn environment() -> Environment {
    Environment {
        family: Family::V4,
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Cidrs(Box::new(["10.0.0.0/16".parse().expect("a network")])),
        node_ports: NodePortAddresses::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
        loopback_node_ports: Box::default(),
        service_cidrs: Box::new(["172.30.0.0/16".parse().expect("a network")]),
        node_ips: Box::new([NODE]),
        interface_addresses: Box::new([]),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Pod,
    Outside,
    Node,
}

fn packets() -> Vec<(From, Packet)> {
    let mut at: Vec<SocketAddr> = vec![SocketAddr::new(WANDERING, 80), SocketAddr::new(NODE, 22)];
    at.push("8.8.8.8:53".parse().expect("an address"));
    at.push("172.30.7.7:80".parse().expect("an address"));
    for number in 0..SERVICES {
        at.push(SocketAddr::new(cluster_ip(number), 80));
        at.push(SocketAddr::new(cluster_ip(number), 81));
        at.push(SocketAddr::new(load_balancer(number), 80));
        at.push(SocketAddr::new(NODE, 30_000 + u16::from(number)));
    }
    let from =
        [(From::Pod, POD, Some("pod1")), (From::Outside, OUTSIDE, Some("eth0")), (From::Node, NODE, None)];
    let mut packets = Vec::new();
    for to in at {
        for (from, source, interface) in from {
            let interface = interface.map(Into::into);
            let packet = Packet { source, interface, protocol: Protocol::Tcp, to, priority: 7 };
            packets.push((from, packet));
        }
    }
    packets
}

/// Where packets go, clients being unknown.
fn meaning(model: &Model) -> Vec<(SocketAddr, BTreeSet<Fate>)> {
    packets()
        .into_iter()
        .map(|(_, packet)| {
            let mut model = model.clone();
            model.clients.clear();
            (packet.to, model.trace(&packet, &[NODE]).into_iter().map(|end| end.fate).collect())
        })
        .collect()
}

pub(super) type Installed = BTreeMap<ServicePortName, Arc<Route>>;

/// What the routes say of a packet, in the words of the contract.
fn expected(routes: &Installed, from: From, packet: &Packet) -> BTreeSet<Fate> {
    let claimed = routes.values().find_map(|route| {
        let frontend = route.frontends.iter().find(|frontend| {
            frontend.port == packet.to.port() && frontend.at.unwrap_or(NODE) == packet.to.ip()
        })?;
        Some((route, frontend))
    });
    let one = |fate| BTreeSet::from([fate]);
    let Some((route, frontend)) = claimed else {
        let own = |route: &Arc<Route>| route.frontends.iter().any(|own| own.at == Some(packet.to.ip()));
        let cidr: IpNet = "172.30.0.0/16".parse().expect("a network");
        // The address of a load balancer is no cluster IP: its other ports are none of ours.
        return one(match cidr.contains(&packet.to.ip()) {
            true if routes.values().any(own) => Fate::Rejected,
            true => Fate::Dropped,
            false => Fate::Passed,
        });
    };
    if let Some(sources) = route.sources(frontend)
        && !sources.ranges.iter().any(|net| net.contains(&packet.source))
        && !sources.own_vips.contains(&packet.source)
    {
        return one(Fate::Dropped);
    }
    let to = |targets: &[Target], masqueraded: bool| {
        let each = targets.iter().map(|target| Fate::Translated {
            to: SocketAddr::new(target.addr, target.port),
            // A pod that reaches itself.
            masqueraded: masqueraded || target.addr == packet.source,
        });
        each.collect::<BTreeSet<_>>()
    };
    match route.answer(frontend) {
        Answer::To(targets) if frontend.kind == FrontendKind::ClusterIp => to(targets, from != From::Pod),
        Answer::To(targets) => to(targets, true),
        Answer::Reject => one(Fate::Rejected),
        Answer::Drop => one(Fate::Dropped),
        Answer::Local { here: [], .. } if from == From::Outside => one(Fate::Dropped),
        Answer::Local { here, .. } if from == From::Outside => to(here, false),
        Answer::Local { anywhere: [], .. } => one(Fate::Rejected),
        Answer::Local { anywhere, .. } => to(anywhere, from == From::Node),
    }
}

fn check(model: &Model, routes: &Installed) -> Result<(), TestCaseError> {
    for (from, packet) in packets() {
        let mut model = model.clone();
        model.clients.clear();
        let ends = model.trace(&packet, &[NODE]);
        for end in &ends {
            let ours = matches!(end.fate, Fate::Translated { .. });
            let passed = end.fate == Fate::Passed;
            prop_assert!(!ours || end.priority == 0, "{packet:?}: {end:?}");
            prop_assert!(!passed || end.priority == 7, "{packet:?}: {end:?}");
        }
        let fates: BTreeSet<Fate> = ends.into_iter().map(|end| end.fate).collect();
        prop_assert_eq!(&fates, &expected(routes, from, &packet), "{:?}", packet);
    }
    Ok(())
}

pub(super) struct World {
    pub(super) planner: Planner,
    pub(super) model: Model,
    pub(super) routes: Installed,
    pub(super) environment: Environment,
    pub(super) now: Instant,
}

impl World {
    pub(super) fn new() -> Self {
        #[expect(clippy::disallowed_methods, reason = "only a point to count virtual time from")]
        let now = Instant::now();
        let mut world = Self {
            planner: Planner::new(Family::V4),
            model: Model::new(Family::V4),
            routes: BTreeMap::new(),
            environment: environment(),
            now,
        };
        world.start_over(false).expect("an empty table can be written");
        world
    }

    pub(super) fn start_over(&mut self, refused: bool) -> Result<(), TestCaseError> {
        let routes: Vec<_> = self.routes.clone().into_iter().collect();
        let plan = self.planner.plan_full(&routes, &self.environment, self.model.found(), self.now);
        if refused {
            self.planner.settle(Effect::Nothing);
            return Ok(());
        }
        self.model.apply(&plan).map_err(TestCaseError::fail)?;
        self.planner.settle(Effect::Applied);
        Ok(())
    }

    fn change(&mut self, wishes: &[(u8, Option<Wish>)], refused: bool) -> Result<(), TestCaseError> {
        let mut after = self.routes.clone();
        for (number, wish) in wishes {
            match wish {
                Some(wish) => after.insert(name(*number), Arc::new(route(*number, wish))),
                None => after.remove(&name(*number)),
            };
        }
        // One Service at a time has the wandering address.
        let mut seen = false;
        for route in after.values_mut() {
            let has = route.frontends.iter().any(|frontend| frontend.at == Some(WANDERING));
            if has && seen {
                let route = Arc::make_mut(route);
                let rest = route.frontends.iter().filter(|frontend| frontend.at != Some(WANDERING));
                route.frontends = rest.cloned().collect();
            }
            seen |= has;
        }
        let names: BTreeSet<_> = self.routes.keys().chain(after.keys()).cloned().collect();
        let changes: Vec<Change> = names
            .into_iter()
            .map(|name| Change {
                before: self.routes.get(&name).cloned(),
                after: after.get(&name).cloned(),
                name,
            })
            .filter(|change| change.before != change.after)
            .collect();
        match self.planner.plan(&changes, &self.environment, self.now) {
            Planned::Plan(_) if refused => self.planner.settle(Effect::Nothing),
            Planned::Plan(plan) => {
                self.model.apply(&plan).map_err(TestCaseError::fail)?;
                self.planner.settle(Effect::Applied);
                self.routes = after;
            }
            Planned::StartOver(_) => {
                self.routes = after;
                self.start_over(false)?;
            }
        }
        Ok(())
    }

    fn act(&mut self, act: &Act) -> Result<(), TestCaseError> {
        match act {
            Act::Change { wishes, refused } => self.change(wishes, *refused)?,
            Act::StartOver { refused } => self.start_over(*refused)?,
            Act::Wait(seconds) => {
                self.now += Duration::from_secs(*seconds);
                while let Some(plan) = self.planner.plan_upkeep(self.now) {
                    self.model.apply(&plan).map_err(TestCaseError::fail)?;
                    self.planner.settle(Effect::Applied);
                }
            }
            Act::Cidrs(more) => {
                let mut cidrs = vec!["172.30.0.0/16".parse().expect("a network")];
                if *more {
                    cidrs.push("172.31.0.0/16".parse().expect("a network"));
                }
                self.environment.service_cidrs = cidrs.into();
            }
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_history_leads_packets_where_a_fresh_start_does(acts in proptest::collection::vec(act(), 1..12)) {
        let mut world = World::new();
        for act in &acts {
            world.act(act)?;
            check(&world.model, &world.routes)?;
        }
        world.change(&[], false)?;
        let mut fresh = World::new();
        fresh.routes = world.routes.clone();
        fresh.environment = world.environment.clone();
        fresh.start_over(false)?;
        prop_assert_eq!(meaning(&world.model), meaning(&fresh.model));
        // And once all that is owed is paid, it holds no more than a fresh table.
        world.act(&Act::Wait(3))?;
        world.act(&Act::Wait(100))?;
        let ours = |model: &Model| model.chain_names().filter(|name| !name.starts_with("al")).count();
        prop_assert_eq!(world.model.elements(), fresh.model.elements());
        prop_assert_eq!(ours(&world.model), ours(&fresh.model));
    }
}

/// A Service with session affinity and this many endpoints, all elsewhere.
pub(super) fn sticky(endpoints: u32) -> Route {
    let target =
        |number: u32| Target { addr: Ipv4Addr::from(0x0a02_0000 + number).into(), port: 8080, local: false };
    let cluster: Box<[Target]> = (0..endpoints).map(target).collect();
    let ip = Frontend { kind: FrontendKind::ClusterIp, at: Some(cluster_ip(0)), port: 80 };
    Route {
        policy: Arc::new(Policy { affinity: Some(60), ..Policy::default() }),
        protocol: Protocol::Tcp,
        frontends: Box::new([ip]),
        external_policy: TrafficPolicy::Cluster,
        any_endpoint: true,
        cluster,
        local: Box::new([]),
        lost: Box::default(),
        endpoints: 0,
        kept: Box::default(),
    }
}

#[test]
fn a_sticky_service_of_any_size_reaches_all_its_endpoints_and_keeps_its_clients() {
    let mut world = World::new();
    let packet = Packet {
        source: POD,
        interface: Some("pod1".into()),
        protocol: Protocol::Tcp,
        to: SocketAddr::new(cluster_ip(0), 80),
        priority: 0,
    };
    let mut before = None;
    for endpoints in [3, 4_500, 5_000, 4_500, 40] {
        let after = Some(Arc::new(sticky(endpoints)));
        let change = Change { name: name(0), before: before.clone(), after: after.clone() };
        match world.planner.plan(&[change], &world.environment, world.now) {
            Planned::Plan(plan) => world.model.apply(&plan).expect("the kernel would take it"),
            Planned::StartOver(_) => {
                let routes = [(name(0), after.clone().expect("it is wanted"))];
                let found = world.model.found();
                let plan = world.planner.plan_full(&routes, &world.environment, found, world.now);
                world.model.apply(&plan).expect("the kernel would take it");
            }
        }
        world.planner.settle(Effect::Applied);
        before = after;

        let mut fresh = world.model.clone();
        fresh.clients.clear();
        assert_eq!(fresh.trace(&packet, &[NODE]).len(), endpoints as usize);
        // The client that was seen last stays where it is.
        let first = world.model.trace(&packet, &[NODE]);
        let known: Vec<_> = (0..3).map(|_| world.model.trace(&packet, &[NODE])).collect();
        assert!(known.iter().all(|ends| ends.len() == 1), "{endpoints}");
        assert!(known.iter().all(|ends| ends.is_subset(&first)), "{endpoints}");
        world.now += Duration::from_secs(2);
        while let Some(plan) = world.planner.plan_upkeep(world.now) {
            world.model.apply(&plan).expect("the kernel would take it");
            world.planner.settle(Effect::Applied);
        }
        let again = world.model.trace(&packet, &[NODE]);
        assert_eq!(again, known[0], "paying what was owed moves nobody");
    }
}
