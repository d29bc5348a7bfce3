//! What `nft list ruleset` shows: readable, complete, and loadable again, with the installed nft and with a current one
//! (`SWITCHYARD_NFT_CURRENT` names its program).

mod support;

use std::process::Command;

use proxy_core::{
    environment::{LocalPods, NodePortAddresses},
    model::{Family, Protocol, TrafficPolicy},
    route::{Route, Target},
};
use support::{
    enter_node, load,
    routes::{Build, Proxy, ip, name, named, route},
};

fn programs() -> Vec<String> {
    let current = std::env::var("SWITCHYARD_NFT_CURRENT").ok();
    ["nft".to_owned()].into_iter().chain(current).collect()
}

fn list(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).args(["list", "ruleset"]).output().expect("nft is there");
    assert!(output.status.success(), "{program} {arguments:?}: {:?}", output.status);
    // 1.0.6 has no words in JSON for an `update` of a map, and says so.
    let json = arguments.contains(&"-j");
    assert!(json || output.stderr.is_empty(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The same for every version of nft: one line for a set's elements, in order; priorities as numbers; no remarks.
fn plain(listing: &str) -> String {
    let mut lines = Vec::new();
    let mut elements: Option<String> = None;
    for line in listing.lines() {
        let line = line.split("\t# ").next().unwrap_or_default().trim_end();
        let mut open = elements.take().unwrap_or_default();
        if !open.is_empty() || line.trim_start().starts_with("elements = {") {
            open.push_str(line.trim());
            if line.ends_with('}') {
                lines.push(sorted(&open));
            } else {
                open.push(' ');
                elements = Some(open);
            }
            continue;
        }
        let mut line = line.replace("priority dstnat - 10;", "priority -110;");
        for (word, number) in [("dstnat", "-100"), ("filter", "0"), ("srcnat", "100")] {
            line = line.replace(&format!("priority {word};"), &format!("priority {number};"));
        }
        lines.push(line);
    }
    lines.join("\n")
}

fn sorted(elements: &str) -> String {
    let inner = elements.trim_start_matches("elements = {").trim_end_matches('}');
    let mut each: Vec<&str> = inner.split(", ").map(str::trim).collect();
    each.sort_unstable();
    format!("\t\telements = {{ {} }}", each.join(", "))
}

/// Routes that need every kind of chain and every map.
fn routes(family: Family) -> Vec<(proxy_core::model::ServicePortName, Route)> {
    let v4 = family == Family::V4;
    let target = |number: u8, local| Target {
        addr: ip(&if v4 { format!("10.0.2.{number}") } else { format!("fd00:2::{number}") }),
        port: 8080,
        local,
    };
    let vip = |number: u8| if v4 { format!("172.30.0.{number}") } else { format!("fd99::{number}") };
    let external = |number: u8| if v4 { format!("198.51.100.{number}") } else { format!("fd98::{number}") };
    let range = if v4 { "192.168.50.0/24" } else { "fd55:50::/64" };
    let both = [target(1, false), target(2, true)];
    let local = |mut route: Route| {
        route.external_policy = TrafficPolicy::Local;
        route
    };
    let sticky = |mut route: Route| {
        route.policy_mut().affinity = Some(10_800);
        route
    };
    let internal = |mut route: Route| {
        route.policy_mut().internal = TrafficPolicy::Local;
        route
    };
    let many: Vec<Target> = (1..=70).map(|number| target(number, false)).collect();
    let mut dns = route(&both).cluster_ip(&vip(10));
    dns.protocol = Protocol::Udp;
    vec![
        (name("a"), route(&both).cluster_ip(&vip(1)).load_balancer(&external(1)).node_port(30001)),
        (
            name("b"),
            local(route(&both)).cluster_ip(&vip(2)).restricted(&external(2), &[range]).node_port(30002),
        ),
        (name("c"), sticky(local(route(&both))).cluster_ip(&vip(3)).node_port(30003)),
        (name("d"), sticky(internal(route(&both))).cluster_ip(&vip(4)).load_balancer(&external(4))),
        (name("e"), internal(route(&[target(1, false)])).cluster_ip(&vip(5))),
        (name("f"), route(&[]).cluster_ip(&vip(6)).node_port(30006)),
        (name("g"), route(&many).cluster_ip(&vip(7))),
        (named("h", Protocol::Udp), dns),
    ]
}

/// Lists with every program, checks that what is listed can be loaded and is the same then, and returns it.
fn listed(proxy: &mut Proxy) -> String {
    proxy.full(routes(proxy.environment.family));
    let mut seen: Option<String> = None;
    for program in programs() {
        let text = list(&program, &[]);
        list(&program, &["-j"]);
        // 1.0.6 fails an assertion of its own on any `update` of a map whose key begins with an IPv6 address.
        let version = support::run(&format!("{program} --version"));
        if proxy.environment.family == Family::V4 || !version.contains("v1.0") {
            load(&program, &format!("flush ruleset\n{text}")).expect("a listing can be loaded");
            assert_eq!(plain(&list(&program, &[])), plain(&text), "{program}");
        }
        // The other program cannot read sets that this one wrote.
        support::run("nft flush ruleset");
        let mut again = Proxy::with(proxy.environment.clone());
        again.full(routes(proxy.environment.family));
        let text = plain(&text);
        if let Some(seen) = &seen {
            assert_eq!(*seen, text, "{program} lists otherwise");
        }
        seen = Some(text);
    }
    seen.expect("there is one program at least")
}

#[test]
fn the_table_is_listed_as_it_is_meant() {
    enter_node();
    insta::assert_snapshot!("listing-ipv4", listed(&mut Proxy::new(Family::V4)));
}

#[test]
fn the_table_is_listed_as_it_is_meant_for_ipv6() {
    enter_node();
    insta::assert_snapshot!("listing-ipv6", listed(&mut Proxy::new(Family::V6)));
}

#[test]
fn rules_follow_the_configuration() {
    enter_node();
    let mut environment = support::routes::environment(Family::V4);
    environment.localhost_node_ports = true;
    environment.node_ports = NodePortAddresses::Only(Box::new([ip("192.168.50.254")]));
    environment.local_pods = LocalPods::InterfacePrefix("cali".into());
    environment.masquerade_mark = 1;
    let listing = listed(&mut Proxy::with(environment));
    for line in [
        "ip daddr @node-addrs-1 meta priority set meta l4proto . th dport map @nodeports-1 goto to-class-1",
        "ip daddr 127.0.0.0/8 meta priority set meta l4proto . th dport map @nodeports-1 goto to-class-1",
        "iifname != \"cali*\" meta mark set meta mark | 0x00000001",
        "iifname \"cali*\" goto lb-2-1",
    ] {
        assert!(listing.lines().any(|listed| listed.trim() == line), "{line} is not in {listing}");
    }
}

#[test]
fn no_name_is_one_of_kube_proxys_but_those_of_base_chains() {
    enter_node();
    let listing = listed(&mut Proxy::new(Family::V4));
    let named: Vec<&str> = listing
        .lines()
        .filter_map(|line| line.trim().strip_suffix(" {"))
        .filter_map(|line| line.split_once(' '))
        .filter(|(kind, _)| ["set", "map", "chain"].contains(kind))
        .map(|(_, name)| name)
        .collect();
    assert!(named.len() > 40, "{named:?}");
    let bases = ["filter-", "nat-"];
    for name in named {
        let base = bases.iter().any(|base| name.starts_with(base));
        let generation = name.rsplit_once('-').is_some_and(|(_, number)| number.parse::<u32>().is_ok());
        assert!(base || generation || name.starts_with("clients."), "{name}");
        assert!(!name.starts_with("affinity-") && !name.contains('/'), "{name}");
    }
}
