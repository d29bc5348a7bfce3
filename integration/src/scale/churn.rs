//! Many changes a second: how late they arrive, what they cost, and how far behind the contender is when they stop.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::changes::Canaries;
use super::contender::Running;
use super::flood::{Flood, Flooded};
use super::seed::Seed;
use super::server::Server;
use super::site::Site;
use super::workload::Workload;

/// How a contender fared.
#[derive(Debug)]
pub(crate) struct Churned {
    /// Of single changes among the others, in seconds.
    pub(crate) latencies: Vec<f64>,
    /// Changes among them that had no effect within the limit.
    pub(crate) lost: usize,
    /// CPU seconds of the contender and its children for each second of churn.
    pub(crate) cpu: f64,
    /// From the last write until everything was in effect, in seconds; `None` if not within the limit.
    pub(crate) backlog: Option<f64>,
    /// Changes that were made a second.
    pub(crate) achieved: f64,
    /// New connections to the Services under change.
    pub(crate) flooded: Flooded,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Churn {
    pub(crate) per_second: f64,
    pub(crate) time: Duration,
    /// How long to wait for one change.
    pub(crate) limit: Duration,
    /// How long to wait for one connection.
    pub(crate) patience: Duration,
}

pub(crate) fn measure(
    site: &Site,
    api: &Server,
    workload: &Workload,
    canaries: &mut Canaries<'_>,
    running: &Running,
    seed: &mut Seed,
    churn: Churn,
) -> Result<Churned> {
    let mut victims = seed.sample(1_000, workload.services.len());
    victims.retain(|index| workload.services[*index].address.port() == 80);
    let answering: std::collections::HashSet<_> = workload.answering().collect();
    let flooded: Vec<_> = victims
        .iter()
        .map(|index| workload.services[*index].address)
        .filter(|address| answering.contains(address))
        .collect();
    let stop = AtomicBool::new(false);
    let before = running.usage()?;
    let begun = Instant::now();
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(api, workload, &victims, churn, begun, &stop));
        let flood = Flood::start(&site.client, flooded, Duration::from_millis(1), churn.patience);
        let measured = site.client.run(|| watch(api, canaries, churn, begun));
        stop.store(true, Ordering::Relaxed);
        let written = writer.join().expect("the writer does not panic")?;
        let stopped = Instant::now();
        let after = running.usage()?;
        let elapsed = begun.elapsed().as_secs_f64();
        // Behind everything else in the queue, so when it arrives all has arrived.
        let last = site.client.run(|| canaries.change_one(api, churn.limit))??;
        let (latencies, lost) = measured??;
        Ok(Churned {
            latencies,
            lost,
            cpu: (after.user + after.system - before.user - before.system) / elapsed,
            backlog: last.seen.map(|seen| seen.saturating_duration_since(stopped).as_secs_f64()),
            achieved: written as f64 / elapsed,
            flooded: flood?.stop(),
        })
    })
}

/// Replaces one endpoint after the other, at the rate asked for; those that are late are made up for.
fn write(
    api: &Server,
    workload: &Workload,
    victims: &[usize],
    churn: Churn,
    begun: Instant,
    stop: &AtomicBool,
) -> Result<usize> {
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * churn.per_second) as usize;
        if written < due {
            // Never the same twice in one go.
            let end = due.min(written + victims.len());
            let moved = |step: usize| workload.moved_slice(victims[step % victims.len()], step);
            api.write((written..end).map(moved).collect()).context("writing EndpointSlices")?;
            written = end;
            continue;
        }
        thread::sleep(Duration::from_secs_f64((0.5 / churn.per_second).clamp(0.0005, 0.05)));
    }
    Ok(written)
}

/// Single changes in between, each as soon as the one before has had its effect and a pause.
fn watch(
    api: &Server,
    canaries: &mut Canaries<'_>,
    churn: Churn,
    begun: Instant,
) -> Result<(Vec<f64>, usize)> {
    let (mut latencies, mut lost) = (Vec::new(), 0);
    while begun.elapsed() < churn.time {
        let effect = canaries.change_one(api, churn.limit)?;
        match effect.seen {
            Some(seen) => latencies.push((seen - effect.written).as_secs_f64()),
            None => lost += 1,
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok((latencies, lost))
}
