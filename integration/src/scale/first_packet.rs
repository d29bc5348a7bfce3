//! How long the first packet of a new connection takes, by the Service's place, and what it takes without any contender.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::connecting::open;
use super::contender::Mode;
use super::seed::Seed;
use super::site::{DIRECT, FLOOR, Site};
use super::workload::Workload;

const PATIENCE: Duration = Duration::from_millis(500);
/// How long connections are counted for one figure of how many there are a second.
const STRETCH: Duration = Duration::from_millis(10);

/// Seconds from the call until the connection stood.
#[derive(Debug, Default)]
pub(crate) struct FirstPackets {
    pub(crate) first: Vec<f64>,
    pub(crate) middle: Vec<f64>,
    pub(crate) last: Vec<f64>,
    /// To Services at random, as fast as one client can.
    pub(crate) random: Vec<f64>,
    pub(crate) per_second: Vec<f64>,
    pub(crate) failed: usize,
}

/// The same without any contender: rules of one would slow these connections too.
#[derive(Debug, Default)]
pub(crate) struct Floors {
    /// One plain translation rule.
    pub(crate) one_rule: Vec<f64>,
    /// No translation.
    pub(crate) direct: Vec<f64>,
    /// New connections a second through the one rule, and without any.
    pub(crate) one_rule_per_second: Vec<f64>,
    pub(crate) direct_per_second: Vec<f64>,
}

pub(crate) fn measure_floors(site: &Site, count: usize, time: Duration) -> Result<Floors> {
    site.add_floor()?;
    let floors = site.client.run(|| {
        let ([one_rule, direct], _) = by_turns([FLOOR, DIRECT], count);
        Floors {
            one_rule,
            direct,
            one_rule_per_second: as_fast_as_possible(|| FLOOR, time, PATIENCE).per_second,
            direct_per_second: as_fast_as_possible(|| DIRECT, time, PATIENCE).per_second,
        }
    })?;
    site.remove_floor()?;
    Ok(floors)
}

pub(crate) fn measure(
    site: &Site,
    workload: &Workload,
    mode: Mode,
    seed: &mut Seed,
    count: usize,
    time: Duration,
) -> Result<FirstPackets> {
    let order = kernel_order(site, workload, mode)?;
    let places = [order[0], order[order.len() / 2], order[order.len() - 1]];
    Ok(site.client.run(|| {
        let ([first, middle, last], failed) = by_turns(places, count);
        let fast = as_fast_as_possible(|| order[seed.below(order.len())], time, PATIENCE);
        FirstPackets {
            first,
            middle,
            last,
            random: fast.times,
            per_second: fast.per_second,
            failed: failed + fast.failed,
        }
    })?)
}

#[derive(Debug, Default)]
struct Fast {
    times: Vec<f64>,
    /// In each stretch of the time.
    per_second: Vec<f64>,
    failed: usize,
}

/// One connection after the other to wherever `next` says.
fn as_fast_as_possible(mut next: impl FnMut() -> SocketAddr, time: Duration, patience: Duration) -> Fast {
    let mut fast = Fast::default();
    let begun = Instant::now();
    while begun.elapsed() < time {
        let (stretch, before) = (Instant::now(), fast.times.len());
        while stretch.elapsed() < STRETCH {
            match open(next(), patience) {
                Ok((_, elapsed)) => fast.times.push(elapsed.as_secs_f64()),
                Err(_) => fast.failed += 1,
            }
        }
        fast.per_second.push((fast.times.len() - before) as f64 / stretch.elapsed().as_secs_f64());
    }
    fast
}

/// `count` connections to each, one after the other, so that whatever else the machine does falls on all alike.
/// A tenth more go before and are not counted. Also tells how many failed.
fn by_turns<const N: usize>(places: [SocketAddr; N], count: usize) -> ([Vec<f64>; N], usize) {
    let mut times = std::array::from_fn(|_| Vec::with_capacity(count));
    let mut failed = 0;
    let warm_up = count / 10 + 1;
    for round in 0..warm_up + count {
        for (place, times) in places.iter().zip(&mut times) {
            match open(*place, PATIENCE) {
                Ok((_, elapsed)) if round >= warm_up => times.push(elapsed.as_secs_f64()),
                Ok(_) => {}
                Err(_) => failed += 1,
            }
        }
    }
    (times, failed)
}

/// The Services in the order in which the kernel looks at them; where it has none, by name.
pub(crate) fn kernel_order(site: &Site, workload: &Workload, mode: Mode) -> Result<Vec<SocketAddr>> {
    let services: Vec<SocketAddr> = workload.answering().collect();
    if mode != Mode::Iptables {
        return Ok(services);
    }
    let mut ordered = Vec::new();
    for program in ["iptables-nft-save", "iptables-legacy-save"] {
        let Ok(output) = site.node.output(Command::new(program).args(["-t", "nat"])) else { continue };
        let text = String::from_utf8_lossy(&output.stdout);
        ordered.extend(text.lines().filter_map(cluster_ip_of_rule).map(|ip| SocketAddr::new(ip, 80)));
    }
    let known: std::collections::HashSet<SocketAddr> = services.iter().copied().collect();
    ordered.retain(|service| known.contains(service));
    Ok(if ordered.is_empty() { services } else { ordered })
}

/// `-A KUBE-SERVICES -d 172.16.0.5/32 -p tcp ...`
fn cluster_ip_of_rule(rule: &str) -> Option<IpAddr> {
    let rule = rule.strip_prefix("-A KUBE-SERVICES ")?;
    let mut words = rule.split_whitespace().skip_while(|word| *word != "-d");
    words.nth(1)?.strip_suffix("/32")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    use super::{as_fast_as_possible, cluster_ip_of_rule};
    use crate::scale::site::{DIRECT, Site};

    /// However late on a busy machine.
    const PATIENT: Duration = Duration::from_secs(60);

    #[test]
    fn connections_that_begin_after_a_known_pause_are_counted_to_be_that_many_a_second() {
        let site = Site::build().expect("a network; run as root");
        let slow = || -> SocketAddr {
            // A sleep would be longer than asked for.
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(1) {
                std::hint::spin_loop();
            }
            DIRECT
        };
        let time = Duration::from_millis(400);
        let fast = site.client.run(|| as_fast_as_possible(slow, time, PATIENT)).expect("inside the client");
        assert_eq!(fast.failed, 0);
        assert_eq!(fast.per_second.is_empty(), fast.times.is_empty());
        let most = fast.per_second.iter().copied().fold(0.0, f64::max);
        // No more than that; how many fewer is the machine's affair.
        assert!(most > 0.0 && most <= 1_001.0, "{most} in a stretch, one each millisecond at most");
    }

    #[test]
    fn the_place_of_a_service_is_read_from_its_rule() {
        let rule = "-A KUBE-SERVICES -d 172.16.0.5/32 -p tcp -m comment --comment \"a -d b\" -j KUBE-SVC-X";
        assert_eq!(cluster_ip_of_rule(rule), Some([172, 16, 0, 5].into()));
        assert_eq!(cluster_ip_of_rule("-A KUBE-NODEPORTS -d 172.16.0.5/32 -j X"), None);
    }
}
