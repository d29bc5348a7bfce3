//! Packet marks that select the virtual server of a short circuit: one per Service port that needs it.

use std::{hash::Hasher, sync::Arc};

use proxy_core::model::ServicePortName;

use crate::{plan::journal::Journal, settings::MarkSpace};

#[derive(Debug, Default)]
pub(crate) struct Marks {
    space: MarkSpace,
    by_name: Journal<ServicePortName, u32>,
    by_mark: Journal<u32, ServicePortName>,
}

impl Marks {
    pub(crate) fn of(space: MarkSpace) -> Self {
        Self { space, ..Self::default() }
    }

    pub(crate) fn get(&self, name: &ServicePortName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The mark of a Service port, which it keeps until it is released. It follows from the name, so that a new process
    /// finds the old one's virtual servers; where two names meet, the later one takes the next free mark.
    /// `None` where there is none left.
    pub(crate) fn assign(&mut self, name: &ServicePortName) -> Option<u32> {
        if let Some(mark) = self.get(name) {
            return Some(mark);
        }
        let last = self.space.last();
        let first = digest(name);
        // Few tries: the default has 16 million, and one that has few is soon looked through.
        let mark = (0..=last)
            .map(|further| first.wrapping_add(further) & last)
            .filter(|number| *number != 0)
            .map(|number| self.space.nth(number))
            .find(|mark| self.by_mark.get(mark).is_none())?;
        self.by_name.set(name.clone(), Some(mark));
        self.by_mark.set(mark, Some(name.clone()));
        Some(mark)
    }

    pub(crate) fn release(&mut self, name: &ServicePortName) {
        if let Some(mark) = self.get(name) {
            self.by_name.set(name.clone(), None);
            self.by_mark.set(mark, None);
        }
    }

    pub(crate) fn commit(&mut self) {
        self.by_name.commit();
        self.by_mark.commit();
    }

    pub(crate) fn roll_back(&mut self) {
        self.by_name.roll_back();
        self.by_mark.roll_back();
    }
}

/// FNV-1a; std's hashers may change from release to release.
fn digest(name: &ServicePortName) -> u32 {
    struct Fnv(u64);
    impl Hasher for Fnv {
        fn finish(&self) -> u64 {
            self.0
        }
        fn write(&mut self, bytes: &[u8]) {
            for byte in bytes {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    let port: &Arc<str> = &name.port;
    hash.write(format!("{}:{port}/{}", name.service, name.protocol).as_bytes());
    let hash = hash.finish();
    (hash ^ (hash >> 24) ^ (hash >> 48)) as u32
}

#[cfg(test)]
mod tests {
    use proxy_core::model::{ObjectName, Protocol};

    use super::*;

    fn name(number: u32) -> ServicePortName {
        ServicePortName {
            service: ObjectName::new("default", &format!("service-{number}")),
            port: "http".into(),
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn every_service_port_has_a_mark_of_its_own_and_never_the_sentinel() {
        for space in ["0x53000000/0xff000000", "0x20000000/0xaffff000"] {
            let space: MarkSpace = space.parse().expect("good");
            let mut marks = Marks::of(space);
            let assigned: std::collections::HashSet<u32> =
                (0..10_000).filter_map(|number| marks.assign(&name(number))).collect();
            assert_eq!(assigned.len(), 10_000);
            assert!(
                assigned.iter().all(|mark| mark & space.mask() == space.tag() && *mark != space.sentinel())
            );
        }
    }

    #[test]
    fn a_mark_follows_from_the_name_and_is_kept_until_released() {
        let (mut one, mut other) = (Marks::default(), Marks::default());
        let mark = one.assign(&name(7)).expect("many are free");
        other.assign(&name(8));
        assert_eq!(other.assign(&name(7)), Some(mark));
        assert_eq!(one.assign(&name(7)), Some(mark));
        one.commit();
        one.release(&name(7));
        assert_eq!(one.get(&name(7)), None);
        one.roll_back();
        assert_eq!(one.get(&name(7)), Some(mark));
    }

    #[test]
    fn where_no_mark_is_left_there_is_none() {
        let mut marks = Marks::of("0x400/0xfffffc00".parse().expect("good"));
        let assigned = (0..2_000).filter_map(|number| marks.assign(&name(number))).count();
        assert_eq!(assigned, 1_023, "all but the sentinel");
        marks.release(&name(3));
        assert!(marks.assign(&name(1_999)).is_some());
    }
}
