//! Writes one Service port as rules: its own chains in table `nat`, and its lines in the dispatch chains.
//!
//! Rules and their order within a chain are those of kube-proxy 1.36 (pkg/proxy/iptables/proxier.go, syncProxyRules).
//! Each is written exactly as `iptables-save` prints it, so that what is there already is known by comparing text.

mod dispatch;
mod text;

use std::{net::IpAddr, ops::Range, sync::Arc};

use proxy_core::{
    environment::{Environment, LocalPods},
    model::{ServicePortName, TrafficPolicy},
    route::{AllowedSources, Frontend, FrontendKind, Named, Route, Target},
};

use crate::{
    chains::{ChainStem, Dispatcher, MARK_MASQUERADE, Role, ServiceChain, Table},
    restore::Tally,
    survey::Host,
};
use text::{Rule, host, network, one_in, socket};

/// All rules of one Service port.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// All chains, one after the other.
    pub(crate) text: String,
    chains: Vec<(ServiceChain, Range<usize>)>,
    pub(crate) dispatch: Dispatch,
}

impl Rules {
    /// The chains of this port, each with its rules as restore lines.
    pub(crate) fn chains(&self) -> impl ExactSizeIterator<Item = (ServiceChain, &str)> {
        self.chains.iter().map(|(chain, range)| (*chain, &self.text[range.clone()]))
    }

    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        tally.add(Table::Nat, &self.text);
        for (dispatcher, lines) in &self.dispatch.0 {
            tally.add(dispatcher.table(), lines);
        }
        tally
    }
}

/// One Service port's lines in the dispatch chains; a chain without lines is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dispatch(Vec<(Dispatcher, Arc<str>)>);

impl Dispatch {
    pub(crate) fn lines(&self, of: Dispatcher) -> Option<&Arc<str>> {
        self.0.iter().find_map(|(dispatcher, lines)| (*dispatcher == of).then_some(lines))
    }
}

/// An endpoint with its `address:port` text.
pub(crate) struct Endpoint {
    pub(crate) text: String,
    pub(crate) addr: IpAddr,
}

/// Whether rules carry comments that name endpoints. kube-proxy leaves them out above 1,000 endpoints, since they are
/// some 40 % of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndpointComments {
    Written,
    LeftOut,
}

/// What rules depend on beside the route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) host: Host,
    pub(crate) comments: EndpointComments,
}

/// Endpoints of both policies, sorted.
fn union(route: &Route) -> Vec<Target> {
    let mut all: Vec<Target> = route.cluster.iter().chain(&route.local).copied().collect();
    all.sort_unstable();
    all.dedup_by_key(|target| (target.addr, target.port));
    all
}

pub(crate) fn write(name: &ServicePortName, route: &Route, context: Context<'_>) -> Rules {
    let shown = name.to_string();
    let stem = ChainStem::new(&shown, name);
    let chains = stem.hash();
    let targets = union(route);
    let endpoints = targets
        .iter()
        .map(|target| {
            let endpoint = Endpoint { text: socket(target.addr, target.port), addr: target.addr };
            (ServiceChain::endpoint(&stem, &endpoint), endpoint)
        })
        .collect();
    let writer = Writer { name: shown, chains, route, context, targets, endpoints };
    let mut rules = Rules { dispatch: writer.dispatch(), ..Rules::default() };
    if route.any_endpoint {
        rules.text.reserve(1024 + 384 * writer.endpoints.len());
        writer.chains_into(&mut rules);
    }
    rules
}

struct Writer<'a> {
    /// `namespace/name:port`.
    name: String,
    chains: [u8; 16],
    route: &'a Route,
    context: Context<'a>,
    /// Sorted; `endpoints` has the same order.
    targets: Vec<Target>,
    endpoints: Vec<(ServiceChain, Endpoint)>,
}

impl Writer<'_> {
    fn chain(&self, role: Role) -> ServiceChain {
        ServiceChain::of_service(role, self.chains)
    }

    fn policy_chain(&self, policy: TrafficPolicy) -> ServiceChain {
        self.chain(match policy {
            TrafficPolicy::Cluster => Role::Cluster,
            TrafficPolicy::Local => Role::Local,
        })
    }

    /// An address that the Service gives twice has its rules twice, as in kube-proxy.
    fn frontends(&self, kind: FrontendKind) -> impl Iterator<Item = &Frontend> {
        self.route
            .frontends
            .iter()
            .chain(&self.route.named.repeated)
            .filter(move |frontend| frontend.kind == kind && !self.opens_what_is_restricted(frontend))
    }

    /// A load balancer IP with source ranges that is given as external IP too: a rule for that would let everybody in.
    fn opens_what_is_restricted(&self, frontend: &Frontend) -> bool {
        frontend.kind == FrontendKind::ExternalIp
            && self.route.frontends.iter().any(|other| other.at == frontend.at && other.sources.is_some())
    }

    /// kube-proxy writes the chain for external traffic even if nothing leads to it.
    fn is_external(&self) -> bool {
        let external = |frontend: &Frontend| frontend.kind != FrontendKind::ClusterIp;
        let Named { unanswered, repeated, .. } = &self.route.named;
        *unanswered || self.route.frontends.iter().chain(repeated).any(external)
    }

    /// Who may use the load balancer IPs: one list for the Service.
    fn sources(&self) -> Option<&AllowedSources> {
        self.frontends(FrontendKind::LoadBalancerIp).find_map(|frontend| frontend.sources.as_deref())
    }

    fn has_endpoints_under(&self, policy: TrafficPolicy) -> bool {
        self.route.any_endpoint && (policy == TrafficPolicy::Cluster || !self.route.local.is_empty())
    }

    fn chains_into(&self, rules: &mut Rules) {
        if self.is_external() {
            add_chain(rules, self.chain(Role::External), |text| self.external_chain(text));
        }
        if let Some(sources) = self.sources() {
            add_chain(rules, self.chain(Role::Firewall), |text| self.firewall_chain(text, sources));
        }
        for (policy, targets) in
            [(TrafficPolicy::Cluster, &self.route.cluster), (TrafficPolicy::Local, &self.route.local)]
        {
            if !targets.is_empty() {
                add_chain(rules, self.policy_chain(policy), |text| {
                    self.policy_chain_rules(text, policy, targets);
                });
            }
        }
        for (chain, endpoint) in &self.endpoints {
            add_chain(rules, *chain, |text| self.endpoint_chain(text, *chain, endpoint));
        }
    }

    fn external_chain(&self, text: &mut String) {
        fn comment<'a>(rule: Rule<'a>, what: &str, writer: &Writer<'_>) -> Rule<'a> {
            rule.comment(&[what, &writer.name, " external destinations"])
        }
        let chain = self.chain(Role::External);
        match self.route.external_policy {
            TrafficPolicy::Cluster => {
                comment(Rule::new(text, chain), "masquerade traffic for ", self).jump(&[MARK_MASQUERADE]);
            }
            TrafficPolicy::Local => {
                const FROM_NODE: &str = "-m addrtype --src-type LOCAL";
                let anywhere = self.chain(Role::Cluster);
                // Traffic of this node is treated as if it went out to a load balancer and came back: no policy.
                for pods in local_pods(&self.context.environment.local_pods) {
                    let rule = match &pods {
                        Pods::Source(network) => Rule::new(text, chain).source(network),
                        Pods::Interface(name) => Rule::new(text, chain).interface(name),
                    };
                    comment(rule, "pod traffic for ", self).goto(anywhere);
                }
                // From the node itself it has the destination as its source, so that needs translation.
                comment(Rule::new(text, chain), "masquerade LOCAL traffic for ", self)
                    .more(FROM_NODE)
                    .jump(&[MARK_MASQUERADE]);
                comment(Rule::new(text, chain), "route LOCAL traffic for ", self)
                    .more(FROM_NODE)
                    .goto(anywhere);
            }
        }
        if self.has_endpoints_under(self.route.external_policy) {
            Rule::new(text, chain).goto(self.policy_chain(self.route.external_policy));
        }
    }

    fn firewall_chain(&self, text: &mut String, sources: &AllowedSources) {
        let chain = self.chain(Role::Firewall);
        let ranges = sources.ranges.iter().map(network);
        for source in ranges.chain(sources.own_vips.iter().map(|vip| host(*vip))) {
            Rule::new(text, chain)
                .source(&source)
                .comment(&[&self.name, " loadbalancer IP"])
                .goto(self.chain(Role::External));
        }
        Rule::new(text, chain)
            .comment(&["other traffic to ", &self.name, " will be dropped by KUBE-PROXY-FIREWALL"])
            .end();
    }

    fn policy_chain_rules(&self, text: &mut String, policy: TrafficPolicy, targets: &[Target]) {
        let chain = self.policy_chain(policy);
        if self.route.internal_policy == policy {
            self.masquerade_internal(text, chain);
        }
        let mut endpoints: Vec<&(ServiceChain, Endpoint)> =
            targets.iter().map(|target| self.endpoint_of(*target)).collect();
        // kube-proxy's order: by `address:port` as text.
        endpoints.sort_unstable_by(|(_, a), (_, b)| a.text.cmp(&b.text));
        if let Some(seconds) = self.route.affinity {
            for (to, endpoint) in &endpoints {
                let mask = text::full_mask(endpoint.addr);
                self.to_endpoint(text, chain, endpoint)
                    .more(&format!(
                        "-m recent --rcheck --seconds {seconds} --reap --name {to} --mask {mask} --rsource"
                    ))
                    .goto(*to);
            }
        }
        for (at, (to, endpoint)) in endpoints.iter().enumerate() {
            let left = endpoints.len() - at;
            let rule = self.to_endpoint(text, chain, endpoint);
            if left > 1 { rule.more(&one_in(left)) } else { rule }.goto(*to);
        }
    }

    fn to_endpoint<'a>(&self, text: &'a mut String, chain: ServiceChain, endpoint: &Endpoint) -> Rule<'a> {
        let rule = Rule::new(text, chain);
        match self.context.comments {
            EndpointComments::Written => rule.comment(&[&self.name, " -> ", &endpoint.text]),
            EndpointComments::LeftOut => rule,
        }
    }

    /// The chain and text of a target, which is one of `targets`.
    fn endpoint_of(&self, target: Target) -> &(ServiceChain, Endpoint) {
        let at = self
            .targets
            .binary_search_by_key(&(target.addr, target.port), |target| (target.addr, target.port))
            .expect("`targets` is the union of both policies' endpoints");
        &self.endpoints[at]
    }

    /// Traffic to a cluster IP from outside the cluster may be answered by another node, and must come back here.
    fn masquerade_internal(&self, text: &mut String, chain: ServiceChain) {
        let environment = self.context.environment;
        for frontend in self.frontends(FrontendKind::ClusterIp) {
            let to_frontend = |rule: Rule<'_>, target: &[&str]| {
                rule.protocol(self.route.protocol)
                    .comment(&[&self.name, " cluster IP"])
                    .port(frontend.port)
                    .jump(target);
            };
            let to = frontend.at.map(host).unwrap_or_default();
            let pods = local_pods(&environment.local_pods);
            match &pods[..] {
                _ if environment.masquerade_all => {
                    to_frontend(Rule::new(text, chain).destination(&to), &[MARK_MASQUERADE]);
                }
                [] => {}
                [Pods::Source(network)] => {
                    let rule = Rule::new(text, chain).not_source(network).destination(&to);
                    to_frontend(rule, &[MARK_MASQUERADE]);
                }
                [Pods::Interface(name)] => {
                    let rule = Rule::new(text, chain).destination(&to).not_interface(name);
                    to_frontend(rule, &[MARK_MASQUERADE]);
                }
                // One rule cannot exclude two networks: mark all, then clear what turns out to be local.
                several => {
                    to_frontend(Rule::new(text, chain).destination(&to), &[MARK_MASQUERADE]);
                    let clear = format!("MARK --set-xmark 0x0/{:#x}", environment.masquerade_mark);
                    for pods in several {
                        let rule = match pods {
                            Pods::Source(network) => Rule::new(text, chain).source(network).destination(&to),
                            Pods::Interface(name) => Rule::new(text, chain).destination(&to).interface(name),
                        };
                        to_frontend(rule, &[&clear]);
                    }
                }
            }
        }
    }

    fn endpoint_chain(&self, text: &mut String, chain: ServiceChain, endpoint: &Endpoint) {
        fn comment<'a>(rule: Rule<'a>, writer: &Writer<'_>) -> Rule<'a> {
            match writer.context.comments {
                EndpointComments::Written => rule.comment(&[&writer.name]),
                EndpointComments::LeftOut => rule,
            }
        }
        // An endpoint that reaches itself would answer itself directly, past the translation.
        comment(Rule::new(text, chain).source_host(endpoint.addr), self).jump(&[MARK_MASQUERADE]);

        let mut rule = comment(Rule::new(text, chain).protocol(self.route.protocol), self);
        if self.route.affinity.is_some() {
            let mask = text::full_mask(endpoint.addr);
            rule = rule.more(&format!("-m recent --set --name {chain} --mask {mask} --rsource"));
        }
        rule.protocol_match().jump(&["DNAT --to-destination ", &endpoint.text]);
    }
}

fn add_chain(rules: &mut Rules, chain: ServiceChain, write: impl FnOnce(&mut String)) {
    let start = rules.text.len();
    write(&mut rules.text);
    rules.chains.push((chain, start..rules.text.len()));
}

/// One way to tell that a packet comes from a pod of this node.
enum Pods {
    Source(String),
    Interface(String),
}

fn local_pods(detector: &LocalPods) -> Vec<Pods> {
    match detector {
        LocalPods::Unknown => Vec::new(),
        LocalPods::Cidrs(cidrs) => cidrs.iter().map(|cidr| Pods::Source(network(cidr))).collect(),
        LocalPods::Bridge(name) => vec![Pods::Interface(name.to_string())],
        LocalPods::InterfacePrefix(prefix) => vec![Pods::Interface(format!("{prefix}+"))],
    }
}
