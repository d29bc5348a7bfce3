//! What a Service names as its addresses beyond those at which it answers: kube-proxy's rules show it, though no
//! packet's way depends on it.

use std::{collections::HashSet, net::IpAddr};

use proxy_core::route::{Frontend, FrontendKind, Route};

/// What a route lost, divided.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// An external address or a node port at which it does not answer: ignored, or another Service's.
    pub(super) unanswered: bool,
    /// Frontends whose address and port are another frontend's of the same port: an address given twice.
    pub(super) repeated: Vec<Frontend>,
}

impl Named {
    pub(super) fn of(route: &Route) -> Self {
        if route.lost.is_empty() {
            return Self::default();
        }
        let at = |frontend: &Frontend| (frontend.at, frontend.port);
        let granted: HashSet<(Option<IpAddr>, u16)> = route.frontends.iter().map(at).collect();
        let (repeated, others): (Vec<Frontend>, Vec<Frontend>) =
            route.lost.iter().partition(|frontend| granted.contains(&at(frontend)));
        let unanswered = others.iter().any(|frontend| frontend.kind != FrontendKind::ClusterIp);
        Self { unanswered, repeated }
    }
}
