//! Packet marks that select the virtual server of a short circuit: one per Service port that needs it.

use std::{hash::Hasher, sync::Arc};

use proxy_core::model::ServicePortName;

use crate::{
    plan::journal::Journal,
    schema::ownership::{TAG, TAG_MASK},
};

#[derive(Debug, Default)]
pub(crate) struct Marks {
    by_name: Journal<ServicePortName, u32>,
    by_mark: Journal<u32, ServicePortName>,
}

impl Marks {
    pub(crate) fn get(&self, name: &ServicePortName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The mark of a Service port, which it keeps until it is released. It follows from the name, so that a new process
    /// finds the old one's virtual servers; where two names meet, the later one takes the next free mark.
    pub(crate) fn assign(&mut self, name: &ServicePortName) -> u32 {
        if let Some(mark) = self.get(name) {
            return mark;
        }
        let mut low = digest(name);
        // There are more marks than a cluster can have Service ports.
        while low == 0 || self.by_mark.get(&(TAG | low)).is_some() {
            low = (low + 1) & !TAG_MASK;
        }
        let mark = TAG | low;
        self.by_name.set(name.clone(), Some(mark));
        self.by_mark.set(mark, Some(name.clone()));
        mark
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

/// 24 bits of FNV-1a; std's hashers may change from release to release.
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
    ((hash ^ (hash >> 24) ^ (hash >> 48)) & u64::from(!TAG_MASK)) as u32
}

#[cfg(test)]
mod tests {
    use proxy_core::model::{ObjectName, Protocol};

    use super::*;
    use crate::schema::ownership::SENTINEL;

    fn name(number: u32) -> ServicePortName {
        ServicePortName {
            service: ObjectName::new("default", &format!("service-{number}")),
            port: "http".into(),
            protocol: Protocol::Tcp,
        }
    }

    #[test]
    fn every_service_port_has_a_mark_of_its_own_and_never_the_sentinel() {
        let mut marks = Marks::default();
        let assigned: std::collections::HashSet<u32> =
            (0..20_000).map(|number| marks.assign(&name(number))).collect();
        assert_eq!(assigned.len(), 20_000);
        assert!(assigned.iter().all(|mark| mark & TAG_MASK == TAG && *mark != SENTINEL));
    }

    #[test]
    fn a_mark_follows_from_the_name_and_is_kept_until_released() {
        let (mut one, mut other) = (Marks::default(), Marks::default());
        let mark = one.assign(&name(7));
        other.assign(&name(8));
        assert_eq!(other.assign(&name(7)), mark);
        assert_eq!(one.assign(&name(7)), mark);
        one.commit();
        one.release(&name(7));
        assert_eq!(one.get(&name(7)), None);
        one.roll_back();
        assert_eq!(one.get(&name(7)), Some(mark));
    }
}
