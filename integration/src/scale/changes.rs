//! One change at a time: from the write to the API server until a new connection reaches the new endpoint.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::apiserver::ApiServer;

use super::commits::Commits;
use super::connecting::reached;
use super::seed::Seed;
use super::site::Site;
use super::workload::{CANARIES, Workload};

/// How long each change took, in seconds.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// Until the first connection attempt that reached the new endpoint was begun.
    pub(crate) effect: Vec<f64>,
    /// Until the kernel announced the commit that did it; empty where it announces none.
    pub(crate) commit: Vec<f64>,
    /// How long one connection attempt took: what the figures cannot be more exact than.
    pub(crate) probe: Vec<f64>,
    /// Changes that had no effect within the limit.
    pub(crate) lost: usize,
}

/// Which step each canary is at: what its endpoint is now.
#[derive(Debug)]
pub(crate) struct Canaries<'a> {
    workload: &'a Workload,
    steps: [usize; CANARIES],
    next: usize,
}

/// How a change of one canary went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effect {
    pub(crate) written: Instant,
    pub(crate) seen: Option<Instant>,
    /// Of the last attempt.
    pub(crate) probe: Duration,
}

impl<'a> Canaries<'a> {
    pub(crate) fn new(workload: &'a Workload) -> Self {
        Self { workload, steps: [0; CANARIES], next: 0 }
    }

    /// Moves the next canary and tries it until it leads to its new endpoint. Runs in the client's namespace.
    pub(crate) fn change_one(&mut self, api: &ApiServer, limit: Duration) -> Result<Effect> {
        let canary = self.next % CANARIES;
        self.next += 1;
        self.steps[canary] += 1;
        let step = self.steps[canary];
        let slice = self.workload.canary_slice(canary, step);
        let (service, wanted) = (self.workload.canaries[canary], self.workload.canary_endpoint(canary, step));
        let written = Instant::now();
        api.load([slice]).context("writing an EndpointSlice")?;
        loop {
            let begun = Instant::now();
            let found = reached(service).is_ok_and(|endpoint| endpoint == wanted);
            let probe = begun.elapsed();
            if found {
                return Ok(Effect { written, seen: Some(begun), probe });
            }
            if written.elapsed() > limit {
                return Ok(Effect { written, seen: None, probe });
            }
        }
    }

    /// Moves all canaries without waiting, and tells which step they are all at.
    pub(crate) fn change_all(&mut self, api: &ApiServer) -> Result<usize> {
        let step = self.steps.iter().max().expect("there are canaries") + 1;
        self.steps = [step; CANARIES];
        let slices = (0..CANARIES).map(|canary| self.workload.canary_slice(canary, step));
        api.load(slices).context("writing EndpointSlices")?;
        Ok(step)
    }
}

/// Makes `count` changes, or as many as the time allows, with pauses in between so that each finds an idle contender.
pub(crate) fn measure(
    site: &Site,
    api: &ApiServer,
    canaries: &mut Canaries<'_>,
    seed: &mut Seed,
    count: usize,
    time: Duration,
    limit: Duration,
) -> Result<Latencies> {
    let commits = Commits::listen(&site.node)?;
    site.client.run(|| {
        let mut latencies = Latencies::default();
        let begun = Instant::now();
        for _ in 0..count {
            if begun.elapsed() > time {
                break;
            }
            let effect = canaries.change_one(api, limit)?;
            latencies.probe.push(effect.probe.as_secs_f64());
            // The announcement may arrive after the packet.
            std::thread::sleep(Duration::from_millis(5 + seed.next() % 15));
            let Some(seen) = effect.seen else {
                latencies.lost += 1;
                continue;
            };
            latencies.effect.push((seen - effect.written).as_secs_f64());
            if let Some(commit) = commits.last_between(effect.written, seen + effect.probe) {
                latencies.commit.push((commit - effect.written).as_secs_f64());
            }
        }
        Ok(latencies)
    })?
}
