//! Answers about one Service port that more than one of its chains depends on.

use std::{collections::HashSet, net::IpAddr};

use proxy_core::{
    model::{ServicePortName, TrafficPolicy},
    route::{AllowedSources, Frontend, FrontendKind, Route, Target},
};

use crate::{
    plan::service::{named::Named, rules::Context},
    schema::{
        chains::{ChainStem, Role, ServiceChain},
        rule::socket,
    },
};

/// An endpoint with its `address:port` text.
pub(super) struct Endpoint {
    pub(super) text: String,
    pub(super) addr: IpAddr,
}

/// Endpoints of both policies, sorted.
fn union(route: &Route) -> Vec<Target> {
    let mut all: Vec<Target> = route.cluster.iter().chain(&route.local).copied().collect();
    all.sort_unstable();
    all.dedup_by_key(|target| (target.addr, target.port));
    all
}

pub(super) struct Writer<'a> {
    /// `namespace/name:port`.
    pub(super) name: String,
    chains: [u8; 16],
    pub(super) route: &'a Route,
    named: Named,
    /// Addresses that not everybody may use.
    restricted: HashSet<Option<IpAddr>>,
    pub(super) context: Context<'a>,
    /// Sorted; `endpoints` has the same order.
    targets: Vec<Target>,
    pub(super) endpoints: Vec<(ServiceChain, Endpoint)>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(name: &ServicePortName, route: &'a Route, context: Context<'a>) -> Self {
        let shown = name.to_string();
        let stem = ChainStem::new(&shown, name);
        let targets = union(route);
        let endpoints = targets
            .iter()
            .map(|target| {
                let endpoint = Endpoint { text: socket(target.addr, target.port), addr: target.addr };
                (ServiceChain::endpoint(&stem, &endpoint.text), endpoint)
            })
            .collect();
        let restricted = route.frontends.iter().filter(|frontend| route.sources(frontend).is_some());
        let restricted = restricted.map(|frontend| frontend.at).collect();
        let named = Named::of(route);
        Self { name: shown, chains: stem.hash(), route, named, restricted, context, targets, endpoints }
    }

    pub(super) fn chain(&self, role: Role) -> ServiceChain {
        ServiceChain::of_service(role, self.chains)
    }

    pub(super) fn policy_chain(&self, policy: TrafficPolicy) -> ServiceChain {
        self.chain(match policy {
            TrafficPolicy::Cluster => Role::Cluster,
            TrafficPolicy::Local => Role::Local,
        })
    }

    /// An address that the Service gives twice has its rules twice, as in kube-proxy.
    pub(super) fn frontends(&self, kind: FrontendKind) -> impl Iterator<Item = &Frontend> {
        self.route
            .frontends
            .iter()
            .chain(&self.named.repeated)
            .filter(move |frontend| frontend.kind == kind && !self.opens_what_is_restricted(frontend))
    }

    /// A load balancer IP with source ranges that is given as external IP too: a rule for that would let everybody in.
    pub(super) fn opens_what_is_restricted(&self, frontend: &Frontend) -> bool {
        frontend.kind == FrontendKind::ExternalIp && self.restricted.contains(&frontend.at)
    }

    /// kube-proxy writes the chain for external traffic even if nothing leads to it.
    pub(super) fn is_external(&self) -> bool {
        let external = |frontend: &Frontend| frontend.kind != FrontendKind::ClusterIp;
        let Named { unanswered, repeated } = &self.named;
        *unanswered || self.route.frontends.iter().chain(repeated).any(external)
    }

    /// Who may use the load balancer IPs: one list for the Service.
    pub(super) fn sources(&self) -> Option<&AllowedSources> {
        self.frontends(FrontendKind::LoadBalancerIp).find_map(|frontend| self.route.sources(frontend))
    }

    pub(super) fn has_endpoints_under(&self, policy: TrafficPolicy) -> bool {
        self.route.any_endpoint && (policy == TrafficPolicy::Cluster || !self.route.local.is_empty())
    }

    /// The chain and text of a target, which is one of `targets`.
    pub(super) fn endpoint_of(&self, target: Target) -> &(ServiceChain, Endpoint) {
        let at = self
            .targets
            .binary_search_by_key(&(target.addr, target.port), |target| (target.addr, target.port))
            .expect("`targets` is the union of both policies' endpoints");
        &self.endpoints[at]
    }
}
