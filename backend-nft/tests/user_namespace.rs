//! In a user namespace (rootless, unprivileged containers) the send buffer is bounded by `net.core.wmem_max` (B6).

mod support;

use proxy_core::{backend::Executor as _, model::Family, route::Target};
use support::{
    routes::{Build, Proxy, name, route, target},
    run,
};

const INSIDE: &str = "SWITCHYARD_TEST_INSIDE";

fn targets(count: u32) -> Vec<Target> {
    (0..count).map(|at| target(&format!("10.{}.{}.{}", at >> 16, at >> 8 & 255, at & 255))).collect()
}

fn elements(set: &str) -> usize {
    run(&format!("nft list map ip kube-proxy {set}")).matches(" : 10.").count()
}

#[test]
fn b6_a_load_and_a_list_of_any_length_get_through_the_buffer_there_is() {
    if std::env::var_os(INSIDE).is_none() {
        // Threads cannot enter a user namespace: the test runs again as a process of its own.
        let own = std::env::current_exe().expect("a test is a program");
        let test = "b6_a_load_and_a_list_of_any_length_get_through_the_buffer_there_is";
        let inside = std::process::Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(own)
            .args(["--exact", test, "--nocapture"])
            .env(INSIDE, "1")
            .output()
            .expect("util-linux is installed");
        let said = String::from_utf8_lossy(&inside.stdout);
        let cried = String::from_utf8_lossy(&inside.stderr);
        assert!(inside.status.success() && said.contains("1 passed"), "{said}{cried}");
        return;
    }
    let mut proxy = Proxy::new(Family::V4);
    let service = |number: u32| {
        let own = [target(&format!("10.200.{}.{}", number >> 8, number & 255))];
        route(&own).cluster_ip(&format!("172.30.{}.{}", number >> 8, number & 255))
    };
    let routes: Vec<_> = (0..10_000).map(|number| (name(&format!("s{number}")), service(number))).collect();
    proxy.full(routes);
    assert_eq!(elements("endpoints-1"), 10_000);
    // One list that is longer than any buffer, as a change and in a load.
    let big = |count| Some(route(&targets(count)).cluster_ip("172.30.200.1"));
    let longest = 150_000;
    proxy.full(vec![(name("s1"), service(1)), (name("big"), big(longest).expect("a route"))]);
    assert_eq!(elements("endpoints-2"), longest as usize + 1);
    proxy.change(&name("big"), big(1));
    proxy.change(&name("big"), big(longest / 2));
    let generation = run("nft list chain ip kube-proxy nat-prerouting");
    let generation = generation.split("to-class-").nth(1).and_then(|rest| rest.split_whitespace().next());
    let set = format!("endpoints-{}", generation.expect("a number"));
    assert_eq!(elements(&set), longest as usize / 2 + 1);
    assert!(proxy.executor.intact().expect("the kernel answers"));
}
