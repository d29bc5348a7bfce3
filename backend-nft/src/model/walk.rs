//! How a packet walks the rules of a [`Model`].

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use proxy_core::model::Protocol;

use crate::{
    model::table::{End, Fate, Model, Packet},
    schema::{
        element::{Data, Key},
        name::{Base, ChainName, SetName},
        statement::{Part, Priority, Rule, Statement, state},
    },
};

/// A packet on its way.
struct Walk<'a> {
    model: &'a mut Model,
    node: &'a [IpAddr],
    source: IpAddr,
    to: SocketAddr,
    interface: Option<Box<str>>,
    protocol: Protocol,
    priority: u32,
    mark: u32,
    translated: bool,
    masqueraded: bool,
    /// What every random number is, before it is cut to its range.
    dice: u32,
    /// The largest range of a random number met.
    widest: u32,
    moment: Moment,
    met: Met,
}

/// When in the life of its connection a packet comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// The first one.
    First,
    /// As the first, but another came before it, so that its translation is settled (nat chains are for the first).
    Unanswered {
        /// Whether the first one was.
        translated: bool,
    },
    /// After the first answer.
    Established {
        /// Whether the first one was.
        translated: bool,
    },
    /// TCP outside the window, no SYN and no reset.
    Invalid,
}

impl Moment {
    const fn state(self) -> u32 {
        match self {
            Self::First | Self::Unanswered { .. } => state::NEW,
            Self::Established { .. } => state::ESTABLISHED,
            Self::Invalid => state::INVALID,
        }
    }
}

/// What a packet costs, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Met {
    /// Base chains entered.
    pub hooks: u32,
    /// Rules begun, in all chains.
    pub rules: u32,
    /// Keys looked for in sets and maps.
    pub look_ups: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    /// On to the next rule.
    Next,
    /// Out of this chain, to where it was jumped to from.
    Back,
    Accept,
    Drop,
    Reject,
}

impl Model {
    /// All ends that a packet may come to, on a node that has these addresses. Clients are remembered as they would be.
    pub fn trace(&mut self, packet: &Packet, node: &[IpAddr]) -> BTreeSet<End> {
        let mut ends = BTreeSet::new();
        let mut dice = 0;
        loop {
            let before = self.clients.clone();
            let mut walk = Walk::new(self, packet, node);
            walk.dice = dice;
            let fate = walk.through();
            let (priority, widest) = (walk.priority, walk.widest);
            ends.insert(End { fate, priority });
            dice += 1;
            if dice >= widest {
                return ends;
            }
            self.clients = before;
        }
    }

    /// What a packet meets on its way through the hooks; all random numbers are 0.
    pub fn meets(&mut self, packet: &Packet, moment: Moment, node: &[IpAddr]) -> Met {
        let mut walk = Walk::new(self, packet, node);
        walk.moment = moment;
        walk.translated = matches!(
            moment,
            Moment::Established { translated: true } | Moment::Unanswered { translated: true }
        );
        walk.through();
        walk.met
    }
}

impl<'a> Walk<'a> {
    /// The first packet of a connection, before it has met anything.
    fn new(model: &'a mut Model, packet: &Packet, node: &'a [IpAddr]) -> Self {
        Self {
            model,
            node,
            source: packet.source,
            to: packet.to,
            interface: packet.interface.clone(),
            protocol: packet.protocol,
            priority: packet.priority,
            mark: 0,
            translated: false,
            masqueraded: false,
            dice: 0,
            widest: 1,
            moment: Moment::First,
            met: Met::default(),
        }
    }
}

impl Walk<'_> {
    fn through(&mut self) -> Fate {
        let own = |node: &[IpAddr], addr: IpAddr| addr.is_loopback() || node.contains(&addr);
        let path: &[Base] = if self.interface.is_some() {
            &[Base::NatPrerouting]
        } else {
            &[Base::NatOutput, Base::FilterOutput, Base::NatPostrouting]
        };
        for base in path {
            if let Some(fate) = self.base(*base) {
                return fate;
            }
        }
        let local = own(self.node, self.to.ip());
        let rest: &[Base] = match (self.interface.is_some(), local) {
            (true, true) => &[Base::FilterInput],
            (true, false) => &[Base::FilterForward, Base::NatPostrouting],
            (false, true) => {
                // Comes in again through the loopback interface.
                self.interface = Some("lo".into());
                &[Base::FilterInput]
            }
            (false, false) => &[],
        };
        for base in rest {
            if let Some(fate) = self.base(*base) {
                return fate;
            }
        }
        if self.translated {
            Fate::Translated { to: self.to, masqueraded: self.masqueraded }
        } else {
            Fate::Passed
        }
    }

    /// The end it comes to at a hook, if any.
    fn base(&mut self, base: Base) -> Option<Fate> {
        if base.hook().nat && self.moment != Moment::First {
            return None;
        }
        let rules = self.model.base(base)?.rules.clone();
        self.met.hooks += 1;
        match self.rules(&rules) {
            Flow::Drop => Some(Fate::Dropped),
            Flow::Reject => Some(Fate::Rejected),
            Flow::Next | Flow::Back | Flow::Accept => None,
        }
    }

    fn chain(&mut self, name: &ChainName) -> Flow {
        let rules = self.model.chains.get(&*name.to_string()).map(|chain| chain.rules.clone());
        self.rules(&rules.unwrap_or_default())
    }

    fn rules(&mut self, rules: &[std::sync::Arc<Rule>]) -> Flow {
        for rule in rules {
            match self.rule(rule) {
                Flow::Next => {}
                flow => return flow,
            }
        }
        Flow::Back
    }

    fn rule(&mut self, rule: &Rule) -> Flow {
        self.met.rules += 1;
        for statement in &rule.0 {
            match self.statement(statement) {
                // Did not match: on to the next rule.
                None => return Flow::Next,
                Some(Flow::Next) => {}
                Some(flow) => return flow,
            }
        }
        Flow::Next
    }

    fn jump(&mut self, chain: &ChainName) -> Flow {
        match self.chain(chain) {
            Flow::Back => Flow::Next,
            flow => flow,
        }
    }

    /// `None`: does not match.
    fn statement(&mut self, statement: &Statement) -> Option<Flow> {
        let matches = |is: bool| is.then_some(Flow::Next);
        match statement {
            Statement::State(states) => matches(states & self.moment.state() != 0),
            Statement::NotState(states) => matches(states & self.moment.state() == 0),
            Statement::Translated => matches(self.translated),
            Statement::Source { net, not } => matches(net.contains(&self.source) != *not),
            Statement::Destination { net, not } => matches(net.contains(&self.to.ip()) != *not),
            Statement::Interface { name, prefix, not } => {
                let own = self.interface.as_deref().unwrap_or_default();
                matches((if *prefix { own.starts_with(&**name) } else { own == &**name }) != *not)
            }
            Statement::ProtocolIs(protocol) => matches(self.protocol == *protocol),
            Statement::TcpFlagsClear(_) => matches(self.protocol == Protocol::Tcp),
            Statement::SourceIsOurs => matches(self.is_ours(self.source)),
            Statement::DestinationIsOurs => matches(self.is_ours(self.to.ip())),
            Statement::In { key, set, not } => {
                let found = self.find(key, set).is_some();
                matches(found != *not)
            }
            Statement::MarkHas(bit) => matches(self.mark & bit != 0),
            Statement::PriorityIs { mask, value, not } => matches((self.priority & mask == *value) != *not),
            Statement::SetPriority(to) => {
                self.priority = match to {
                    Priority::Zero => 0,
                    Priority::Or(bits) => self.priority | bits,
                    Priority::And(bits) => self.priority & bits,
                    Priority::AndOr { and, or } => self.priority & and | or,
                    Priority::Found { key, map } => match self.find(key, map)? {
                        Data::Id(id) | Data::Named(id, _) => id,
                        _ => return None,
                    },
                };
                Some(Flow::Next)
            }
            Statement::SetMarkBit(bit) => {
                self.mark |= bit;
                Some(Flow::Next)
            }
            Statement::FlipMarkBit(bit) => {
                self.mark ^= bit;
                Some(Flow::Next)
            }
            Statement::UpdateClient { mask, .. } => {
                let key = (self.source, self.priority & mask);
                if self.model.clients_full && !self.model.clients.contains_key(&key) {
                    return None;
                }
                self.model.clients.entry(key).or_insert(self.priority);
                Some(Flow::Next)
            }
            Statement::DeleteClient { .. } => {
                self.model.clients.remove(&(self.source, self.priority));
                Some(Flow::Next)
            }
            Statement::Count => Some(Flow::Next),
            Statement::Dispatch { key, map } => match self.find(key, map)? {
                Data::Goto(chain) => Some(self.chain(&chain)),
                Data::Jump(chain) => Some(self.jump(&chain)),
                _ => None,
            },
            Statement::TranslateTo { key, map } => {
                let Data::Target(addr, port) = self.find(key, map)? else { return None };
                self.to = SocketAddr::new(addr, port);
                self.translated = true;
                Some(Flow::Accept)
            }
            Statement::Masquerade => {
                self.masqueraded = true;
                Some(Flow::Accept)
            }
            Statement::Reject { reset } => (!reset || self.protocol == Protocol::Tcp).then_some(Flow::Reject),
            Statement::Accept => Some(Flow::Accept),
            Statement::Drop => Some(Flow::Drop),
            Statement::Return => Some(Flow::Back),
            Statement::Jump(chain) => Some(self.jump(chain)),
            Statement::Goto(chain) => Some(self.chain(chain)),
        }
    }

    fn is_ours(&self, addr: IpAddr) -> bool {
        addr.is_loopback() || self.node.contains(&addr)
    }

    fn roll(&mut self, below: u32) -> u32 {
        self.widest = self.widest.max(below);
        self.dice % below
    }

    /// Looks a key up in a set.
    fn find(&mut self, key: &[Part], set: &SetName) -> Option<Data> {
        self.met.look_ups += 1;
        use Part::{
            Destination, DestinationPort, Priority, PriorityAnd, Protocol, Random, Source, SourceHash,
            SourceNet, SourcePort,
        };
        let (to, port, protocol, priority) = (self.to.ip(), self.to.port(), self.protocol, self.priority);
        let key = match key {
            [Source, Priority] => {
                let id = *self.model.clients.get(&(self.source, priority))?;
                return Some(Data::Id(id));
            }
            [Destination] => Key::Address(to),
            // Only packets that are INVALID are asked for this.
            [Source, Source, SourcePort] => return None,
            [Destination, Protocol, DestinationPort] => Key::Frontend(to, protocol, port),
            [Destination, Protocol, DestinationPort, SourceNet(bits)] => {
                let net = IpNet::new(self.source, *bits).ok()?.trunc();
                Key::Allowed(to, protocol, port, net)
            }
            [Protocol, DestinationPort] => Key::Port(protocol, port),
            [Source, Destination, DestinationPort] => {
                if self.source != to {
                    return None;
                }
                Key::Twice(to, port)
            }
            [Priority] => Key::Id(priority),
            [PriorityAnd(mask)] => Key::Id(priority & mask),
            [Priority, Protocol] => Key::IdProtocol(priority, protocol),
            [Priority, Random(below)] => Key::IdSlot(priority, self.roll(*below)),
            [Priority, SourceHash { below, seed }] => {
                use std::hash::{DefaultHasher, Hash as _, Hasher as _};
                let mut hasher = DefaultHasher::new();
                (self.source, seed).hash(&mut hasher);
                Key::IdSlot(priority, hasher.finish() as u32 % below)
            }
            [Priority, Protocol, Random(below)] => Key::IdProtocolSlot(priority, protocol, self.roll(*below)),
            other => unreachable!("no rule has the key {other:?}"),
        };
        let elements = self.model.sets.get(&*set.to_string())?;
        if let Some(data) = elements.get(&key) {
            return Some(data.clone());
        }
        // Sets of networks.
        let Key::Address(addr) = key else { return None };
        let within = |key: &Key| matches!(key, Key::Network(net) if net.contains(&addr));
        elements.iter().find(|(key, _)| within(key)).map(|(_, data)| data.clone())
    }
}
