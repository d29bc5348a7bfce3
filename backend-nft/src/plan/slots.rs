//! Dense slots: a list's members stand in slots 0 to N-1 in any order; a change touches as few slots as it can.

use std::collections::BTreeMap;

/// What becomes of one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotChange<T> {
    pub(crate) slot: u32,
    pub(crate) before: Option<T>,
    pub(crate) after: Option<T>,
}

/// Takes the members `gone` (sorted) out of `slots` and puts `new` ones in, and says what changed. New members go into the
/// holes of those that left, else to the end; a hole that remains is filled by the last member.
pub(crate) fn refill<T: Ord + Copy>(
    slots: &mut Vec<T>,
    gone: &[T],
    new: impl IntoIterator<Item = T>,
) -> Vec<SlotChange<T>> {
    let mut holes = Vec::with_capacity(gone.len());
    if !gone.is_empty() {
        let left = slots.iter().enumerate().filter(|(_, member)| gone.binary_search(member).is_ok());
        holes.extend(left.map(|(slot, _)| slot));
    }
    // What stood in a slot before the first touch.
    let mut touched: BTreeMap<usize, T> = BTreeMap::new();
    let length = slots.len();
    let mut free = holes.iter();
    for member in new {
        match free.next() {
            Some(&slot) => {
                touched.entry(slot).or_insert(slots[slot]);
                slots[slot] = member;
            }
            None => slots.push(member),
        }
    }
    // From the end, so that what is moved into a hole is never a hole itself.
    for &slot in free.rev() {
        let last = slots.len() - 1;
        if slot != last {
            touched.entry(slot).or_insert(slots[slot]);
        }
        touched.entry(last).or_insert(slots[last]);
        slots.swap_remove(slot);
    }
    let mut changes: Vec<_> = touched
        .into_iter()
        .map(|(slot, before)| SlotChange {
            slot: slot as u32,
            before: Some(before),
            after: slots.get(slot).copied(),
        })
        .collect();
    let appended = slots.iter().enumerate().skip(length);
    changes.extend(appended.map(|(slot, member)| SlotChange {
        slot: slot as u32,
        before: None,
        after: Some(*member),
    }));
    changes
}

/// What is in the first sorted list only.
pub(crate) fn difference<'t, T: Ord>(of: &'t [T], without: &'t [T]) -> impl Iterator<Item = &'t T> {
    let mut rest = without;
    of.iter().filter(move |item| {
        while rest.first().is_some_and(|first| first < *item) {
            rest = &rest[1..];
        }
        rest.first() != Some(*item)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::plan::slots::difference;

    proptest! {
        #[test]
        fn slots_hold_what_is_wanted_and_the_changes_say_how(
            before in proptest::collection::btree_set(0_u8..40, 0..30),
            order in any::<u64>(),
            wanted in proptest::collection::btree_set(0_u8..40, 0..30),
        ) {
            let mut slots: Vec<u8> = before.into_iter().collect();
            if !slots.is_empty() {
                let length = slots.len();
                slots.rotate_left(order as usize % length);
            }
            let mut replayed: Vec<Option<u8>> = slots.iter().copied().map(Some).collect();
            let wanted: Vec<u8> = wanted.into_iter().collect();
            let kept = slots.iter().filter(|member| wanted.contains(member)).count();
            let (old, new) = (slots.len(), wanted.len());
            let mut had = slots.clone();
            had.sort_unstable();
            let gone: Vec<u8> = difference(&had, &wanted).copied().collect();
            let changes = refill(&mut slots, &gone, difference(&wanted, &had).copied());
            for change in &changes {
                let slot = change.slot as usize;
                if slot >= replayed.len() {
                    replayed.resize(slot + 1, None);
                }
                prop_assert_eq!(replayed[slot], change.before);
                replayed[slot] = change.after;
            }
            while replayed.last() == Some(&None) {
                replayed.pop();
            }
            prop_assert_eq!(&replayed, &slots.iter().copied().map(Some).collect::<Vec<_>>());
            let mut sorted = slots;
            sorted.sort_unstable();
            prop_assert_eq!(sorted, wanted);
            let least = (old - kept).max(new - kept);
            prop_assert!(changes.len() <= 2 * least);
        }
    }
}
