//! Opening the backend: is everything there that it needs, and if not, what is missing.

use std::sync::mpsc;

use ipvs_netlink::{Batch, Scheduler, Service, ServiceKey, Socket};
use netlink::Protocol;
use nix::libc;
use proxy_core::model::Family;

use crate::{
    found::ipvs_family,
    kernel::IpvsExecutor,
    marks::{TAG, TAG_MASK},
    plan::IpvsPlanner,
    settings::Settings,
};

/// What keeps the backend from working at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Ipvs(#[from] ipvs_netlink::Error),
    #[error("the scheduler {0} is missing: load the module ip_vs_{0}, or choose another")]
    Scheduler(Scheduler),
    #[error("IPVS cannot balance {0} here: {1}")]
    Family(Family, std::io::Error),
    #[error("netlink: {0}")]
    Netlink(#[from] netlink::Error),
    #[error("nf_tables: {0}")]
    Nftables(#[source] netlink::Error),
}

/// Opens the backend for one family, in the caller's network namespace. Nothing is changed yet.
pub fn open(family: Family, settings: Settings) -> Result<(IpvsPlanner, IpvsExecutor), OpenError> {
    let mut ipvs = Socket::open()?;
    probe(&mut ipvs, family, settings.scheduler)?;
    let maglev = refusal(&mut ipvs, family, Scheduler::MH)?.is_none();
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

fn probe(ipvs: &mut Socket, family: Family, scheduler: Scheduler) -> Result<(), OpenError> {
    match refusal(ipvs, family, scheduler)? {
        None => Ok(()),
        Some(libc::ENOENT) => Err(OpenError::Scheduler(scheduler)),
        Some(errno) => Err(OpenError::Family(family, std::io::Error::from_raw_os_error(errno))),
    }
}

/// Makes a virtual server that no packet can reach, and removes it.
fn refusal(
    ipvs: &mut Socket,
    family: Family,
    scheduler: Scheduler,
) -> Result<Option<i32>, ipvs_netlink::Error> {
    let key = ServiceKey::Mark { family: ipvs_family(family), mark: TAG | !TAG_MASK };
    let mut batch = Batch::new();
    batch.new_service(&Service::new(key, scheduler));
    batch.del_service(&key);
    let failures = ipvs.send(&mut batch)?;
    let of_new = failures.first().filter(|failure| failure.index == 0).map(|failure| failure.errno);
    // Somebody has just this virtual server: then it works.
    Ok(of_new.filter(|errno| *errno != libc::EEXIST))
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
