//! The nftables side: the sets that plans fill, and the fixed rules that read them.
//!
//! The table and its base chains have kube-proxy's names, so that any mode of kube-proxy removes them at a roll-back.
//! Everything else has names that neither kube-proxy nor our nftables backend uses.
//!
//! A packet for a virtual IP is local. On its way in: `filter-prerouting-pre-dnat` drops what may not pass,
//! `nat-prerouting` marks what is to be masqueraded, `filter-forward` (on the *input* hook, at 97) marks short circuits,
//! IPVS (input hook, 98 and 99: `ip_vs_ops4` of `ip_vs_core.c`) sends it on, and what IPVS leaves is refused by
//! `filter-input` at 110. IPVS sends through the output hook: `filter-output-pre-dnat` takes the mark of a short circuit
//! off there, and `nat-postrouting` masquerades. The node's own packets enter at `nat-output`, just before IPVS at -99.

use std::net::IpAddr;

use ipnet::IpNet;
use nft_netlink::{
    Batch, Chain, ChainKind, Expression, Family as NftFamily, Field, Hook, Register, Rule, Set, Table,
    expression::{self as nft, Comparison, ConntrackKey, MetaKey, Reject, conntrack_state, nat_flags},
};
use proxy_core::{
    environment::{Environment, LocalPods},
    model::Family,
};

/// The name of the table, in `ip` and in `ip6`.
pub(crate) const TABLE: &str = "kube-proxy";

pub(crate) const VIPS: &str = "ipvs-vips";
pub(crate) const CLUSTER_IPS: &str = "ipvs-cluster-ips";
pub(crate) const MASQUERADE: &str = "ipvs-masquerade";
pub(crate) const SHORT_CIRCUITS: &str = "ipvs-short-circuits";
pub(crate) const MARKS: &str = "ipvs-marks";
pub(crate) const DROP: &str = "ipvs-drop";
pub(crate) const DROP_OUTSIDE: &str = "ipvs-drop-outside";
pub(crate) const RESTRICTED: &str = "ipvs-restricted";
pub(crate) const ALLOWED: &str = "ipvs-allowed";
pub(crate) const HAIRPIN: &str = "ipvs-hairpin";

/// What begins so is ours.
pub(crate) const PREFIX: &str = "ipvs-";

const SOURCE_CHECK: &str = "ipvs-source-check";
const POLICY_CHECK: &str = "ipvs-policy-check";
const MARK: &str = "ipvs-mark-for-masquerade";
const UNMARK: &str = "ipvs-end-short-circuit";
const REFUSE: &str = "ipvs-refuse";

const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;

/// The chains of kube-proxy's that we use, by name.
pub(crate) const BASE_CHAINS: [Chain<'static>; 7] = [
    Chain::base("filter-prerouting-pre-dnat", ChainKind::Filter, Hook::Prerouting, -110),
    Chain::base("filter-output-pre-dnat", ChainKind::Filter, Hook::Output, -110),
    Chain::base("nat-prerouting", ChainKind::Nat, Hook::Prerouting, -100),
    Chain::base("nat-output", ChainKind::Nat, Hook::Output, -100),
    Chain::base("nat-postrouting", ChainKind::Nat, Hook::Postrouting, 100),
    // kube-proxy hooks this name elsewhere; it re-creates its base chains at its first sync, hook included.
    Chain::base("filter-forward", ChainKind::Filter, Hook::Input, 97).comment("input, just before IPVS"),
    Chain::base("filter-input", ChainKind::Filter, Hook::Input, 110).comment("input, behind IPVS"),
];

pub(crate) const CHAINS: [&str; 5] = [SOURCE_CHECK, POLICY_CHECK, MARK, UNMARK, REFUSE];

/// The table of a family.
pub(crate) fn table(family: Family) -> Table<'static> {
    Table::new(nft_family(family), TABLE)
}

/// Our sets in a family.
pub(crate) fn sets(family: Family) -> [Set<'static>; 10] {
    const MARK_KEY: &[Field] = &[Field::MARK];
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
                Set::new(DROP, SPOT),
                Set::new(DROP_OUTSIDE, SPOT),
                Set::new(RESTRICTED, SPOT),
                Set::new(ALLOWED, SPOT_AND_SOURCE).interval(),
                Set::new(HAIRPIN, PAIR),
            ]
        }};
    }
    match family {
        Family::V4 => of!(Field::IPV4_ADDRESS),
        Family::V6 => of!(Field::IPV6_ADDRESS),
    }
}

/// Makes table, sets and chains, and writes all rules anew; with `empty`, the sets are emptied.
pub(crate) fn write(batch: &mut Batch, environment: &Environment, empty: bool) {
    let table = table(environment.family);
    batch.add_table(table, Some("rules for kube-proxy"));
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
    for (chain, rule) in (Scaffold { environment, family: table.family }).rules() {
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
    family: NftFamily,
}

impl Scaffold<'_> {
    fn rules(&self) -> Vec<(&'static str, Rule)> {
        let mut rules = vec![
            (SOURCE_CHECK, self.source_check()),
            (POLICY_CHECK, self.spot(DROP).with(nft::drop_packet())),
            (MARK, self.spot(MASQUERADE).with_all(self.ask_for_masquerading())),
            (MARK, self.cluster_ips()),
            // What the node sends to itself was checked on its way out, and has another source by now.
            (
                "filter-prerouting-pre-dnat",
                new().with_all(input_is("lo", Comparison::NotEqual)).with(nft::jump(SOURCE_CHECK)),
            ),
            ("filter-prerouting-pre-dnat", new().with(nft::jump(POLICY_CHECK))),
            ("nat-prerouting", Rule::new().with(nft::jump(MARK))),
            ("filter-output-pre-dnat", mark_in(MARKS).with(nft::goto(UNMARK))),
            ("filter-output-pre-dnat", new().with(nft::jump(SOURCE_CHECK))),
            ("filter-output-pre-dnat", new().with_all(self.spot(DROP).expressions).with(nft::drop_packet())),
            ("nat-output", Rule::new().with(nft::jump(MARK))),
            // The source that the kernel picks for a bound address is that address itself (IPv4) or any (IPv6).
            ("nat-output", self.destination_in(VIPS).with_all(self.ask_for_masquerading())),
            ("nat-output", self.short_circuit(Rule::new())),
            ("nat-postrouting", self.masquerade()),
            ("nat-postrouting", self.hairpin()),
            ("filter-input", self.refuse()),
        ];
        for pod in self.pod_matches() {
            rules.push((POLICY_CHECK, Rule::new().with_all(pod.clone()).with(nft::return_to_caller())));
            rules.push(("filter-forward", self.short_circuit(new().with_all(pod))));
        }
        rules.push((POLICY_CHECK, self.spot(DROP_OUTSIDE).with(nft::drop_packet())));
        rules.extend(self.unmark().into_iter().map(|rule| (UNMARK, rule)));
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

    fn cluster_ips(&self) -> Rule {
        let mut rule = self.destination_in(CLUSTER_IPS);
        if !self.environment.masquerade_all {
            rule = rule.with_all(self.no_pod_matches());
        }
        rule.with_all(self.ask_for_masquerading())
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

    fn no_pod_matches(&self) -> Vec<Expression> {
        match &self.environment.local_pods {
            // The node's own connections have the virtual IP as their source, so that no answer would come.
            LocalPods::Unknown => vec![nft::source_type(Register::R0), nft::is_local(Register::R0)],
            LocalPods::Cidrs(nets) => {
                nets.iter().flat_map(|net| self.source_net(net, Comparison::NotEqual)).collect()
            }
            LocalPods::Bridge(name) => input_is(name, Comparison::NotEqual),
            LocalPods::InterfacePrefix(prefix) => input_is(&format!("{prefix}*"), Comparison::NotEqual),
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

    /// Back to the mark of before. What the node itself sends is masqueraded, unless it does so as a pod.
    fn unmark(&self) -> Vec<Rule> {
        let restore = |rule: Rule, bits: u32| {
            rule.with(nft::priority(Register::R0))
                .with(nft::or(Register::R0, bits))
                .with(nft::meta_set(MetaKey::Mark, Register::R0))
                .with(nft::immediate_u32(Register::R0, 0))
                .with(nft::meta_set(MetaKey::Priority, Register::R0))
                .with(nft::return_to_caller())
        };
        let own = Rule::new().with(nft::source_type(Register::R0)).with(nft::is_local(Register::R0));
        // Interfaces tell nothing on the output hook; there a pod is not taken for the node.
        let pods = match &self.environment.local_pods {
            LocalPods::Cidrs(_) => self.pod_matches(),
            _ => Vec::new(),
        };
        let mut rules: Vec<Rule> =
            pods.into_iter().map(|pod| restore(Rule::new().with_all(pod), 0)).collect();
        rules.extend([restore(own, self.environment.masquerade_mark), restore(Rule::new(), 0)]);
        rules
    }

    fn ask_for_masquerading(&self) -> [Expression; 3] {
        [
            nft::mark(Register::R0),
            nft::or(Register::R0, self.environment.masquerade_mark),
            nft::meta_set(MetaKey::Mark, Register::R0),
        ]
    }

    fn masquerade(&self) -> Rule {
        let bit = self.environment.masquerade_mark;
        Rule::new()
            .with(nft::mark(Register::R0))
            .with(nft::and(Register::R0, bit))
            .with(nft::not_equal(Register::R0, [0; 4]))
            .with(nft::mark(Register::R0))
            .with(nft::xor(Register::R0, bit))
            .with(nft::meta_set(MetaKey::Mark, Register::R0))
            .with(Expression::Masquerade { flags: nat_flags::FULLY_RANDOM })
    }

    fn hairpin(&self) -> Rule {
        Rule::new()
            .with(nft::source(self.family, Register::R0))
            .with(nft::destination(self.family, Register::R0.after(self.words())))
            .with(nft::in_set(Register::R0, HAIRPIN))
            .with(Expression::Masquerade { flags: nat_flags::FULLY_RANDOM })
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

fn mark_in(set: &str) -> Rule {
    Rule::new().with(nft::mark(Register::R0)).with(nft::in_set(Register::R0, set))
}

fn input_is(name: &str, comparison: Comparison) -> Vec<Expression> {
    vec![nft::input_name(Register::R0), nft::interface(Register::R0, comparison, name)]
}
