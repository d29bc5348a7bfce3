//! By what our own objects are told from others': a flag of virtual servers, and a range of marks.

use std::net::IpAddr;

use ipnet::IpNet;
use ipvs_netlink::{Service, ServiceFlags};
use proxy_core::model::Family;

/// A flag of every virtual server that we made. The kernel hands it to the scheduler, and none reads the third
/// (`IP_VS_SVC_F_SCHED3`: `ip_vs_sh.c` and `ip_vs_mh.c` know the first two), so that it tells ours from others'.
pub const OURS: ServiceFlags = ServiceFlags::SCHEDULER_3;

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
