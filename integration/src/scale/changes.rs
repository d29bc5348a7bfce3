//! One change at a time: from the write to the API server until a new connection reaches the new endpoint.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::commits::Commits;
use super::connecting::reached;
use super::seed::Seed;
use super::server::Server;
use super::site::Site;
use super::workload::{CANARIES, Workload};

/// Whoever commits may lose its turn on a busy machine before it announces, and so may who listens.
const ANNOUNCEMENT: Duration = Duration::from_millis(500);

/// How long each change took, in seconds.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    /// Until the first connection attempt that reached the new endpoint was begun.
    pub(crate) effect: Vec<f64>,
    /// Until the kernel announced the commit that did it; empty where it announces none.
    pub(crate) commit: Vec<f64>,
    /// From the begin of the last attempt that did not reach the new endpoint to that of the first that did, or how long
    /// the only attempt took: what the figures cannot be more exact than.
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
    /// When the last attempt that did not reach it was begun.
    pub(crate) missed: Option<Instant>,
    /// Of the last attempt.
    pub(crate) probe: Duration,
}

impl<'a> Canaries<'a> {
    pub(crate) fn new(workload: &'a Workload) -> Self {
        Self { workload, steps: [0; CANARIES], next: 0 }
    }

    /// Moves the next canary and tries it until it leads to its new endpoint. Runs in the client's namespace.
    pub(crate) fn change_one(&mut self, api: &Server, limit: Duration) -> Result<Effect> {
        let canary = self.next % CANARIES;
        self.next += 1;
        self.steps[canary] += 1;
        let step = self.steps[canary];
        let slice = self.workload.canary_slice(canary, step);
        let (service, wanted) = (self.workload.canaries[canary], self.workload.canary_endpoint(canary, step));
        let written = Instant::now();
        let writing = api.begin_write(vec![slice]).context("writing an EndpointSlice")?;
        let mut missed = None;
        let effect = loop {
            let begun = Instant::now();
            let found = reached(service).is_ok_and(|endpoint| endpoint == wanted);
            let probe = begun.elapsed();
            if found {
                break Effect { written, seen: Some(begun), missed, probe };
            }
            missed = Some(begun);
            if written.elapsed() > limit {
                break Effect { written, seen: None, missed, probe };
            }
        };
        // Packets may know of it before the server has answered.
        writing.finish().context("writing an EndpointSlice")?;
        Ok(effect)
    }

    /// Moves all canaries without waiting, and tells where each leads to from then on.
    pub(crate) fn change_all(&mut self, api: &Server) -> Result<Vec<Ipv4Addr>> {
        self.steps.iter_mut().for_each(|step| *step += 1);
        self.write_all(api, Workload::canary_slice)
    }

    /// As [`change_all`](Self::change_all), but the old endpoints stay for a while, terminating.
    pub(crate) fn retire_all(&mut self, api: &Server) -> Result<Vec<Ipv4Addr>> {
        self.steps.iter_mut().for_each(|step| *step += 1);
        self.write_all(api, Workload::retiring_canary_slice)
    }

    /// Takes away what [`retire_all`](Self::retire_all) left.
    pub(crate) fn remove_retired(&mut self, api: &Server) -> Result<()> {
        self.write_all(api, Workload::canary_slice).map(drop)
    }

    fn write_all(
        &self,
        api: &Server,
        slice: impl Fn(&Workload, usize, usize) -> Value,
    ) -> Result<Vec<Ipv4Addr>> {
        let steps = || self.steps.iter().enumerate();
        let slices = steps().map(|(canary, step)| slice(self.workload, canary, *step)).collect();
        api.write(slices).context("writing EndpointSlices")?;
        Ok(steps().map(|(canary, step)| self.workload.canary_endpoint(canary, *step)).collect())
    }
}

/// Makes `count` changes, or as many as the time allows, with pauses in between so that each finds an idle contender.
/// `limit` is for each of them.
pub(crate) fn measure(
    site: &Site,
    api: &Server,
    canaries: &mut Canaries<'_>,
    seed: &mut Seed,
    count: usize,
    (time, limit): (Duration, Duration),
) -> Result<(Latencies, Vec<Effect>)> {
    let commits = Commits::listen(&site.node)?;
    let effects = site.client.run(|| -> Result<Vec<Effect>> {
        let mut effects = Vec::new();
        let begun = Instant::now();
        // Where nothing is announced the first time, nothing will be.
        let mut announced = true;
        while effects.len() < count && begun.elapsed() < time {
            let effect = canaries.change_one(api, limit)?;
            announced = announced && commits.wait(effect.written, ANNOUNCEMENT);
            effects.push(effect);
            std::thread::sleep(Duration::from_millis(5 + seed.next() % 15));
        }
        Ok(effects)
    })??;
    let mut latencies = Latencies::default();
    for (index, effect) in effects.iter().enumerate() {
        let Some(seen) = effect.seen else {
            latencies.lost += 1;
            continue;
        };
        latencies.probe.push(effect.missed.map_or(effect.probe, |missed| seen - missed).as_secs_f64());
        latencies.effect.push((seen - effect.written).as_secs_f64());
        let next = effects.get(index + 1).map_or_else(Instant::now, |next| next.written);
        if let Some(commit) = commits.behind(effect.written, seen + effect.probe, next) {
            latencies.commit.push((commit - effect.written).as_secs_f64());
        }
    }
    Ok((latencies, effects))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Duration;

    use super::{Canaries, Effect, Latencies, measure};
    use crate::apiserver::ApiServer;
    use crate::scale::seed::Seed;
    use crate::scale::server::Server;
    use crate::scale::site::Site;
    use crate::scale::slow_proxy::{self, Installed};
    use crate::scale::workload::Workload;

    const DELAY: Duration = Duration::from_millis(250);

    /// The figures for ten changes, and the instants between which the proxy put each into the kernel.
    fn ten_changes() -> (Latencies, Vec<Effect>, Vec<Installed>) {
        let site = Site::build().expect("a network; run as root");
        let api = ApiServer::start("127.0.0.1:0".parse().expect("an address")).expect("it starts");
        let workload = Workload::generate("2x1".parse().expect("a shape"), 1);
        api.load(workload.objects()).expect("the objects are valid");
        let server = Server::Embedded(api);
        let Server::Embedded(api) = &server else { panic!("it was just made") };
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let proxy = scope.spawn(|| slow_proxy::follow(&site, api, &workload, DELAY, &done, || ()));
            let mut canaries = Canaries::new(&workload);
            let limit = Duration::from_secs(60);
            site.client
                .run(|| canaries.change_one(&server, limit).expect("it can be made"))
                .expect("a namespace");
            let limits = (10 * limit, limit);
            let measured = measure(&site, &server, &mut canaries, &mut Seed::new(1), 10, limits);
            done.store(true, Ordering::Relaxed);
            let (latencies, effects) = measured.expect("it can be measured");
            (latencies, effects, proxy.join().expect("the proxy does not panic"))
        })
    }

    #[test]
    fn a_proxy_with_a_known_delay_is_measured_to_have_it() {
        let (latencies, effects, installed) = ten_changes();
        assert_eq!((latencies.effect.len(), latencies.commit.len(), latencies.lost), (10, 10, 0));
        // However long the machine takes over it: an attempt that begins when the rules are in force succeeds.
        for (index, effect) in effects.iter().enumerate() {
            let next = effects.get(index + 1).map(|next| next.written);
            let own = installed
                .iter()
                .filter(|one| one.begun > effect.written && next.is_none_or(|next| one.begun < next));
            let [own] = own.collect::<Vec<_>>()[..] else { panic!("one change, one write: {installed:?}") };
            assert!(effect.seen.is_some_and(|seen| seen + effect.probe >= own.begun), "{effect:?}, {own:?}");
            assert!(effect.missed.is_none_or(|missed| missed < own.ended), "{effect:?}, {own:?}");
        }
    }
}
