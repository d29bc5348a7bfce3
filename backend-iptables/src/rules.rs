//! Writes one Service port as rules: its own chains in table `nat`, and its lines in the dispatch chains.
//!
//! Rules and their order within a chain are those of kube-proxy 1.36 (pkg/proxy/iptables/proxier.go, syncProxyRules).

use std::{net::IpAddr, ops::Range, sync::Arc};

use ipnet::IpNet;
use proxy_core::{
    environment::{Environment, LocalPods},
    model::{ServicePortName, TrafficPolicy},
    route::{AllowedSources, Frontend, FrontendKind, Route, Target},
};

use crate::{
    accounting::LOCALHOST_ACCEPTED,
    chains::{
        ChainStem, Dispatcher, EXTERNAL_SERVICES, MARK_MASQUERADE, NODE_PORTS, PROXY_FIREWALL, Role,
        SERVICES, ServiceChain,
    },
    survey::Host,
};

/// All rules of one Service port.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    text: String,
    chains: Vec<(ServiceChain, Range<usize>)>,
    pub(crate) dispatch: Dispatch,
}

impl Rules {
    /// The chains of this port, each with its rules as restore lines.
    pub(crate) fn chains(&self) -> impl Iterator<Item = (ServiceChain, &str)> {
        self.chains.iter().map(|(chain, range)| (*chain, &self.text[range.clone()]))
    }

    /// The names of the chains and the lines of all of them.
    pub(crate) fn into_text(self) -> (Box<[ServiceChain]>, Box<str>) {
        (self.chains.into_iter().map(|(chain, _)| chain).collect(), self.text.into())
    }
}

/// One Service port's lines in the dispatch chains; a chain without lines is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dispatch(Vec<(Dispatcher, Arc<str>)>);

impl Dispatch {
    pub(crate) fn lines(&self, of: Dispatcher) -> Option<&Arc<str>> {
        self.0.iter().find_map(|(dispatcher, lines)| (*dispatcher == of).then_some(lines))
    }

    fn add(&mut self, dispatcher: Dispatcher, lines: String) {
        if !lines.is_empty() {
            self.0.push((dispatcher, lines.into()));
        }
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

/// How many endpoints a route can reach: what is counted to tell a large cluster.
pub(crate) fn endpoint_count(route: &Route) -> usize {
    if route.local.is_empty() { route.cluster.len() } else { union(route).len() }
}

/// Endpoints of both policies, sorted.
fn union(route: &Route) -> Vec<Target> {
    let mut all: Vec<Target> = route.cluster.iter().chain(&route.local).copied().collect();
    all.sort_unstable();
    all.dedup_by_key(|target| (target.addr, target.port));
    all
}

/// What rules depend on beside the route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) host: Host,
    pub(crate) comments: EndpointComments,
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

    fn frontends(&self, kind: FrontendKind) -> impl Iterator<Item = &Frontend> {
        self.route.frontends.iter().filter(move |frontend| frontend.kind == kind)
    }

    fn is_external(&self) -> bool {
        self.route.frontends.iter().any(|frontend| frontend.kind != FrontendKind::ClusterIp)
    }

    /// Who may use the load balancer IPs: one list for the Service.
    fn sources(&self) -> Option<&AllowedSources> {
        self.frontends(FrontendKind::LoadBalancerIp).find_map(|frontend| frontend.sources.as_deref())
    }

    fn has_internal_endpoints(&self) -> bool {
        self.route.any_endpoint
            && (self.route.internal_policy == TrafficPolicy::Cluster || !self.route.local.is_empty())
    }

    fn has_external_endpoints(&self) -> bool {
        self.route.any_endpoint
            && (self.route.external_policy == TrafficPolicy::Cluster || !self.route.local.is_empty())
    }

    fn policy_chain(&self, policy: TrafficPolicy) -> ServiceChain {
        self.chain(match policy {
            TrafficPolicy::Cluster => Role::Cluster,
            TrafficPolicy::Local => Role::Local,
        })
    }

    fn dispatch(&self) -> Dispatch {
        let mut nat_services = String::new();
        let mut nat_node_ports = String::new();
        let mut services = String::new();
        let mut external = String::new();
        let mut firewall = String::new();
        let mut node_ports = String::new();

        let name = &self.name;
        let (refusal, why) = if self.route.any_endpoint {
            ("DROP", format!("\"{name} has no local endpoints\""))
        } else {
            ("REJECT", format!("\"{name} has no endpoints\""))
        };

        for frontend in self.frontends(FrontendKind::ClusterIp) {
            if self.has_internal_endpoints() {
                let to = self.policy_chain(self.route.internal_policy);
                self.captured(&mut nat_services, SERVICES, "cluster IP", frontend, to);
            } else {
                self.refused(&mut services, SERVICES, &why, frontend, refusal);
            }
        }
        for frontend in self.frontends(FrontendKind::ExternalIp) {
            if self.route.any_endpoint {
                self.captured(
                    &mut nat_services,
                    SERVICES,
                    "external IP",
                    frontend,
                    self.chain(Role::External),
                );
            }
            if !self.has_external_endpoints() {
                self.refused(&mut external, EXTERNAL_SERVICES, &why, frontend, refusal);
            }
        }
        for frontend in self.frontends(FrontendKind::LoadBalancerIp) {
            if self.route.any_endpoint {
                let restricted = self.sources().is_some();
                let to = self.chain(if restricted { Role::Firewall } else { Role::External });
                self.captured(&mut nat_services, SERVICES, "loadbalancer IP", frontend, to);
                if restricted {
                    let comment = format!("\"{name} traffic not accepted by {to}\"");
                    self.refused(&mut firewall, PROXY_FIREWALL, &comment, frontend, "DROP");
                }
            }
            if !self.has_external_endpoints() {
                self.refused(&mut external, EXTERNAL_SERVICES, &why, frontend, refusal);
            }
        }
        for frontend in self.frontends(FrontendKind::NodePort) {
            let protocol = self.route.protocol;
            if self.route.any_endpoint {
                let matched = [" -m ", protocol.as_str(), " -p ", protocol.as_str()];
                if self.context.environment.localhost_node_ports
                    && self.context.host.counters.localhost_accepted
                {
                    append(&mut nat_node_ports, NODE_PORTS, name);
                    push(&mut nat_node_ports, &matched);
                    push(&mut nat_node_ports, &[" -d 127.0.0.0/8 --dport "]);
                    push_port(&mut nat_node_ports, frontend.port);
                    push(&mut nat_node_ports, &[" -m nfacct --nfacct-name ", LOCALHOST_ACCEPTED]);
                    end(&mut nat_node_ports, self.chain(Role::External));
                }
                append(&mut nat_node_ports, NODE_PORTS, name);
                push(&mut nat_node_ports, &matched);
                push(&mut nat_node_ports, &[" --dport "]);
                push_port(&mut nat_node_ports, frontend.port);
                end(&mut nat_node_ports, self.chain(Role::External));
            }
            if !self.has_external_endpoints() {
                append(&mut external, EXTERNAL_SERVICES, &why);
                push(&mut external, &[" -m addrtype --dst-type LOCAL"]);
                push(&mut external, &[" -m ", protocol.as_str(), " -p ", protocol.as_str(), " --dport "]);
                push_port(&mut external, frontend.port);
                push(&mut external, &[" -j ", refusal, "\n"]);
            }
        }
        if let Some(port) = self.route.health_check_node_port {
            append(&mut node_ports, NODE_PORTS, &format!("\"{name} health check node port\""));
            push(&mut node_ports, &[" -m tcp -p tcp --dport "]);
            push_port(&mut node_ports, port);
            push(&mut node_ports, &[" -j ACCEPT\n"]);
        }

        let mut dispatch = Dispatch::default();
        dispatch.add(Dispatcher::NatServices, nat_services);
        dispatch.add(Dispatcher::NatNodePorts, nat_node_ports);
        dispatch.add(Dispatcher::FilterServices, services);
        dispatch.add(Dispatcher::FilterExternalServices, external);
        dispatch.add(Dispatcher::FilterProxyFirewall, firewall);
        dispatch.add(Dispatcher::FilterNodePorts, node_ports);
        dispatch
    }

    /// A rule that sends traffic for an address and port to a chain.
    fn captured(&self, to: &mut String, chain: &str, kind: &str, frontend: &Frontend, target: ServiceChain) {
        push(to, &["-A ", chain, " -m comment --comment \"", &self.name, " ", kind, "\""]);
        self.destination(to, frontend);
        end(to, target);
    }

    /// A rule that refuses traffic for an address and port.
    fn refused(&self, to: &mut String, chain: &str, comment: &str, frontend: &Frontend, verdict: &str) {
        append(to, chain, comment);
        self.destination(to, frontend);
        push(to, &[" -j ", verdict, "\n"]);
    }

    fn destination(&self, to: &mut String, frontend: &Frontend) {
        let protocol = self.route.protocol.as_str();
        push(to, &[" -m ", protocol, " -p ", protocol]);
        if let Some(addr) = frontend.at {
            push(to, &[" -d ", &addr.to_string()]);
        }
        push(to, &[" --dport "]);
        push_port(to, frontend.port);
    }

    fn chains_into(&self, rules: &mut Rules) {
        if self.is_external() {
            self.add_chain(rules, self.chain(Role::External), |text| self.external_chain(text));
        }
        if let Some(sources) = self.sources() {
            self.add_chain(rules, self.chain(Role::Firewall), |text| self.firewall_chain(text, sources));
        }
        if !self.route.cluster.is_empty() {
            self.add_chain(rules, self.chain(Role::Cluster), |text| {
                self.policy_chain_rules(text, TrafficPolicy::Cluster, &self.route.cluster);
            });
        }
        if !self.route.local.is_empty() {
            self.add_chain(rules, self.chain(Role::Local), |text| {
                self.policy_chain_rules(text, TrafficPolicy::Local, &self.route.local);
            });
        }
        for (chain, endpoint) in &self.endpoints {
            self.add_chain(rules, *chain, |text| self.endpoint_chain(text, *chain, endpoint));
        }
    }

    fn add_chain(&self, rules: &mut Rules, chain: ServiceChain, write: impl FnOnce(&mut String)) {
        let start = rules.text.len();
        write(&mut rules.text);
        rules.chains.push((chain, start..rules.text.len()));
    }

    fn external_chain(&self, text: &mut String) {
        let chain = self.chain(Role::External).to_string();
        let name = &self.name;
        let commented = |text: &mut String, what: &str| {
            push(text, &["-A ", &chain, " -m comment --comment \"", what, " ", name]);
            push(text, &[" external destinations\""]);
        };
        match self.route.external_policy {
            TrafficPolicy::Cluster => {
                commented(text, "masquerade traffic for");
                push(text, &[" -j ", MARK_MASQUERADE, "\n"]);
            }
            TrafficPolicy::Local => {
                let anywhere = self.chain(Role::Cluster);
                for source in local_pods(&self.context.environment.local_pods) {
                    commented(text, "pod traffic for");
                    push(text, &[" ", &source]);
                    end(text, anywhere);
                }
                commented(text, "masquerade LOCAL traffic for");
                push(text, &[" -m addrtype --src-type LOCAL -j ", MARK_MASQUERADE, "\n"]);
                commented(text, "route LOCAL traffic for");
                push(text, &[" -m addrtype --src-type LOCAL"]);
                end(text, anywhere);
            }
        }
        if self.has_external_endpoints() {
            push(text, &["-A ", &chain]);
            end(text, self.policy_chain(self.route.external_policy));
        }
    }

    fn firewall_chain(&self, text: &mut String, sources: &AllowedSources) {
        let chain = self.chain(Role::Firewall).to_string();
        let ranges = sources.ranges.iter().map(|range| range.trunc().to_string());
        for source in ranges.chain(sources.own_vips.iter().map(IpAddr::to_string)) {
            push(text, &["-A ", &chain, " -m comment --comment \"", &self.name, " loadbalancer IP\""]);
            push(text, &[" -s ", &source]);
            end(text, self.chain(Role::External));
        }
        push(text, &["-A ", &chain, " -m comment --comment \"other traffic to ", &self.name]);
        push(text, &[" will be dropped by KUBE-PROXY-FIREWALL\"\n"]);
    }

    fn policy_chain_rules(&self, text: &mut String, policy: TrafficPolicy, targets: &[Target]) {
        let chain = self.policy_chain(policy).to_string();
        if self.route.internal_policy == policy {
            self.masquerade_internal(text, &chain);
        }
        let mut endpoints: Vec<&(ServiceChain, Endpoint)> =
            targets.iter().map(|target| self.endpoint_of(*target)).collect();
        // kube-proxy's order: by `address:port` as text.
        endpoints.sort_unstable_by(|(_, a), (_, b)| a.text.cmp(&b.text));
        if let Some(seconds) = self.route.affinity {
            for (to, endpoint) in &endpoints {
                self.to_endpoint(text, &chain, endpoint);
                push(text, &[" -m recent --name "]);
                to.write(text);
                push(text, &[" --rcheck --seconds ", &seconds.to_string(), " --reap"]);
                end(text, *to);
            }
        }
        for (at, (to, endpoint)) in endpoints.iter().enumerate() {
            self.to_endpoint(text, &chain, endpoint);
            let left = endpoints.len() - at;
            if left > 1 {
                push(text, &[" -m statistic --mode random --probability ", &probability(left)]);
            }
            end(text, *to);
        }
    }

    fn to_endpoint(&self, text: &mut String, chain: &str, endpoint: &Endpoint) {
        push(text, &["-A ", chain]);
        if self.context.comments == EndpointComments::Written {
            push(text, &[" -m comment --comment \"", &self.name, " -> ", &endpoint.text, "\""]);
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
    fn masquerade_internal(&self, text: &mut String, chain: &str) {
        for frontend in self.frontends(FrontendKind::ClusterIp) {
            let mut matched = String::new();
            push(&mut matched, &["-A ", chain, " -m comment --comment \"", &self.name, " cluster IP\""]);
            self.destination(&mut matched, frontend);
            let mark = [" -j ", MARK_MASQUERADE, "\n"];
            if self.context.environment.masquerade_all {
                push(text, &[&matched]);
                push(text, &mark);
                continue;
            }
            match &self.context.environment.local_pods {
                LocalPods::Unknown => {}
                LocalPods::Cidrs(cidrs) if cidrs.len() > 1 => {
                    // One rule cannot exclude two networks: mark all, then clear what turns out to be local.
                    push(text, &[&matched]);
                    push(text, &mark);
                    let clear = format!("0x0/{:#x}", self.context.environment.masquerade_mark);
                    for source in local_pods(&self.context.environment.local_pods) {
                        push(text, &[&matched, " ", &source, " -j MARK --set-xmark ", &clear, "\n"]);
                    }
                }
                detector => {
                    for source in local_pods(detector) {
                        push(text, &[&matched, " ! ", &source]);
                        push(text, &mark);
                    }
                }
            }
        }
    }

    fn endpoint_chain(&self, text: &mut String, chain: ServiceChain, endpoint: &Endpoint) {
        let start = |text: &mut String| {
            push(text, &["-A "]);
            chain.write(text);
            if self.context.comments == EndpointComments::Written {
                push(text, &[" -m comment --comment ", &self.name]);
            }
        };
        // An endpoint that reaches itself would answer itself directly, past the translation.
        start(text);
        push(text, &[" -s ", &endpoint.addr.to_string(), " -j ", MARK_MASQUERADE, "\n"]);
        start(text);
        if self.route.affinity.is_some() {
            push(text, &[" -m recent --name "]);
            chain.write(text);
            push(text, &[" --set"]);
        }
        let protocol = self.route.protocol.as_str();
        push(text, &[" -m ", protocol, " -p ", protocol, " -j DNAT --to-destination ", &endpoint.text, "\n"]);
    }
}

/// Matches of traffic that comes from a pod of this node.
fn local_pods(detector: &LocalPods) -> Vec<String> {
    match detector {
        LocalPods::Unknown => Vec::new(),
        LocalPods::Cidrs(cidrs) => cidrs.iter().map(|cidr: &IpNet| format!("-s {cidr}")).collect(),
        LocalPods::Bridge(name) => vec![format!("-i {name}")],
        LocalPods::InterfacePrefix(prefix) => vec![format!("-i {prefix}+")],
    }
}

/// One in `left`, with kube-proxy's ten digits.
fn probability(left: usize) -> String {
    format!("{:.10}", 1.0 / left as f64)
}

/// `address:port`, an IPv6 address in brackets.
fn socket(addr: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(addr, port).to_string()
}

fn append(text: &mut String, chain: &str, comment: &str) {
    push(text, &["-A ", chain, " -m comment --comment ", comment]);
}

fn end(text: &mut String, target: ServiceChain) {
    text.push_str(" -j ");
    target.write(text);
    text.push('\n');
}

fn push(text: &mut String, parts: &[&str]) {
    for part in parts {
        text.push_str(part);
    }
}

fn push_port(text: &mut String, port: u16) {
    text.push_str(&port.to_string());
}
