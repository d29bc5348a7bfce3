//! Numbers of rtnetlink's interface, from linux/rtnetlink.h, linux/if_link.h and linux/if_addr.h.

/// `RTM_*`.
pub(crate) mod message {
    pub(crate) const NEW_LINK: u16 = 16;
    pub(crate) const DELETE_LINK: u16 = 17;
    pub(crate) const GET_LINK: u16 = 18;
    pub(crate) const NEW_ADDRESS: u16 = 20;
    pub(crate) const DELETE_ADDRESS: u16 = 21;
    pub(crate) const GET_ADDRESS: u16 = 22;
    pub(crate) const NEW_ROUTE: u16 = 24;
    pub(crate) const DELETE_ROUTE: u16 = 25;
    pub(crate) const GET_ROUTE: u16 = 26;
}

/// `RTMGRP_*`.
pub(crate) mod group {
    pub(crate) const LINK: u32 = 0x1;
    pub(crate) const IPV4_ADDRESS: u32 = 0x10;
    pub(crate) const IPV4_ROUTE: u32 = 0x40;
    pub(crate) const IPV6_ADDRESS: u32 = 0x100;
    pub(crate) const IPV6_ROUTE: u32 = 0x400;
}

/// `struct ifinfomsg`, `IFLA_*`, `IFF_*`.
pub(crate) mod link {
    pub(crate) const HEADER: usize = 16;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const MASTER: u16 = 10;
    pub(crate) const INFO: u16 = 18;
    pub(crate) const INFO_KIND: u16 = 1;
    pub(crate) const UP: u32 = 1;
}

/// `struct ifaddrmsg`, `IFA_*`, `IFA_F_*`.
pub(crate) mod address {
    pub(crate) const HEADER: usize = 8;
    pub(crate) const ADDRESS: u16 = 1;
    /// The own address of a point-to-point link, where `ADDRESS` is the peer's.
    pub(crate) const LOCAL: u16 = 2;
    pub(crate) const FLAGS: u16 = 8;
    pub(crate) const NO_DETECTION: u32 = 0x02;
    pub(crate) const OPTIMISTIC: u32 = 0x04;
    pub(crate) const DETECTION_FAILED: u32 = 0x08;
    pub(crate) const TENTATIVE: u32 = 0x40;
}

/// `struct rtmsg`, `RTA_*`.
pub(crate) mod route {
    pub(crate) const HEADER: usize = 12;
    pub(crate) const DESTINATION: u16 = 1;
    pub(crate) const OUTPUT: u16 = 4;
    /// `RTA_PREFSRC`
    pub(crate) const SOURCE: u16 = 7;
    pub(crate) const TABLE: u16 = 15;
}
