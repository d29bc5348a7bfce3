//! Which endpoints of a Service port may be used for what (KEP-1669, KEP-2086, KEP-2433, KEP-3015), and why.

use super::Target;
use crate::model::{Endpoint, NodeHint};

/// The targets of one Service port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Targets {
    /// For traffic under policy Cluster.
    pub cluster: Box<[Target]>,
    /// For traffic under policy Local.
    pub local: Box<[Target]>,
    /// Whether there is an endpoint that may be used at all, wherever it is.
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
    let select = |used: &dyn Fn(&Endpoint) -> Use| -> Box<[Target]> {
        let chosen = endpoints.iter().filter(|(endpoint, _)| used(endpoint).is_used());
        chosen
            .map(|(endpoint, port)| Target { addr: endpoint.addr, port: *port, local: endpoint.local })
            .collect()
    };
    let mut targets = Targets::default();
    if uses_cluster {
        let choice = ClusterChoice::of(endpoints, zone);
        targets.cluster = select(&|endpoint| choice.judge(endpoint));
        targets.any_endpoint = !targets.cluster.is_empty();
    }
    if uses_local {
        targets.any_endpoint |= endpoints.iter().any(|(endpoint, _)| endpoint.ready || is_draining(endpoint));
        let choice = LocalChoice::of(endpoints);
        targets.local = select(&|endpoint| choice.judge(endpoint));
    }
    targets
}

impl Targets {
    /// Those that serve, or are ready all the same (publishNotReadyAddresses), and are not among the targets.
    pub(super) fn kept(&self, endpoints: &[(&Endpoint, u16)]) -> Box<[Target]> {
        let serves = endpoints.iter().filter(|(endpoint, _)| endpoint.serving || endpoint.ready);
        serves
            .map(|(endpoint, port)| Target { addr: endpoint.addr, port: *port, local: endpoint.local })
            .filter(|target| {
                self.cluster.binary_search(target).is_err() && self.local.binary_search(target).is_err()
            })
            .collect()
    }
}

fn is_draining(endpoint: &Endpoint) -> bool {
    endpoint.serving && endpoint.terminating
}

/// Whether an endpoint gets new connections under a policy, or why it gets none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// It is ready.
    Ready,
    /// It terminates and still serves, and no endpoint that the policy may use is ready.
    LastResort,
    /// It is not ready.
    NotReady,
    /// It terminates; others are ready.
    Terminating,
    /// It terminates and does not serve any more.
    NotServing,
    /// Topology hints are followed, and its hint names other nodes.
    ForOtherNodes,
    /// Topology hints are followed, and its hint names other zones.
    ForOtherZones,
    /// The policy is Local, and it is not on this node.
    Elsewhere,
}

impl Use {
    /// It gets new connections.
    pub const fn is_used(self) -> bool {
        matches!(self, Self::Ready | Self::LastResort)
    }

    /// Of an endpoint that is not ready, while others are (`last_resort`: while none is).
    fn unready(endpoint: &Endpoint, last_resort: bool) -> Self {
        match (endpoint.terminating, endpoint.serving) {
            (true, true) if last_resort => Self::LastResort,
            (true, true) => Self::Terminating,
            (true, false) => Self::NotServing,
            (false, _) => Self::NotReady,
        }
    }
}

/// How traffic under policy Cluster chooses among the endpoints of one Service port.
#[derive(Debug)]
pub struct ClusterChoice<'a> {
    hints: Hints,
    zone: Option<&'a str>,
    /// No ready endpoint anywhere: those that terminate but still serve, wherever they are.
    last_resort: bool,
}

impl<'a> ClusterChoice<'a> {
    /// `endpoints` without duplicates; `zone`: of this node.
    pub fn of(endpoints: &[(&Endpoint, u16)], zone: Option<&'a str>) -> Self {
        let hints = Hints::of(endpoints, zone);
        let chosen = |endpoint: &Endpoint| endpoint.ready && hints.allow(endpoint, zone);
        let last_resort = !endpoints.iter().any(|(endpoint, _)| chosen(endpoint));
        Self { hints, zone, last_resort }
    }

    /// Whether this one is used.
    pub fn judge(&self, endpoint: &Endpoint) -> Use {
        if self.last_resort || !endpoint.ready {
            return Use::unready(endpoint, self.last_resort);
        }
        match self.hints {
            _ if self.hints.allow(endpoint, self.zone) => Use::Ready,
            Hints::Node => Use::ForOtherNodes,
            Hints::Zone | Hints::Ignored => Use::ForOtherZones,
        }
    }

    /// Which topology hints are followed.
    pub fn hints(&self) -> Hints {
        self.hints
    }
}

/// How traffic under policy Local chooses among the endpoints of one Service port.
#[derive(Debug)]
pub struct LocalChoice {
    /// No ready endpoint on this node: those here that terminate but still serve.
    last_resort: bool,
}

impl LocalChoice {
    /// `endpoints` without duplicates.
    pub fn of(endpoints: &[(&Endpoint, u16)]) -> Self {
        let last_resort = !endpoints.iter().any(|(endpoint, _)| endpoint.local && endpoint.ready);
        Self { last_resort }
    }

    /// Whether this one is used.
    pub fn judge(&self, endpoint: &Endpoint) -> Use {
        match endpoint.local {
            false => Use::Elsewhere,
            true if endpoint.ready => Use::Ready,
            true => Use::unready(endpoint, self.last_resort),
        }
    }
}

/// Which topology hints are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hints {
    /// `hints.forNodes`.
    Node,
    /// `hints.forZones`.
    Zone,
    /// None: there are none, not every ready endpoint has one, or none names this node.
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

    fn allow(self, endpoint: &Endpoint, zone: Option<&str>) -> bool {
        match self {
            Self::Node => endpoint.for_nodes == NodeHint::Here,
            Self::Zone => names_zone(endpoint, zone),
            Self::Ignored => true,
        }
    }
}

/// Why topology hints of ready endpoints are not followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HintsIgnored {
    /// Some ready endpoint carries none.
    Incomplete,
    /// This node has no label `topology.kubernetes.io/zone`.
    NoZone,
    /// No endpoint is hinted for this node or its zone.
    NoneHere,
}

impl HintsIgnored {
    /// Every reason there is.
    pub const ALL: [Self; 3] = [Self::Incomplete, Self::NoZone, Self::NoneHere];
}

/// Whether there are hints among ready endpoints that [`targets`] does not follow, and why.
pub fn hints_ignored(endpoints: &[(&Endpoint, u16)], zone: Option<&str>) -> Option<HintsIgnored> {
    let ready = || endpoints.iter().map(|(endpoint, _)| endpoint).filter(|endpoint| endpoint.ready);
    let for_zone = |endpoint: &&Endpoint| endpoint.for_zones.as_ref().is_some_and(|zones| !zones.is_empty());
    let hinted = |endpoint: &&&Endpoint| endpoint.for_nodes != NodeHint::Absent || for_zone(endpoint);
    if !ready().any(|endpoint| hinted(&endpoint)) || !matches!(Hints::of(endpoints, zone), Hints::Ignored) {
        return None;
    }
    let all_for_nodes = ready().all(|endpoint| endpoint.for_nodes != NodeHint::Absent);
    let all_for_zones = ready().all(for_zone);
    Some(match (all_for_zones, zone) {
        (true, None) => HintsIgnored::NoZone,
        (true, Some(_)) => HintsIgnored::NoneHere,
        (false, _) if all_for_nodes => HintsIgnored::NoneHere,
        (false, _) => HintsIgnored::Incomplete,
    })
}

fn names_zone(endpoint: &Endpoint, zone: Option<&str>) -> bool {
    let Some(zone) = zone else { return false };
    endpoint.for_zones.as_ref().is_some_and(|zones| zones.iter().any(|name| **name == *zone))
}
