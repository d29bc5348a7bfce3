//! What is printed of differences; that they are found is tested where they are, in the backends.

use insight::state::{Aside, Installed, Mode};
use insight::text::Time;
use proxy_core::model::{ObjectName, Protocol, ServicePortName};

use super::*;
use crate::verbs::test_state::{golden, state};

fn owner(name: &str, port: &str) -> ServicePortName {
    ServicePortName { service: ObjectName::new("shop", name), port: port.into(), protocol: Protocol::Tcp }
}

fn compared() -> BTreeMap<Family, Comparison> {
    let mut comparison = Comparison { compared: 321, ..Comparison::default() };
    let web = owner("web", "http");
    comparison.differs(
        Some(&web),
        DifferenceKind::Extra,
        "endpoint 10.9.9.9:8080",
        Some("nft delete element ip kube-proxy endpoints-3 { f000:0002 . tcp . 2 }".to_owned()),
    );
    comparison.differs(Some(&web), DifferenceKind::Missing, "endpoint 10.244.1.7:8080", None);
    comparison.differs(
        Some(&owner("pay", "https")),
        DifferenceKind::Missing,
        "tcp 203.0.113.11:443 (external, policy Local) is not served",
        None,
    );
    comparison.differs(
        None,
        DifferenceKind::Different,
        "chain to-class-3 has 0 rules instead of 3",
        Some("nft list chain ip kube-proxy to-class-3".to_owned()),
    );
    comparison.owes(None, "3 elements of endpoints-3 that nothing leads to any more");
    comparison.settle();
    BTreeMap::from([(Family::V4, comparison)])
}

fn some_answer(only: Option<&str>) -> Answer {
    let mut state = state(Mode::Nftables);
    state.installed.push(Installed {
        family: Family::V4,
        service: "shop/web".to_owned(),
        waits: true,
        ports: Vec::new(),
    });
    state.asides.push(Aside {
        family: Family::V4,
        service: "shop/pay".to_owned(),
        since: Time::from_micros(1_790_000_000_000_000),
        reason: "no space".to_owned(),
        retry_at: None,
    });
    let intended = Intended::of(&state).expect("a state");
    answer(&state, &intended, compared(), only)
}

#[test]
fn differences_at_80_and_at_160_columns() {
    let look = |width, wide| Look { width: Some(width), wide, colour: false };
    golden("diff-80.txt", &text(&some_answer(None), look(80, false)));
    golden("diff-160.txt", &text(&some_answer(None), look(160, true)));
}

#[test]
fn one_service_alone_and_what_the_engine_knows_of_it() {
    let of = some_answer(Some("shop/pay"));
    assert_eq!(of.differences.len(), 1);
    assert!(of.differences[0].because.as_deref().is_some_and(|text| text.contains("no space")), "{of:?}");
    assert_eq!(some_answer(Some("shop/none")).differences, []);
    let whole = some_answer(None);
    assert!(commands(&whole).contains("nft delete element ip kube-proxy endpoints-3"));
    assert!(commands(&whole).contains("2 more have no command"), "{}", commands(&whole));
}

#[test]
fn an_undamaged_node_says_how_much_was_compared() {
    let state = state(Mode::Nftables);
    let intended = Intended::of(&state).expect("a state");
    let same = Comparison { compared: 99, ..Comparison::default() };
    let answer = answer(&state, &intended, BTreeMap::from([(Family::V4, same)]), None);
    let text = text(&answer, Look { width: None, wide: false, colour: false });
    assert_eq!(text, "Nothing differs: 99 objects of 3 Services compared (nftables mode, IPv4).\n");
}
