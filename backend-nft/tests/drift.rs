//! Damage that somebody else does to our table is noticed, whatever it is, and the work of others is not taken for it.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use backend_nft::OwnCommits;
use nft_netlink::{Batch, Chain, Table};
use proxy_core::{
    backend::Executor as _,
    model::{Family, ServicePortName, TrafficPolicy},
    route::Route,
};
use support::{
    enter_node,
    routes::{Build, Proxy, local, name, route, target},
    run,
};

/// Routes that fill every set.
fn some_routes() -> Vec<(ServicePortName, Route)> {
    let endpoints = [local("10.0.2.1"), target("10.0.3.1"), target("10.0.3.2")];
    let mut sticky = route(&endpoints).cluster_ip("172.30.0.2").load_balancer("198.51.100.2");
    sticky.policy_mut().affinity = Some(60);
    sticky.external_policy = TrafficPolicy::Local;
    let mut external = route(&endpoints).cluster_ip("172.30.0.3").load_balancer("198.51.100.3");
    external.external_policy = TrafficPolicy::Local;
    // The same endpoints as others have, and some more.
    let shared = [endpoints[0], endpoints[1], target("10.0.3.9")];
    let mut elsewhere = route(&[target("10.0.3.1")]).load_balancer("198.51.100.5").node_port(30085);
    elsewhere.external_policy = TrafficPolicy::Local;
    let mut dropped = route(&[target("10.0.3.1")]).cluster_ip("172.30.0.8");
    dropped.policy_mut().internal = TrafficPolicy::Local;
    vec![
        (name("dropped"), dropped),
        (name("plain"), route(&endpoints).cluster_ip("172.30.0.1").node_port(30080)),
        (name("sticky"), sticky),
        (name("external"), external),
        (name("shared"), route(&shared).cluster_ip("172.30.0.6")),
        (name("refused"), route(&[]).cluster_ip("172.30.0.4").node_port(30084)),
        (name("elsewhere"), elsewhere),
        (
            name("restricted"),
            route(&endpoints)
                .cluster_ip("172.30.0.7")
                .restricted("198.51.100.7", &["192.0.2.0/24", "203.0.113.9/32"]),
        ),
    ]
}

fn intact(proxy: &mut Proxy) -> bool {
    proxy.executor.intact().expect("the kernel answers")
}

/// Whether any of many checks finds something.
fn noticed_in_time(proxy: &mut Proxy) -> bool {
    noticed_within(proxy, Duration::from_secs(60))
}

fn noticed_within(proxy: &mut Proxy, limit: Duration) -> bool {
    let end = support::routes::now() + limit;
    while support::routes::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        if !intact(proxy) {
            return true;
        }
    }
    false
}

/// The number of the generation that is in the kernel.
fn generation() -> String {
    let listing = run("nft list chain ip kube-proxy nat-prerouting");
    let (_, rest) = listing.split_once("to-class-").expect("it is there");
    rest.split_whitespace().next().expect("a number").to_owned()
}

fn damage(commands: &str) {
    support::load("nft", &commands.replace("GENERATION", &generation())).expect(commands);
}

#[test]
fn the_work_of_others_is_not_taken_for_damage() {
    enter_node();
    let own = OwnCommits::default();
    let (mut proxy, mut sixth) = (Proxy::new(Family::V4), Proxy::new(Family::V6));
    proxy.executor = proxy.executor.counting(&own);
    sixth.executor = sixth.executor.counting(&own);
    assert!(intact(&mut proxy), "nothing was written yet");
    proxy.full(some_routes());
    assert!(intact(&mut proxy));
    for round in 0..10 {
        run("nft add table ip other");
        run("nft add chain ip other some");
        assert!(intact(&mut proxy));
        let targets = [target("10.0.2.1"), target(&format!("10.0.4.{}", round % 3))];
        proxy.change(&name("plain"), Some(route(&targets[..1 + round % 2]).cluster_ip("172.30.0.1")));
        sixth.full(vec![(name("six"), route(&[target("fd00::1")]).cluster_ip("fd99::1"))]);
        run("nft delete table ip other");
        assert!(intact(&mut proxy) && intact(&mut sixth));
        proxy.upkeep(Duration::from_secs(if round == 5 { 100 } else { 2 }));
        assert!(intact(&mut proxy));
    }
    for name in ["sticky", "restricted", "shared", "external", "plain", "refused"].map(name) {
        proxy.change(&name, None);
        run("nft add table ip other");
        run("nft delete table ip other");
        proxy.upkeep(Duration::from_secs(100));
        assert!(intact(&mut proxy));
    }
    // What counts cannot tell is read now and then, and that finds nothing either.
    run("nft add table ip other");
    assert!(!noticed_within(&mut proxy, Duration::from_secs(3)));
}

#[test]
fn what_is_written_for_ipv6_is_found_as_it_was_written() {
    enter_node();
    let endpoints = [local("fd00::2:1"), target("fd00::3:1"), target("fd00::3:2")];
    let mut sticky = route(&endpoints).cluster_ip("fd99::2").load_balancer("fd44::2");
    sticky.policy_mut().affinity = Some(60);
    sticky.external_policy = TrafficPolicy::Local;
    let mut external = route(&endpoints).cluster_ip("fd99::3").load_balancer("fd44::3");
    external.external_policy = TrafficPolicy::Local;
    let restricted = route(&endpoints).restricted("fd44::7", &["fd55::/64", "fd66::9/128"]);
    let mut proxy = Proxy::new(Family::V6);
    proxy.full(vec![
        (name("external"), external),
        (name("plain"), route(&endpoints).cluster_ip("fd99::1").node_port(30080)),
        (name("refused"), route(&[]).cluster_ip("fd99::4")),
        (name("restricted"), restricted),
        (name("sticky"), sticky),
    ]);
    run("nft add table ip other");
    assert!(!noticed_within(&mut proxy, Duration::from_secs(3)));
    let listing = run("nft list chain ip6 kube-proxy nat-prerouting");
    let (_, rest) = listing.split_once("to-class-").expect("it is there");
    let generation = rest.split_whitespace().next().expect("a number");
    run(&format!("nft delete element ip6 kube-proxy vips-{generation} {{ fd99::1 . tcp . 80 }}"));
    assert!(noticed_in_time(&mut proxy));
}

#[test]
fn networks_side_by_side_and_at_the_end_of_all_addresses_are_counted_right() {
    enter_node();
    for nets in [
        &["10.0.0.0/9", "10.128.0.0/9"][..],
        &["0.0.0.0/0"],
        &["240.0.0.0/4"],
        &["0.0.0.0/8", "255.0.0.0/8"],
        &["10.96.0.0/12", "172.30.0.0/16", "192.0.2.1/32"],
    ] {
        let mut environment = support::routes::environment(Family::V4);
        environment.service_cidrs = nets.iter().map(|net| net.parse().expect("a network")).collect();
        let mut proxy = Proxy::with(environment);
        proxy.full(vec![]);
        run("nft add table ip other");
        run("nft delete table ip other");
        assert!(!noticed_within(&mut proxy, Duration::from_millis(300)), "{nets:?}");
    }
}

#[test]
fn beside_somebody_who_commits_all_the_time_nothing_seems_damaged_and_damage_is_noticed() {
    enter_node();
    // Lists take several datagrams, and begin with what comes and goes: what stands behind it may be left out.
    for others in (200..440).step_by(40) {
        run("nft flush ruleset");
        let chains: String =
            (0..others).map(|number| format!("add chain ip other chain-{number}\n")).collect();
        support::load("nft", &format!("add table ip other\n{chains}")).expect("nft takes it");
        let mut proxy = Proxy::new(Family::V4);
        proxy.full(some_routes());
        let stop = Arc::new(AtomicBool::new(false));
        let neighbour = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || chains_come_and_go(&stop)
        });
        for _ in 0..200 {
            assert!(intact(&mut proxy), "beside {others} chains");
        }
        damage("delete element ip kube-proxy vips-GENERATION { 172.30.0.1 . tcp . 80 }");
        let noticed = noticed_in_time(&mut proxy);
        stop.store(true, Ordering::Relaxed);
        neighbour.join().expect("the neighbour does not panic");
        assert!(noticed);
    }
}

fn chains_come_and_go(stop: &AtomicBool) {
    let table = Table::new(nft_netlink::Family::Ip, "other");
    let mut socket = netlink::Socket::open(netlink::Protocol::Netfilter).expect("a socket");
    while !stop.load(Ordering::Relaxed) {
        let mut batch = Batch::new();
        for chain in 0..20 {
            batch.delete_chain(table, &format!("chain-{chain}"));
        }
        batch.commit(&mut socket).expect("committed");
        batch.clear();
        for chain in 0..20 {
            batch.add_chain(table, &Chain::regular(&format!("chain-{chain}")));
        }
        batch.commit(&mut socket).expect("committed");
    }
}

#[test]
fn a_table_that_is_gone_asleep_or_hooked_otherwise_is_noticed() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    for commands in [
        "flush ruleset",
        "delete table ip kube-proxy",
        "flush chain ip kube-proxy nat-output",
        "flush chain ip kube-proxy filter-input\ndelete chain ip kube-proxy filter-input",
        "flush chain ip kube-proxy to-class-GENERATION",
        "add table ip kube-proxy { flags dormant; }",
        "add chain ip kube-proxy filter-forward { policy drop; }",
        "insert rule ip kube-proxy nat-prerouting drop",
        "add rule ip kube-proxy lb-3-GENERATION accept",
    ] {
        damage(commands);
        assert!(!intact(&mut proxy), "{commands}");
        proxy.start_over();
        assert!(intact(&mut proxy), "after {commands}");
    }
}

#[test]
fn a_rule_that_is_deleted_or_becomes_another_is_noticed() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    for what in ["delete", "replace"] {
        for chain in ["nat-postrouting", "refuse-GENERATION", "cip-3-GENERATION"] {
            let chain = chain.replace("GENERATION", &generation());
            let listing = run(&format!("nft -a list chain ip kube-proxy {chain}"));
            let rule = listing
                .lines()
                .rfind(|line| line.contains("# handle") && !line.contains("chain"))
                .expect(&chain);
            let (_, handle) = rule.rsplit_once(' ').expect("a handle");
            let instead = if what == "replace" { "counter" } else { "" };
            run(&format!("nft {what} rule ip kube-proxy {chain} handle {handle} {instead}"));
            assert!(!intact(&mut proxy), "{what} {rule}");
            proxy.start_over();
            assert!(intact(&mut proxy), "after {what} {rule}");
        }
    }
}

/// Our sets with elements, each as `set name` or `map name`, and one element of each.
fn filled_sets() -> Vec<(String, String)> {
    let listing = run("nft list table ip kube-proxy");
    let mut sets = Vec::new();
    let mut name = None;
    for line in listing.lines().map(str::trim) {
        if let Some(opened) = line.strip_suffix(" {") {
            name =
                Some(opened.to_owned()).filter(|name| name.starts_with("set ") || name.starts_with("map "));
        }
        if let (Some(name), Some(elements)) = (&name, line.strip_prefix("elements = {")) {
            let first = elements.trim_end_matches(['}', ' ', ',']).split(',').next().expect("one").trim();
            sets.push((name.clone(), first.to_owned()));
        }
    }
    sets
}

#[test]
fn an_element_that_goes_and_a_set_that_is_emptied_are_noticed_in_every_set() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    let sets = filled_sets();
    // All but clients, and the addresses of NodePorts, which this environment does not list; but two of allowed sources.
    assert_eq!(sets.len(), 23, "{sets:?}");
    for at in 0..sets.len() {
        for emptied in [false, true] {
            let (set, element) = filled_sets()[at].clone();
            damage(&if emptied {
                format!("flush {} ip kube-proxy {}", &set[..3], &set[4..])
            } else {
                // Neither the data nor a comment is part of the key.
                let key =
                    element.split(" : ").next().expect("a key").split(" comment ").next().expect("a key");
                format!("delete element ip kube-proxy {} {{ {key} }}", &set[4..])
            });
            let noticed = if counts_are_told() { !intact(&mut proxy) } else { noticed_in_time(&mut proxy) };
            assert!(noticed, "{set} {element} {emptied}");
            proxy.start_over();
            assert!(intact(&mut proxy), "after {set} {element} {emptied}");
        }
    }
}

#[test]
fn c2_a_set_that_is_emptied_is_noticed_at_once_where_the_kernel_does_not_count_elements() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.executor = proxy.executor.ignoring_counts();
    proxy.full(some_routes());
    run("nft add table ip other");
    assert!(intact(&mut proxy), "nothing is missing");
    let mut emptied = 0;
    for at in 0..filled_sets().len() {
        let (set, _) = filled_sets()[at].clone();
        // Networks cannot be asked for one by one: that set is read.
        if set.contains("service-cidrs") {
            continue;
        }
        damage(&format!("flush {} ip kube-proxy {}", &set[..3], &set[4..]));
        assert!(!intact(&mut proxy), "{set}");
        proxy.start_over();
        assert!(intact(&mut proxy), "after {set}");
        emptied += 1;
    }
    assert_eq!(emptied, 22);
}

#[test]
fn an_element_that_somebody_adds_is_noticed() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    for element in [
        "vips-GENERATION { 192.0.2.1 . tcp . 80 : 1030:1 }",
        "nodeports-GENERATION { tcp . 30999 : 1030:1 }",
        "drop-vips-GENERATION { 172.30.0.1 . tcp . 80 }",
        "endpoint-ports-GENERATION { 10.0.9.9 . 10.0.9.9 . 80 }",
        "clusterips-GENERATION { 192.0.2.1 }",
        "service-cidrs-GENERATION { 192.0.2.0/24 }",
        "allowed-24-GENERATION { 198.51.100.7 . tcp . 80 . 10.9.9.0 }",
    ] {
        damage(&format!("add element ip kube-proxy {element}"));
        let noticed = if counts_are_told() { !intact(&mut proxy) } else { noticed_in_time(&mut proxy) };
        assert!(noticed, "{element}");
        proxy.start_over();
        assert!(intact(&mut proxy), "after {element}");
    }
}

#[test]
fn an_element_that_is_exchanged_for_another_is_noticed_before_long() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    for (set, element) in filled_sets() {
        let Some((key, data)) = element.split_once(" : ") else { continue };
        if data.contains("goto") || data.contains("jump") || key.contains("comment") {
            continue;
        }
        let set = set[4..].rsplit_once('-').expect("a generation").0.to_owned();
        let generation = generation();
        let (set, other) =
            (format!("{set}-{generation}"), if data.contains(" . ") { "10.9.9.9 . 9" } else { "1030:ffff" });
        damage(&format!(
            "delete element ip kube-proxy {set} {{ {key} }}\nadd element ip kube-proxy {set} {{ {key} : {other} }}"
        ));
        assert!(noticed_in_time(&mut proxy), "{set} {element}");
        proxy.start_over();
        assert!(intact(&mut proxy), "after {set} {element}");
        // A new executor: it has not read anything lately.
        let routes = std::mem::take(&mut proxy.routes);
        proxy = Proxy::new(Family::V4);
        proxy.full(routes.into_iter().map(|(name, route)| (name, Arc::unwrap_or_clone(route))).collect());
    }
}

#[test]
fn what_is_gone_when_it_is_to_go_is_no_damage_any_more() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    let generation = generation();
    run(&format!("nft delete element ip kube-proxy vips-{generation} {{ 172.30.0.1 . tcp . 80 }}"));
    proxy.change(&name("plain"), None);
    proxy.upkeep(Duration::from_secs(2));
    assert!(intact(&mut proxy));
}

/// Whether this kernel says how many elements a set has (Linux 6.17).
fn counts_are_told() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("readable");
    let mut numbers =
        release.split(|letter: char| !letter.is_ascii_digit()).map(|text| text.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    version >= (6, 17)
}
