//! What clients notice of a restart or of a change of the mode: connections that were cut off, and new ones that failed.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::changes::Canaries;
use super::completeness::{self, Completion};
use super::contender::{Contender, Running};
use super::flood::{Flood, Flooded};
use super::held::Held;
use super::seed::Seed;
use super::server::Server;
use super::site::Site;
use super::workload::Workload;

/// How many connections are held.
const HELD: usize = 50;
/// Rules that come late break connections late.
const AFTERMATH: Duration = Duration::from_millis(700);

#[derive(Debug)]
pub(crate) struct Disturbed {
    /// From the start of the new process until changes made in the meantime were in effect.
    pub(crate) completion: Completion,
    pub(crate) held: usize,
    pub(crate) broken: usize,
    pub(crate) flooded: Flooded,
    /// CPU seconds of the new process until then, in programs and in the kernel.
    pub(crate) cpu: (f64, f64),
}

/// The cluster that a contender sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster<'a> {
    pub(crate) site: &'a Site,
    pub(crate) api: &'a Server,
    pub(crate) workload: &'a Workload,
    pub(crate) folder: &'a Path,
    pub(crate) limit: Duration,
    pub(crate) patience: Duration,
}

/// Ends `old`, changes some endpoints meanwhile, and starts `next`, while clients hold and open connections.
/// `between` is called when no process runs.
pub(crate) fn replace(
    cluster: Cluster<'_>,
    canaries: &mut Canaries<'_>,
    seed: &mut Seed,
    old: Running,
    next: &Contender,
    between: impl FnOnce() -> Result<()>,
) -> Result<(Disturbed, Running)> {
    let Cluster { site, api, workload, folder, limit, patience } = cluster;
    let all: Vec<SocketAddr> = workload.services.iter().map(|service| service.address).collect();
    let answering: Vec<SocketAddr> = workload.answering().filter(|address| all.contains(address)).collect();
    let chosen: Vec<SocketAddr> =
        seed.sample(HELD, answering.len()).into_iter().map(|index| answering[index]).collect();
    let held = Held::open(&site.client, &chosen)?;
    let opened = held.opened;
    let flood = Flood::start(&site.client, chosen, Duration::from_micros(200), patience)?;
    old.stop(Duration::from_secs(10))?;
    between()?;
    let wanted = canaries.change_all(api)?;
    let mut running = next.start(site, folder, api)?;
    let started = running.started;
    let mut alive = || running.check_alive();
    let completion = completeness::wait_for_canaries(site, workload, &wanted, started, limit, &mut alive)?;
    let usage = running.usage()?;
    std::thread::sleep(AFTERMATH);
    let flooded = flood.stop();
    let broken = held.broken();
    Ok((Disturbed { completion, held: opened, broken, flooded, cpu: (usage.user, usage.system) }, running))
}
