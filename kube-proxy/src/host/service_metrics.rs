//! Where the numbers of single Services come from: conntrack's events and its table; in ipvs mode IPVS itself; and for what
//! Services without endpoints refuse, counters in a table that goes with the process.
//!
//! An extra: what fails is told, tried again with growing pauses, and harms nothing else.

use std::{
    collections::HashMap,
    net::IpAddr,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use netlink::{
    Socket,
    conntrack::{Filter, status, walk},
    flow_events::{FlowMonitor, Interest},
};
use nft_netlink::{
    Batch, Chain, ChainKind, Element, Expression, Family as TableFamily, Field, Hook, Register, Rule, Set,
    Table, concat,
    expression::{
        ConntrackKey, MetaKey, SetUpdate, accept, conntrack_has, conntrack_state, destination,
        destination_port, destination_type, equal, in_set, is_local, l4proto, meta,
    },
    list,
    temporary::{self, TemporaryTable},
};
use proxy_core::model::{Family, Protocol};

use crate::{
    settings::effective::Mode,
    telemetry::service_metrics::{Services, Spot, Walk},
};

/// Bytes of events that may wait to be read: about 10,000 of them.
const BUFFER: usize = 8 << 20;
const AT_ONCE: u64 = 10_000;
const TICK: Duration = Duration::from_millis(500);
/// How often the table of connections, IPVS and the counters are looked at; a walk may take a hundredth of the time at most.
const LOOK: Duration = Duration::from_secs(10);
const SHARE: u32 = 100;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Right after destinations are translated (`NF_IP_PRI_NAT_DST` is -100).
const PRIORITY: i32 = -99;
const CHAINS: [(&str, Hook); 2] = [("prerouting", Hook::Prerouting), ("output", Hook::Output)];
/// The names of what refuses, and of what was counted; of addresses of IPv4, of IPv6, of node ports.
const REFUSING: [&str; 3] = ["refusing-4", "refusing-6", "refusing-ports"];
const COUNTED: [&str; 3] = ["counted-4", "counted-6", "counted-ports"];

/// Counts for ever.
pub(crate) fn run(services: &Services, mode: Mode) {
    let mut pause = Duration::from_secs(1);
    loop {
        let mut source = Source::default();
        let error = loop {
            match source.turn(services, mode) {
                Ok(()) => pause = Duration::from_secs(1),
                Err(error) => break error,
            }
        };
        tracing::warn!(error = format!("{error:#}"), again = ?pause, "Metrics of Services are not counted");
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[derive(Default)]
struct Source {
    monitor: Option<FlowMonitor>,
    refusals: Option<Refusals>,
    /// When to look again at what has no events.
    next_look: Option<Instant>,
}

impl Source {
    #[expect(clippy::disallowed_methods, reason = "some things are looked at from time to time")]
    fn turn(&mut self, services: &Services, mode: Mode) -> anyhow::Result<()> {
        // IPVS counts by itself, and conntrack does not tell what it translates.
        if mode == Mode::Ipvs {
            std::thread::sleep(TICK);
        } else {
            if self.monitor.is_none() {
                let interest = Interest { changes: false, translated: true, one_in: 1 };
                self.monitor = Some(FlowMonitor::open(interest, BUFFER)?);
            }
            if let Some(monitor) = &mut self.monitor {
                netlink::wait(&[monitor.as_fd()], TICK)?;
                let taken = monitor.drain(AT_ONCE, |event| services.event(event))?;
                services.missed(taken.missed);
            }
        }
        self.follow_refusals(services)?;
        let now = Instant::now();
        if self.next_look.is_some_and(|at| now < at) {
            return Ok(());
        }
        if mode == Mode::Ipvs {
            virtual_servers(services)?
        } else {
            open(services)?
        }
        if let Some(refusals) = &mut self.refusals {
            services.refused(refusals.counted()?);
        }
        self.next_look = Some(Instant::now() + LOOK.max(now.elapsed() * SHARE));
        Ok(())
    }

    fn follow_refusals(&mut self, services: &Services) -> anyhow::Result<()> {
        let (version, spots) = services.refusing();
        match &mut self.refusals {
            // Nothing is hooked in where nothing refuses.
            None if spots.is_empty() => Ok(()),
            None => {
                services.forget_refused();
                self.refusals = Some(Refusals::make(version, &spots)?);
                Ok(())
            }
            Some(refusals) if refusals.version == version => Ok(()),
            Some(refusals) => refusals.set(version, &spots),
        }
    }
}

/// Open connections.
fn open(services: &Services) -> anyhow::Result<()> {
    let mut socket = Socket::open(netlink::Protocol::Netfilter)?;
    let filter = Filter { status: Some((status::DNAT, status::DNAT)), ..Filter::default() };
    let mut found = Walk::default();
    let _ = walk(&mut socket, &filter, |flow| services.open(&mut found, flow))?;
    services.opened(found);
    Ok(())
}

fn virtual_servers(services: &Services) -> anyhow::Result<()> {
    let mut ipvs = ipvs_netlink::Socket::open()?;
    let mut all = Vec::new();
    for entry in ipvs.services()? {
        let ipvs_netlink::ServiceKey::Address { address, port, protocol } = entry.service.key else {
            continue;
        };
        let Some(protocol) = of_ipvs(protocol) else { continue };
        let spot = Spot { family: Family::of(address), protocol, at: Some(address), port };
        if !services.knows(&spot) {
            continue;
        }
        let destinations = ipvs.destinations(&entry.service.key)?;
        let open = destinations.iter().map(|one| u64::from(one.active_connections)).sum();
        let bytes = entry.stats.bytes_in.saturating_add(entry.stats.bytes_out);
        all.push((spot, entry.stats.connections, bytes, open));
    }
    services.virtual_servers(all);
    Ok(())
}

fn of_ipvs(protocol: ipvs_netlink::Protocol) -> Option<Protocol> {
    Some(match protocol {
        ipvs_netlink::Protocol::Tcp => Protocol::Tcp,
        ipvs_netlink::Protocol::Udp => Protocol::Udp,
        ipvs_netlink::Protocol::Sctp => Protocol::Sctp,
        ipvs_netlink::Protocol::Other(_) => return None,
    })
}

/// Counters for frontends that have no endpoint.
struct Refusals {
    table: TemporaryTable,
    version: u64,
}

impl Refusals {
    fn make(version: u64, spots: &[Spot]) -> anyhow::Result<Self> {
        // As long as this process.
        const FOR_EVER: u64 = u32::MAX as u64;
        temporary::sweep(&mut Socket::open(netlink::Protocol::Netfilter)?, 0)?;
        let table = TemporaryTable::make("metrics", FOR_EVER, |batch, table| {
            for (at, fields) in keys().iter().enumerate() {
                batch.add_set(table, &Set::new(REFUSING[at], fields));
                batch.add_set(table, &Set::new(COUNTED[at], fields).dynamic().size(65_536));
            }
            fill(batch, table, spots);
            for (name, hook) in CHAINS {
                batch.add_chain(table, &Chain::base(name, ChainKind::Filter, hook, PRIORITY));
                if hook == Hook::Prerouting {
                    batch.append_rule(table, name, &from_this_node());
                }
                for rule in rules() {
                    batch.append_rule(table, name, &rule);
                }
            }
        })?;
        Ok(Self { table, version })
    }

    fn set(&mut self, version: u64, spots: &[Spot]) -> anyhow::Result<()> {
        self.table.change(|batch, table| {
            for set in REFUSING {
                batch.flush_set(table, set);
            }
            fill(batch, table, spots);
        })?;
        self.version = version;
        Ok(())
    }

    fn counted(&mut self) -> anyhow::Result<HashMap<Spot, u64>> {
        let name = self.table.table().name.to_owned();
        let table = Table::new(TableFamily::Inet, &name);
        let mut all = HashMap::new();
        for (at, set) in COUNTED.iter().enumerate() {
            let _ = list::elements(self.table.socket(), table, set, |element| {
                for spot in spots_of(at, &element.key) {
                    all.insert(spot, element.counted.unwrap_or(0));
                }
            })?;
        }
        Ok(all)
    }
}

fn keys() -> [Vec<Field>; 3] {
    [
        vec![Field::IP_DESTINATION, Field::L4_PROTOCOL, Field::DESTINATION_PORT],
        vec![Field::IP6_DESTINATION, Field::L4_PROTOCOL, Field::DESTINATION_PORT],
        vec![Field::L4_PROTOCOL, Field::DESTINATION_PORT],
    ]
}

fn key(spot: &Spot) -> (usize, Vec<u8>) {
    let (protocol, port) = ([spot.protocol.number()], spot.port.to_be_bytes());
    match spot.at {
        Some(IpAddr::V4(at)) => (0, concat(&[&at.octets(), &protocol, &port])),
        Some(IpAddr::V6(at)) => (1, concat(&[&at.octets(), &protocol, &port])),
        None => (2, concat(&[&protocol, &port])),
    }
}

/// What an element of a set stands for: a node port is one of both families.
fn spots_of(set: usize, key: &[u8]) -> Vec<Spot> {
    let addresses = [4, 16, 0][set];
    let read = || {
        let at: Option<IpAddr> = match set {
            0 => Some(<[u8; 4]>::try_from(key.get(..4)?).ok()?.into()),
            1 => Some(<[u8; 16]>::try_from(key.get(..16)?).ok()?.into()),
            _ => None,
        };
        let number = *key.get(addresses)?;
        let protocol =
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|one| one.number() == number)?;
        let port = u16::from_be_bytes(key.get(addresses + 4..addresses + 6)?.try_into().ok()?);
        Some((at, protocol, port))
    };
    let Some((at, protocol, port)) = read() else { return Vec::new() };
    match at {
        Some(address) => vec![Spot { family: Family::of(address), protocol, at, port }],
        // The kernel counts both families together; one of them is told.
        None => vec![Spot { family: Family::V4, protocol, at, port }],
    }
}

fn fill(batch: &mut Batch, table: Table<'_>, spots: &[Spot]) {
    for spot in spots {
        let (set, key) = key(spot);
        batch.add_elements(table, REFUSING[set]).push(&Element::key(&key));
    }
}

/// What comes from the loopback interface was counted when it was sent.
fn from_this_node() -> Rule {
    const LOOPBACK: u32 = 1;
    let interface = meta(MetaKey::InputIndex, Register::R0);
    Rule::new().with(interface).with(equal(Register::R0, LOOPBACK.to_ne_bytes())).with(accept())
}

/// For each set: what is new and goes there is counted under its own key.
fn rules() -> Vec<Rule> {
    const R: Register = Register::R0;
    let count = |set: usize| Expression::DynamicSet {
        update: SetUpdate::Update,
        set: COUNTED[set].into(),
        key: R,
        data: None,
        timeout: None,
        attached: Some(Box::new(Expression::Counter)),
    };
    let new = || conntrack_has(ConntrackKey::State, conntrack_state::NEW, R);
    let mut rules = Vec::new();
    for (set, family, number) in [(0, TableFamily::Ip, 2), (1, TableFamily::Ip6, 10)] {
        let words = if set == 0 { 1 } else { 4 };
        let rule = Rule::new().with_all(new()).with(meta(MetaKey::NfProtocol, R)).with(equal(R, [number]));
        let rule = rule.with(destination(family, R)).with(l4proto(R.after(words)));
        rules.push(
            rule.with(destination_port(R.after(words + 1))).with(in_set(R, REFUSING[set])).with(count(set)),
        );
    }
    let local = Rule::new().with_all(new()).with(destination_type(R)).with(is_local(R)).with(l4proto(R));
    rules.push(local.with(destination_port(R.after(1))).with(in_set(R, REFUSING[2])).with(count(2)));
    rules
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_key_stands_for_the_spot_that_it_was_made_of() {
        for (at, port) in [
            (Some([10, 0, 0, 1].into()), 80),
            (Some("fd00::1".parse().expect("an address")), 53),
            (None, 30_080),
        ] {
            let family = at.map_or(Family::V4, Family::of);
            let spot = Spot { family, protocol: Protocol::Tcp, at, port };
            let (set, key) = key(&spot);
            assert_eq!(spots_of(set, &key), [spot]);
            assert_eq!(spots_of(set, &key[..key.len() - 3]), []);
        }
    }

    #[test]
    fn what_is_refused_is_counted_by_the_kernel_and_goes_with_the_table() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests run as root)");
        let ip = |arguments: &str| {
            assert!(Command::new("ip").args(arguments.split(' ')).status().expect("ip runs").success());
        };
        ip("link set lo up");
        let spot = |port| Spot {
            family: Family::V4,
            protocol: Protocol::Udp,
            at: Some([127, 0, 0, 9].into()),
            port,
        };
        let node_port = Spot { at: None, ..spot(30_000) };
        let mut refusals = Refusals::make(1, &[spot(1), spot(2), node_port]).expect("a table");
        let send = |port: u16, to: &str| {
            let socket = std::net::UdpSocket::bind(("127.0.0.1", port)).expect("a socket");
            let _ = socket.send_to(b"x", to);
        };
        for port in 4_000..4_007 {
            send(port, "127.0.0.9:1");
        }
        send(4_100, "127.0.0.9:3");
        send(4_101, "127.0.0.1:30000");
        let counted = refusals.counted().expect("read");
        assert_eq!(counted.get(&spot(1)), Some(&7), "{counted:?}");
        assert_eq!(counted.get(&node_port), Some(&1), "{counted:?}");
        assert_eq!(counted.len(), 2, "{counted:?}");
        refusals.set(2, &[spot(3)]).expect("changed");
        send(4_200, "127.0.0.9:1");
        send(4_201, "127.0.0.9:3");
        let counted = refusals.counted().expect("read");
        assert_eq!((counted.get(&spot(1)), counted.get(&spot(3))), (Some(&7), Some(&1)));
    }
}
