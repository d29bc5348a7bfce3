//! Whatever is written must be listed by `nft` as its own language, since administrators and other tools list it.

mod support;

use std::time::Duration;

use nft_netlink::{
    Batch, Chain, ChainKind, Element, Family, Field, Hook, Register, Rule, Set, Table, Verdict, concat,
    expression::*,
};
use support::{namespace, nft};

const TABLE: Table<'_> = Table::new(Family::Ip, "kube-proxy");
const R: [Register; 5] = [Register::R0, Register::R1, Register::R2, Register::R3, Register::R4];
const VIP: [Field; 3] = [Field::IPV4_ADDRESS, Field::PROTOCOL, Field::PORT];

/// `ip daddr . meta l4proto . th dport` from the first register on.
fn vip() -> [Expression; 3] {
    [ip_destination(R[0]), l4proto(R[1]), destination_port(R[2])]
}

fn class(major: u16, minor: u16) -> [u8; 4] {
    (u32::from(major) << 16 | u32::from(minor)).to_ne_bytes()
}

#[test]
fn rules_of_the_class_dispatch_are_listed_in_nfts_language() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, Some("managed"));
    batch.add_set(TABLE, &Set::map("vips", &VIP, &[Field::CLASS]));
    batch.add_set(TABLE, &Set::verdict_map("dispatch", &[Field::CLASS]).comment("what to do"));
    batch.add_set(TABLE, &Set::verdict_map("dispatch-local", &[Field::CLASS]));
    batch.add_set(TABLE, &Set::map("local-groups", &[Field::PRIORITY], &[Field::PRIORITY]));
    batch.add_set(
        TABLE,
        &Set::map(
            "endpoints",
            &[Field::PRIORITY, Field::SLOT],
            &[Field::IP_DESTINATION, Field::DESTINATION_PORT],
        ),
    );
    batch.add_set(
        TABLE,
        &Set::map("clients", &[Field::IP_SOURCE, Field::PRIORITY], &[Field::PRIORITY])
            .size(65536)
            .dynamic()
            .aging(),
    );
    batch.add_set(TABLE, &Set::map("sticky-slots", &[Field::PRIORITY, Field::SLOT], &[Field::PRIORITY]));
    batch.add_set(
        TABLE,
        &Set::map("sticky-endpoints", &[Field::PRIORITY], &[Field::IP_DESTINATION, Field::DESTINATION_PORT]),
    );
    batch.add_chain(TABLE, &Chain::regular("to-service"));
    batch.add_chain(TABLE, &Chain::regular("lb-3").comment("three"));
    batch.add_chain(TABLE, &Chain::base("nat-prerouting", ChainKind::Nat, Hook::Prerouting, -100));
    batch
        .add_elements(TABLE, "dispatch")
        .push(&Element::verdict(&class(0x4b50, 0), &Verdict::Goto("lb-3".into())));
    batch
        .add_elements(TABLE, "vips")
        .push(&Element::value(&concat(&[&[172, 30, 0, 1], &[6], &80u16.to_be_bytes()]), &class(0x4b50, 3)));
    batch.add_elements(TABLE, "endpoints").push(&Element::value(
        &concat(&[&class(0x4b50, 3), &0u32.to_ne_bytes()]),
        &concat(&[&[10, 0, 0, 1], &8080u16.to_be_bytes()]),
    ));
    batch.add_elements(TABLE, "clients").push(
        &Element::value(&concat(&[&[10, 0, 0, 9], &class(1, 0)]), &class(1, 4))
            .timeout(Duration::from_secs(86400)),
    );

    let mut rule = |chain: &str, rule: Rule| {
        batch.append_rule(TABLE, chain, &rule);
    };
    rule("nat-prerouting", Rule::new().with(jump("to-service")));
    rule(
        "to-service",
        Rule::new()
            .with_all(vip())
            .with(map(R[0], "vips", R[0]))
            .with(meta_set(MetaKey::Priority, R[0]))
            .with(priority(R[0]))
            .with(and(R[0], 0xfff0_0000))
            .with(verdict_map(R[0], "dispatch"))
            .comment("dispatch"),
    );
    rule(
        "lb-3",
        Rule::new().with(priority(R[0])).with(and(R[0], 0x000f_ffff)).with(meta_set(MetaKey::Priority, R[0])),
    );
    rule(
        "lb-3",
        Rule::new().with(priority(R[0])).with(random(8, R[1])).with(map(R[0], "endpoints", R[0])).with(dnat(
            Family::Ip,
            R[0],
            R[1],
        )),
    );
    rule(
        "lb-3",
        Rule::new().with(priority(R[0])).with(shift_left(R[0], 12)).with(meta_set(MetaKey::Priority, R[0])),
    );
    rule(
        "lb-3",
        Rule::new()
            .with(ip_source(R[0]))
            .with(priority(R[1]))
            .with(map(R[0], "clients", R[0]))
            .with(meta_set(MetaKey::Priority, R[0])),
    );
    rule(
        "lb-3",
        Rule::new()
            .with(ip_source(R[0]))
            .with(priority(R[1]))
            .with(and(R[1], 0xffff_f000))
            .with(priority(R[2]))
            .with(update("clients", R[0], Some(R[2]), Some(Duration::from_secs(10800)))),
    );
    rule(
        "lb-3",
        Rule::new().with(ip_source(R[0])).with(priority(R[1])).with(priority(R[2])).with(delete(
            "clients",
            R[0],
            Some(R[2]),
        )),
    );
    let protocols =
        batch.add_anonymous_set(TABLE, &Set::new("", &[Field::L4_PROTOCOL]), &[&[6], &[17], &[132]]);
    let mut rule = |chain: &str, rule: Rule| {
        batch.append_rule(TABLE, chain, &rule);
    };
    rule(
        "lb-3",
        Rule::new()
            .with(l4proto(R[0]))
            .with(in_set(R[0], protocols))
            .with(priority(R[0]))
            .with(map(R[0], "sticky-endpoints", R[0]))
            .with(dnat(Family::Ip, R[0], R[1])),
    );
    rule(
        "lb-3",
        Rule::new()
            .with(priority(R[0]))
            .with(random(3, R[1]))
            .with(map(R[0], "sticky-slots", R[0]))
            .with(meta_set(MetaKey::Priority, R[0])),
    );
    rule(
        "lb-3",
        Rule::new()
            .with(priority(R[0]))
            .with(map(R[0], "local-groups", R[0]))
            .with(meta_set(MetaKey::Priority, R[0]))
            .with(priority(R[0]))
            .with(and(R[0], 0xfff0_0000))
            .with(verdict_map(R[0], "dispatch-local")),
    );
    batch.commit(&mut socket).unwrap();

    let listed = nft(&["list", "ruleset"]);
    for line in [
        "comment \"managed\"",
        "type ipv4_addr . inet_proto . inet_service : classid",
        "elements = { 172.30.0.1 . tcp . 80 : 4b50:3 }",
        "type classid : verdict",
        "comment \"what to do\"",
        "elements = { 4b50:0 : goto lb-3 }",
        "typeof meta priority : meta priority",
        "typeof meta priority . numgen random mod 2 : ip daddr . th dport",
        "elements = { 4b50:3 . 0 : 10.0.0.1 . 8080 }",
        "typeof ip saddr . meta priority : meta priority",
        "typeof meta priority : ip daddr . th dport",
        "meta priority set ip daddr . meta l4proto . th dport map @vips meta priority & fff0:0 vmap @dispatch \
         comment \"dispatch\"",
        "comment \"three\"",
        "meta priority set meta priority & f:ffff",
        "dnat ip to meta priority . numgen random mod 8 map @endpoints",
        "meta priority set meta priority << 12",
        "meta priority set ip saddr . meta priority map @clients",
        "update @clients { ip saddr . meta priority & ffff:f000 timeout 3h : meta priority }",
        "delete @clients { ip saddr . meta priority : meta priority }",
        "meta l4proto { tcp, udp, sctp } dnat ip to meta priority map @sticky-endpoints",
        "meta priority set meta priority . numgen random mod 3 map @sticky-slots",
        "meta priority set meta priority map @local-groups meta priority & fff0:0 vmap @dispatch-local",
        "type nat hook prerouting priority dstnat; policy accept;",
        "jump to-service",
    ] {
        assert!(listed.lines().any(|listed| listed.trim() == line), "no line `{line}` in\n{listed}");
    }
    assert!(!listed.contains("invalid"), "{listed}");
    // The tools that read JSON must be able to as well.
    assert!(nft(&["--json", "list", "ruleset"]).contains("\"dispatch-local\""));
}

/// Writes each rule into a chain of its own table and compares with what nft lists.
fn assert_listed_as(family: Family, base: Chain<'_>, cases: Vec<(&str, Rule)>, sets: &[Set<'_>]) {
    let mut socket = namespace();
    let table = Table::new(family, "t");
    let mut batch = Batch::new();
    batch.add_table(table, None);
    batch.add_chain(table, &Chain::regular("other"));
    batch.add_chain(table, &base);
    for set in sets {
        batch.add_set(table, set);
    }
    for (_, rule) in &cases {
        batch.append_rule(table, base.name, rule);
    }
    batch.commit(&mut socket).unwrap_or_else(|error| panic!("{error}"));
    let listed = nft(&["list", "chain", family.name(), "t", base.name]);
    let rules: Vec<_> = listed
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && *line != "}" && !line.ends_with('{') && !line.starts_with("type "))
        .collect();
    assert_eq!(rules, cases.iter().map(|(text, _)| *text).collect::<Vec<_>>(), "{listed}");
}

fn rule(steps: impl IntoIterator<Item = Expression>) -> Rule {
    steps.into_iter().collect()
}

fn filter() -> Chain<'static> {
    Chain::base("c", ChainKind::Filter, Hook::Input, 0)
}

#[test]
fn matches_are_listed_in_nfts_language() {
    let then = |steps: &[&[Expression]]| rule(steps.concat().into_iter().chain([accept()]));
    let cases = vec![
        ("ct state new accept", then(&[&conntrack_has(ConntrackKey::State, conntrack_state::NEW, R[0])])),
        (
            "ct state != new accept",
            then(&[&[
                conntrack(ConntrackKey::State, R[0]),
                not_equal(R[0], conntrack_state::NEW.to_ne_bytes()),
            ]]),
        ),
        (
            "ct status dnat accept",
            then(&[&conntrack_has(ConntrackKey::Status, conntrack_status::DNAT, R[0])]),
        ),
        ("fib daddr type local accept", then(&[&[destination_type(R[0]), is_local(R[0])]])),
        ("fib saddr type local accept", then(&[&[source_type(R[0]), is_local(R[0])]])),
        (
            "ip daddr != 127.0.0.0/8 accept",
            then(&[&destination_prefix([127, 0, 0, 0].into(), 8, Comparison::NotEqual, R[0])]),
        ),
        (
            "ip saddr 10.0.16.0/20 accept",
            then(&[&source_prefix([10, 0, 17, 1].into(), 20, Comparison::Equal, R[0])]),
        ),
        (
            "ip saddr 10.0.0.1 accept",
            then(&[&source_prefix([10, 0, 0, 1].into(), 32, Comparison::Equal, R[0])]),
        ),
        (
            "iifname \"cali*\" accept",
            then(&[&[input_name(R[0]), interface(R[0], Comparison::Equal, "cali*")]]),
        ),
        (
            "oifname != \"cni0\" accept",
            then(&[&[output_name(R[0]), interface(R[0], Comparison::NotEqual, "cni0")]]),
        ),
        (
            "meta mark & 0x00004000 != 0x00000000 accept",
            then(&[&[mark(R[0]), and(R[0], 0x4000), not_equal(R[0], [0; 4])]]),
        ),
        (
            "tcp dport 80-90 accept",
            then(&[&[
                l4proto(R[0]),
                equal(R[0], [6]),
                destination_port(R[0]),
                compare(R[0], Comparison::GreaterOrEqual, 80u16.to_be_bytes()),
                compare(R[0], Comparison::LessOrEqual, 90u16.to_be_bytes()),
            ]]),
        ),
        (
            "tcp sport != 80-90 accept",
            then(&[&[
                l4proto(R[0]),
                equal(R[0], [6]),
                source_port(R[0]),
                Expression::Range { from: R[0], inside: false, first: [0, 80].into(), last: [0, 90].into() },
            ]]),
        ),
        (
            "limit rate 10/second burst 6 packets accept",
            then(&[&[Expression::Limit {
                kind: LimitKind::Packets,
                rate: 10,
                per: Duration::from_secs(1),
                burst: 6,
                over: false,
            }]]),
        ),
        ("ip daddr . meta l4proto . th dport @vips accept", then(&[&vip(), &[in_set(R[0], "vips")]])),
        (
            "ip daddr . meta l4proto . th dport . ip saddr != @allowed accept",
            then(&[&vip(), &[ip_source(R[3]), not_in_set(R[0], "allowed")]]),
        ),
        ("meta mark vmap @marks", rule([mark(R[0]), verdict_map(R[0], "marks")])),
        (
            "meta l4proto . ct original proto-dst @ports accept",
            then(&[&[
                l4proto(R[0]),
                Expression::Conntrack {
                    key: ConntrackKey::DestinationPort,
                    direction: Some(Direction::Original),
                    to: R[1],
                },
                in_set(R[0], "ports"),
            ]]),
        ),
    ];
    let allowed = [Field::IPV4_ADDRESS, Field::PROTOCOL, Field::PORT, Field::IPV4_ADDRESS];
    let sets = [
        Set::new("vips", &VIP),
        Set::new("allowed", &allowed).interval(),
        Set::new("ports", &[Field::PROTOCOL, Field::PORT]),
        Set::verdict_map("marks", &[Field::META_MARK]),
    ];
    assert_listed_as(Family::Ip, filter(), cases, &sets);
}

#[test]
fn statements_are_listed_in_nfts_language() {
    let cases = vec![
        ("jump other", rule([jump("other")])),
        ("goto other", rule([goto("other")])),
        ("return", rule([return_to_caller()])),
        ("continue", rule([Expression::Verdict(Verdict::Continue)])),
        ("drop", rule([drop_packet()])),
        (
            "meta mark set meta mark | 0x00004000",
            rule([mark(R[0]), or(R[0], 0x4000), meta_set(MetaKey::Mark, R[0])]),
        ),
        (
            "meta mark set meta mark ^ 0x00004000",
            rule([mark(R[0]), xor(R[0], 0x4000), meta_set(MetaKey::Mark, R[0])]),
        ),
        (
            "meta mark set meta mark >> 3",
            rule([mark(R[0]), shift_right(R[0], 3), meta_set(MetaKey::Mark, R[0])]),
        ),
        ("meta mark set 0x00000007", rule([immediate_u32(R[0], 7), meta_set(MetaKey::Mark, R[0])])),
        (
            "ct mark set meta mark",
            rule([mark(R[0]), Expression::ConntrackSet { key: ConntrackKey::Mark, from: R[0] }]),
        ),
        ("reject", rule([reject(Family::Ip)])),
        (
            "reject with tcp reset",
            rule([l4proto(R[0]), equal(R[0], [6]), Expression::Reject(Reject::TcpReset)]),
        ),
        ("notrack", rule([Expression::Notrack])),
        ("counter packets 0 bytes 0", rule([Expression::Counter])),
        ("log prefix \"odd: \"", rule([Expression::Log { prefix: Some("odd: ".into()), group: None }])),
        (
            "log prefix \"odd: \" group 3",
            rule([Expression::Log { prefix: Some("odd: ".into()), group: Some(3) }]),
        ),
        (
            "add @seen { ip saddr counter }",
            rule([
                ip_source(R[0]),
                Expression::DynamicSet {
                    update: SetUpdate::Add,
                    set: "seen".into(),
                    key: R[0],
                    data: None,
                    timeout: None,
                    attached: Some(Box::new(Expression::Counter)),
                },
            ]),
        ),
    ];
    let seen = [Set::new("seen", &[Field::IPV4_ADDRESS]).dynamic().size(100)];
    // No hook takes both notrack and reject, a chain without one does.
    assert_listed_as(Family::Ip, Chain::regular("c"), cases, &seen);
}

#[test]
fn translations_are_listed_in_nfts_language() {
    let nat = |kind, address_end, port_end, flags| Expression::Nat {
        kind,
        family: Family::Ip,
        address: Some(R[0]),
        address_end,
        port: Some(R[2]),
        port_end,
        flags,
    };
    let tcp = || [l4proto(R[0]), equal(R[0], [6])];
    let cases = vec![
        ("masquerade", rule([masquerade()])),
        ("masquerade fully-random", rule([masquerade_fully_random()])),
        ("snat to 192.0.2.1", rule([immediate(R[0], [192, 0, 2, 1]), snat(Family::Ip, R[0])])),
        (
            "meta l4proto tcp snat to 192.0.2.1-192.0.2.9:80-90 random",
            rule(tcp().into_iter().chain([
                immediate(R[0], [192, 0, 2, 1]),
                immediate(R[1], [192, 0, 2, 9]),
                immediate(R[2], 80u16.to_be_bytes()),
                immediate(R[3], 90u16.to_be_bytes()),
                nat(NatKind::Source, Some(R[1]), Some(R[3]), nat_flags::RANDOM),
            ])),
        ),
        (
            "ct status dnat ip saddr . ip daddr . meta l4proto . th dport @hairpin masquerade fully-random",
            rule(conntrack_has(ConntrackKey::Status, conntrack_status::DNAT, R[0]).into_iter().chain([
                ip_source(R[0]),
                ip_destination(R[1]),
                l4proto(R[2]),
                destination_port(R[3]),
                in_set(R[0], "hairpin"),
                masquerade_fully_random(),
            ])),
        ),
    ];
    let key = [Field::IPV4_ADDRESS, Field::IPV4_ADDRESS, Field::PROTOCOL, Field::PORT];
    let base = Chain::base("c", ChainKind::Nat, Hook::Postrouting, 100);
    assert_listed_as(Family::Ip, base, cases, &[Set::new("hairpin", &key)]);
}

#[test]
fn ipv6_rules_are_listed_in_nfts_language() {
    // A 16 byte address fills four registers.
    let vip = [ip6_destination(R[0]), l4proto(R[4]), destination_port(Register::R5)];
    let cases = vec![
        (
            "meta priority set ip6 daddr . meta l4proto . th dport map @vips meta priority & fff0:0 vmap @dispatch",
            rule(vip.clone().into_iter().chain([
                map(R[0], "vips", R[0]),
                meta_set(MetaKey::Priority, R[0]),
                priority(R[0]),
                and(R[0], 0xfff0_0000),
                verdict_map(R[0], "dispatch"),
            ])),
        ),
        (
            "dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 3 map @endpoints",
            rule(vip.into_iter().chain([
                random(3, Register::R6),
                map(R[0], "endpoints", R[0]),
                dnat(Family::Ip6, R[0], R[4]),
            ])),
        ),
        (
            "dnat ip6 to meta priority . numgen random mod 8 map @grouped",
            rule([
                priority(R[0]),
                random(8, R[1]),
                map(R[0], "grouped", R[0]),
                dnat(Family::Ip6, R[0], R[4]),
            ]),
        ),
        (
            "update @clients { ip6 saddr . meta priority & ffff:f000 timeout 3h : meta priority }",
            rule([
                ip6_source(R[0]),
                priority(R[4]),
                and(R[4], 0xffff_f000),
                priority(Register::R5),
                update("clients", R[0], Some(Register::R5), Some(Duration::from_secs(10800))),
            ]),
        ),
        (
            "meta priority set ip6 saddr . meta priority map @clients",
            rule([
                ip6_source(R[0]),
                priority(R[4]),
                map(R[0], "clients", R[0]),
                meta_set(MetaKey::Priority, R[0]),
            ]),
        ),
        ("reject", rule([reject(Family::Ip6)])),
        (
            "ip6 saddr fd00::/13 drop",
            rule(
                source_prefix("fd00::".parse().expect("an address"), 13, Comparison::Equal, R[0])
                    .into_iter()
                    .chain([drop_packet()]),
            ),
        ),
    ];
    let key = [Field::IPV6_ADDRESS, Field::PROTOCOL, Field::PORT];
    let endpoint = [Field::IP6_DESTINATION, Field::DESTINATION_PORT];
    let slots = [Field::IP6_DESTINATION, Field::L4_PROTOCOL, Field::DESTINATION_PORT, Field::SLOT];
    let grouped = [Field::PRIORITY, Field::SLOT];
    let client = [Field::IP6_SOURCE, Field::PRIORITY];
    let sets = [
        Set::map("vips", &key, &[Field::CLASS]),
        Set::verdict_map("dispatch", &[Field::CLASS]),
        Set::map("endpoints", &slots, &endpoint),
        Set::map("grouped", &grouped, &endpoint),
        Set::map("clients", &client, &[Field::PRIORITY]).size(65536).dynamic().aging(),
    ];
    assert_listed_as(Family::Ip6, Chain::regular("c"), cases, &sets);
}

#[test]
fn rules_of_an_inet_table_are_listed_in_nfts_language() {
    let cases = vec![
        ("reject", rule([reject(Family::Inet)])),
        ("meta nfproto ipv6 accept", rule([meta(MetaKey::NfProtocol, R[0]), equal(R[0], [10]), accept()])),
        (
            "ip daddr 192.0.2.1 drop",
            rule([
                meta(MetaKey::NfProtocol, R[0]),
                equal(R[0], [2]),
                ip_destination(R[0]),
                equal(R[0], [192, 0, 2, 1]),
                drop_packet(),
            ]),
        ),
    ];
    assert_listed_as(Family::Inet, filter(), cases, &[]);
}
