//! What packets and flows show, by the names that the engine knows.

use std::{net::IpAddr, sync::Arc};

use proxy_core::{
    look::Look,
    model::{Family, Protocol, ServiceName, TrafficPolicy},
    route::{Answer, Frontend, FrontendKind, Route},
};

use crate::names::{Named, Names, Who};

/// An address and port to which packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Spot {
    /// The transport protocol.
    pub protocol: Protocol,
    /// `None`: every address of the node (a node port).
    pub at: Option<IpAddr>,
    /// The destination port.
    pub port: u16,
}

/// The engine and its names, together.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Who has which address.
    pub names: &'a Names,
    /// The engine.
    pub look: &'a dyn Look,
}

impl std::fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

/// The protocol with this number of IP's, if Services have it.
pub const fn protocol(number: u8) -> Option<Protocol> {
    match number {
        6 => Some(Protocol::Tcp),
        17 => Some(Protocol::Udp),
        132 => Some(Protocol::Sctp),
        _ => None,
    }
}

/// As people write it.
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        number => {
            protocol(number).map_or_else(|| format!("protocol {number}"), |one| one.as_str().to_uppercase())
        }
    }
}

/// `10.0.0.1:80`, `[fd00::1]:80`; without the port where there is none.
pub fn socket(at: IpAddr, port: u16) -> String {
    match (at, port) {
        (at, 0) => at.to_string(),
        (IpAddr::V4(at), port) => format!("{at}:{port}"),
        (IpAddr::V6(at), port) => format!("[{at}]:{port}"),
    }
}

impl View<'_> {
    /// Whose frontend this is.
    pub fn frontend(&self, number: u8, at: IpAddr, port: u16) -> Option<&Named> {
        self.names.frontend(protocol(number)?, at, port)
    }

    /// The decision for a frontend.
    pub fn route(&self, of: &Named, family: Family) -> Option<&Arc<Route>> {
        let routes = self.look.installed(family, &of.port.service);
        routes.iter().find(|(name, _)| *name == of.port).map(|(_, route)| route)
    }

    /// Where a Service answers, in both families, or one of its ports.
    pub fn frontends(&self, service: &ServiceName, port: Option<&str>) -> Vec<Spot> {
        let mut spots = Vec::new();
        for family in self.look.families() {
            for (name, route) in self.look.installed(family, service) {
                let numbered =
                    |frontend: &Frontend| port.is_some_and(|port| port == frontend.port.to_string());
                for frontend in &route.frontends {
                    if port.is_none_or(|port| *name.port == *port) || numbered(frontend) {
                        let (at, port) = (frontend.at, frontend.port);
                        spots.push(Spot { protocol: route.protocol, at, port });
                    }
                }
            }
        }
        spots.sort_unstable();
        spots.dedup();
        spots
    }

    /// A name for whoever sends or answers; `None` where nothing is known.
    pub fn host(&self, at: IpAddr) -> Option<String> {
        (self.names.who(at) != Who::Unknown).then(|| self.names.describe(at))
    }

    /// Where an endpoint is; `None`: it is nobody's endpoint.
    pub fn is_here(&self, at: IpAddr) -> Option<bool> {
        self.names.endpoint(at).first().map(|of| of.local)
    }
}

/// How many endpoints a frontend has, in words, or why it has none.
pub fn endpoints_in_words(route: &Route, kind: FrontendKind, at: Option<IpAddr>, port: u16) -> String {
    let count = |list: &[_]| match list.len() {
        0 => "no endpoints".to_owned(),
        1 => "one endpoint".to_owned(),
        count => format!("{count} endpoints"),
    };
    match route.answer(&Frontend { kind, at, port }) {
        Answer::To(targets) => count(targets),
        Answer::Local { here, anywhere } => {
            format!(
                "{} ({} on this node)",
                count(anywhere),
                if here.is_empty() { "none".to_owned() } else { here.len().to_string() }
            )
        }
        Answer::Reject => "no usable endpoint".to_owned(),
        Answer::Drop => "policy Local and no endpoint on this node".to_owned(),
    }
}

/// Why a new connection from this client leaves with an address of the node's.
pub fn why_masqueraded(view: View<'_>, named: &Named, client: IpAddr, endpoint: IpAddr) -> &'static str {
    if client == endpoint {
        return "it reaches itself";
    }
    let route = view.route(named, Family::of(client));
    let external = named.kind != FrontendKind::ClusterIp;
    match view.names.who(client) {
        Who::Node => "the node itself is the client",
        _ if external && route.is_some_and(|route| route.external_policy == TrafficPolicy::Cluster) => {
            "externalTrafficPolicy is Cluster"
        }
        _ if view.look.settings().masquerade_all => "masqueradeAll is set",
        Who::Unknown => "the client is outside",
        _ => "the client is no pod of this node",
    }
}
