//! The IPVS generic netlink protocol: virtual servers, destinations, timeouts
