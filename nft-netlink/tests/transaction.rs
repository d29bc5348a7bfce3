//! What the kernel does with batches, in a network namespace of the test's own.

mod support;

use std::time::Duration;

use netlink::Dump;
use nft_netlink::{
    Batch, Chain, ChainKind, CommitError, Element, Family, Field, Hook, Position, Refusal, Register, Rule,
    Set, Table, Template, Verdict, concat,
    expression::*,
    generation::{OwnCommits, Watch, generation},
    list::{self, FoundData},
    probe::{self, Feature},
};
use nix::libc::{EEXIST, EINVAL, ENOENT};
use support::{namespace, nft};

const TABLE: Table<'_> = Table::new(Family::Ip, "t");
/// No libc name is portable enough: `ERESTART` never reaches programs otherwise.
const ERESTART: i32 = 85;

fn refusals(outcome: Result<(), CommitError>) -> Vec<Refusal> {
    match outcome.expect_err("refused") {
        CommitError::Refused(refusals) => refusals,
        other => panic!("{other}"),
    }
}

fn map() -> Set<'static> {
    Set::map("m", &[Field::IPV4_ADDRESS], &[Field::CLASS])
}

#[test]
fn what_is_written_is_read_back() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, Some("ours"));
    batch.add_chain(TABLE, &Chain::regular("c"));
    batch.add_chain(TABLE, &Chain::base("b", ChainKind::Filter, Hook::Forward, -5));
    let other = Table::new(Family::Ip, "other");
    batch.add_table(other, None);
    batch.add_chain(other, &Chain::regular("not-ours"));
    batch.append_rule(TABLE, "b", &Rule::new().with(l4proto(Register::R0)).with(jump("c")).comment("to c"));
    batch.prepend_rule(TABLE, "b", &Rule::new().with(Expression::Counter));
    let aging = map().size(100).timeout(Duration::from_secs(60)).comment("hello");
    batch.add_set(TABLE, &aging);
    batch.add_set(TABLE, &Set::verdict_map("v", &[Field::PORT]));
    let (one, two) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    batch.add_elements(TABLE, "m").push(&Element::value(&one, &[1, 0, 0, 0]).comment("first"));
    batch.add_elements(TABLE, "m").push(&Element::value(&two, &[2, 0, 0, 0]).timeout(Duration::from_secs(9)));
    let goto = Verdict::Goto("c".into());
    batch.add_elements(TABLE, "v").push(&Element::verdict(&80u16.to_be_bytes(), &goto));
    batch.commit(&mut socket).expect("committed");

    let tables = list::tables(&mut socket, Family::Ip).expect("listed");
    let tables: Vec<_> = tables.iter().map(|table| (&*table.name, table.comment.as_deref())).collect();
    assert_eq!(tables, [("t", Some("ours")), ("other", None)]);
    let chains = list::chains(&mut socket, TABLE).expect("listed");
    let chains: Vec<_> = chains.iter().map(|chain| (&*chain.name, chain.hook, chain.uses)).collect();
    assert_eq!(chains, [("c", None, 2), ("b", Some((2, -5)), 2)]);
    let rules = list::rules(&mut socket, TABLE, Some("b")).expect("listed");
    let rules: Vec<_> =
        rules.iter().map(|rule| (rule.expressions.join(" "), rule.comment.as_deref())).collect();
    assert_eq!(rules, [("counter".to_owned(), None), ("meta immediate".to_owned(), Some("to c"))]);

    let sets = list::sets(&mut socket, TABLE).expect("listed");
    let found = sets.iter().find(|set| &*set.name == "m").expect("listed");
    assert_eq!((found.key_type, found.key_length), (aging.key_type(), 4));
    assert_eq!((found.data_type, found.data_length, found.size), (aging.data_type(), 4, Some(100)));
    assert_eq!(found.timeout, Some(Duration::from_secs(60)));
    assert!(found.is_map() && !found.is_anonymous() && found.elements.is_none_or(|count| count == 2));

    let mut elements = Vec::new();
    let outcome = list::elements(&mut socket, TABLE, "m", |element| elements.push(element)).expect("listed");
    assert_eq!(outcome, Dump::Complete);
    elements.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(elements.len(), 2);
    assert_eq!((&elements[0].key[..], &elements[0].data), (&one[..], &FoundData::Value(vec![1, 0, 0, 0])));
    assert_eq!(elements[0].comment.as_deref(), Some("first"));
    // The default timeout is the set's and not repeated; one's own is.
    assert!(elements[0].expires.is_some_and(|left| left <= Duration::from_secs(60)));
    assert_eq!(elements[1].timeout, Some(Duration::from_secs(9)));
    let mut verdicts = Vec::new();
    let _ = list::elements(&mut socket, TABLE, "v", |element| verdicts.push(element.data)).expect("listed");
    assert_eq!(verdicts, [FoundData::Verdict(goto)]);
}

#[test]
fn a_list_that_changed_while_it_was_read_is_called_interrupted() {
    let mut socket = namespace();
    let mut writing = netlink::Socket::open(netlink::Protocol::Netfilter).expect("another socket");
    let template = Template::new(4, 4);
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_set(TABLE, &map());
    for number in 0..5000_u32 {
        batch.add_elements(TABLE, "m").push_fixed(&template, &number.to_be_bytes(), &[0; 4]);
    }
    batch.commit(&mut socket).expect("committed");
    assert_eq!(list::elements(&mut socket, TABLE, "m", |_| {}).expect("listed"), Dump::Complete);

    let mut change = Batch::new();
    change.delete_elements(TABLE, "m").push(&Element::key(&[0; 4]));
    let mut changed = false;
    let outcome = list::elements(&mut socket, TABLE, "m", |_| {
        if !std::mem::replace(&mut changed, true) {
            change.commit(&mut writing).expect("committed");
        }
    });
    assert_eq!(outcome.expect("listed"), Dump::Interrupted);
}

#[test]
fn nothing_is_found_where_there_is_nothing() {
    let mut socket = namespace();
    assert_eq!(list::tables(&mut socket, Family::Ip6).expect("listed"), []);
    assert_eq!(list::chains(&mut socket, TABLE).expect("listed"), []);
    assert_eq!(list::rules(&mut socket, TABLE, None).expect("listed"), []);
    assert_eq!(list::sets(&mut socket, TABLE).expect("listed"), []);
}

#[test]
fn every_error_names_its_message_and_element_and_nothing_is_applied() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_set(TABLE, &map());
    batch.add_elements(TABLE, "m").push(&Element::value(&[10, 0, 0, 7], &[1, 0, 0, 0]));
    batch.commit(&mut socket).expect("committed");

    batch.clear();
    batch.add_chain(TABLE, &Chain::regular("c"));
    let bad_set = batch.flush_set(TABLE, "no-such-set");
    let mut list = batch.add_elements(TABLE, "m");
    for last in 0..7 {
        list.push(&Element::value(&[10, 0, 0, last], &[0; 4]));
    }
    let bad_element = list.push(&Element::value(&[10, 0, 0, 7], &[2, 0, 0, 0]));
    list.push(&Element::value(&[10, 0, 0, 8], &[0; 4]));
    let bad_rule = batch.append_rule(TABLE, "no-such-chain", &Rule::new().with(accept()));
    batch.add_chain(TABLE, &Chain::regular("d"));

    let refusals = refusals(batch.commit(&mut socket));
    let found: Vec<_> = refusals.iter().map(|refusal| (refusal.position, refusal.errno)).collect();
    assert_eq!(found, [(Some(bad_set), ENOENT), (Some(bad_element), EEXIST), (Some(bad_rule), ENOENT)]);
    assert_eq!(bad_element, Position { message: 2, element: 7 });
    assert_eq!(list::chains(&mut socket, TABLE).expect("listed"), [], "a transaction is all or nothing");

    // The answer that came after the errors has been read: the next exchange is not confused by it.
    batch.clear();
    batch.add_chain(TABLE, &Chain::regular("c"));
    batch.commit(&mut socket).expect("committed");
}

#[test]
fn the_element_at_fault_is_found_among_many_messages() {
    let mut socket = namespace();
    let template = Template::new(4, 4);
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_set(TABLE, &map());
    batch.add_elements(TABLE, "m").push(&Element::value(&70_000u32.to_be_bytes(), &[1, 0, 0, 0]));
    batch.commit(&mut socket).expect("committed");

    batch.clear();
    let mut fault = None;
    for number in 0..100_000u32 {
        let position = batch.add_elements(TABLE, "m").push_fixed(&template, &number.to_be_bytes(), &[0; 4]);
        if number == 70_000 {
            fault = Some(position);
        }
    }
    assert!(batch.messages() > 30);
    let refusals = refusals(batch.commit(&mut socket));
    assert_eq!(refusals.iter().map(|refusal| refusal.position).collect::<Vec<_>>(), [fault]);
}

#[test]
fn an_element_that_is_missing_fails_a_delete_but_not_a_destroy() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_set(TABLE, &map());
    batch.commit(&mut socket).expect("committed");
    batch.clear();
    batch.delete_elements(TABLE, "m").push(&Element::key(&[1; 4]));
    assert_eq!(refusals(batch.commit(&mut socket))[0].errno, ENOENT);
    batch.clear();
    batch.destroy_elements(TABLE, "m").push(&Element::key(&[1; 4]));
    batch.destroy_chain(TABLE, "no-such-chain");
    batch.destroy_set(TABLE, "no-such-set");
    batch.destroy_table(Table::new(Family::Ip6, "no-such-table"));
    if kernel_version() >= (6, 3) {
        batch.commit(&mut socket).expect("nothing to do is no error");
    } else {
        let refusals = refusals(batch.commit(&mut socket));
        assert_eq!(refusals.iter().map(|refusal| refusal.errno).collect::<Vec<_>>(), [EINVAL; 4]);
    }
}

/// Of the running kernel.
fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().expect("a name").release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[test]
fn an_element_is_replaced_within_one_batch() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_set(TABLE, &map());
    batch.add_elements(TABLE, "m").push(&Element::value(&[1; 4], &[1; 4]));
    batch.commit(&mut socket).expect("committed");
    batch.clear();
    batch.delete_elements(TABLE, "m").push(&Element::key(&[1; 4]));
    batch.add_elements(TABLE, "m").push(&Element::value(&[1; 4], &[2; 4]));
    batch.commit(&mut socket).expect("committed");
    let mut data = Vec::new();
    let _ = list::elements(&mut socket, TABLE, "m", |element| data.push(element.data)).expect("listed");
    assert_eq!(data, [FoundData::Value(vec![2; 4])]);
}

#[test]
fn chains_rules_and_sets_are_flushed_and_deleted() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_chain(TABLE, &Chain::regular("c"));
    batch.add_chain(TABLE, &Chain::regular("d"));
    batch.append_rule(TABLE, "c", &Rule::new().with(accept()));
    batch.append_rule(TABLE, "c", &Rule::new().with(drop_packet()));
    batch.append_rule(TABLE, "d", &Rule::new().with(accept()));
    batch.add_set(TABLE, &map());
    batch.add_elements(TABLE, "m").push(&Element::value(&[1; 4], &[1; 4]));
    batch.commit(&mut socket).expect("committed");

    let first = list::rules(&mut socket, TABLE, Some("c")).expect("listed")[0].handle;
    batch.clear();
    batch.delete_rule(TABLE, "c", first);
    batch.flush_set(TABLE, "m");
    batch.commit(&mut socket).expect("committed");
    assert_eq!(list::rules(&mut socket, TABLE, Some("c")).expect("listed").len(), 1);
    let mut left = 0;
    let _ = list::elements(&mut socket, TABLE, "m", |_| left += 1).expect("listed");
    assert_eq!(left, 0);

    batch.clear();
    batch.flush_chain(TABLE, "c");
    batch.delete_chain(TABLE, "d");
    batch.delete_set(TABLE, "m");
    batch.commit(&mut socket).expect("committed");
    assert_eq!(list::rules(&mut socket, TABLE, None).expect("listed"), []);
    assert_eq!(list::chains(&mut socket, TABLE).expect("listed").len(), 1);
    assert_eq!(list::sets(&mut socket, TABLE).expect("listed"), []);

    batch.clear();
    batch.append_rule(TABLE, "c", &Rule::new().with(accept()));
    batch.flush_rules(TABLE);
    batch.delete_table(TABLE);
    batch.commit(&mut socket).expect("committed");
    assert_eq!(list::tables(&mut socket, Family::Ip).expect("listed"), []);
}

#[test]
fn a_batch_for_another_generation_is_refused_as_a_whole() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    let before = generation(&mut socket).expect("asked");
    batch.expect_generation(before);
    batch.commit(&mut socket).expect("nobody came between");
    assert_eq!(generation(&mut socket).expect("asked"), before + 1);

    batch.clear();
    batch.expect_generation(before);
    batch.add_chain(TABLE, &Chain::regular("c"));
    let refusals = refusals(batch.commit(&mut socket));
    assert_eq!((refusals.len(), refusals[0].position, refusals[0].errno), (1, None, ERESTART));
    assert_eq!(list::chains(&mut socket, TABLE).expect("listed"), []);

    batch.clear();
    batch.add_chain(TABLE, &Chain::regular("c"));
    batch.commit(&mut socket).expect("a cleared batch expects nothing");
}

#[test]
fn a_hundred_thousand_elements_go_in_one_send() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    let key = [Field::IP_DESTINATION, Field::L4_PROTOCOL, Field::DESTINATION_PORT, Field::SLOT];
    let data = [Field::IP_DESTINATION, Field::DESTINATION_PORT];
    // With a size given the hash does not grow in the background, which would move elements about under the listing.
    let endpoints = Set::map("endpoints", &key, &data).size(200_000);
    batch.add_set(TABLE, &endpoints);
    let template = Template::new(endpoints.key_length() as usize, endpoints.data_length() as usize);
    for number in 0..100_000u32 {
        let key = concat(&[
            &(0xac1e_0000 + number / 10).to_be_bytes(),
            &[6],
            &80u16.to_be_bytes(),
            &(number % 10).to_ne_bytes(),
        ]);
        let data = concat(&[&(0x0a00_0000 + number).to_be_bytes(), &8080u16.to_be_bytes()]);
        batch.add_elements(TABLE, "endpoints").push_fixed(&template, &key, &data);
    }
    assert_eq!(batch.elements(), 100_000);
    batch.commit(&mut socket).expect("committed");
    let mut count = 0;
    let mut sample = None;
    let _ = list::elements(&mut socket, TABLE, "endpoints", |element| {
        count += 1;
        if element.key.starts_with(&0xac1e_0000u32.to_be_bytes())
            && element.key.ends_with(&7u32.to_ne_bytes())
        {
            sample = Some(element.data);
        }
    })
    .expect("listed");
    assert_eq!(count, 100_000);
    assert_eq!(sample, Some(FoundData::Value(vec![10, 0, 0, 7, 0x1f, 0x90, 0, 0])));
}

#[test]
fn a_full_set_says_so() {
    const ENFILE: i32 = 23;
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_set(TABLE, &map().size(2));
    let mut list = batch.add_elements(TABLE, "m");
    let positions: Vec<_> =
        (0..3).map(|last| list.push(&Element::value(&[10, 0, 0, last], &[0; 4]))).collect();
    let refusals = refusals(batch.commit(&mut socket));
    assert_eq!((refusals[0].errno, refusals[0].position), (ENFILE, Some(positions[2])));
}

#[test]
fn an_attribute_that_is_too_long_is_not_sent() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    let rule = (0..2000).map(|_| immediate(Register::R0, [0; 16])).collect::<Rule>();
    batch.append_rule(TABLE, "c", &rule);
    assert!(matches!(batch.commit(&mut socket), Err(CommitError::Invalid(netlink::Error::TooLong))));
}

#[test]
fn intervals_hold_what_lies_in_them() {
    let mut socket = namespace();
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_set(TABLE, &Set::new("cidrs", &[Field::IPV4_ADDRESS]).interval());
    batch.add_elements(TABLE, "cidrs").push_interval(&[172, 30, 0, 0], &[172, 30, 255, 255]);
    batch.add_elements(TABLE, "cidrs").push_interval(&[240, 0, 0, 0], &[255, 255, 255, 255]);
    batch.add_elements(TABLE, "cidrs").push_interval(&[10, 0, 0, 1], &[10, 0, 0, 1]);
    batch.add_set(
        TABLE,
        &Set::new("sources", &[Field::IPV4_ADDRESS, Field::PORT, Field::IPV4_ADDRESS]).interval(),
    );
    let from = concat(&[&[198, 51, 100, 10], &80u16.to_be_bytes(), &[192, 168, 50, 0]]);
    let to = concat(&[&[198, 51, 100, 10], &80u16.to_be_bytes(), &[192, 168, 50, 255]]);
    batch.add_elements(TABLE, "sources").push(&Element::key(&from).to(&to));
    batch.commit(&mut socket).expect("committed");

    let listed = nft(&["list", "table", "ip", "t"]).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(listed.contains("elements = { 10.0.0.1, 172.30.0.0/16, 240.0.0.0/4 }"), "{listed}");
    assert!(listed.contains("elements = { 198.51.100.10 . 80 . 192.168.50.0/24 }"), "{listed}");
    nft(&["get", "element", "ip", "t", "cidrs", "{ 172.30.7.7 }"]);
    nft(&["get", "element", "ip", "t", "sources", "{ 198.51.100.10 . 80 . 192.168.50.9 }"]);

    batch.clear();
    batch.delete_elements(TABLE, "cidrs").push_interval(&[172, 30, 0, 0], &[172, 30, 255, 255]);
    batch.delete_elements(TABLE, "sources").push(&Element::key(&from).to(&to));
    batch.commit(&mut socket).expect("committed");
    assert!(!nft(&["list", "table", "ip", "t"]).contains("172.30.0.0/16"));
}

#[test]
fn probing_finds_what_is_there_and_leaves_no_trace() {
    let mut socket = namespace();
    let before = generation(&mut socket).expect("asked");
    for family in [Family::Ip, Family::Ip6] {
        let missing = probe::missing(&mut socket, family).expect("answered");
        let missing: Vec<_> = missing.iter().map(|missing| missing.feature).collect();
        assert_eq!(missing, if kernel_version() >= (6, 3) { vec![] } else { vec![Feature::Destroy] });
    }
    assert_eq!(generation(&mut socket).expect("asked"), before);
    assert_eq!(nft(&["list", "ruleset"]), "");
}

#[test]
fn what_somebody_else_did_to_a_table_shows_in_counts_rules_and_the_generation() {
    let mut socket = namespace();
    let mut watch = Watch::new(OwnCommits::default());
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    batch.add_chain(TABLE, &Chain::regular("c"));
    batch.append_rule(TABLE, "c", &Rule::new().with(accept()));
    batch.append_rule(TABLE, "c", &Rule::new().with(accept()));
    batch.add_set(TABLE, &Set::new("hash", &[Field::PORT]));
    batch.add_set(TABLE, &Set::new("sized", &[Field::PORT]).size(100));
    batch.add_set(TABLE, &Set::new("ranges", &[Field::PORT]).interval());
    for port in 1..=50_u16 {
        let key = port.to_be_bytes();
        batch.add_elements(TABLE, "hash").push(&Element::key(&key));
        batch.add_elements(TABLE, "sized").push(&Element::key(&key));
    }
    batch.add_elements(TABLE, "ranges").push_interval(&[0, 10], &[0, 19]);
    batch.add_elements(TABLE, "ranges").push_interval(&[0, 30], &[0, 39]);
    let before = watch.look(&mut socket).expect("answered");
    watch.accept(before);
    batch.commit(&mut socket).expect("committed");
    watch.committed();
    let now = watch.look(&mut socket).expect("answered");
    assert!(watch.undisturbed(now));

    let counts = |socket: &mut netlink::Socket| -> Vec<Option<u32>> {
        let sets = list::sets(socket, TABLE).expect("listed");
        ["hash", "sized", "ranges"]
            .map(|name| sets.iter().find(|set| &*set.name == name).expect("it is there").elements)
            .to_vec()
    };
    let told = kernel_version() >= (6, 17);
    let all = [Some(50), Some(50), Some(2)].map(|count| count.filter(|_| told));
    assert_eq!(counts(&mut socket), all);
    let hash = list::set(&mut socket, TABLE, "hash").expect("answered").expect("it is there");
    assert_eq!((&*hash.name, hash.elements), ("hash", all[0]));
    assert_eq!(list::set(&mut socket, TABLE, "none").expect("answered"), None);
    let rules = list::rules(&mut socket, TABLE, None).expect("listed");
    let [first, second] = &rules[..] else { panic!("{rules:?}") };
    assert_eq!(first.fingerprint, second.fingerprint);
    let chain = list::chain(&mut socket, TABLE, "c").expect("answered").expect("it is there");
    assert_eq!((&*chain.name, chain.uses, chain.hook), ("c", 2, None));
    assert_eq!(list::chain(&mut socket, TABLE, "d").expect("answered"), None);
    // More than go into one datagram.
    let names: Vec<&str> = (0..200).map(|at| if at % 3 == 0 { "c" } else { "d" }).collect();
    let found = list::chains_named(&mut socket, TABLE, &names).expect("answered");
    assert_eq!(found.len(), 200);
    assert!(found.iter().enumerate().all(|(at, found)| found.is_some() == (at % 3 == 0)));
    assert!(found.iter().flatten().all(|found| *found == chain));

    let handle = first.handle.to_string();
    nft(&["replace", "rule", "ip", "t", "c", "handle", &handle, "drop"]);
    nft(&["delete", "element", "ip", "t", "hash", "{ 7 }"]);
    nft(&["flush", "set", "ip", "t", "sized"]);
    nft(&["add", "element", "ip", "t", "ranges", "{ 50-59 }"]);
    let now = watch.look(&mut socket).expect("answered");
    assert!(!watch.undisturbed(now));
    let fewer = [Some(49), Some(0), Some(3)].map(|count| count.filter(|_| told));
    assert_eq!(counts(&mut socket), fewer);
    let rules = list::rules(&mut socket, TABLE, None).expect("listed");
    assert_eq!(rules.len(), 2);
    assert_ne!(rules[0].fingerprint, second.fingerprint);
    assert_eq!(rules[1].fingerprint, second.fingerprint);
    assert_eq!(list::chain(&mut socket, TABLE, "c").expect("answered").expect("it is there").uses, 2);
}
