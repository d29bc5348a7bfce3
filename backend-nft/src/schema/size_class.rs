//! Size classes of endpoint lists: exact up to 64 endpoints, then eight to a doubling.
//!
//! One set of chains serves every list of a class. Classes are bounded because each commit of nf_tables walks every
//! chain of the network namespace.

use std::fmt;

/// Lists up to this long have a class of their own.
const EXACT: u32 = 64;
/// Classes to a doubling above that.
const STEPS: u32 = 8;

/// The class of a list's length. Class 1 also serves empty lists (whose slot 0 is missing).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SizeClass(u8);

impl SizeClass {
    /// The longest list that a class exists for.
    pub(crate) const LONGEST: u32 = 1 << 20;

    /// The class of a list of `length` endpoints. Longer ones than [`Self::LONGEST`] fall into the last class: the
    /// caller cuts the list.
    pub(crate) fn of(length: usize) -> Self {
        let length = u32::try_from(length).unwrap_or(u32::MAX).clamp(1, Self::LONGEST);
        if length <= EXACT {
            return Self(length as u8);
        }
        // 65..=128 is doubling 0, 129..=256 doubling 1, and so on.
        let doubling = (length - 1).ilog2() - EXACT.ilog2();
        let step_width = (EXACT << doubling) / STEPS;
        let step = (length - (EXACT << doubling)).div_ceil(step_width);
        Self((EXACT + doubling * STEPS + step) as u8)
    }

    /// The class of an index that [`Self::index`] gave.
    pub(crate) fn from_index(index: u8) -> Self {
        Self(index.max(1))
    }

    /// The number that stands for it in a map's value; never 0, at most 176.
    pub(crate) fn index(self) -> u8 {
        self.0
    }

    /// The longest list of this class.
    pub(crate) fn upper(self) -> u32 {
        let index = u32::from(self.0);
        if index <= EXACT {
            return index;
        }
        let (doubling, step) = ((index - EXACT - 1) / STEPS, (index - EXACT - 1) % STEPS + 1);
        (EXACT << doubling) + step * ((EXACT << doubling) / STEPS)
    }

    /// The longest list of the class below: every list of this class is longer.
    pub(crate) fn lower(self) -> u32 {
        Self(self.0 - 1).upper()
    }

    /// Whether all lists of this class have the same length.
    pub(crate) fn exact(self) -> bool {
        u32::from(self.0) <= EXACT
    }
}

impl fmt::Display for SizeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.upper())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_lies_between_the_bounds_of_its_class() {
        for length in 1..=SizeClass::LONGEST {
            let class = SizeClass::of(length as usize);
            assert!(class.upper() >= length, "{length}");
            assert!(class.lower() < length, "{length}");
            assert_eq!(class.exact(), length <= EXACT);
        }
    }

    #[test]
    fn a_class_is_at_most_an_eighth_wider_than_the_one_below() {
        for length in EXACT + 1..=SizeClass::LONGEST {
            let class = SizeClass::of(length as usize);
            assert!(class.upper() * 8 <= class.lower() * 9);
        }
    }

    #[test]
    fn there_are_176_classes() {
        assert_eq!(SizeClass::of(SizeClass::LONGEST as usize).index(), 176);
        assert_eq!(SizeClass::of(SizeClass::LONGEST as usize).upper(), SizeClass::LONGEST);
        assert_eq!(SizeClass::of(0), SizeClass::of(1));
        assert_eq!(SizeClass::of(65).upper(), 72);
    }
}
