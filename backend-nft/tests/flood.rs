//! Under a flood of new flows no packet may lose its translation, whatever is changed meanwhile.

mod support;

use std::{collections::BTreeMap, net::Ipv4Addr};

use proxy_core::{
    backend::Executor as _,
    model::{Family, Protocol, ServicePortName, TrafficPolicy},
    route::{Route, Target},
};
use support::{
    enter_node,
    flood::{counted, flood},
    load, pod,
    routes::{Build, Proxy, ip, named, route},
    run,
};

/// Counts packets to Services that came out of prerouting untranslated, before our own rules throw them away, and
/// those that were translated.
const WATCH: &str = r#"table ip watch {
    chain forward {
        type filter hook forward priority -5
        ip daddr 172.30.0.0/16 counter comment "untranslated"
        ip daddr 10.0.2.0/24 counter comment "translated"
    }
}"#;

const VIP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);

fn udp(targets: u32, from: u32) -> Route {
    let targets: Vec<Target> = (from..from + targets)
        .map(|number| Target {
            addr: ip(&format!("10.0.2.{}", number % 250 + 1)),
            port: 8080 + (number / 250) as u16,
            local: false,
        })
        .collect();
    let mut route = route(&targets).cluster_ip("172.30.0.1").load_balancer("198.51.100.1");
    route.protocol = Protocol::Udp;
    route
}

fn service() -> ServicePortName {
    named("web", Protocol::Udp)
}

/// Floods while `change` is called with 0, 1, 2 and so on, at least so often: each time a share of the flows is on its way.
fn under_flood(proxy: &mut Proxy, flows: u32, least: u32, mut change: impl FnMut(&mut Proxy, u32)) {
    load("nft", WATCH).expect("nft takes it");
    let flood = flood("pod1", vec![(VIP, 80)], flows);
    flood.allow(0);
    let mut changes = 0_u32;
    while !flood.is_over() {
        flood.allow(flows.min((changes + 1).saturating_mul(flows.div_ceil(least))));
        change(proxy, changes);
        changes += 1;
    }
    let sent = flood.end();
    assert!(sent > flows / 2, "only {sent} datagrams were sent");
    assert_eq!(counted("untranslated"), 0, "of {sent}, in {changes} changes");
    // conntrack's table may be too small for some.
    assert!(counted("translated") > u64::from(sent / 4), "of {sent}");
    println!("{sent} flows, {changes} changes");
}

fn start() -> Proxy {
    enter_node();
    pod(1);
    pod(2);
    // The endpoints need not be there, but must not be asked for.
    run("ip route add 10.100.0.0/16 dev vpod1");
    run("ip neigh add 10.0.2.1 lladdr 02:00:00:00:00:01 dev vpod2");
    Proxy::new(Family::V4)
}

#[test]
fn endpoints_come_and_go() {
    let mut proxy = start();
    proxy.full(vec![(service(), udp(3, 0))]);
    under_flood(&mut proxy, 150_000, 100, |proxy, at| {
        proxy.change(&service(), Some(udp([3, 2, 1, 4][at as usize % 4], at % 5)));
    });
}

#[test]
fn sizes_are_seen_for_the_first_time() {
    let mut proxy = start();
    proxy.full(vec![(service(), udp(1, 0))]);
    under_flood(&mut proxy, 150_000, 20, |proxy, at| {
        proxy.change(&service(), Some(udp(1 + at * 7 % 400, 0)));
    });
}

#[test]
fn everything_is_written_anew() {
    let mut proxy = start();
    proxy.full(vec![(service(), udp(5, 0))]);
    under_flood(&mut proxy, 150_000, 10, |proxy, _| proxy.start_over());
}

#[test]
fn policies_and_affinity_change() {
    let mut proxy = start();
    proxy.full(vec![(service(), udp(5, 0))]);
    under_flood(&mut proxy, 150_000, 100, |proxy, at| {
        let mut route = udp(5, 0);
        if at % 2 == 1 {
            route.policy_mut().affinity = Some(60);
        }
        if at % 3 == 1 {
            route.external_policy = TrafficPolicy::Local;
        }
        proxy.change(&service(), Some(route));
        if at % 16 == 0 {
            proxy.upkeep(std::time::Duration::from_secs(100));
        }
    });
}

#[test]
fn sticky_endpoints_come_and_go() {
    let mut proxy = start();
    let sticky = |targets, from| {
        let mut route = udp(targets, from);
        route.policy_mut().affinity = Some(60);
        route
    };
    proxy.full(vec![(service(), sticky(3, 0))]);
    under_flood(&mut proxy, 150_000, 100, |proxy, at| {
        proxy.change(&service(), Some(sticky([3, 2, 1, 4][at as usize % 4], at % 5)));
    });
}

#[test]
fn kube_proxys_rules_are_taken_over() {
    let mut proxy = start();
    let kube_proxy = support::kube_proxy_rules("172.30.0.1", "udp", &["10.0.2.1", "10.0.2.2"]);
    load("nft", &kube_proxy).expect("nft takes it");
    proxy.routes = vec![(service(), std::sync::Arc::new(udp(5, 0)))];
    under_flood(&mut proxy, 150_000, 20, |proxy, _| {
        proxy.start_over();
        // What kube-proxy does at a roll-back: its base chains anew, in one transaction.
        load("nft", &kube_proxy).expect("nft takes it");
    });
}

/// Who may not use an address does not pass in the moment in which it comes, goes, or is written anew (B4).
#[test]
fn b4_no_forbidden_source_passes_while_a_load_balancer_comes_and_goes() {
    let mut proxy = start();
    let web = |range: &str| {
        let mut route = route(&[support::routes::target("10.0.2.1")])
            .cluster_ip("172.30.0.1")
            .restricted("198.51.100.77", &["203.0.113.0/24", range]);
        route.protocol = Protocol::Udp;
        route
    };
    proxy.full(vec![(service(), web("192.0.2.0/24"))]);
    let watch = r#"table ip watch {
        chain forward { type filter hook forward priority -5; ct status dnat counter comment "passed"; }
    }"#;
    load("nft", watch).expect("nft takes it");
    let at = vec![(Ipv4Addr::new(198, 51, 100, 77), 80)];
    let attack = flood("pod1", at.clone(), 200_000);
    let mut changes = 0;
    while !attack.is_over() {
        proxy.change(&service(), None);
        proxy.change(&service(), Some(web(["192.0.2.0/24", "198.18.0.0/15"][changes % 2])));
        if changes % 8 == 0 {
            proxy.start_over();
        }
        changes += 1;
    }
    let sent = attack.end();
    assert!(sent > 100_000 && changes > 50, "{sent} sent, {changes} changes");
    assert_eq!(counted("passed"), 0, "of {sent}, in {changes} changes");
    // The same datagrams pass where they may.
    proxy.change(&service(), Some(web("10.100.0.0/16")));
    // Of a source that conntrack has not seen: flows that began while the address was nobody's stay as they began.
    support::flood::flood_from("pod1", Ipv4Addr::new(10, 100, 200, 1), at[0], 100).wait();
    assert!(counted("passed") > 0);
    println!("{sent} flows, {changes} changes");
}

/// Where the flows of one client of a Service went: how many endpoints.
fn endpoints_of(client: u32, vip: Ipv4Addr) -> usize {
    run("nft flush set ip watch seen");
    let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 100, 0, 1)) + client);
    support::flood::flood_from("pod1", source, (vip, 80), 30).wait();
    run("nft list set ip watch seen").matches(&format!("{source} . 10.0.")).count()
}

#[test]
fn b2_a_flood_at_one_sticky_service_leaves_the_others_and_even_its_own_clients_where_they_are() {
    let mut proxy = start();
    proxy.planner = backend_nft::Planner::new(Family::V4).remember_clients(2_000);
    let sticky = |number: u8, endpoints: u8| {
        let targets: Vec<Target> = (1..=endpoints)
            .map(|at| support::routes::target(&format!("10.0.2.{}", u16::from(number) * 100 + u16::from(at))))
            .collect();
        let mut route = route(&targets).cluster_ip(&format!("172.30.0.{}", number + 1));
        route.protocol = Protocol::Udp;
        route.under(|policy| policy.affinity = Some(10_800))
    };
    let other = || named("other", Protocol::Udp);
    proxy.full(vec![(service(), sticky(0, 10)), (other(), sticky(1, 10))]);
    load(
        "nft",
        r#"table ip watch {
            set seen { type ipv4_addr . ipv4_addr; size 65535; flags dynamic; }
            chain forward { type filter hook forward priority -5; ct status dnat update @seen { ip saddr . ip daddr } drop; }
        }"#,
    )
    .expect("nft takes it");
    let (attacked, spared) = (VIP, Ipv4Addr::new(172, 30, 0, 2));
    for client in [60_000, 60_001] {
        assert_eq!(endpoints_of(client, attacked), 1);
        assert_eq!(endpoints_of(client, spared), 1);
    }
    let sent = support::flood::flood_of("pod1", vec![(attacked, 80)], 20_000, 1).wait();
    assert!(sent > 10_000, "{sent}");
    let lost = |proxy: &mut Proxy| {
        for _ in 0..12 {
            assert!(proxy.executor.intact().expect("the kernel answers"));
        }
        proxy.executor.figures().affinity_lost
    };
    let lost_by_flood = lost(&mut proxy);
    assert!(lost_by_flood > 5_000, "the attacked Service's map is full: {lost_by_flood}");
    // Clients that are known and clients that are new.
    for client in [60_000, 60_001, 60_002, 60_003] {
        assert_eq!(endpoints_of(client, attacked), 1);
        assert_eq!(endpoints_of(client, spared), 1);
    }
    assert!(lost(&mut proxy) > lost_by_flood, "the attacked Service's new clients are not remembered");
    // The other's are, so they stay where they are when endpoints come.
    let where_is = |client: u32| {
        endpoints_of(client, spared);
        run("nft list set ip watch seen")
    };
    let before: Vec<String> = (60_000..60_004).map(where_is).collect();
    proxy.change(&other(), Some(sticky(1, 40)));
    assert_eq!((60_000..60_004).map(where_is).collect::<Vec<_>>(), before);
}

/// Chi-square of the numbers of packets by endpoint, in units of its standard deviation from its mean.
fn deviation(counts: &BTreeMap<u64, u64>, endpoints: u32, total: u64) -> f64 {
    let expected = total as f64 / f64::from(endpoints);
    let seen: f64 = counts.values().map(|count| (*count as f64 - expected).powi(2) / expected).sum();
    let unseen = (f64::from(endpoints) - counts.len() as f64) * expected;
    let freedom = f64::from(endpoints - 1);
    (seen + unseen - freedom) / (2.0 * freedom).sqrt()
}

/// Spreads flows over one Service's endpoints, which differ by their port, and reads off conntrack where they went.
fn spread(endpoints: u32, flows: u32) -> f64 {
    let mut proxy = start();
    let targets: Vec<Target> = (0..endpoints)
        .map(|number| Target {
            addr: ip(&format!("10.0.2.{}", number / 1000 + 1)),
            port: (10_000 + number % 1000) as u16,
            local: false,
        })
        .collect();
    let mut route = route(&targets).cluster_ip("172.30.0.1");
    route.protocol = Protocol::Udp;
    proxy.full(vec![(service(), route)]);
    // A set counts them. Its elements are there beforehand: packets that come while its hash table grows make none.
    load(
        "nft",
        r#"table ip watch {
            set seen { type ipv4_addr . inet_service; size 1048576; flags dynamic; counter; }
            chain forward { type filter hook forward priority -5; ip daddr 10.0.2.0/24 add @seen { ip daddr . udp dport } drop; }
        }"#,
    )
    .expect("nft takes it");
    for targets in targets.chunks(10_000) {
        let elements: Vec<_> =
            targets.iter().map(|target| format!("{} . {}", target.addr, target.port)).collect();
        let text = format!("add element ip watch seen {{ {} }}", elements.join(", "));
        load("nft", &text).expect("nft takes it");
    }
    let flood = flood("pod1", vec![(VIP, 80)], flows);
    while !flood.is_over() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let sent = flood.end();
    let listing = run("nft list set ip watch seen");
    let (mut counts, mut total) = (BTreeMap::new(), 0);
    for part in listing.split("10.0.2.").skip(1) {
        let words: Vec<&str> =
            part.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty()).collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let (endpoint, packets) = (number(0) * 100_000 + number(1), number(2));
        counts.insert(endpoint, packets);
        total += packets;
    }
    assert!(total > u64::from(sent) / 2, "{total} of {sent}");
    let deviation = deviation(&counts, endpoints, total);
    println!(
        "{endpoints} endpoints, {total} flows, {} seen: {deviation:.2} standard deviations",
        counts.values().filter(|count| **count > 0).count()
    );
    deviation
}

macro_rules! uniform {
    ($($name:ident: $endpoints:expr, $flows:expr;)*) => { $(
        #[test]
        fn $name() {
            // One in 30,000 tests would fail by chance.
            assert!(spread($endpoints, $flows).abs() < 4.5);
        }
    )* };
}

uniform! {
    sixty_five_endpoints_are_chosen_alike: 65, 100_000;
    seventy_one_endpoints_are_chosen_alike: 71, 100_000;
    a_hundred_endpoints_are_chosen_alike: 100, 100_000;
    a_thousand_endpoints_are_chosen_alike: 1000, 200_000;
    a_hundred_thousand_endpoints_are_chosen_alike: 100_000, 400_000;
    a_quarter_of_a_million_endpoints_are_chosen_alike: 250_000, 500_000;
}
