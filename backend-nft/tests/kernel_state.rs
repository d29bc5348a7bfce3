//! What is in the kernel's table: probing, cleaning up, noticing damage, and starts over what others left.

mod support;

use proxy_core::{backend::Executor as _, model::Family};
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

#[test]
fn damage_is_noticed_and_the_work_of_others_is_not_taken_for_damage() {
    enter_node();
    let mut proxy = Proxy::new(Family::V4);
    assert!(proxy.executor.intact().expect("the kernel answers"));
    proxy.full(some_routes());
    assert!(proxy.executor.intact().expect("the kernel answers"));

    run("nft add table ip other");
    run("nft add chain ip other some");
    assert!(proxy.executor.intact().expect("the kernel answers"));
    proxy.change(&name("a"), Some(route(&[target("10.0.2.1")]).cluster_ip("172.30.0.1")));
    run("nft delete table ip other");
    assert!(proxy.executor.intact().expect("the kernel answers"));

    for damage in [
        "flush ruleset",
        "delete table ip kube-proxy",
        "flush chain ip kube-proxy nat-output",
        "delete chain ip kube-proxy filter-input",
        "flush chain ip kube-proxy to-class-GENERATION",
        "add table ip kube-proxy { flags dormant; }",
        "add chain ip kube-proxy filter-forward { policy drop; }",
    ] {
        let listing = run("nft list ruleset");
        let entrance = listing.split("to-class-").nth(1).expect("it is there");
        let generation = entrance.split_whitespace().next().expect("a number");
        if damage.starts_with("delete chain") {
            run("nft flush chain ip kube-proxy filter-input");
        }
        support::load("nft", &damage.replace("GENERATION", generation)).expect("nft takes it");
        assert!(!proxy.executor.intact().expect("the kernel answers"), "{damage}");
        proxy.start_over();
        assert!(proxy.executor.intact().expect("the kernel answers"), "after {damage}");
    }
}
