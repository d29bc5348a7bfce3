//! The fixed part of the table: sets, base chains and the chains that all Services share.

use std::sync::Arc;

use ipnet::IpNet;
use proxy_core::{
    environment::{Environment, LocalPods, NodePortAddresses},
    model::Family,
};

use crate::{
    name::{Base, ChainName, Place, Set, SetName},
    statement::{Key, Part, Priority, Rule, Statement, TCP_SYN_RST, state},
    value::{MARKED, PLAIN_CLASS, STICKY_CLASS},
};

/// Writes the rules of one generation in one environment.
pub(crate) struct Scaffold<'a> {
    pub(crate) generation: u32,
    pub(crate) environment: &'a Environment,
}

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
        [
            // Filled as prefix lengths come into use.
            (Place::AllowedCheck, Vec::new()),
            (Place::RestrictedCheck, self.restricted_check()),
            (Place::SourceCheck, self.source_check()),
            (Place::Refuse, vec![vec![Statement::Reject]]),
            (Place::NoEndpointsCheck, self.no_endpoints_check()),
            (Place::ClusterIpCheck, self.cluster_ip_check()),
            (Place::UntranslatedCheck, self.untranslated_check()),
            (Place::ToClass, self.to_class()),
            (Place::ToService, self.to_service()),
        ]
        .into_iter()
        .map(|(place, rules)| (self.chain(place), shared(rules)))
        .collect()
    }

    /// The rules of a base chain.
    pub(crate) fn base_rules(&self, base: Base) -> Vec<Arc<Rule>> {
        let source_check =
            || vec![Statement::State(state::NEW), Statement::Jump(self.chain(Place::SourceCheck))];
        let to_service = || vec![Statement::Jump(self.chain(Place::ToService))];
        shared(match base {
            Base::FilterPreroutingPreDnat => {
                let mut rules = self.loopback_guard();
                rules.push(source_check());
                rules
            }
            Base::FilterOutputPreDnat => vec![source_check()],
            Base::NatPrerouting => vec![to_service()],
            Base::NatOutput => {
                let mut rules = vec![to_service()];
                rules.extend(self.localhost_node_ports());
                rules
            }
            Base::NatPostrouting => self.postrouting(),
            Base::FilterInput => self.input(),
            Base::FilterForward | Base::FilterOutput => self.forward_or_output(),
        })
    }

    /// With `route_localnet` the kernel would let 127.0.0.0/8 in from outside: these rules come before it is set.
    fn loopback_guard(&self) -> Vec<Vec<Statement>> {
        if !self.environment.localhost_node_ports || !self.is_v4() {
            return Vec::new();
        }
        let outside = Statement::Interface { name: "lo".into(), prefix: false, not: true };
        let net = self.loopback();
        vec![
            vec![outside.clone(), Statement::Destination { net, not: false }, Statement::Drop],
            vec![outside, Statement::Source { net, not: false }, Statement::Drop],
        ]
    }

    /// Load balancer IPs with source ranges, seen before translation.
    fn source_check(&self) -> Vec<Vec<Statement>> {
        vec![vec![
            Statement::In { key: frontend(), set: self.set(Set::RestrictedVips), not: false },
            Statement::Goto(self.chain(Place::RestrictedCheck)),
        ]]
    }

    fn restricted_check(&self) -> Vec<Vec<Statement>> {
        vec![vec![Statement::Jump(self.chain(Place::AllowedCheck))], vec![Statement::Drop]]
    }

    /// The rule that lets in sources of one prefix length. A hash for each length in use, rather than one interval
    /// set: with 20,000 ranges that takes 0.8 ms for each range that changes.
    pub(crate) fn allowed_rule(&self, prefix: u8) -> Arc<Rule> {
        let mut key = frontend();
        key.push(Part::SourceNet(prefix));
        let set = SetName::allowed(prefix, self.generation);
        Arc::new(Rule(vec![Statement::In { key, set, not: false }, Statement::Accept]))
    }

    fn to_service(&self) -> Vec<Vec<Statement>> {
        let goto = || Statement::Goto(self.chain(Place::ToClass));
        let mut by_port = self.node_port_match();
        by_port.extend([self.look_up(node_port(), Set::NodePorts), goto()]);
        vec![vec![self.look_up(frontend(), Set::Vips), goto()], by_port]
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
        if !self.environment.localhost_node_ports || !self.is_v4() {
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
        let hairpin = vec![Part::Source, Part::Destination, Part::Protocol, Part::DestinationPort];
        vec![
            vec![Statement::MarkHas(mark), Statement::FlipMarkBit(mark), Statement::Masquerade],
            vec![
                Statement::Translated,
                Statement::In { key: hairpin, set: self.set(Set::Hairpin), not: false },
                Statement::Masquerade,
            ],
        ]
    }

    /// Packets that begin no connection leave here. One that conntrack takes for INVALID is not translated back: if
    /// an endpoint's gets through, its client answers the unknown address with a reset, which kills the connection.
    /// Only those are dropped: not SYNs (one-sided traffic) and not resets (which nobody answers).
    fn only_new(&self) -> Vec<Vec<Statement>> {
        let endpoint = vec![Part::Source, Part::SourcePort];
        vec![
            vec![Statement::State(state::ESTABLISHED | state::UNTRACKED), Statement::Accept],
            vec![
                Statement::State(state::INVALID),
                Statement::TcpFlagsClear(TCP_SYN_RST),
                Statement::In { key: endpoint, set: self.set(Set::EndpointSources), not: false },
                Statement::Drop,
            ],
            vec![
                Statement::PriorityIs { mask: MARKED, value: MARKED, not: false },
                Statement::SetPriority(Priority::Zero),
            ],
            vec![Statement::NotState(state::NEW), Statement::Accept],
        ]
    }

    fn input(&self) -> Vec<Vec<Statement>> {
        let refuse = Statement::Goto(self.chain(Place::Refuse));
        let refused = || Statement::In { key: node_port(), set: self.set(Set::RefuseNodePorts), not: false };
        let mut refuse_node_port = vec![refused()];
        refuse_node_port.extend(self.node_port_match());
        refuse_node_port.push(refuse.clone());
        let mut untranslated = self.node_port_match();
        untranslated.extend([self.look_up(node_port(), Set::NodePorts), Statement::Drop]);
        let mut rules = self.only_new();
        rules.extend([vec![Statement::Translated, Statement::Accept], refuse_node_port]);
        if self.environment.localhost_node_ports && self.is_v4() {
            let loopback = Statement::Destination { net: self.loopback(), not: false };
            rules.push(vec![loopback, refused(), refuse]);
        }
        rules.extend([
            vec![Statement::Jump(self.chain(Place::NoEndpointsCheck))],
            vec![Statement::Jump(self.chain(Place::UntranslatedCheck))],
            untranslated,
        ]);
        rules
    }

    fn forward_or_output(&self) -> Vec<Vec<Statement>> {
        let mut rules = self.only_new();
        // Before the accept: another table's translation to a cluster IP is not ours to let pass.
        let mut foreign = vec![Statement::Translated];
        foreign.extend(self.to_cluster_ip(Statement::Goto(self.chain(Place::Refuse))));
        rules.extend([
            foreign,
            vec![Statement::Translated, Statement::Accept],
            vec![Statement::Jump(self.chain(Place::NoEndpointsCheck))],
            vec![Statement::Jump(self.chain(Place::UntranslatedCheck))],
            vec![Statement::Jump(self.chain(Place::ClusterIpCheck))],
        ]);
        rules
    }

    fn to_cluster_ip(&self, verdict: Statement) -> Vec<Statement> {
        let key = vec![Part::Destination];
        vec![Statement::In { key, set: self.set(Set::ClusterIps), not: false }, verdict]
    }

    fn no_endpoints_check(&self) -> Vec<Vec<Statement>> {
        let member = |set| Statement::In { key: frontend(), set: self.set(set), not: false };
        vec![
            vec![member(Set::RefuseVips), Statement::Goto(self.chain(Place::Refuse))],
            vec![member(Set::DropVips), Statement::Drop],
        ]
    }

    /// Only packets that were not translated get here.
    fn cluster_ip_check(&self) -> Vec<Vec<Statement>> {
        let key = vec![Part::Destination];
        vec![
            self.to_cluster_ip(Statement::Goto(self.chain(Place::Refuse))),
            vec![Statement::In { key, set: self.set(Set::ServiceCidrs), not: false }, Statement::Drop],
        ]
    }

    /// A new packet to one of our addresses that was not translated must not pass: conntrack would confirm it so, and
    /// the whole flow would stay untranslated. A set match on a map is refused by the kernel, hence the look-up; the
    /// packet is dropped, so that its priority goes nowhere.
    fn untranslated_check(&self) -> Vec<Vec<Statement>> {
        vec![vec![self.look_up(frontend(), Set::Vips), Statement::Drop]]
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

pub(crate) fn shared(rules: Vec<Vec<Statement>>) -> Vec<Arc<Rule>> {
    rules.into_iter().map(|statements| Arc::new(Rule(statements))).collect()
}
