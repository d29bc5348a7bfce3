//! About how many nodes the cluster has, from the names that endpoints carry: a node that knows it can leave it to a few
//! to say what all of them see. No request is made for it.

use std::{
    collections::BTreeSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The smallest hashes that were seen: where they lie close together there are many names. Up to this number the answer
/// is exact, beyond it within about a quarter.
const KEPT: usize = 64;

#[derive(Debug)]
pub(crate) struct ClusterSize {
    smallest: Mutex<BTreeSet<u64>>,
    /// Only what is smaller is of interest.
    bound: AtomicU64,
}

/// The cluster of this process, as its endpoints show it.
pub(crate) static SEEN: ClusterSize = ClusterSize::new();

impl ClusterSize {
    pub(crate) const fn new() -> Self {
        Self { smallest: Mutex::new(BTreeSet::new()), bound: AtomicU64::new(u64::MAX) }
    }

    /// An endpoint is on this node.
    pub(crate) fn saw(&self, node: &str) {
        let hash = hash(&[node]);
        if hash >= self.bound.load(Ordering::Relaxed) {
            return;
        }
        let mut smallest = self.smallest.lock().unwrap_or_else(PoisonError::into_inner);
        smallest.insert(hash);
        if smallest.len() > KEPT {
            smallest.pop_last();
        }
        if smallest.len() == KEPT
            && let Some(last) = smallest.last()
        {
            self.bound.store(*last, Ordering::Relaxed);
        }
    }

    /// At least 1.
    pub(crate) fn nodes(&self) -> u64 {
        let smallest = self.smallest.lock().unwrap_or_else(PoisonError::into_inner);
        match smallest.last() {
            Some(last) if smallest.len() == KEPT => {
                let share = *last as f64 / u64::MAX as f64;
                ((KEPT - 1) as f64 / share) as u64
            }
            _ => smallest.len().max(1) as u64,
        }
    }
}

/// The same on every node, whatever it was built with; all bits depend on all bytes (FNV-1a, then the last steps of
/// MurmurHash3).
pub(crate) fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_names_is_about_right() {
        for nodes in [0_u64, 1, 10, 60, 500, 5_000, 50_000] {
            let size = ClusterSize::new();
            for _ in 0..2 {
                (0..nodes).for_each(|node| size.saw(&format!("worker-{node}.example.com")));
            }
            let found = size.nodes();
            if nodes < KEPT as u64 {
                assert_eq!(found, nodes.max(1));
            } else {
                assert!((nodes / 2..nodes * 2).contains(&found), "{nodes}: {found}");
            }
        }
    }
}
