//! Measures Services with very many endpoints: `cargo run --release -p backend-nft --example big [endpoints]...`.
//!
//! Load, one endpoint exchanged, added and removed, a rolling update of all endpoints in a hundred steps, and deletion,
//! beside 1,000 other Services.
#![allow(clippy::disallowed_methods, reason = "a measurement reads the clock")]

mod bench;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bench::{Proxy, memory, routes, spread, target};
use nix::sched::{CloneFlags, unshare};
use proxy_core::{
    backend::{Effect, Executor as _, Planner as _},
    model::{Family, ServicePortName},
    route::{Route, Target},
};

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("measurements run as root");
    let sizes: Vec<u32> = std::env::args().skip(1).filter_map(|text| text.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![100, 5_000, 100_000, 250_000] } else { sizes };
    for affinity in [None, Some(10_800)] {
        for size in &sizes {
            measure(*size, affinity);
        }
    }
}

/// One Service port that changes.
struct Big {
    proxy: Proxy,
    name: ServicePortName,
    now: Arc<Route>,
}

impl Big {
    fn set(&mut self, targets: Vec<Target>) -> Duration {
        let mut after = Route::clone(&self.now);
        after.cluster = targets.into();
        let after = Arc::new(after);
        let took = self.proxy.change_or_start_over(&self.name, &self.now, &after);
        self.now = after;
        took
    }

    fn targets(&self) -> Vec<Target> {
        self.now.cluster.to_vec()
    }
}

fn measure(size: u32, affinity: Option<u32>) {
    println!("load average: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    let mut routes = routes(1_000, 10, 1);
    let (name, route) = routes.pop().expect("there are some");
    let mut route = Route::clone(&route);
    route.cluster = (0..size).map(|number| target(1_000_000 + number)).collect();
    route.policy_mut().affinity = affinity;
    let now = Arc::new(route);
    routes.push((name.clone(), Arc::clone(&now)));
    let mut proxy = Proxy::new();
    let (_, load) = proxy.full(&routes);
    proxy.routes = routes;
    let mut big = Big { proxy, name, now };
    let kind = if affinity.is_some() { "sticky" } else { "plain" };
    println!("{kind} Service of {size}: load {:.1} ms, {}", load.as_secs_f64() * 1000.0, memory());

    let mut next = 5_000_000;
    let mut new = || {
        next += 1;
        target(next)
    };
    let (mut exchanged, mut added, mut removed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..21 {
        let mut targets = big.targets();
        targets.remove(round * 7919 % targets.len());
        targets.push(new());
        exchanged.push(big.set(targets.clone()));
        targets.push(new());
        added.push(big.set(targets.clone()));
        targets.remove(round * 104_729 % targets.len());
        removed.push(big.set(targets));
        big.proxy.upkeep();
    }
    println!("  one exchanged {}", spread(&mut exchanged));
    println!("  one added     {}", spread(&mut added));
    println!("  one removed   {}", spread(&mut removed));

    let mut steps = Vec::new();
    let step = (size / 100).max(1) as usize;
    for _ in 0..100 {
        let mut targets = big.targets();
        targets.drain(..step.min(targets.len() - 1));
        targets.extend((0..step).map(|_| new()));
        steps.push(big.set(targets));
        big.proxy.upkeep();
    }
    let total: Duration = steps.iter().sum();
    println!("  rolling update {:.1} ms in all, a step {}", total.as_secs_f64() * 1000.0, spread(&mut steps));
    let start = Instant::now();
    let found = big.proxy.executor.survey().expect("the kernel answers");
    let plan = big.proxy.planner.plan_full(&[], &big.proxy.environment, found, start);
    big.proxy.executor.apply(&plan).expect("the kernel accepts it");
    big.proxy.planner.settle(Effect::Applied);
    println!("  everything deleted {:.1} ms", start.elapsed().as_secs_f64() * 1000.0);
    backend_nft::cleanup(Family::V4).expect("the table is there");
}
