//! Opening the backend: is everything there that it needs, and if not, what is missing.

use std::sync::mpsc;

use ipvs_netlink::{Batch, Scheduler, Socket};
use netlink::Protocol;
use nix::libc;
use proxy_core::model::Family;

use crate::{
    kernel::{IpvsExecutor, schedulers::refusal},
    plan::IpvsPlanner,
    settings::{MarkSpace, Settings},
};

/// What keeps the backend from working at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel has no IPVS, or does not let us use it.
    #[error(transparent)]
    Ipvs(#[from] ipvs_netlink::Error),
    /// The one that the configuration asks for.
    #[error("the scheduler {0} is missing: load the module ip_vs_{0}, or choose another")]
    Scheduler(Scheduler),
    /// A family that IPVS was built without, say.
    #[error("IPVS cannot balance {0} here: {1}")]
    Family(Family, std::io::Error),
    /// No routes, no addresses.
    #[error("netlink: {0}")]
    Netlink(#[from] netlink::Error),
    /// No rules.
    #[error("nf_tables: {0}")]
    Nftables(#[source] netlink::Error),
}

/// Opens the backend for one family, in the caller's network namespace. Nothing is changed yet.
pub fn open(family: Family, settings: Settings) -> Result<(IpvsPlanner, IpvsExecutor), OpenError> {
    let mut ipvs = Socket::open()?;
    probe(&mut ipvs, family, settings.marks, settings.scheduler)?;
    let maglev = refusal(&mut ipvs, family, settings.marks, Scheduler::MH)?.is_none();
    let route = netlink::Socket::open(Protocol::Route)?;
    let mut nft = netlink::Socket::open(Protocol::Netfilter).map_err(OpenError::Nftables)?;
    nft_netlink::generation::generation(&mut nft).map_err(OpenError::Nftables)?;
    set_timeouts(&mut ipvs, &settings)?;
    let (sender, receiver) = mpsc::channel();
    let executor = IpvsExecutor::new(settings.clone(), family, ipvs, route, nft, sender)?;
    let planner = IpvsPlanner::new(settings, receiver).with_seed(seed());
    Ok((if maglev { planner } else { planner.without_maglev() }, executor))
}

/// std's hasher is seeded at random.
fn seed() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), ())
}

fn probe(ipvs: &mut Socket, family: Family, marks: MarkSpace, scheduler: Scheduler) -> Result<(), OpenError> {
    match refusal(ipvs, family, marks, scheduler)? {
        None => Ok(()),
        Some(libc::ENOENT) => Err(OpenError::Scheduler(scheduler)),
        Some(errno) => Err(OpenError::Family(family, std::io::Error::from_raw_os_error(errno))),
    }
}

fn set_timeouts(ipvs: &mut Socket, settings: &Settings) -> Result<(), OpenError> {
    let wanted = settings.timeouts;
    if [wanted.tcp, wanted.tcp_fin, wanted.udp].into_iter().flatten().all(|seconds| seconds == 0) {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.set_timeouts(&wanted);
    if let Some(failure) = ipvs.send(&mut batch)?.first() {
        tracing::warn!(%failure, "the kernel refuses the timeouts of the configuration");
    }
    Ok(())
}
