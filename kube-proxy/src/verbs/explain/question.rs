//! FROM and TO as people write them, as addresses.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use insight::{
    decision::{Source, SourceKind},
    engine::Engine,
    names::{Names, Who},
    state::{Mode, State},
    text,
};
use proxy_core::model::{Family, Protocol, Service, ServiceName, ServicePort};

use super::super::common::Common;

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Question {
    pub(super) source: Source,
    pub(super) protocol: Protocol,
    pub(super) to: SocketAddr,
    /// `outside` stands for anybody there: rules about addresses cannot be decided.
    pub(super) anybody: bool,
    /// How FROM and TO are to be called.
    pub(super) from_name: String,
    pub(super) to_name: String,
}

/// What stands for anybody outside (TEST-NET-3 of RFC 5737, and RFC 3849).
fn somebody(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::from([203, 0, 113, 254]),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0xfe]),
    }
}

/// Reads what is asked. `pods_way`: by which interface the node reaches an address, where that tells its pods.
pub(super) fn read(
    (from, to, protocol): (&str, &str, Option<&str>),
    (state, engine, names): (&State, &Engine, &Names),
    common: &Common,
    is_pod: &dyn Fn(IpAddr) -> Option<bool>,
) -> anyhow::Result<Question> {
    let given = match protocol {
        Some(text) => Some(
            text::parse_protocol(text)
                .with_context(|| format!("{text:?} is no protocol: tcp, udp or sctp"))?,
        ),
        None => None,
    };
    let from_address: Option<IpAddr> = from.parse().ok();
    let target = Target::read(to, common, state, given, from_address.map(Family::of))?;
    let family = Family::of(target.to.ip());
    if let Some(address) = from_address
        && Family::of(address) != family
    {
        bail!("{address} cannot talk to {}: they are of different families", target.to);
    }
    let source = match (from, from_address) {
        (_, Some(address)) => Source { kind: kind(address, names, engine, is_pod), address },
        ("node", None) => {
            Source { kind: SourceKind::Node, address: node_source(state, names, target.to.ip())? }
        }
        ("outside", None) => Source { kind: SourceKind::Elsewhere, address: somebody(family) },
        (other, None) => bail!(
            "FROM is {other:?}: give `node`, `outside`, or the address of a pod, a node or a client (a pod's: kubectl get pod -o wide)"
        ),
    };
    let from_name = match (from, from_address) {
        (_, Some(address)) => {
            let described = names.describe(address);
            if described == address.to_string() { described } else { format!("{address} ({described})") }
        }
        ("node", None) => format!("the node ({})", source.address),
        _ => "somebody outside".to_owned(),
    };
    Ok(Question {
        source,
        protocol: target.protocol,
        to: target.to,
        anybody: from == "outside",
        from_name,
        to_name: target.name,
    })
}

/// What an address is to this node.
fn kind(
    address: IpAddr,
    names: &Names,
    engine: &Engine,
    is_pod: &dyn Fn(IpAddr) -> Option<bool>,
) -> SourceKind {
    use proxy_core::environment::LocalPods;
    if matches!(names.who(address), Who::Node) {
        return SourceKind::Node;
    }
    let endpoint = names.endpoint(address).iter().any(|endpoint| endpoint.local);
    let local = endpoint
        || match &engine.settings().local_pods {
            LocalPods::Bridge(_) | LocalPods::InterfacePrefix(_) => is_pod(address).unwrap_or(false),
            LocalPods::Cidrs(_) | LocalPods::Unknown => false,
        };
    if local { SourceKind::LocalPod } else { SourceKind::Elsewhere }
}

/// The address from which the node talks there: its own address to itself, IPVS' addresses from themselves, else the one that
/// its Node object has.
fn node_source(state: &State, names: &Names, to: IpAddr) -> anyhow::Result<IpAddr> {
    let vip = matches!(names.who(to), Who::Service(..));
    if matches!(names.who(to), Who::Node) || (state.header.mode == Mode::Ipvs && vip) {
        return Ok(to);
    }
    let facts = &state.header.facts;
    let of_family =
        |all: &[IpAddr]| all.iter().copied().find(|ip| ip.is_ipv4() == to.is_ipv4() && !ip.is_loopback());
    of_family(&facts.node_ips)
        .or_else(|| of_family(&facts.interface_addresses))
        .with_context(|| format!("the node has no address to talk to {to} from"))
}

struct Target {
    to: SocketAddr,
    protocol: Protocol,
    name: String,
}

impl Target {
    fn read(
        text: &str,
        common: &Common,
        state: &State,
        protocol: Option<Protocol>,
        family: Option<Family>,
    ) -> anyhow::Result<Self> {
        let at =
            |to: SocketAddr| Self { to, protocol: protocol.unwrap_or(Protocol::Tcp), name: to.to_string() };
        if let Ok(to) = text.parse::<SocketAddr>() {
            return Ok(at(to));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            let owner = state.services.iter().find(|service| {
                let all = [&service.cluster_ips, &service.external_ips, &service.load_balancer_ips];
                all.into_iter().any(|ips| ips.contains(&address))
            });
            let Some(owner) = owner else { bail!("which port? TO is {address}:PORT") };
            let port = choose(owner, None, protocol)?;
            return Ok(Self {
                to: SocketAddr::new(address, port.port),
                protocol: port.protocol,
                name: format!("{address}:{}", port.port),
            });
        }
        if let Some(number) = text.strip_prefix("node:") {
            let port = number.parse().with_context(|| format!("{number:?} is no port of the node"))?;
            let ips = &state.header.facts.node_ips;
            let wanted = |ip: &&IpAddr| family.is_none_or(|family| Family::of(**ip) == family);
            let address = ips.iter().find(wanted).context("the node's address is not known")?;
            let asked_for = state.services.iter().flat_map(|service| &service.ports);
            let known = asked_for
                .filter(|of| of.node_port == Some(port))
                .find(|of| protocol.is_none_or(|protocol| of.protocol == protocol));
            let protocol = protocol.or_else(|| known.map(|of| of.protocol)).unwrap_or(Protocol::Tcp);
            return Ok(Self { to: SocketAddr::new(*address, port), protocol, name: format!("node:{port}") });
        }
        let (service, port) = match text.split_once(':') {
            Some((service, port)) => (service, Some(port)),
            None => (text, None),
        };
        let name: ServiceName = common.service(service);
        let Some(found) = state.services.iter().find(|known| known.name == name) else {
            bail!(
                "TO is {text:?}: this node's proxy knows no Service {name}. Give [NAMESPACE/]SERVICE[:PORT], ADDRESS:PORT or node:PORT"
            );
        };
        let port = choose(found, port, protocol)?;
        let ips = &found.cluster_ips;
        let wanted = |ip: &&IpAddr| family.is_none_or(|family| Family::of(**ip) == family);
        let Some(address) = ips.iter().find(wanted) else {
            bail!("{name} has no cluster IP of the family of FROM");
        };
        Ok(Self {
            to: SocketAddr::new(*address, port.port),
            protocol: port.protocol,
            name: format!(
                "{name}{}",
                if port.name.is_empty() { String::new() } else { format!(":{}", port.name) }
            ),
        })
    }
}

/// The port of a Service that is meant, by number or name.
fn choose<'a>(
    service: &'a Service,
    wanted: Option<&str>,
    protocol: Option<Protocol>,
) -> anyhow::Result<&'a ServicePort> {
    let fits = |port: &&ServicePort| {
        let named = wanted.is_none_or(|wanted| *port.name == *wanted || port.port.to_string() == wanted);
        named && protocol.is_none_or(|protocol| port.protocol == protocol)
    };
    let mut fitting = service.ports.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(port), None) => Ok(port),
        _ => {
            let all = service.ports.iter().map(|port| {
                let name = if port.name.is_empty() { String::new() } else { format!("{} ", port.name) };
                format!("{name}{}/{}", port.port, port.protocol)
            });
            let all: Vec<String> = all.collect();
            bail!(
                "which port of {}? It has {} (TO is SERVICE:PORT, -p says the protocol)",
                service.name,
                all.join(", ")
            )
        }
    }
}
