//! IP addresses as attributes and as the kernel's family numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attr::{Attribute, Writer};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressFamily {
    V4,
    V6,
}

impl AddressFamily {
    pub(crate) const fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `AF_INET` or `AF_INET6`, which are `NFPROTO_*` as well.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// The length of a prefix that covers this address alone.
pub(crate) const fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

pub(crate) fn write_ip(writer: &mut Writer, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => writer.bytes(kind, &address.octets()),
        IpAddr::V6(address) => writer.bytes(kind, &address.octets()),
    }
}

pub(crate) fn read_ip(attribute: &Attribute<'_>) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(attribute.value) {
        return Some(Ipv4Addr::from(bytes).into());
    }
    <[u8; 16]>::try_from(attribute.value).ok().map(|bytes| Ipv6Addr::from(bytes).into())
}
