//! Which schedulers the kernel has: modules, each of which may be missing.

use std::{collections::HashSet, fs};

use ipvs_netlink::{Batch, Scheduler, Service, ServiceKey, Socket};
use nix::libc;
use proxy_core::{
    backend::{ApplyError, Owned, Plan},
    model::Family,
};

use crate::{
    kernel::refusal::lost,
    schema::{op::Op, ownership::ipvs_family},
    settings::MarkSpace,
};

/// What is known of them.
#[derive(Debug, Default)]
pub(crate) struct Schedulers {
    present: HashSet<Scheduler>,
}

impl Schedulers {
    /// Asks for those that a plan uses for the first time, before anything of it is applied: so a missing one is laid at
    /// the door of the Service that asks for it, and nothing of that Service is in the kernel in part.
    pub(crate) fn check(
        &mut self,
        ipvs: &mut Socket,
        family: Family,
        marks: MarkSpace,
        plan: &Plan<Op>,
    ) -> Result<(), ApplyError> {
        for Owned { op, owner } in plan.steps.iter().flat_map(|step| &step.ops) {
            let (Op::NewServer(service, _) | Op::SetServer(service)) = op else { continue };
            let scheduler = service.scheduler;
            // What another proxy chose for a server that is to go is there.
            if owner.is_none() || self.present.contains(&scheduler) {
                continue;
            }
            if refusal(ipvs, family, marks, scheduler).map_err(lost)? == Some(libc::ENOENT) {
                let reason =
                    format!("{op}: this kernel has no scheduler {scheduler} (module ip_vs_{scheduler})");
                return Err(ApplyError::Refused { reason, culprit: *owner });
            }
            self.present.insert(scheduler);
        }
        Ok(())
    }
}

/// Makes a virtual server that no packet can reach, and removes it. Answers what the kernel has against it.
pub(crate) fn refusal(
    ipvs: &mut Socket,
    family: Family,
    marks: MarkSpace,
    scheduler: Scheduler,
) -> Result<Option<i32>, ipvs_netlink::Error> {
    let key = ServiceKey::Mark { family: ipvs_family(family), mark: marks.nth(marks.last()) };
    let mut batch = Batch::new();
    batch.new_service(&Service::new(key, scheduler));
    batch.del_service(&key);
    let failures = ipvs.send(&mut batch)?;
    let of_new = failures.first().filter(|failure| failure.index == 0).map(|failure| failure.errno);
    // Somebody has just this virtual server: then it works.
    Ok(of_new.filter(|errno| *errno != libc::EEXIST))
}

/// Schedulers of the kernel's own that this machine does not have. Nothing is loaded to find out: what is loaded, built in
/// or installed is there, and only what is none of that is tried.
///
/// # Errors
/// Where IPVS cannot be asked.
pub fn missing(family: Family, marks: MarkSpace) -> Result<Vec<Scheduler>, ipvs_netlink::Error> {
    let mut known = fs::read_to_string("/proc/modules").unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    for list in ["modules.builtin", "modules.dep"] {
        known += &fs::read_to_string(format!("/lib/modules/{}/{list}", release.trim())).unwrap_or_default();
    }
    let is_known = |scheduler: &Scheduler| {
        let module = format!("ip_vs_{scheduler}");
        known.lines().any(|line| {
            let first = line.split([' ', ':']).next().unwrap_or_default();
            let name = first.rsplit('/').next().unwrap_or_default();
            name.split('.').next() == Some(&module)
        })
    };
    let mut ipvs = Socket::open()?;
    let mut missing = Vec::new();
    for scheduler in Scheduler::ALL.into_iter().filter(|scheduler| !is_known(scheduler)) {
        if refusal(&mut ipvs, family, marks, scheduler)? == Some(libc::ENOENT) {
            missing.push(scheduler);
        }
    }
    Ok(missing)
}
