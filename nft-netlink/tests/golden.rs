//! Bytes of messages against those put together by hand from the kernel's headers (linux/netlink.h,
//! linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h), with nothing of the crate's own constants.

use std::time::Duration;

use netlink::Messages;
use nft_netlink::{
    Batch, Chain, ChainKind, Element, Family, Field, Hook, Register, Rule, Set, Table, Verdict,
    expression::{drop_packet, l4proto},
};

const TABLE: Table<'_> = Table::new(Family::Ip, "kp");

/// An attribute: 16 bits of length and type in the host's order, the value, padding.
fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// NLA_F_NESTED is 1 << 15.
fn nest(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attr(kind | 1 << 15, &parts.concat())
}

fn be32(kind: u16, value: u32) -> Vec<u8> {
    attr(kind, &value.to_be_bytes())
}

/// The one message of a batch: type, flags, `struct nfgenmsg` and attributes.
fn assert_message(fill: impl FnOnce(&mut Batch), kind: u16, flags: u16, attributes: &[Vec<u8>]) {
    let mut batch = Batch::new();
    fill(&mut batch);
    let bytes = batch.bytes();
    let messages: Vec<_> = Messages::new(&bytes).collect();
    let [message] = messages[..] else { panic!("{messages:?}") };
    // NFNL_SUBSYS_NFTABLES is 10.
    assert_eq!((message.kind, message.flags), (10 << 8 | kind, flags));
    // nfgen_family AF_INET (2), version NFNETLINK_V0, res_id 0.
    let (header, rest) = message.payload.split_at(4);
    assert_eq!(header, [2, 0, 0, 0]);
    assert_eq!(rest, attributes.concat());
}

// NLM_F_REQUEST 1, NLM_F_EXCL 0x200, NLM_F_CREATE 0x400, NLM_F_APPEND 0x800.

#[test]
fn a_table_is_its_name_awake() {
    // NFT_MSG_NEWTABLE 0; NFTA_TABLE_NAME 1, _FLAGS 2 (not NFT_TABLE_F_DORMANT), _USERDATA 6 with a comment (type 0, length 2) in it.
    let attributes = [attr(1, b"kp\0"), be32(2, 0), attr(6, b"\0\x02x\0")];
    assert_message(|batch| drop_position(batch.add_table(TABLE, Some("x"))), 0, 0x401, &attributes);
    // NFT_MSG_DELTABLE 2.
    assert_message(|batch| drop_position(batch.delete_table(TABLE)), 2, 1, &[attr(1, b"kp\0")]);
}

#[test]
fn a_base_chain_has_a_hook_a_policy_and_a_type() {
    // NFT_MSG_NEWCHAIN 3; NFTA_CHAIN_TABLE 1, _NAME 3, _HOOK 4 {NFTA_HOOK_HOOKNUM 1 (NF_INET_LOCAL_OUT 3),
    // NFTA_HOOK_PRIORITY 2 (-100)}, _POLICY 5 (NF_ACCEPT 1), _TYPE 7.
    let attributes = [
        attr(1, b"kp\0"),
        attr(3, b"c\0"),
        nest(4, &[be32(1, 3), be32(2, (-100_i32) as u32)]),
        be32(5, 1),
        attr(7, b"nat\0"),
    ];
    let chain = Chain::base("c", ChainKind::Nat, Hook::Output, -100);
    assert_message(|batch| drop_position(batch.add_chain(TABLE, &chain)), 3, 0x401, &attributes);
}

#[test]
fn a_rule_is_a_list_of_named_expressions() {
    // NFT_MSG_NEWRULE 6; NFTA_RULE_TABLE 1, _CHAIN 2, _EXPRESSIONS 4 {NFTA_LIST_ELEM 1 {NFTA_EXPR_NAME 1,
    // NFTA_EXPR_DATA 2}}, _USERDATA 7.
    let meta = nest(
        1,
        &[
            attr(1, b"meta\0"),
            // NFTA_META_DREG 1 (NFT_REG32_00 is 8), NFTA_META_KEY 2 (NFT_META_L4PROTO 16).
            nest(2, &[be32(1, 8), be32(2, 16)]),
        ],
    );
    // NFTA_IMMEDIATE_DREG 1 (NFT_REG_VERDICT 0), NFTA_IMMEDIATE_DATA 2 {NFTA_DATA_VERDICT 2 {NFTA_VERDICT_CODE 1
    // (NF_DROP 0)}}.
    let immediate =
        nest(1, &[attr(1, b"immediate\0"), nest(2, &[be32(1, 0), nest(2, &[nest(2, &[be32(1, 0)])])])]);
    let attributes = [attr(1, b"kp\0"), attr(2, b"c\0"), nest(4, &[meta, immediate]), attr(7, b"\0\x03no\0")];
    let rule = Rule::new().with(l4proto(Register::R0)).with(drop_packet()).comment("no");
    assert_message(|batch| drop_position(batch.append_rule(TABLE, "c", &rule)), 6, 0xc01, &attributes);
}

#[test]
fn a_map_has_types_lengths_and_flags() {
    // NFT_MSG_NEWSET 9; NFTA_SET_TABLE 1, _NAME 2, _FLAGS 3 (NFT_SET_MAP 8, _TIMEOUT 0x10, _EVAL 0x20), _KEY_TYPE 4,
    // _KEY_LEN 5, _DATA_TYPE 6, _DATA_LEN 7, _DESC 9 {NFTA_SET_DESC_SIZE 1}, _ID 10, _TIMEOUT 11 (ms), _USERDATA 13.
    let attributes = |userdata: &[u8]| {
        [
            attr(1, b"kp\0"),
            attr(2, b"m\0"),
            be32(3, 0x38),
            be32(4, 7),
            be32(5, 4),
            be32(6, 19),
            be32(7, 4),
            nest(9, &[be32(1, 1000)]),
            be32(10, 1),
            attr(11, &60_000_u64.to_be_bytes()),
            attr(13, userdata),
        ]
    };
    let minute = Duration::from_secs(60);
    let map = Set::map("m", &[Field::IPV4_ADDRESS], &[Field::MARK]).dynamic().size(1000).timeout(minute);
    // nft's own notes: key big endian (2), data host order (1), data no interval.
    let mut userdata = Vec::new();
    for (kind, value) in [(0, 2_u32), (1, 1), (6, 0)] {
        userdata.extend([kind, 4]);
        userdata.extend(value.to_ne_bytes());
    }
    assert_message(|batch| drop_position(batch.add_set(TABLE, &map)), 9, 0x401, &attributes(&userdata));
}

#[test]
fn fields_of_an_interval_concatenation_are_described() {
    let set = Set::new("s", &[Field::IPV4_ADDRESS, Field::PORT]).interval();
    let mut batch = Batch::new();
    batch.add_set(TABLE, &set);
    let bytes = batch.bytes();
    let message = Messages::new(&bytes).next().expect("one message");
    // NFTA_SET_FLAGS 3: NFT_SET_INTERVAL 4, NFT_SET_CONCAT 0x80.
    let attributes = message.attributes(4);
    assert_eq!(attributes.get(3).and_then(|flags| flags.be32()), Some(0x84));
    // NFTA_SET_DESC 9 {NFTA_SET_DESC_CONCAT 2 {NFTA_LIST_ELEM 1 {NFTA_SET_FIELD_LEN 1}}}, lengths without padding.
    let fields = [nest(1, &[be32(1, 4)]), nest(1, &[be32(1, 2)])];
    assert_eq!(attributes.get(9).map(|description| description.value.to_vec()), Some(nest(2, &fields)));
}

#[test]
fn elements_are_a_list_of_keys_and_data() {
    // NFT_MSG_NEWSETELEM 12; NFTA_SET_ELEM_LIST_TABLE 1, _SET 2, _ELEMENTS 3 {NFTA_LIST_ELEM 1 {NFTA_SET_ELEM_KEY 1
    // {NFTA_DATA_VALUE 1}, NFTA_SET_ELEM_DATA 2 {NFTA_DATA_VALUE 1}, NFTA_SET_ELEM_TIMEOUT 4 (ms)}}.
    let first = nest(
        1,
        &[
            nest(1, &[attr(1, &[10, 0, 0, 1])]),
            nest(2, &[attr(1, &[1, 2])]),
            attr(4, &5000_u64.to_be_bytes()),
        ],
    );
    // NFTA_DATA_VERDICT 2 {NFTA_VERDICT_CODE 1 (NFT_GOTO -4), NFTA_VERDICT_CHAIN 2}.
    let goto = nest(2, &[nest(2, &[be32(1, (-4_i32) as u32), attr(2, b"c\0")])]);
    let second = nest(1, &[nest(1, &[attr(1, &[10, 0, 0, 2])]), goto]);
    let attributes = [attr(1, b"kp\0"), attr(2, b"m\0"), nest(3, &[first, second])];
    let fill = |batch: &mut Batch| {
        let mut list = batch.add_elements(TABLE, "m");
        list.push(&Element::value(&[10, 0, 0, 1], &[1, 2]).timeout(Duration::from_secs(5)));
        list.push(&Element::verdict(&[10, 0, 0, 2], &Verdict::Goto("c".into())));
    };
    assert_message(fill, 12, 0x401, &attributes);
    // NFT_MSG_DELSETELEM 14, NFT_MSG_DESTROYSETELEM 30.
    let attributes =
        [attr(1, b"kp\0"), attr(2, b"m\0"), nest(3, &[nest(1, &[nest(1, &[attr(1, &[9; 4])])])])];
    let key = Element::key(&[9; 4]);
    assert_message(|batch| drop_position(batch.delete_elements(TABLE, "m").push(&key)), 14, 1, &attributes);
    assert_message(|batch| drop_position(batch.destroy_elements(TABLE, "m").push(&key)), 30, 1, &attributes);
    assert_message(
        |batch| drop_position(batch.create_elements(TABLE, "m").push(&key)),
        12,
        0x601,
        &attributes,
    );
}

fn drop_position(_: nft_netlink::Position) {}
