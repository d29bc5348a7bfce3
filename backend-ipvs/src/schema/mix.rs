//! Numbers spread over all bits: for orders and imprints.

use std::net::IpAddr;

/// The finaliser of SplitMix64, which spreads every bit of its input.
pub(crate) fn mix(state: u64, value: u64) -> u64 {
    let mut mixed = (state ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

pub(crate) fn number(addr: IpAddr) -> u64 {
    match addr {
        IpAddr::V4(addr) => u64::from(addr.to_bits()),
        IpAddr::V6(addr) => mix((addr.to_bits() >> 64) as u64, addr.to_bits() as u64),
    }
}
