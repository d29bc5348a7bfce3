//! The nftables side: the sets that plans fill, and the fixed rules that read them.
//!
//! A packet for a virtual IP is local. On its way in: `filter-prerouting` drops what may not pass, `enter-input` (just
//! before IPVS) refuses what has no endpoint and marks short circuits, IPVS (98 and 99 on the input hook: `ip_vs_ops4` of
//! `ip_vs_core.c`) sends it on, and what IPVS leaves is refused by `filter-input`, behind it. IPVS sends through the output
//! hook, from its very beginning: `leave-ipvs-output` takes the mark of a short circuit off there, before anybody else's
//! chain, and `nat-postrouting` masquerades. The node's own packets enter at `enter-output`, just before IPVS at -98.
//!
//! So a mark of ours stands in a packet from the last chain before IPVS to the first behind it, where nobody but IPVS sees
//! it. What is masqueraded follows from conntrack's original destination, not from a mark that would have to pass through
//! everybody's chains of the output hook. The masquerade bit is obeyed where others set it.

use std::net::IpAddr;

use ipnet::IpNet;
use nft_netlink::{
    Batch, Chain, ChainKind, Expression, Family as NftFamily, Field, Hook, Register, Rule, Set, Table,
    expression::{
        self as nft, Comparison, ConntrackKey, Direction, MetaKey, Reject, conntrack_state, nat_flags,
    },
};
use proxy_core::{
    environment::{Environment, LocalPods},
    model::Family,
};

use crate::settings::MarkSpace;

/// The name of the table, in `ip` and in `ip6`. Calico takes a chain in a table `kube-proxy` for kube-proxy's nftables mode
/// (`felix/dataplane/driver.go` with `nftablesMode: Auto`), and so do people.
pub(crate) const TABLE: &str = "kube-proxy-ipvs";

/// The table of the nftables modes, kube-proxy's and ours, and of this mode before it had its own.
pub(crate) const OTHER_TABLE: &str = "kube-proxy";

pub(crate) const VIPS: &str = "ipvs-vips";
pub(crate) const CLUSTER_IPS: &str = "ipvs-cluster-ips";
pub(crate) const MASQUERADE: &str = "ipvs-masquerade";
pub(crate) const SHORT_CIRCUITS: &str = "ipvs-short-circuits";
pub(crate) const MARKS: &str = "ipvs-marks";
pub(crate) const REFUSED: &str = "ipvs-refused";
pub(crate) const DROP: &str = "ipvs-drop";
pub(crate) const DROP_OUTSIDE: &str = "ipvs-drop-outside";
pub(crate) const RESTRICTED: &str = "ipvs-restricted";
pub(crate) const ALLOWED: &str = "ipvs-allowed";
pub(crate) const HAIRPIN: &str = "ipvs-hairpin";
pub(crate) const HEALTH_CHECKS: &str = "ipvs-health-checks";

/// What begins so is ours.
pub(crate) const PREFIX: &str = "ipvs-";

const SOURCE_CHECK: &str = "ipvs-source-check";
const POLICY_CHECK: &str = "ipvs-policy-check";
const UNMARK: &str = "ipvs-end-short-circuit";
const REFUSE: &str = "ipvs-refuse";

const PREROUTING: &str = "filter-prerouting";
const OUTPUT: &str = "filter-output";
const INPUT: &str = "filter-input";
const ENTER_INPUT: &str = "enter-input";
const ENTER_OUTPUT: &str = "enter-output";
const LEAVE_OUTPUT: &str = "leave-ipvs-output";
const LEAVE_LOCALLY: &str = "leave-ipvs-locally";
const POSTROUTING: &str = "nat-postrouting";

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// The chains that the kernel calls.
pub(crate) const BASE_CHAINS: [Chain<'static>; 8] = [
    Chain::base(PREROUTING, ChainKind::Filter, Hook::Prerouting, -110),
    // Before raw (-300), where others clear and set their bits of the mark; conntrack's defragmentation is at -400.
    Chain::base(LEAVE_OUTPUT, ChainKind::Filter, Hook::Output, -450).comment("before everybody's"),
    Chain::base(OUTPUT, ChainKind::Filter, Hook::Output, -110),
    Chain::base(ENTER_OUTPUT, ChainKind::Filter, Hook::Output, -99).comment("just before IPVS"),
    // What goes to an endpoint on the node itself goes on where it is.
    Chain::base(LEAVE_LOCALLY, ChainKind::Filter, Hook::Output, -97).comment("just behind IPVS"),
    Chain::base(ENTER_INPUT, ChainKind::Filter, Hook::Input, 97).comment("just before IPVS"),
    Chain::base(INPUT, ChainKind::Filter, Hook::Input, 100).comment("just behind IPVS"),
    Chain::base(POSTROUTING, ChainKind::Nat, Hook::Postrouting, 100),
];

pub(crate) const CHAINS: [&str; 4] = [SOURCE_CHECK, POLICY_CHECK, UNMARK, REFUSE];

/// The table of a family.
pub(crate) fn table(family: Family) -> Table<'static> {
    Table::new(nft_family(family), TABLE)
}

/// That of the nftables modes.
pub(crate) fn other_table(family: Family) -> Table<'static> {
    Table::new(nft_family(family), OTHER_TABLE)
}

/// Our sets in a family.
pub(crate) fn sets(family: Family) -> [Set<'static>; 12] {
    const MARK_KEY: &[Field] = &[Field::MARK];
    const PORT_KEY: &[Field] = &[Field::PORT];
    macro_rules! of {
        ($addr:expr) => {{
            const ADDR: &[Field] = &[$addr];
            const SPOT: &[Field] = &[$addr, Field::PROTOCOL, Field::PORT];
            const SPOT_AND_SOURCE: &[Field] = &[$addr, Field::PROTOCOL, Field::PORT, $addr];
            const PAIR: &[Field] = &[$addr, $addr];
            [
                Set::new(VIPS, ADDR),
                Set::new(CLUSTER_IPS, ADDR),
                Set::new(MASQUERADE, SPOT),
                Set::map(SHORT_CIRCUITS, SPOT, MARK_KEY),
                Set::new(MARKS, MARK_KEY),
                Set::new(REFUSED, SPOT),
                Set::new(DROP, SPOT),
                Set::new(DROP_OUTSIDE, SPOT),
                Set::new(RESTRICTED, SPOT),
                Set::new(ALLOWED, SPOT_AND_SOURCE).interval(),
                Set::new(HAIRPIN, PAIR),
                Set::new(HEALTH_CHECKS, PORT_KEY),
            ]
        }};
    }
    match family {
        Family::V4 => of!(Field::IPV4_ADDRESS),
        Family::V6 => of!(Field::IPV6_ADDRESS),
    }
}

/// Makes table, sets and chains, and writes all rules anew; with `empty`, the sets are emptied.
pub(crate) fn write(batch: &mut Batch, environment: &Environment, marks: MarkSpace, empty: bool) {
    let table = table(environment.family);
    batch.add_table(table, Some("rules for kube-proxy in ipvs mode"));
    for set in sets(environment.family) {
        batch.add_set(table, &set);
        if empty {
            batch.flush_set(table, set.name);
        }
    }
    for chain in &BASE_CHAINS {
        // The chain may be there with another hook, which no request changes: exchanged within the transaction.
        batch.add_chain(table, &Chain::regular(chain.name));
        batch.delete_chain(table, chain.name);
    }
    for name in CHAINS {
        batch.add_chain(table, &Chain::regular(name));
        batch.flush_chain(table, name);
    }
    for chain in &BASE_CHAINS {
        batch.add_chain(table, chain);
    }
    for (chain, rule) in (Scaffold { environment, marks, family: table.family }).rules() {
        batch.append_rule(table, chain, &rule);
    }
}

fn nft_family(family: Family) -> NftFamily {
    match family {
        Family::V4 => NftFamily::Ip,
        Family::V6 => NftFamily::Ip6,
    }
}

struct Scaffold<'a> {
    environment: &'a Environment,
    marks: MarkSpace,
    family: NftFamily,
}

impl Scaffold<'_> {
    fn rules(&self) -> Vec<(&'static str, Rule)> {
        let mut rules = vec![
            (SOURCE_CHECK, self.source_check()),
            (POLICY_CHECK, self.spot(DROP).with(nft::drop_packet())),
            // What the node sends to itself was checked on its way out, and has another source by now.
            (PREROUTING, new().with_all(input_is("lo", Comparison::NotEqual)).with(nft::jump(SOURCE_CHECK))),
            (PREROUTING, new().with(nft::jump(POLICY_CHECK))),
            (OUTPUT, new().with(nft::jump(SOURCE_CHECK))),
            (OUTPUT, new().with_all(self.spot(DROP).expressions).with(nft::drop_packet())),
            (ENTER_INPUT, new().with_all(self.spot(REFUSED).expressions).with(nft::jump(REFUSE))),
            // Other protocols are refused when they come in by loopback: a sender would be told that it must not send.
            (
                ENTER_OUTPUT,
                new().with_all(is_tcp()).with_all(self.spot(REFUSED).expressions).with(nft::jump(REFUSE)),
            ),
            (ENTER_OUTPUT, self.short_circuit(new())),
            (LEAVE_OUTPUT, self.marked_by_us().with(nft::jump(UNMARK))),
            (LEAVE_LOCALLY, self.marked_by_us().with(nft::jump(UNMARK))),
            (INPUT, self.marked_by_us().with(nft::jump(UNMARK))),
            (INPUT, self.health_check()),
            (INPUT, self.refuse()),
            (UNMARK, unmark()),
            (POSTROUTING, self.asked_for()),
            (POSTROUTING, self.hairpin()),
            (
                POSTROUTING,
                self.original_spot().with(nft::in_set(Register::R0, MASQUERADE)).with(masquerade()),
            ),
        ];
        for pod in self.pod_matches() {
            rules.push((POLICY_CHECK, Rule::new().with_all(pod.clone()).with(nft::return_to_caller())));
            rules.push((ENTER_INPUT, self.short_circuit(new().with_all(pod))));
        }
        rules.push((POLICY_CHECK, self.spot(DROP_OUTSIDE).with(nft::drop_packet())));
        rules.extend(self.cluster_ips());
        rules.extend(self.own());
        rules.extend(self.refusals().map(|rule| (REFUSE, rule)));
        rules
    }

    /// A reset for TCP: ICMP errors are limited to some a second for each receiver (`icmp_ratelimit`). Ping is answered.
    fn refusals(&self) -> [Rule; 3] {
        let unreachable = match self.family {
            NftFamily::Ip6 => Reject::ICMPV6_PORT_UNREACHABLE,
            _ => Reject::ICMP_PORT_UNREACHABLE,
        };
        [(TCP, Reject::TcpReset), (UDP, unreachable), (SCTP, unreachable)].map(|(protocol, reject)| {
            let of_protocol =
                Rule::new().with(nft::l4proto(Register::R0)).with(nft::equal(Register::R0, [protocol]));
            of_protocol.with(Expression::Reject(reject))
        })
    }

    /// Load balancer IPs that not everybody may use.
    fn source_check(&self) -> Rule {
        let allowed = self.load_spot();
        let source = Register::R0.after(self.words() + 2);
        self.spot(RESTRICTED)
            .with_all(allowed)
            .with(nft::source(self.family, source))
            .with(nft::not_in_set(Register::R0, ALLOWED))
            .with(nft::drop_packet())
    }

    /// Masquerades connections to cluster IPs, of everybody or of who is no pod of this node.
    fn cluster_ips(&self) -> Option<(&'static str, Rule)> {
        let to_cluster_ip = || self.original_destination().with(nft::in_set(Register::R0, CLUSTER_IPS));
        if self.environment.masquerade_all {
            return Some((POSTROUTING, to_cluster_ip().with(masquerade())));
        }
        match &self.environment.local_pods {
            LocalPods::Unknown => None,
            LocalPods::Cidrs(_) => {
                Some((POSTROUTING, to_cluster_ip().with_all(self.no_pod_source()).with(masquerade())))
            }
            // By which interface a packet came in is not known any more when it leaves: the bit waits.
            LocalPods::Bridge(name) => Some((PREROUTING, self.ask_for_masquerading(name))),
            LocalPods::InterfacePrefix(prefix) => {
                Some((PREROUTING, self.ask_for_masquerading(&format!("{prefix}*"))))
            }
        }
    }

    /// The node's own connections have the virtual IP as their source (IPv4) or any address (IPv6), to which no answer
    /// would come.
    fn own(&self) -> [(&'static str, Rule); 2] {
        let own = || Rule::new().with(nft::source_type(Register::R0)).with(nft::is_local(Register::R0));
        let to_vip = self.original_destination().with(nft::in_set(Register::R0, VIPS)).expressions;
        let short = Rule::new()
            .with_all(self.no_pod_source())
            .with_all(self.original_spot().expressions)
            // Only whether it is there counts.
            .with(nft::map(Register::R0, SHORT_CIRCUITS, Register::R8));
        [
            (POSTROUTING, own().with_all(to_vip).with(masquerade())),
            (POSTROUTING, own().with_all(short.expressions).with(masquerade())),
        ]
    }

    /// Packets of this node's pods: one alternative for each way to tell.
    fn pod_matches(&self) -> Vec<Vec<Expression>> {
        match &self.environment.local_pods {
            LocalPods::Unknown => Vec::new(),
            LocalPods::Cidrs(nets) => {
                nets.iter().map(|net| self.source_net(net, Comparison::Equal)).collect()
            }
            LocalPods::Bridge(name) => vec![input_is(name, Comparison::Equal)],
            LocalPods::InterfacePrefix(prefix) => vec![input_is(&format!("{prefix}*"), Comparison::Equal)],
        }
    }

    /// Where pods are known by their addresses: that the source is none of theirs.
    fn no_pod_source(&self) -> Vec<Expression> {
        match &self.environment.local_pods {
            LocalPods::Cidrs(nets) => {
                nets.iter().flat_map(|net| self.source_net(net, Comparison::NotEqual)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn source_net(&self, net: &IpNet, comparison: Comparison) -> Vec<Expression> {
        let bytes = |addr: IpAddr| match addr {
            IpAddr::V4(addr) => addr.octets().to_vec(),
            IpAddr::V6(addr) => addr.octets().to_vec(),
        };
        let (network, mask) = (bytes(net.network()), bytes(net.netmask()));
        let zeros = vec![0; mask.len()];
        vec![
            nft::source(self.family, Register::R0),
            nft::bitwise(Register::R0, Register::R0, mask, zeros),
            nft::compare(Register::R0, comparison, network),
        ]
    }

    /// The mark selects a virtual server only if it is this mark and nothing else (`ip_vs_service_find` compares all 32
    /// bits), so the packet's own is put aside in its priority until IPVS is done.
    fn short_circuit(&self, rule: Rule) -> Rule {
        rule.with_all(self.load_spot())
            .with(nft::map(Register::R0, SHORT_CIRCUITS, Register::R8))
            .with(nft::mark(Register::R9))
            .with(nft::meta_set(MetaKey::Priority, Register::R9))
            .with(nft::meta_set(MetaKey::Mark, Register::R8))
    }

    /// Connections to cluster IPs that come in by another interface.
    fn ask_for_masquerading(&self, pods: &str) -> Rule {
        new()
            .with_all(self.destination_in(CLUSTER_IPS).expressions)
            .with_all(input_is(pods, Comparison::NotEqual))
            .with(nft::mark(Register::R0))
            .with(nft::or(Register::R0, self.environment.masquerade_mark))
            .with(nft::meta_set(MetaKey::Mark, Register::R0))
    }

    /// What carries the masquerade bit, whoever set it.
    fn asked_for(&self) -> Rule {
        let bit = self.environment.masquerade_mark;
        Rule::new()
            .with(nft::mark(Register::R0))
            .with(nft::and(Register::R0, bit))
            .with(nft::not_equal(Register::R0, [0; 4]))
            .with(nft::mark(Register::R0))
            .with(nft::xor(Register::R0, bit))
            .with(nft::meta_set(MetaKey::Mark, Register::R0))
            .with(masquerade())
    }

    fn hairpin(&self) -> Rule {
        Rule::new()
            .with(nft::source(self.family, Register::R0))
            .with(nft::destination(self.family, Register::R0.after(self.words())))
            .with(nft::in_set(Register::R0, HAIRPIN))
            .with(masquerade())
    }

    /// A load balancer may ask for the health of a Service at its virtual IP; the answer is ours.
    fn health_check(&self) -> Rule {
        Rule::new()
            .with_all(is_tcp())
            .with(nft::destination_port(Register::R0))
            .with(nft::in_set(Register::R0, HEALTH_CHECKS))
            .with_all(self.destination_in(VIPS).expressions)
            .with(nft::accept())
    }

    /// What IPVS left alone on an address that is bound only for it must reach no process of the node.
    fn refuse(&self) -> Rule {
        Rule::new()
            .with_all(nft::conntrack_has_not(
                ConntrackKey::State,
                conntrack_state::ESTABLISHED | conntrack_state::RELATED,
                Register::R0,
            ))
            .with_all(self.destination_in(VIPS).expressions)
            .with(nft::jump(REFUSE))
    }

    /// Where the connection went before IPVS.
    fn original_destination(&self) -> Rule {
        let key = match self.family {
            NftFamily::Ip6 => ConntrackKey::DestinationIp6,
            _ => ConntrackKey::DestinationIp,
        };
        Rule::new().with(original(key, Register::R0))
    }

    fn original_spot(&self) -> Rule {
        let protocol = Register::R0.after(self.words());
        self.original_destination()
            .with(nft::l4proto(protocol))
            .with(original(ConntrackKey::DestinationPort, protocol.after(1)))
    }

    fn destination_in(&self, set: &str) -> Rule {
        Rule::new().with(nft::destination(self.family, Register::R0)).with(nft::in_set(Register::R0, set))
    }

    /// Destination address, protocol and port in a set.
    fn spot(&self, set: &str) -> Rule {
        Rule::new().with_all(self.load_spot()).with(nft::in_set(Register::R0, set))
    }

    fn load_spot(&self) -> [Expression; 3] {
        let protocol = Register::R0.after(self.words());
        [
            nft::destination(self.family, Register::R0),
            nft::l4proto(protocol),
            nft::destination_port(protocol.after(1)),
        ]
    }

    /// The set is asked only for what looks like one of our marks: every packet of the output hook comes here.
    fn marked_by_us(&self) -> Rule {
        Rule::new()
            .with(nft::mark(Register::R0))
            .with(nft::and(Register::R0, self.marks.mask()))
            .with(nft::equal(Register::R0, self.marks.tag().to_ne_bytes()))
            .with(nft::mark(Register::R0))
            .with(nft::in_set(Register::R0, MARKS))
    }

    /// Registers that an address takes.
    fn words(&self) -> u32 {
        match self.family {
            NftFamily::Ip6 => 4,
            _ => 1,
        }
    }
}

fn new() -> Rule {
    Rule::new().with_all(nft::conntrack_has(ConntrackKey::State, conntrack_state::NEW, Register::R0))
}

fn is_tcp() -> [Expression; 2] {
    [nft::l4proto(Register::R0), nft::equal(Register::R0, [TCP])]
}

fn original(key: ConntrackKey, to: Register) -> Expression {
    Expression::Conntrack { key, direction: Some(Direction::Original), to }
}

fn masquerade() -> Expression {
    Expression::Masquerade { flags: nat_flags::FULLY_RANDOM }
}

/// Back to the mark of before.
fn unmark() -> Rule {
    Rule::new()
        .with(nft::priority(Register::R0))
        .with(nft::meta_set(MetaKey::Mark, Register::R0))
        .with(nft::immediate_u32(Register::R0, 0))
        .with(nft::meta_set(MetaKey::Priority, Register::R0))
}

fn input_is(name: &str, comparison: Comparison) -> Vec<Expression> {
    vec![nft::input_name(Register::R0), nft::interface(Register::R0, comparison, name)]
}
