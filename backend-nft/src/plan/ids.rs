//! Numbers for groups and for sticky Service ports; what a plan took is given back if the plan had no effect.

use std::collections::VecDeque;

use crate::schema::value::{STICKY_PORTS, WIDE_PORTS};

/// Group ids. They go upwards first and are used again only then, so that a freed one is not another's at once.
#[derive(Debug)]
pub(crate) struct GroupIds {
    next: u32,
    most: u32,
    free: VecDeque<u32>,
    /// What was taken from the free ones, and how many were given back, since all was settled.
    retaken: Vec<u32>,
    returned: usize,
}

impl GroupIds {
    /// Ids from 1 to `most`.
    pub(crate) fn new(most: u32) -> Self {
        Self { next: 1, most, free: VecDeque::new(), retaken: Vec::new(), returned: 0 }
    }

    /// `None`: there are as many lists as there are ids.
    pub(crate) fn take(&mut self) -> Option<u32> {
        if self.next <= self.most {
            self.next += 1;
            return Some(self.next - 1);
        }
        let id = self.free.pop_front()?;
        self.retaken.push(id);
        Some(id)
    }

    /// Nothing leads to this list any more, nor is it there.
    pub(crate) fn give_back(&mut self, id: u32) {
        self.free.push_back(id);
        self.returned += 1;
    }

    /// For [`Self::undo`].
    pub(crate) fn mark(&self) -> u32 {
        self.next
    }

    pub(crate) fn keep(&mut self) {
        self.retaken.clear();
        self.returned = 0;
    }

    pub(crate) fn undo(&mut self, mark: u32) {
        self.next = mark;
        self.free.truncate(self.free.len() - self.returned);
        while let Some(id) = self.retaken.pop() {
            self.free.push_front(id);
        }
        self.returned = 0;
    }
}

/// Ids of sticky Service ports. They go round, so that a freed one is not another's at once.
#[derive(Debug)]
pub(crate) struct PortIds {
    used: Vec<bool>,
    cursor: u32,
    /// Where the cursor stood when all was settled.
    settled: u32,
    log: Vec<(u16, bool, bool)>,
}

impl PortIds {
    pub(crate) fn new() -> Self {
        Self { used: vec![false; STICKY_PORTS as usize], cursor: 0, settled: 0, log: Vec::new() }
    }

    fn width(wide: bool) -> u32 {
        if wide { WIDE_PORTS } else { 1 }
    }

    fn range(id: u16, wide: bool) -> std::ops::Range<usize> {
        usize::from(id)..usize::from(id) + Self::width(wide) as usize
    }

    /// `None` when all are taken.
    pub(crate) fn take(&mut self, wide: bool) -> Option<u16> {
        let width = Self::width(wide);
        let start = self.cursor.next_multiple_of(width);
        let id = (0..STICKY_PORTS / width)
            .map(|step| ((start + step * width) % STICKY_PORTS) as u16)
            .find(|id| !self.used[Self::range(*id, wide)].contains(&true))?;
        self.cursor = (u32::from(id) + width) % STICKY_PORTS;
        self.set(id, wide, true);
        Some(id)
    }

    /// Takes this very one, if it is free and suits.
    pub(crate) fn claim(&mut self, id: u16, wide: bool) -> bool {
        let suits = u32::from(id).is_multiple_of(Self::width(wide))
            && !self.used[Self::range(id, wide)].contains(&true);
        if suits {
            self.set(id, wide, true);
            self.cursor = self.cursor.max((u32::from(id) + Self::width(wide)) % STICKY_PORTS);
        }
        suits
    }

    pub(crate) fn give_back(&mut self, id: u16, wide: bool) {
        self.set(id, wide, false);
    }

    fn set(&mut self, id: u16, wide: bool, used: bool) {
        self.used[Self::range(id, wide)].fill(used);
        self.log.push((id, wide, used));
    }

    pub(crate) fn keep(&mut self) {
        self.log.clear();
        self.settled = self.cursor;
    }

    pub(crate) fn undo(&mut self) {
        while let Some((id, wide, used)) = self.log.pop() {
            self.used[Self::range(id, wide)].fill(!used);
        }
        self.cursor = self.settled;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_went_makes_room_for_another_and_a_failed_plan_changes_nothing() {
        let mut ids = GroupIds::new(2);
        assert_eq!([ids.take(), ids.take(), ids.take()], [Some(1), Some(2), None]);
        ids.keep();
        ids.give_back(2);
        ids.undo(ids.mark());
        assert_eq!(ids.take(), None, "it was not given back after all");
        ids.give_back(2);
        ids.keep();
        assert_eq!([ids.take(), ids.take()], [Some(2), None]);
        ids.undo(ids.mark());
        assert_eq!(ids.take(), Some(2));
    }

    #[test]
    fn wide_ports_are_aligned_and_do_not_overlap_narrow_ones() {
        let mut ids = PortIds::new();
        assert_eq!(ids.take(false), Some(0));
        assert_eq!(ids.take(true), Some(32));
        assert_eq!(ids.take(false), Some(64));
        assert!(!ids.claim(33, false));
        assert!(ids.claim(96, true));
    }

    #[test]
    fn what_a_failed_plan_took_is_free_again() {
        let mut ids = PortIds::new();
        ids.take(false);
        ids.keep();
        ids.take(true);
        ids.give_back(0, false);
        ids.undo();
        assert!(ids.claim(32, true));
        assert!(!ids.claim(0, false));
    }

    #[test]
    fn all_ports_can_be_taken_and_no_more() {
        let mut ids = PortIds::new();
        for _ in 0..STICKY_PORTS {
            assert!(ids.take(false).is_some());
        }
        assert_eq!(ids.take(false), None);
        ids.give_back(7, false);
        assert_eq!(ids.take(false), Some(7));
    }
}
