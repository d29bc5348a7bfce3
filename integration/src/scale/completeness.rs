//! When the rules are complete, judged by packets alone: the same for every backend.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::connecting::{BRIEF, open, reached};
use super::contender::Running;
use super::seed::Seed;
use super::site::Site;
use super::workload::Workload;

/// Services that are asked until they answer. That a late fiftieth of all is missed has a chance of 0.6 %.
const SENTINELS: usize = 256;
/// Also how exact the answer is.
const PROBE: Duration = Duration::from_millis(5);

/// What was seen.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Completion {
    /// All Services answered; this long after the contender was started.
    After(Duration),
    /// Some did not within the limit.
    Unfinished { unanswered: usize },
}

/// Waits until all Services answer: first a random few, again and again, then every one.
pub(crate) fn wait(
    site: &Site,
    workload: &Workload,
    running: &mut Running,
    seed: &mut Seed,
    limit: Duration,
) -> Result<Completion> {
    let all: Vec<SocketAddr> = workload.answering().collect();
    let mut waiting: Vec<SocketAddr> =
        seed.sample(SENTINELS, all.len()).into_iter().map(|index| all[index]).collect();
    let started = running.started;
    site.client.run(|| {
        loop {
            let mut last = started.elapsed();
            while let Some(service) = waiting.last() {
                if open(*service, PROBE).is_ok() {
                    last = started.elapsed();
                    waiting.pop();
                    continue;
                }
                running.check_alive()?;
                if started.elapsed() > limit {
                    return Ok(Completion::Unfinished { unanswered: waiting.len() });
                }
            }
            // Twice: a busy machine may delay one answer.
            waiting = all
                .iter()
                .copied()
                .filter(|service| open(*service, BRIEF).is_err() && open(*service, BRIEF).is_err())
                .collect();
            if waiting.is_empty() {
                return Ok(Completion::After(last));
            }
        }
    })?
}

/// Waits until every canary leads to the endpoint that is wanted of it: what a start over existing rules can be seen by.
pub(crate) fn wait_for_canaries(
    site: &Site,
    workload: &Workload,
    wanted: &[Ipv4Addr],
    since: Instant,
    limit: Duration,
    alive: &mut (dyn FnMut() -> Result<()> + Send),
) -> Result<Completion> {
    site.client.run(|| {
        let mut waiting: Vec<(SocketAddr, Ipv4Addr)> =
            workload.canaries.iter().copied().zip(wanted.iter().copied()).collect();
        while let Some((service, wanted)) = waiting.last() {
            if reached(*service).is_ok_and(|endpoint| endpoint == *wanted) {
                waiting.pop();
                continue;
            }
            alive()?;
            if since.elapsed() > limit {
                return Ok(Completion::Unfinished { unanswered: waiting.len() });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(Completion::After(since.elapsed()))
    })?
}

/// Waits until the machine has nothing more to do for the contender: two looks at its CPU time that agree.
pub(crate) fn settle(running: &Running, limit: Duration) -> Result<()> {
    let begun = Instant::now();
    let mut before = running.usage()?;
    while begun.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(250));
        let now = running.usage()?;
        if now.user + now.system - before.user - before.system < 0.02 {
            return Ok(());
        }
        before = now;
    }
    Ok(())
}
