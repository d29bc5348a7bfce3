//! What is in the kernel's table: probing, cleaning up, starts over what others left, refusals, growth.

mod support;

use proxy_core::{
    backend::{Change, Effect, Executor as _, Planned, Planner as _},
    model::Family,
};
use support::{
    enter_node,
    routes::{Build, Proxy, name, route, target},
    run,
};

#[test]
fn this_kernel_has_all_that_is_needed() {
    enter_node();
    for family in Family::BOTH {
        assert_eq!(backend_nft::probe(family).expect("the kernel answers"), []);
    }
    assert_eq!(run("nft list ruleset"), "");
}

#[test]
fn cleaning_up_removes_the_table_and_says_whether_there_was_one() {
    enter_node();
    assert!(!backend_nft::cleanup(Family::V4).expect("nothing to do"));
    Proxy::new(Family::V4).full(vec![]);
    assert!(backend_nft::cleanup(Family::V4).expect("it is removed"));
    assert_eq!(run("nft list ruleset"), "");
}

/// Routes that need every kind of chain.
fn some_routes() -> Vec<(proxy_core::model::ServicePortName, proxy_core::route::Route)> {
    vec![
        (
            name("a"),
            route(&[target("10.0.2.1"), target("10.0.3.1")]).cluster_ip("172.30.0.1").node_port(30080),
        ),
        (name("b"), route(&[]).cluster_ip("172.30.0.2")),
    ]
}

/// Names of sets and chains in the table that are not of this generation, base chains aside.
fn leftovers(generation: u32) -> Vec<String> {
    run("nft list table ip kube-proxy")
        .lines()
        .filter_map(|line| line.trim().strip_suffix(" {"))
        .filter_map(|line| line.split_once(' '))
        .filter(|(kind, _)| ["set", "map", "chain"].contains(kind))
        .map(|(_, name)| name.to_owned())
        .filter(|name| {
            !name.starts_with("filter-") && !name.starts_with("nat-") && !name.starts_with("clients.")
        })
        .filter(|name| !name.ends_with(&format!("-{generation}")))
        .collect()
}

#[test]
fn nothing_of_kube_proxy_or_of_an_older_generation_is_left() {
    enter_node();
    let rules = support::kube_proxy_rules("172.30.0.1", "tcp", &["10.0.2.1"]);
    support::load("nft", &rules).expect("nft takes it");
    assert!(!leftovers(1).is_empty());
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    assert_eq!(leftovers(1), Vec::<String>::new());
    for generation in 2..5 {
        let mut proxy = Proxy::new(Family::V4);
        proxy.full(some_routes());
        assert_eq!(leftovers(generation), Vec::<String>::new());
    }
}

#[test]
fn a_start_that_died_half_way_is_cleared_up() {
    use proxy_core::backend::Plan;
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    for steps in 1..6 {
        let found = proxy.executor.survey().expect("the table can be read");
        let now = support::routes::now();
        let mut plan = proxy.planner.plan_full(&proxy.routes, &proxy.environment, found, now);
        plan.steps.truncate(steps);
        proxy.executor.apply(&Plan { steps: plan.steps }).expect("the plan is accepted");
        proxy.planner.settle(Effect::Nothing);
    }
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    let listing = run("nft list table ip kube-proxy");
    let generation = listing.split("to-class-").nth(1).expect("it is there");
    let generation = generation.split_whitespace().next().expect("a number").parse().expect("a number");
    assert_eq!(leftovers(generation), Vec::<String>::new());
}

#[test]
fn what_is_to_go_and_is_gone_already_counts_as_done() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    run("nft delete element ip kube-proxy vips-1 { 172.30.0.1 . tcp . 80 }");
    proxy.change(&name("a"), None);
    proxy.upkeep(std::time::Duration::from_secs(2));
    let listing = run("nft list table ip kube-proxy");
    assert!(!listing.contains("10.0.2.1"), "all the rest took effect");
}

#[test]
fn b5_however_many_elements_are_gone_already_the_rest_of_the_plan_takes_effect() {
    enter_node();
    let endpoints: Vec<_> = (1..=100).map(|number| target(&format!("10.0.2.{number}"))).collect();
    let some = |count: usize| route(&endpoints[..count]).cluster_ip("172.30.0.1");
    let mut proxy = Proxy::new(Family::V4);
    for missing in [3, 4, 6, 64, 65, 99] {
        proxy.full(vec![
            (name("a"), some(100)),
            (name("b"), route(&[target("10.0.3.1")]).cluster_ip("172.30.0.2")),
        ]);
        let listing = run("nft list table ip kube-proxy");
        let generation = listing.split("to-class-").nth(1).expect("it is there").split_whitespace().next();
        let generation = generation.expect("a number");
        let slots: Vec<_> = listing.lines().filter(|line| line.contains(": 10.0.2.")).collect();
        let keys = slots.iter().map(|line| {
            let element = line.trim().trim_start_matches("elements = { ").trim_end_matches([',', ' ', '}']);
            element.split(" : ").next().expect("a key").to_owned()
        });
        let keys: Vec<String> = keys.skip(1).take(missing).collect();
        assert_eq!(keys.len(), missing);
        run(&format!("nft delete element ip kube-proxy endpoints-{generation} {{ {} }}", keys.join(", ")));
        // Two Services in one plan: one whose slots are gone, one that has nothing to do with it.
        let (before, after) = (some(100), some(1));
        let change = |at: &str, before, after| Change {
            name: name(at),
            before: Some(std::sync::Arc::new(before)),
            after: Some(std::sync::Arc::new(after)),
        };
        let other = |addr| route(&[target(addr)]).cluster_ip("172.30.0.2");
        let changes = [change("a", before, after), change("b", other("10.0.3.1"), other("10.0.3.2"))];
        let now = support::routes::now();
        let Planned::Plan(plan) = proxy.planner.plan(&changes, &proxy.environment, now) else {
            panic!("the change fits");
        };
        proxy.executor.apply(&plan).expect("what is gone is done");
        proxy.planner.settle(Effect::Applied);
        let listing = run("nft list table ip kube-proxy");
        let endpoints = listing.matches(": 10.0.2.").count();
        assert_eq!(endpoints, 1, "{missing} missing");
        assert!(
            listing.contains(": 10.0.3.2 . 8080") && !listing.contains(": 10.0.3.1 . 8080"),
            "{missing} missing"
        );
        assert!(proxy.executor.intact().expect("the kernel answers"), "{missing} missing");
    }
}

#[test]
fn b5b_a_refused_service_is_tried_again_without_leaving_rules_twice() {
    use proxy_core::backend::ApplyError;
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    let rules = || run("nft list chain ip kube-proxy lb-3-1");
    let endpoints = [target("10.0.9.1"), target("10.0.9.2"), target("10.0.9.3")];
    let mut seen = Vec::new();
    for at in ["fd99::1", "fd99::2", "172.30.0.9"] {
        let after = Some(std::sync::Arc::new(route(&endpoints).cluster_ip(at)));
        let change = Change { name: name("c"), before: None, after };
        let now = support::routes::now();
        let Planned::Plan(plan) = proxy.planner.plan(&[change], &proxy.environment, now) else {
            panic!("the change fits");
        };
        let outcome = proxy.executor.apply(&plan);
        match at.starts_with("fd") {
            true => {
                assert!(matches!(outcome, Err(ApplyError::Refused { culprit: Some(0), .. })), "{outcome:?}");
                proxy.planner.settle(Effect::Nothing);
            }
            false => {
                outcome.expect("a good one");
                proxy.planner.settle(Effect::Applied);
            }
        }
        assert!(proxy.executor.intact().expect("the kernel answers"), "{at}");
        seen.push(rules());
    }
    assert!(seen[0].contains("dnat"));
    assert!(seen.iter().all(|rules| *rules == seen[0]), "{seen:?}");
}

#[test]
fn what_somebody_else_wrote_in_our_place_means_to_read_the_kernel_again() {
    use proxy_core::backend::ApplyError;
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    run("nft add element ip kube-proxy vips-1 { 172.30.0.3 . tcp . 80 : 1:1 }");
    let after = std::sync::Arc::new(route(&[target("10.0.2.1")]).cluster_ip("172.30.0.3"));
    let change = Change { name: name("c"), before: None, after: Some(after) };
    let now = support::routes::now();
    let Planned::Plan(plan) = proxy.planner.plan(&[change], &proxy.environment, now) else {
        panic!("the change fits");
    };
    let refused = proxy.executor.apply(&plan).expect_err("the element is there with other data");
    assert!(matches!(refused, ApplyError::Lost(_)), "{refused:?}");
    assert!(refused.to_string().contains("172.30.0.3 . tcp . 80"), "{refused}");
}

#[test]
fn a_service_that_the_kernel_refuses_is_named() {
    use proxy_core::backend::ApplyError;
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(some_routes());
    let good = |at: &str| std::sync::Arc::new(route(&[target("10.0.9.1")]).cluster_ip(at));
    // An address of the other family: its key has the wrong length.
    let changes = [
        Change { name: name("c"), before: None, after: Some(good("172.30.0.3")) },
        Change { name: name("d"), before: None, after: Some(good("fd99::1")) },
        Change { name: name("e"), before: None, after: Some(good("172.30.0.5")) },
    ];
    let now = support::routes::now();
    let Planned::Plan(plan) = proxy.planner.plan(&changes, &proxy.environment, now) else {
        panic!("the change fits");
    };
    match proxy.executor.apply(&plan) {
        Err(ApplyError::Refused { culprit, reason }) => {
            assert_eq!(culprit, Some(1), "{reason}");
            assert!(reason.contains("fd99::1"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!run("nft list table ip kube-proxy").contains("172.30.0.3"), "nothing took effect");
}

#[test]
fn maps_grow_before_they_are_full() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    proxy.full(vec![]);
    let targets = |count: u32| -> Vec<_> {
        (0..count)
            .map(|number| target(&format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255)))
            .collect()
    };
    for count in [1, 500, 700, 3000, 20_000, 100_000, 1] {
        proxy.change(&name("big"), Some(route(&targets(count)).cluster_ip("172.30.0.1")));
        assert!(proxy.executor.intact().expect("the kernel answers"));
    }
    let listing = run("nft list table ip kube-proxy");
    assert_eq!(listing.matches(". 8080").count(), 2, "one slot and one source");
}
