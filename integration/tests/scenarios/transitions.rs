//! Clients that send without pause from one source port, through every transition of a frontend: each ends up where the
//! Service leads now. What passes in the wrong moment, untranslated or to an endpoint that goes, is remembered by connection
//! tracking, and must not be for as long as the client goes on.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use integration::lab::{
    Lab, Options, Service, Slices, To, cluster_ip, external_ip, load_balancer, node_address, service, slices,
};
use integration::network::Place::{Client, Node, Node2, PodA, PodB, PodD};
use integration::network::Protocol::{Sctp, Tcp, Udp};
use integration::network::{Family, Outcome, Place, Protocol, Seen, Steady, SteadyClients};
use integration::oracle::Verdict;

crate::scenarios! {
    Options::default() =>
        datagrams_without_pause_follow_every_transition,
        connections_from_one_port_follow_every_transition,
        inits_from_one_port_follow_every_transition;
}

/// States of one Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Absent,
    /// Refused.
    Empty,
    Elsewhere,
    Here,
    /// Both policies Local, endpoints on another node only: dropped, and refused or not by where one asks from.
    LocalElsewhere,
    LocalHere,
    /// Its load balancer address admits nobody who asks here.
    Restricted,
    /// Without any address but the cluster IP.
    Inside,
}

const STATES: [State; 8] = [
    State::Absent,
    State::Empty,
    State::Elsewhere,
    State::Here,
    State::LocalElsewhere,
    State::LocalHere,
    State::Restricted,
    State::Inside,
];

const PORT: u16 = 53;
const NODE_PORT: u16 = 30053;

impl State {
    fn service(self, protocol: Protocol) -> Option<Service> {
        let inside = service("web", 1).port("p", PORT, protocol);
        let outside = || inside.clone().node_port(NODE_PORT).load_balancer(1).external_ip(1);
        Some(match self {
            Self::Absent => return None,
            Self::Inside => inside,
            Self::Empty | Self::Elsewhere | Self::Here => outside(),
            Self::LocalElsewhere | Self::LocalHere => outside().external_local().internal_local(),
            Self::Restricted => outside().source_ranges(&["203.0.113.77/32", "2001:db8:77::/64"]),
        })
    }

    fn endpoints(self) -> &'static [Place] {
        match self {
            Self::Absent | Self::Empty => &[],
            Self::Elsewhere | Self::LocalElsewhere | Self::Inside => &[PodD],
            Self::Here | Self::LocalHere | Self::Restricted => &[PodA],
        }
    }

    fn slices(self, protocol: Protocol) -> Slices {
        slices("web").port("p", 8080, protocol).ready(self.endpoints())
    }
}

/// Every ordered pair of different states once: a walk along all edges of the complete graph, which ends where it begins.
fn tour() -> Vec<State> {
    let count = STATES.len();
    let mut left: Vec<Vec<usize>> =
        (0..count).map(|from| (0..count).filter(|to| *to != from).rev().collect()).collect();
    let mut stack = vec![0];
    let mut walk = Vec::new();
    while let Some(&at) = stack.last() {
        match left[at].pop() {
            Some(next) => stack.push(next),
            None => walk.extend(stack.pop()),
        }
    }
    walk.reverse();
    walk.into_iter().map(|at| STATES[at]).collect()
}

fn ways(protocol: Protocol) -> [To; 4] {
    [
        cluster_ip(1, protocol, PORT),
        load_balancer(1, protocol, PORT),
        external_ip(1, protocol, PORT),
        node_address(0, protocol, NODE_PORT),
    ]
}

/// How many packets may go wrong after a change is in force until it counts as for ever: some ten seconds' worth.
fn most_lost(protocol: Protocol) -> u64 {
    match protocol {
        Udp => 1_500,
        Tcp | Sctp => 150,
    }
}

struct Watched<'a> {
    from: Place,
    client: &'a Steady,
    verdict: Verdict,
    /// Who serves now: policies and source ranges are for new flows, and one that is served goes on.
    serving: &'static [Place],
    /// How much it had sent when the change was in force.
    since: u64,
}

impl Watched<'_> {
    /// Whether what it sends now meets what it should.
    fn is_right(&self, seen: &Seen) -> bool {
        let sent = seen.sent - self.since;
        let by_who_serves = match &seen.last {
            Some(Outcome::Answered { answer, .. }) => {
                self.serving.iter().any(|place| place.name() == answer.by)
            }
            _ => false,
        };
        // One that was under way when the change came may be answered still.
        let answered = by_who_serves && seen.answered > self.since + 3;
        let silent = sent > 12 && seen.sent - seen.answered > 10;
        match self.verdict {
            Verdict::Dnat(_) => answered,
            // Every connection is a new one.
            _ if self.client.protocol == Tcp => silent,
            _ => silent || answered,
        }
    }
}

fn follow(lab: &mut Lab, protocol: Protocol, places: &[Place], ways: &[To]) {
    lab.settle();
    let mut first_port = 2_000;
    let clients: Vec<(Place, SteadyClients)> = places
        .iter()
        .map(|from| {
            let targets: Vec<(Protocol, SocketAddr)> = Family::BOTH
                .into_iter()
                .flat_map(|family| ways.iter().map(move |to| (protocol, to.address(family))))
                .collect();
            first_port += 100;
            (*from, lab.network.steady(*from, &targets, first_port).expect("sockets can be made"))
        })
        .collect();
    let mut slowest = (0, String::new());
    for states in tour().windows(2) {
        let (before, now) = (states[0], states[1]);
        match now.service(protocol) {
            Some(service) => lab.apply(service),
            None => lab.delete("Service", "web"),
        }
        lab.apply(now.slices(protocol));
        lab.settle();
        let oracle = lab.oracle();
        let mut waiting: Vec<Watched<'_>> = clients
            .iter()
            .flat_map(|(from, clients)| clients.clients.iter().map(|client| (*from, client)))
            .map(|(from, client)| {
                let source = lab.source(from.into(), client.to);
                let verdict = oracle.verdict(source, protocol, client.to);
                Watched { from, client, verdict, serving: now.endpoints(), since: client.seen().sent }
            })
            .collect();
        loop {
            waiting.retain(|watched| {
                let seen = watched.client.seen();
                let right = watched.is_right(&seen);
                let lost = seen.sent - watched.since;
                if right && lost > slowest.0 {
                    let Watched { from, client, .. } = watched;
                    slowest = (lost, format!("{before:?} -> {now:?} {from:?} to {}", client.to));
                }
                !right
            });
            if waiting.is_empty() {
                break;
            }
            for Watched { from, client, verdict, since, .. } in &waiting {
                let seen = client.seen();
                let lost = seen.sent - since;
                assert!(
                    lost < most_lost(protocol),
                    "{before:?} -> {now:?}: {protocol} from {from:?} to {} after {lost} packets: {seen:?}, but it \
                     should be {verdict}\n{}\n{}",
                    client.to,
                    flows(lab, client.to),
                    lab.log()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    println!("{protocol}: the slowest took {} packets: {}", slowest.0, slowest.1);
}

/// The node's entries of the address's family.
fn flows(lab: &Lab, to: SocketAddr) -> String {
    let family = if to.is_ipv4() { "ipv4" } else { "ipv6" };
    let mut command = std::process::Command::new("conntrack");
    command.args(["-L", "-f", family]);
    let output = lab.network.namespace(Node).output(&mut command);
    output
        .map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn datagrams_without_pause_follow_every_transition(lab: &mut Lab) {
    follow(lab, Udp, &[Client, Node, PodB, Node2], &ways(Udp));
}

fn connections_from_one_port_follow_every_transition(lab: &mut Lab) {
    follow(lab, Tcp, &[Client, Node, PodB, Node2], &ways(Tcp));
}

fn inits_from_one_port_follow_every_transition(lab: &mut Lab) {
    follow(lab, Sctp, &[Client, Node, PodB], &[ways(Sctp)[0], ways(Sctp)[3]]);
}
