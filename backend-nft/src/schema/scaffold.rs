//! The fixed part of the table: sets, base chains and the chains that all Services share.

use std::sync::Arc;

use ipnet::IpNet;
use proxy_core::{
    environment::{Environment, LocalPods, NodePortAddresses},
    model::Family,
};

use crate::schema::{
    name::{Base, ChainName, Place, Set, SetName},
    statement::{Key, Part, Priority, Rule, Statement, TCP_SYN_RST, state},
    value::{MARKED, PLAIN_CLASS, STICKY_CLASS},
};

/// Writes the rules of one generation in one environment.
pub(crate) struct Scaffold<'a> {
    pub(crate) generation: u32,
    pub(crate) environment: &'a Environment,
    /// Which of the rules that look into a set that may be empty are there.
    pub(crate) parts: Parts,
    /// Whether the kernel has `jhash`.
    pub(crate) hash: bool,
}

/// Rules of base chains that exist only while the set that they look into holds something: every packet would meet them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Optional {
    /// The way to NodePorts.
    NodePorts,
    /// NodePorts without endpoints.
    RefusedNodePorts,
    /// Addresses of Services outside the Service networks.
    OutsideVips,
}

impl Optional {
    pub(crate) const ALL: [Self; 3] = [Self::NodePorts, Self::RefusedNodePorts, Self::OutsideVips];

    pub(crate) const fn set(self) -> Set {
        match self {
            Self::NodePorts => Set::NodePorts,
            Self::RefusedNodePorts => Set::RefuseNodePorts,
            Self::OutsideVips => Set::OutsideVips,
        }
    }
}

/// Some of the [`Optional`] rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Parts(u8);

impl Parts {
    pub(crate) const fn has(self, part: Optional) -> bool {
        self.0 & 1 << part as u8 != 0
    }

    pub(crate) const fn with(self, part: Optional) -> Self {
        Self(self.0 | 1 << part as u8)
    }

    pub(crate) const fn without(self, part: Optional) -> Self {
        Self(self.0 & !(1 << part as u8))
    }
}

/// So many Service networks are compared with one by one; more are looked up.
const FEW_NETWORKS: usize = 4;

/// `address . protocol . port` of the packet's destination.
fn frontend() -> Key {
    vec![Part::Destination, Part::Protocol, Part::DestinationPort]
}

fn node_port() -> Key {
    vec![Part::Protocol, Part::DestinationPort]
}

impl Scaffold<'_> {
    pub(crate) fn set(&self, set: Set) -> SetName {
        SetName::new(set, self.generation)
    }

    pub(crate) fn chain(&self, place: Place) -> ChainName {
        ChainName { place, generation: self.generation }
    }

    pub(crate) fn is_v4(&self) -> bool {
        self.environment.family == Family::V4
    }

    /// The chains that exist whatever the Services are, in an order in which each refers to earlier ones only.
    pub(crate) fn shared_chains(&self) -> Vec<(ChainName, Vec<Arc<Rule>>)> {
        let refused = self.environment.refused_on_localhost.iter();
        let refused_on_localhost = refused.map(|protocol| {
            let count_and_refuse = vec![Statement::Count, Statement::Goto(self.chain(Place::Refuse))];
            (Place::RefusedOnLocalhost(*protocol), vec![count_and_refuse])
        });
        [
            // Filled as prefix lengths come into use.
            (Place::SourceCheck, vec![vec![Statement::Drop]]),
            (
                Place::Refuse,
                vec![vec![Statement::Reject { reset: true }], vec![Statement::Reject { reset: false }]],
            ),
            (Place::Settled, vec![settled()]),
            (Place::VipCheck, self.vip_check()),
            (Place::NewCheck, self.new_check()),
            (Place::ToClass, self.to_class()),
        ]
        .into_iter()
        .chain(refused_on_localhost)
        .map(|(place, rules)| (self.chain(place), shared(rules)))
        .collect()
    }

    /// The rules of a base chain.
    pub(crate) fn base_rules(&self, base: Base) -> Vec<Arc<Rule>> {
        shared(match base {
            Base::NatPrerouting => self.to_service(),
            Base::NatOutput => {
                let mut rules = self.to_service();
                rules.extend(self.localhost_node_ports());
                rules
            }
            Base::NatPostrouting => self.postrouting(),
            Base::FilterInput => self.input(),
            Base::FilterForward | Base::FilterOutput => self.forward_or_output(),
        })
    }

    /// Entered by a jump, before translation. Returns only for a source that may use the address: one rule for each prefix
    /// length that is in use.
    pub(crate) fn source_check(&self, prefixes: &[u8]) -> Vec<Arc<Rule>> {
        let allowed = prefixes.iter().map(|prefix| self.allowed_rule(*prefix));
        allowed.chain([Arc::new(Rule(vec![Statement::Drop]))]).collect()
    }

    /// The rule that lets in sources of one prefix length. A hash for each length in use, rather than one interval
    /// set: with 20,000 ranges that takes 0.8 ms for each range that changes.
    fn allowed_rule(&self, prefix: u8) -> Arc<Rule> {
        let mut key = frontend();
        key.push(Part::SourceNet(prefix));
        let set = SetName::allowed(prefix, self.generation);
        Arc::new(Rule(vec![Statement::In { key, set, not: false }, Statement::Return]))
    }

    fn to_service(&self) -> Vec<Vec<Statement>> {
        let goto = || Statement::Goto(self.chain(Place::ToClass));
        let mut rules = vec![vec![self.look_up(frontend(), Set::Vips), goto()]];
        if self.parts.has(Optional::NodePorts) {
            let mut by_port = self.node_port_match();
            by_port.extend([self.look_up(node_port(), Set::NodePorts), goto()]);
            rules.push(by_port);
        }
        rules
    }

    /// Packets to an address at which NodePorts answer.
    fn node_port_match(&self) -> Vec<Statement> {
        match &self.environment.node_ports {
            NodePortAddresses::Any => {
                vec![Statement::DestinationIsOurs, Statement::Destination { net: self.loopback(), not: true }]
            }
            NodePortAddresses::Only(_) => vec![Statement::In {
                key: vec![Part::Destination],
                set: self.set(Set::NodeAddrs),
                not: false,
            }],
        }
    }

    fn localhost_node_ports(&self) -> Vec<Vec<Statement>> {
        if !self.environment.localhost_node_ports || !self.is_v4() || !self.parts.has(Optional::NodePorts) {
            return Vec::new();
        }
        vec![vec![
            Statement::Destination { net: self.loopback(), not: false },
            self.look_up(node_port(), Set::NodePorts),
            Statement::Goto(self.chain(Place::ToClass)),
        ]]
    }

    /// Entered with a value in the priority.
    fn to_class(&self) -> Vec<Vec<Statement>> {
        let dispatch =
            |mask, set| vec![Statement::Dispatch { key: vec![Part::PriorityAnd(mask)], map: self.set(set) }];
        vec![
            dispatch(PLAIN_CLASS, Set::Dispatch),
            dispatch(STICKY_CLASS, Set::DispatchSticky),
            vec![Statement::SetPriority(Priority::Zero)],
        ]
    }

    fn postrouting(&self) -> Vec<Vec<Statement>> {
        let mark = self.environment.masquerade_mark;
        // Whoever reaches itself, wherever its slice says that it is.
        let itself = vec![Part::Source, Part::Destination, Part::DestinationPort];
        vec![
            vec![Statement::MarkHas(mark), Statement::FlipMarkBit(mark), Statement::Masquerade],
            vec![
                Statement::Translated,
                Statement::In { key: itself, set: self.set(Set::EndpointPorts), not: false },
                Statement::Masquerade,
            ],
        ]
    }

    /// What an established packet meets, and an INVALID one. One that conntrack takes for INVALID is not translated back: if
    /// an endpoint's gets through, its client answers the unknown address with a reset, which kills the connection.
    /// Only those are dropped: not SYNs (one-sided traffic) and not resets (which nobody answers).
    fn not_new(&self) -> Vec<Vec<Statement>> {
        // The address twice: the set serves `postrouting` as well.
        let endpoint = vec![Part::Source, Part::Source, Part::SourcePort];
        vec![
            vec![Statement::State(state::ESTABLISHED | state::UNTRACKED), Statement::Accept],
            vec![
                Statement::State(state::INVALID),
                Statement::TcpFlagsClear(TCP_SYN_RST),
                Statement::In { key: endpoint, set: self.set(Set::EndpointPorts), not: false },
                Statement::Drop,
            ],
        ]
    }

    /// Packets to an address of a Service: to one of the Service networks, or to one that lies in none of them. Nothing else
    /// is looked at any further.
    fn to_vip(&self, then: Place) -> Vec<Vec<Statement>> {
        let then = || Statement::Goto(self.chain(then));
        let member = |set| Statement::In { key: vec![Part::Destination], set: self.set(set), not: false };
        let networks = self.service_networks();
        let known = !networks.is_empty();
        let mut rules: Vec<_> = match networks.len() {
            0..=FEW_NETWORKS => networks
                .into_iter()
                .map(|net| vec![Statement::Destination { net, not: false }, then()])
                .collect(),
            _ => vec![vec![member(Set::ServiceCidrs), then()]],
        };
        let translated = || vec![Statement::Translated, Statement::Goto(self.chain(Place::Settled))];
        // Where the networks are not known, cluster IPs are among the addresses outside, and another table's translation to one
        // is to be seen.
        if known {
            rules.push(translated());
        }
        if self.parts.has(Optional::OutsideVips) {
            rules.push(vec![member(Set::OutsideVips), then()]);
        }
        if !known {
            rules.push(translated());
        }
        rules
    }

    /// The ServiceCIDRs of this family, none inside another.
    pub(crate) fn service_networks(&self) -> Vec<IpNet> {
        disjoint(self.own(&self.environment.service_cidrs).collect())
    }

    fn input(&self) -> Vec<Vec<Statement>> {
        let mut rules = self.not_new();
        rules.extend(self.to_vip(Place::VipCheck));
        let (refused, served) = (Optional::RefusedNodePorts, Optional::NodePorts);
        if self.parts.has(refused) || self.parts.has(served) {
            rules.push(vec![Statement::NotState(state::NEW), Statement::Accept]);
        }
        for protocol in &self.environment.refused_on_localhost {
            let to = || {
                let to = Statement::Destination { net: self.loopback(), not: false };
                vec![to, Statement::ProtocolIs(*protocol)]
            };
            let then = || Statement::Goto(self.chain(Place::RefusedOnLocalhost(*protocol)));
            if self.parts.has(served) {
                let mut rule = to();
                rule.extend([self.look_up(node_port(), Set::NodePorts), then()]);
                rules.push(rule);
            }
            if self.parts.has(refused) {
                let mut rule = to();
                let set = self.set(Set::RefuseNodePorts);
                rule.extend([Statement::In { key: node_port(), set, not: false }, then()]);
                rules.push(rule);
            }
        }
        if self.parts.has(refused) {
            let refuse = || Statement::Goto(self.chain(Place::Refuse));
            let member =
                || Statement::In { key: node_port(), set: self.set(Set::RefuseNodePorts), not: false };
            let mut rule = vec![member()];
            rule.extend(self.node_port_match());
            rule.push(refuse());
            rules.push(rule);
            if self.environment.localhost_node_ports && self.is_v4() {
                let loopback = Statement::Destination { net: self.loopback(), not: false };
                rules.push(vec![loopback, member(), refuse()]);
            }
        }
        if self.parts.has(served) {
            let mut untranslated = self.node_port_match();
            untranslated.extend([self.look_up(node_port(), Set::NodePorts), Statement::Drop]);
            rules.push(untranslated);
        }
        rules
    }

    fn forward_or_output(&self) -> Vec<Vec<Statement>> {
        let mut rules = self.not_new();
        rules.extend(self.to_vip(Place::NewCheck));
        rules
    }

    /// New packets to an address of ours that were not translated. They must not pass: conntrack would confirm them so, and
    /// the whole flow would stay untranslated. A set match on a map is refused by the kernel, hence the look-up; the
    /// packet is dropped, so that its priority goes nowhere.
    fn vip_check(&self) -> Vec<Vec<Statement>> {
        let member = |set| Statement::In { key: frontend(), set: self.set(set), not: false };
        vec![
            vec![Statement::NotState(state::NEW), Statement::Accept],
            vec![member(Set::RefuseVips), Statement::Goto(self.chain(Place::Refuse))],
            vec![member(Set::DropVips), Statement::Drop],
            vec![self.look_up(frontend(), Set::Vips), Statement::Drop],
        ]
    }

    /// The same where the packet goes on to somewhere else: there is nobody behind another port of a cluster IP, and nobody
    /// at any other address of the Service networks.
    fn new_check(&self) -> Vec<Vec<Statement>> {
        let refuse = || Statement::Goto(self.chain(Place::Refuse));
        let to = |set| Statement::In { key: vec![Part::Destination], set: self.set(set), not: false };
        let mut checks = self.vip_check();
        let not_new = checks.remove(0);
        let mut rules = vec![
            not_new,
            // Before the accept: another table's translation to a cluster IP is not ours to let pass.
            vec![Statement::Translated, to(Set::ClusterIps), refuse()],
            vec![Statement::Translated, Statement::Goto(self.chain(Place::Settled))],
        ];
        rules.extend(checks);
        rules.extend([vec![to(Set::ClusterIps), refuse()], vec![to(Set::ServiceCidrs), Statement::Drop]]);
        rules
    }

    fn look_up(&self, key: Key, set: Set) -> Statement {
        Statement::SetPriority(Priority::Found { key, map: self.set(set) })
    }

    fn loopback(&self) -> IpNet {
        if self.is_v4() {
            IpNet::new_assert([127, 0, 0, 0].into(), 8)
        } else {
            IpNet::new_assert(std::net::Ipv6Addr::LOCALHOST.into(), 128)
        }
    }

    /// Matches that a packet of this node's pods meets, one rule each; empty if it cannot be told.
    pub(crate) fn local_pod_matches(&self) -> Vec<Statement> {
        match &self.environment.local_pods {
            LocalPods::Unknown => Vec::new(),
            LocalPods::Cidrs(nets) => {
                self.own(nets).map(|net| Statement::Source { net, not: false }).collect()
            }
            LocalPods::Bridge(name) => {
                vec![Statement::Interface { name: name.clone(), prefix: false, not: false }]
            }
            LocalPods::InterfacePrefix(name) => {
                vec![Statement::Interface { name: name.clone(), prefix: true, not: false }]
            }
        }
    }

    /// The matches that a packet to a cluster IP must meet, all of them, to be masqueraded; `None`: it never is.
    pub(crate) fn masquerades_cluster_ip(&self) -> Option<Vec<Statement>> {
        if self.environment.masquerade_all {
            return Some(Vec::new());
        }
        let local = self.local_pod_matches();
        if local.is_empty() {
            return None;
        }
        Some(
            local
                .into_iter()
                .map(|statement| match statement {
                    Statement::Source { net, .. } => Statement::Source { net, not: true },
                    Statement::Interface { name, prefix, .. } => {
                        Statement::Interface { name, prefix, not: true }
                    }
                    other => other,
                })
                .collect(),
        )
    }

    fn own<'b>(&self, nets: &'b [IpNet]) -> impl Iterator<Item = IpNet> + 'b {
        let family = self.environment.family;
        nets.iter().copied().filter(move |net| Family::of_net(net) == family)
    }
}

/// What a translated packet carried between two look-ups is not for others to see.
fn settled() -> Vec<Statement> {
    vec![
        Statement::PriorityIs { mask: MARKED, value: MARKED, not: false },
        Statement::SetPriority(Priority::Zero),
    ]
}

pub(crate) fn shared(rules: Vec<Vec<Statement>>) -> Vec<Arc<Rule>> {
    rules.into_iter().map(|statements| Arc::new(Rule(statements))).collect()
}

/// The networks without those that lie inside others.
pub(crate) fn disjoint(mut nets: Vec<IpNet>) -> Vec<IpNet> {
    for net in &mut nets {
        *net = net.trunc();
    }
    nets.sort_unstable_by_key(|net| (net.addr(), net.prefix_len()));
    let mut kept: Vec<IpNet> = Vec::with_capacity(nets.len());
    for net in nets {
        if !kept.last().is_some_and(|last| last.contains(&net)) {
            kept.push(net);
        }
    }
    kept
}
