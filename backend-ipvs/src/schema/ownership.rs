//! By what our own objects are told from others': a flag of virtual servers, and a range of marks.

use std::net::IpAddr;

use ipnet::IpNet;
use ipvs_netlink::{Service, ServiceFlags};
use proxy_core::model::Family;

/// A flag of every virtual server that we made. The kernel hands it to the scheduler, and none reads the third
/// (`IP_VS_SVC_F_SCHED3`: `ip_vs_sh.c` and `ip_vs_mh.c` know the first two), so that it tells ours from others'.
pub const OURS: ServiceFlags = ServiceFlags::SCHEDULER_3;

/// The upper eight bits of our marks; the lower 24 tell the Service port. A packet carries it from the last rule before
/// IPVS to the first behind it, so that it meets nobody else's use of the mark.
pub const TAG: u32 = 0x5300_0000;
/// The bits that hold the tag.
pub const TAG_MASK: u32 = 0xff00_0000;
/// The mark of a virtual server that nothing uses: while it stands, nobody has cleared the table.
pub const SENTINEL: u32 = TAG;

/// Whether we made it.
pub(crate) fn is_ours(service: &Service) -> bool {
    service.flags.contains(OURS) && !service.flags.contains(ServiceFlags::ONE_PACKET)
}

pub(crate) fn is_excluded(address: IpAddr, excluded: &[IpNet]) -> bool {
    excluded.iter().any(|net| net.contains(&address))
}

pub(crate) fn ipvs_family(family: Family) -> ipvs_netlink::Family {
    match family {
        Family::V4 => ipvs_netlink::Family::V4,
        Family::V6 => ipvs_netlink::Family::V6,
    }
}
