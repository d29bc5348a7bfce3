//! Each rule names the Services that it concerns and no others, and what it refers to is in the documents.

use std::collections::BTreeMap;

use insight::{
    state::{Aside, Conflict, Mode, State},
    table::Look,
    text::Time,
};
use proxy_core::model::{Family, Protocol};

use super::{rules::*, *};
use crate::verbs::test_state::{golden, state};

#[test]
fn what_each_rule_refers_to_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut names = std::collections::BTreeSet::new();
    for rule in &RULES {
        let (file, words) = rule.see;
        let text = std::fs::read_to_string(root.join(file)).expect(file);
        assert!(text.contains(words), "{}: {words:?} is not in {file}", rule.name);
        assert!(names.insert(rule.name), "{} twice", rule.name);
        assert!(!rule.what.is_empty() && !rule.mend.is_empty(), "{}", rule.name);
    }
}

fn moved(before: &State, to: Mode) -> State {
    let mut changed = Changed::new(before.clone());
    changed.mode(to).expect("a configuration");
    changed.state
}

/// What the rules say: the names, each with the Services concerned.
fn said(before: &State, after: &State, from_kube_proxy: bool) -> BTreeMap<&'static str, Vec<String>> {
    let way = Move { state: before, after, from_kube_proxy };
    findings(&way).into_iter().map(|finding| (finding.name, finding.services)).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn from_iptables_to_nftables() {
    let before = state(Mode::Iptables);
    let found = said(&before, &moved(&before, Mode::Nftables), false);
    let node_ports = names(&["shop/pay", "shop/web"]);
    let wanted = BTreeMap::from([
        ("forward", names(&[])),
        ("localhost-node-ports", node_ports.clone()),
        ("node-port-addresses", node_ports.clone()),
        ("chains", names(&[])),
        ("source-ranges-before-translation", names(&["shop/pay"])),
        ("unallocated-cluster-ips", names(&[])),
        ("host-firewall", node_ports),
    ]);
    assert_eq!(found, wanted);
}

#[test]
fn a_service_without_what_a_rule_is_about_is_not_named() {
    let mut before = state(Mode::Iptables);
    before.services.retain(|service| service.name.name() == "dns");
    let found = said(&before, &moved(&before, Mode::Nftables), false);
    for rule in
        ["localhost-node-ports", "node-port-addresses", "source-ranges-before-translation", "host-firewall"]
    {
        assert!(!found.contains_key(rule), "{rule}: {found:?}");
    }
}

#[test]
fn out_of_ipvs_and_into_it() {
    let mut before = state(Mode::Ipvs);
    if let Some(ipvs) = &mut before.header.ipvs {
        ipvs.scheduler = "lc".to_owned();
    }
    let mut annotated = Changed::new(before);
    let text = "kind: Service\nmetadata: {name: dns, namespace: kube-system, annotations: {switchyard.dev/ipvs-scheduler: mh}}\nspec: {ports: [{name: dns, port: 53, protocol: UDP}]}";
    annotated.apply(text, "default").expect("an object");
    let before = annotated.state;
    let mut found: Vec<&str> = said(&before, &moved(&before, Mode::Nftables), false).into_keys().collect();
    found.sort_unstable();
    for rule in [
        "scheduler",
        "scheduler-annotations",
        "no-device",
        "forward-policy",
        "host-ports-on-virtual-ips",
        "forward",
    ] {
        assert!(found.contains(&rule), "{rule}: {found:?}");
    }
    let annotated = said(&before, &moved(&before, Mode::Iptables), false);
    assert_eq!(annotated["scheduler-annotations"], ["kube-system/dns"]);
    assert!(!annotated.contains_key("forward-policy"), "iptables accepts for itself");
    let before = state(Mode::Iptables);
    let found = said(&before, &moved(&before, Mode::Ipvs), false);
    assert_eq!(found.into_keys().collect::<Vec<_>>(), ["addresses-of-the-device", "localhost-node-ports"]);
}

#[test]
fn in_place_of_kube_proxy_in_the_same_mode() {
    let mut before = state(Mode::Nftables);
    assert_eq!(said(&before, &before, false), BTreeMap::new(), "nothing changes");
    assert_eq!(said(&before, &before, true).into_keys().collect::<Vec<_>>(), ["udp-flows"]);
    before.conflicts.push(Conflict {
        family: Family::V4,
        service: "shop/web".to_owned(),
        winner: "shop/pay".to_owned(),
        protocol: Protocol::Tcp,
        address: None,
        port: 30_080,
        count: 1,
    });
    let aside = |retry_at| Aside {
        family: Family::V4,
        service: "shop/pay".to_owned(),
        since: Time::from_micros(0),
        reason: "too much".to_owned(),
        retry_at,
    };
    before.asides.push(aside(Some(Time::from_micros(1))));
    let found = said(&before, &before, true);
    assert_eq!(found["disputed-addresses"], ["shop/web"]);
    assert!(!found.contains_key("too-large"), "it was refused, and is tried again");
    before.asides.push(aside(None));
    assert_eq!(said(&before, &before, true)["too-large"], ["shop/pay"]);
    let before = state(Mode::Ipvs);
    let found: Vec<&str> = said(&before, &before, true).into_keys().collect();
    assert_eq!(found, ["addresses-of-the-device", "host-ports-on-virtual-ips", "ipsets", "udp-flows"]);
}

#[test]
fn ranges_of_one_family_and_shared_addresses_are_seen() {
    let mut changed = Changed::new(state(Mode::Iptables));
    let text = r"
kind: Service
metadata: {name: both, namespace: shop}
spec:
  type: LoadBalancer
  externalIPs: [203.0.113.50]
  loadBalancerSourceRanges: [192.0.2.0/24]
  ports: [{port: 80}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.50}, {ip: '2001:db8::50'}]}}
";
    changed.apply(text, "default").expect("an object");
    let found = said(&changed.state, &changed.state, true);
    assert_eq!(found["open-load-balancers"], ["shop/both"]);
    assert_eq!(found["restricted-external-ips"], ["shop/both"]);
}

#[test]
fn a_migration_at_80_and_at_160_columns() {
    let before = state(Mode::Iptables);
    let mut after = Changed::new(before.clone());
    after.mode(Mode::Nftables).expect("a configuration");
    let way = Move { state: &before, after: &after.state, from_kube_proxy: false };
    let findings = findings(&way);
    let intended = Intended::of(&before).expect("a state");
    let mut plan = plan::answer(&intended, &after, false, false, false).expect("a plan");
    // How long it took is this machine's affair.
    plan.estimate = None;
    let answer = Answer {
        api_version: insight::state::API_VERSION,
        kind: "Migration",
        node: "here".to_owned(),
        from: "iptables mode".to_owned(),
        to: "nftables",
        findings,
        plan,
    };
    let look = |width| Look { width: Some(width), wide: false, colour: false };
    golden("migrate-80.txt", &text(&answer, look(80)));
    golden("migrate-160.txt", &text(&answer, look(160)));
}
