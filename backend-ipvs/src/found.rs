//! What the kernel was found to hold, of one family.

use std::{collections::HashSet, net::IpAddr};

use ipnet::IpNet;
use ipvs_netlink::{Destination, Service, ServiceFlags, ServiceKey};
use proxy_core::model::Family;

use crate::{
    marks::{TAG, TAG_MASK},
    render::OURS,
};

/// The answer of a survey.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    pub servers: Vec<FoundServer>,
    /// Local routes of ours.
    pub routes: HashSet<IpAddr>,
    /// Addresses of our device.
    pub addresses: HashSet<IpAddr>,
    /// Rules of an nftables mode translate connections at present: kube-proxy's, or of our other backend.
    pub translated: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundServer {
    pub service: Service,
    pub destinations: Vec<Destination>,
}

impl Found {
    /// Whether a virtual server is ours to delete: made by us, or by a kube-proxy on an address that it had bound.
    pub(crate) fn owns(&self, service: &Service, excluded: &[IpNet]) -> bool {
        match service.key {
            ServiceKey::Mark { mark, .. } => mark & TAG_MASK == TAG,
            ServiceKey::Address { address, .. } => {
                !is_excluded(address, excluded) && (is_ours(service) || self.addresses.contains(&address))
            }
        }
    }
}

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
