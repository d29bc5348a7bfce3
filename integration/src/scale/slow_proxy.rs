//! A proxy whose delay is known, for the tests of what measures others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::site::Site;
use super::workload::Workload;
use crate::apiserver::ApiServer;

/// Between these the rules of one change came into force.
#[derive(Debug, Clone, Copy)]
pub(super) struct Installed {
    pub(super) begun: Instant,
    pub(super) ended: Instant,
}

/// Leads every canary to its ready endpoint, `delay` after each change, until `stop`. `afterwards` follows each time.
pub(super) fn follow(
    site: &Site,
    api: &ApiServer,
    workload: &Workload,
    delay: Duration,
    stop: &AtomicBool,
    afterwards: impl Fn(),
) -> Vec<Installed> {
    let (mut known, mut all) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        if api.version() == known {
            thread::sleep(Duration::from_micros(200));
            continue;
        }
        known = api.version();
        thread::sleep(delay);
        let mut rules = "table ip slow\ndelete table ip slow\ntable ip slow {\nchain nat {\n\
                         type nat hook prerouting priority -100\n"
            .to_owned();
        for (canary, service) in workload.canaries.iter().enumerate() {
            let slice = api.object("EndpointSlice", "scale", &format!("canary-{canary:02}-0"));
            let Some(slice) = slice else { continue };
            let endpoints = slice["endpoints"].as_array().expect("a list");
            let ready = endpoints.iter().find(|endpoint| endpoint["conditions"]["ready"] == true);
            let ready = ready.expect("one is ready")["addresses"][0].as_str().expect("an address");
            rules += &format!("ip daddr {} tcp dport 80 dnat to {ready}:8080\n", service.ip());
        }
        let begun = Instant::now();
        site.node.nft(&(rules + "}\n}\n")).expect("the rules are valid");
        all.push(Installed { begun, ended: Instant::now() });
        afterwards();
    }
    all
}
