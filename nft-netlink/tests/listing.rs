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
