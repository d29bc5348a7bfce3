//! How many elements each of our sets must have, and a sum over them that any other content is unlike.

use nft_netlink::list::{FoundData, FoundElement};

use crate::{
    kernel::encode_set::{data_bytes, key_bytes},
    schema::element::Element,
};

/// What is known of a set without remembering its elements. The sum does not depend on their order, and an element
/// that goes takes away what it brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    count: u32,
    sum: u64,
    /// Ranges up to the last of all addresses.
    open: u32,
}

impl Tally {
    pub(crate) fn add(&mut self, element: &Element) {
        let (key, end) = key_bytes(&element.key);
        let open = end.is_some_and(|end| end.as_slice().iter().all(|byte| *byte == 0xff));
        let sum = digest(key.as_slice(), data_bytes(&element.data).as_slice());
        self.include(Self { count: 1, sum, open: open.into() });
    }

    pub(crate) fn include(&mut self, other: Self) {
        self.count = self.count.wrapping_add(other.count);
        self.sum = self.sum.wrapping_add(other.sum);
        self.open = self.open.wrapping_add(other.open);
    }

    pub(crate) fn remove(&mut self, other: Self) {
        self.count = self.count.wrapping_sub(other.count);
        self.sum = self.sum.wrapping_sub(other.sum);
        self.open = self.open.wrapping_sub(other.open);
    }

    /// What the kernel says of the set's size. A range is two elements to it, of which it tells half, rounded down; but
    /// one that goes to the last address has no second (seen on 6.18 and 7.2).
    pub(crate) const fn counted(&self) -> u32 {
        self.count - self.open.div_ceil(2)
    }

    /// Whether a set that was read holds the same.
    pub(crate) const fn is_like(&self, found: &Self) -> bool {
        self.count == found.count && self.sum == found.sum
    }

    /// Adds an element as the kernel lists it.
    pub(crate) fn add_found(&mut self, found: &FoundElement) {
        // The end of a range is an element of its own there.
        if found.interval_end {
            return;
        }
        // Where verdicts lead to, the chains' uses tell.
        let data = if let FoundData::Value(data) = &found.data { data.as_slice() } else { &[] };
        self.include(Self { count: 1, sum: digest(&found.key, data), open: 0 });
    }
}

/// FNV-1a over eight bytes at a time, its bits mixed once more so that sums of it do not cancel out.
fn digest(key: &[u8], data: &[u8]) -> u64 {
    const PRIME: u64 = 0x100_0000_01b3;
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ (key.len() as u64) << 32 ^ data.len() as u64;
    for part in [key, data] {
        for chunk in part.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(PRIME);
            hash ^= hash >> 29;
        }
    }
    hash = (hash ^ hash >> 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 31
}

#[cfg(test)]
mod tests {
    use proxy_core::model::Protocol;

    use super::*;
    use crate::schema::{element::Key, name::Set};

    fn endpoint(slot: u32, port: u16) -> Element {
        let key = Key::IdProtocolSlot(7, Protocol::Tcp, slot);
        Element::target(Set::Endpoints, key, std::net::Ipv4Addr::LOCALHOST.into(), port)
    }

    #[test]
    fn the_order_does_not_matter_and_every_part_of_an_element_does() {
        let of = |elements: &[Element]| {
            let mut tally = Tally::default();
            elements.iter().for_each(|element| tally.add(element));
            tally
        };
        let both = of(&[endpoint(0, 80), endpoint(1, 81)]);
        assert_eq!(both, of(&[endpoint(1, 81), endpoint(0, 80)]));
        assert_ne!(both, of(&[endpoint(0, 81), endpoint(1, 80)]), "data exchanged");
        assert_ne!(both, of(&[endpoint(0, 80), endpoint(2, 81)]));
        let (mut rest, one) = (both, of(&[endpoint(1, 81)]));
        rest.remove(one);
        assert_eq!(rest, of(&[endpoint(0, 80)]));
        rest.include(one);
        assert_eq!(rest, both);
    }

    #[test]
    fn an_element_listed_counts_as_the_one_that_was_written() {
        let element = endpoint(3, 8080);
        let mut written = Tally::default();
        written.add(&element);
        let mut found = Tally::default();
        found.add_found(&FoundElement {
            key: key_bytes(&element.key).0.as_slice().to_vec(),
            key_end: None,
            data: FoundData::Value(data_bytes(&element.data).as_slice().to_vec()),
            interval_end: false,
            timeout: None,
            expires: None,
            comment: None,
            counted: None,
        });
        assert!(written.is_like(&found));
    }
}
