//! Measures the backend in a network namespace of its own: `cargo run --release -p backend-nft --example speed`.
//!
//! Full loads from routes to the kernel, one change of an endpoint, source ranges, and the design question whether
//! endpoints are stored once per Service port or once per address.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod bench;

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use bench::{Proxy, Routes, kernel_memory, memory, routes, spread, target};
use netlink::Socket;
use nft_netlink::{Table, list};
use nix::sched::{CloneFlags, unshare};
use proxy_core::{
    backend::Executor as _,
    model::{Family, ServicePortName},
    route::{AllowedSources, Frontend, FrontendKind, Route},
};

fn main() {
    let runs: usize = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(5);
    unshare(CloneFlags::CLONE_NEWNET).expect("measurements run as root");
    println!("load average: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    match std::env::args().nth(2).as_deref() {
        Some("ranges") => return ranges(runs),
        Some("memory") => return resident(),
        _ => {}
    }
    let shapes = [(10_000, 10), (45_000, 1), (65_000, 1), (5_000, 50)];
    let mut loads = vec![Vec::new(); shapes.len()];
    let mut planning = vec![Vec::new(); shapes.len()];
    for _ in 0..runs {
        for (at, (services, endpoints)) in shapes.into_iter().enumerate() {
            let routes = routes(services, endpoints, 1);
            let mut proxy = Proxy::new();
            let (plan, total) = proxy.full(&routes);
            planning[at].push(plan);
            loads[at].push(total);
            backend_nft::cleanup(Family::V4).expect("the table is there");
        }
    }
    for (at, (services, endpoints)) in shapes.into_iter().enumerate() {
        println!(
            "full load {services} x {endpoints}: {} (planning alone {})",
            spread(&mut loads[at]),
            spread(&mut planning[at])
        );
    }
    takeover(runs);
    repair(runs);
    changes();
    ranges(runs);
    for addresses in [1, 3] {
        once_per_port(addresses, runs);
    }
}

fn takeover(runs: usize) {
    let routes = routes(10_000, 10, 1);
    let mut times = Vec::new();
    for _ in 0..runs {
        Proxy::new().full(&routes);
        times.push(Proxy::new().full(&routes).1);
        backend_nft::cleanup(Family::V4).expect("the table is there");
    }
    println!("start over an older generation, 10000 x 10: {}", spread(&mut times));
}

/// Somebody deletes everything; how long until it is all back, from the moment it is noticed.
fn repair(runs: usize) {
    let routes = routes(10_000, 10, 1);
    let mut proxy = Proxy::new();
    proxy.full(&routes);
    let mut times = Vec::new();
    for _ in 0..runs {
        backend_nft::cleanup(Family::V4).expect("the table is there");
        let start = Instant::now();
        assert!(!proxy.executor.intact().expect("the kernel answers"));
        proxy.full(&routes);
        times.push(start.elapsed());
    }
    backend_nft::cleanup(Family::V4).expect("the table is there");
    println!("repair after everything was deleted, 10000 x 10: {}", spread(&mut times));
}

fn changes() {
    for services in [100, 10_000, 45_000] {
        let routes = routes(services, 10.min(450_000 / services), 1);
        let mut proxy = Proxy::new();
        proxy.full(&routes);
        let mut times = Vec::new();
        for round in 0..500 {
            let (name, before) = &routes[round * 7919 % services];
            let mut after = Route::clone(before);
            let mut targets = after.cluster.to_vec();
            targets.pop();
            targets.push(target(u32::try_from(round).unwrap_or(0) + 900_000));
            after.cluster = targets.into();
            let after = Arc::new(after);
            times.push(proxy.change(name, before, &after));
            times.push(proxy.change(name, &after, before));
        }
        println!("one endpoint changed at {services} services: {}", spread(&mut times));
        checks(&mut proxy, services);
        if services == 100 {
            println!("beside 10,000 chains of others:");
            crowd(true);
            checks(&mut proxy, services);
            crowd(false);
        }
        backend_nft::cleanup(Family::V4).expect("the table is there");
    }
}

/// The check for drift, when nobody else committed and when somebody did.
fn checks(proxy: &mut Proxy, services: usize) {
    let (mut idle, mut disturbed) = (Vec::new(), Vec::new());
    let check = |proxy: &mut Proxy| {
        let start = Instant::now();
        assert!(proxy.executor.intact().expect("the kernel answers"));
        start.elapsed()
    };
    for _ in 0..100 {
        somebody_commits();
        disturbed.push(check(proxy));
        idle.push(check(proxy));
    }
    println!("reading all sets at {services} services: {:.0} ms", read_all().as_secs_f64() * 1000.0);
    println!(
        "check for drift at {services} services: nobody committed {}, somebody did {}",
        spread(&mut idle),
        spread(&mut disturbed)
    );
}

/// Somebody who has very many chains of their own.
fn crowd(there: bool) {
    let mut socket = Socket::open(netlink::Protocol::Netfilter).expect("a socket can be opened");
    let mut batch = nft_netlink::Batch::new();
    let table = Table::new(nft_netlink::Family::Ip, "crowd");
    if there {
        batch.add_table(table, None);
        for number in 0..10_000 {
            batch.add_chain(table, &nft_netlink::Chain::regular(&format!("chain-{number}")));
        }
    } else {
        batch.delete_table(table);
    }
    batch.commit(&mut socket).expect("the kernel accepts it");
}

fn somebody_commits() {
    let mut socket = Socket::open(netlink::Protocol::Netfilter).expect("a socket can be opened");
    let mut batch = nft_netlink::Batch::new();
    let table = Table::new(nft_netlink::Family::Ip, "other");
    batch.add_table(table, None);
    batch.delete_table(table);
    batch.commit(&mut socket).expect("the kernel accepts it");
}

/// What the rarer comparison of all elements costs, on a thread of its own.
fn read_all() -> Duration {
    let start = Instant::now();
    let table = Table::new(nft_netlink::Family::Ip, "kube-proxy");
    let mut socket = Socket::open(netlink::Protocol::Netfilter).expect("a socket can be opened");
    for set in list::sets(&mut socket, table).expect("the kernel answers") {
        let dump =
            list::elements(&mut socket, table, &set.name, |element| drop(std::hint::black_box(element)));
        assert_eq!(dump.expect("the kernel answers"), netlink::Dump::Complete);
    }
    start.elapsed()
}

/// What planner and executor take at 10,000 x 10, beside the routes.
fn resident() {
    let routes = routes(10_000, 10, 1);
    println!("with the routes alone: {}", memory());
    let mut proxy = Proxy::new();
    proxy.full(&routes);
    println!("after the first load: {}", memory());
    for _ in 0..5 {
        for (name, before) in &routes {
            let mut after = Route::clone(before);
            after.cluster = after.cluster[1..].into();
            let after = Arc::new(after);
            proxy.change(name, before, &after);
            proxy.change(name, &after, before);
        }
    }
    println!("after 100,000 changes: {}", memory());
    proxy.full(&routes);
    println!("after a start over: {}", memory());
}

fn ranges(runs: usize) {
    let mut routes = routes(200, 2, 1);
    let sources = |seed: u32| {
        let ranges = (0..100_u32)
            .map(|at| {
                let net = Ipv4Addr::from(0x5000_0000 + ((seed * 100 + at) << 8));
                ipnet::IpNet::new_assert(net.into(), 24)
            })
            .collect();
        Some(Arc::new(AllowedSources { ranges, own_vips: Box::new([]) }))
    };
    for (at, (_, route)) in (0_u32..).zip(&mut routes) {
        let route = Arc::make_mut(route);
        let mut frontends = route.frontends.to_vec();
        frontends.push(Frontend {
            kind: FrontendKind::LoadBalancerIp,
            at: Some(Ipv4Addr::from(0xc633_0000 + at).into()),
            port: 80,
        });
        route.frontends = frontends.into();
        route.policy_mut().sources = sources(at);
    }
    let mut proxy = Proxy::new();
    proxy.full(&routes);
    let mut times = Vec::new();
    for changed in [1, 10, 100] {
        for (round, (name, before)) in routes.iter().take(runs * 4).enumerate() {
            let mut after = Route::clone(before);
            let mut own = sources(round as u32).expect("there are some").ranges.to_vec();
            own.truncate(100 - changed);
            let new = sources(1000 + round as u32).expect("there are some");
            own.extend(&new.ranges[..changed]);
            after.policy_mut().sources =
                Some(Arc::new(AllowedSources { ranges: own.into(), own_vips: Box::new([]) }));
            let after = Arc::new(after);
            times.push(proxy.change(name, before, &after));
            times.push(proxy.change(name, &after, before));
        }
        println!("{changed} of 20000 source ranges changed: {}", spread(&mut times));
        times.clear();
    }
    backend_nft::cleanup(Family::V4).expect("the table is there");
}

/// A Service port with several addresses, stored as it is, and as it would be with endpoints once per address.
fn once_per_port(addresses: u32, runs: usize) {
    let together = routes(5_000, 10, addresses);
    let apart: Routes = together
        .iter()
        .flat_map(|(name, route)| {
            route.frontends.iter().enumerate().map(move |(at, frontend)| {
                let mut own = Route::clone(route);
                own.frontends = Box::new([*frontend]);
                let port = format!("{}-{at}", name.port).into();
                (ServicePortName { port, ..name.clone() }, Arc::new(own))
            })
        })
        .collect();
    for (what, routes) in [("once per Service port", &together), ("once per address", &apart)] {
        let (mut loads, mut changes, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs {
            let before = kernel_memory();
            let mut proxy = Proxy::new();
            loads.push(proxy.full(routes).1);
            memory.push(kernel_memory().saturating_sub(before));
            for round in 0..100 {
                // The same Service's addresses all change.
                let each = if what == "once per address" { addresses as usize } else { 1 };
                let first = round * 31 % 5_000 * each;
                let mut took = Duration::ZERO;
                for (name, old) in &routes[first..first + each] {
                    let mut new = Route::clone(old);
                    let mut targets = new.cluster.to_vec();
                    targets.pop();
                    new.cluster = targets.into();
                    let new = Arc::new(new);
                    took += proxy.change(name, old, &new);
                    proxy.change(name, &new, old);
                }
                changes.push(took);
            }
            backend_nft::cleanup(Family::V4).expect("the table is there");
        }
        memory.sort_unstable();
        println!(
            "5000 services x 10 endpoints x {addresses} addresses, {what}: load {}, one change {}, kernel memory {} MB",
            spread(&mut loads),
            spread(&mut changes),
            memory[memory.len() / 2] / 1024
        );
    }
}
