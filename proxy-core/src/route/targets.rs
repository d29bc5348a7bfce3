//! Which endpoints of a Service port may be used for what (KEP-1669, KEP-2086, KEP-2433, KEP-3015).

use super::Target;
use crate::model::{Endpoint, NodeHint};

/// The targets of one Service port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets {
    pub cluster: Box<[Target]>,
    pub local: Box<[Target]>,
    pub any_endpoint: bool,
}

/// Sorts endpoints (without duplicates, see [`Endpoints::of`](crate::store::Endpoints::of)) into what traffic of
/// each policy may use.
pub fn targets(
    endpoints: &[(&Endpoint, u16)],
    uses_cluster: bool,
    uses_local: bool,
    zone: Option<&str>,
) -> Targets {
    let select = |wanted: &dyn Fn(&Endpoint) -> bool| -> Box<[Target]> {
        let chosen = endpoints.iter().filter(|(endpoint, _)| wanted(endpoint));
        chosen
            .map(|(endpoint, port)| Target { addr: endpoint.addr, port: *port, local: endpoint.local })
            .collect()
    };
    let draining = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let mut targets = Targets::default();
    if uses_cluster {
        let hints = Hints::of(endpoints, zone);
        targets.cluster = select(&|endpoint| endpoint.ready && hints.allow(endpoint, zone));
        if targets.cluster.is_empty() {
            // No ready endpoint anywhere: those that terminate but still serve, wherever they are.
            targets.cluster = select(&draining);
        }
        targets.any_endpoint = !targets.cluster.is_empty();
    }
    if uses_local {
        targets.any_endpoint |= endpoints.iter().any(|(endpoint, _)| endpoint.ready || draining(endpoint));
        targets.local = select(&|endpoint| endpoint.local && endpoint.ready);
        if targets.local.is_empty() {
            targets.local = select(&|endpoint| endpoint.local && draining(endpoint));
        }
    }
    targets
}

/// Which topology hints are followed.
enum Hints {
    Node,
    Zone,
    Ignored,
}

impl Hints {
    /// Hints count only where every ready endpoint carries one and at least one names us.
    fn of(endpoints: &[(&Endpoint, u16)], zone: Option<&str>) -> Self {
        let ready = || endpoints.iter().map(|(endpoint, _)| endpoint).filter(|endpoint| endpoint.ready);
        if ready().next().is_none() {
            return Self::Ignored;
        }
        let here = |endpoint: &&&Endpoint| endpoint.for_nodes == NodeHint::Here;
        if ready().all(|endpoint| endpoint.for_nodes != NodeHint::Absent)
            && ready().any(|endpoint| here(&endpoint))
        {
            return Self::Node;
        }
        let hinted =
            |endpoint: &&Endpoint| endpoint.for_zones.as_ref().is_some_and(|zones| !zones.is_empty());
        if ready().all(hinted) && ready().any(|endpoint| names_zone(endpoint, zone)) {
            return Self::Zone;
        }
        Self::Ignored
    }

    fn allow(&self, endpoint: &Endpoint, zone: Option<&str>) -> bool {
        match self {
            Self::Node => endpoint.for_nodes == NodeHint::Here,
            Self::Zone => names_zone(endpoint, zone),
            Self::Ignored => true,
        }
    }
}

fn names_zone(endpoint: &Endpoint, zone: Option<&str>) -> bool {
    let Some(zone) = zone else { return false };
    endpoint.for_zones.as_ref().is_some_and(|zones| zones.iter().any(|name| **name == *zone))
}
