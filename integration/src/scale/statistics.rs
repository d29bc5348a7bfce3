//! Medians, quantiles, spread, and the rule by which two results may be compared.

use serde::{Deserialize, Serialize};

/// Fewer runs than this say nothing about noise.
pub const FEWEST_RUNS: usize = 3;

/// One figure from several runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
    pub runs: usize,
}

/// How two figures relate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Comparison {
    /// The first is this many times the second, and no run of one came near a run of the other.
    Ratio(f64),
    /// Some run of one lies among the runs of the other: there may be no difference at all.
    WithinNoise(f64),
    /// Not repeated often enough to know the noise.
    TooFewRuns(f64),
    /// One of them is zero or less.
    Undefined,
}

/// The value below which a share of the values lies, between neighbours by proportion. `None` of nothing.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let place = share.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)?) as f64;
    let below = place.floor();
    // `place` is at most the last index.
    let (low, high) = (sorted[below as usize], sorted[place.ceil() as usize]);
    Some(low + (high - low) * (place - below))
}

impl Summary {
    /// `None` of nothing.
    pub fn of(runs: &[f64]) -> Option<Self> {
        Some(Self {
            median: quantile(runs, 0.5)?,
            least: quantile(runs, 0.0)?,
            most: quantile(runs, 1.0)?,
            runs: runs.len(),
        })
    }

    pub fn compare(&self, other: &Self) -> Comparison {
        if other.median <= 0.0 || self.median <= 0.0 {
            return Comparison::Undefined;
        }
        let ratio = self.median / other.median;
        if self.least <= other.most && other.least <= self.most {
            Comparison::WithinNoise(ratio)
        } else if self.runs < FEWEST_RUNS || other.runs < FEWEST_RUNS {
            Comparison::TooFewRuns(ratio)
        } else {
            Comparison::Ratio(ratio)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Comparison, Summary, quantile};

    fn summary(runs: &[f64]) -> Summary {
        Summary::of(runs).expect("not empty")
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&values, 0.5), Some(2.5));
        assert_eq!(quantile(&values, 1.0), Some(4.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn clear_results_are_a_ratio() {
        let (slow, fast) = (summary(&[10.0, 11.0, 12.0]), summary(&[1.0, 1.1, 1.2]));
        assert!(matches!(slow.compare(&fast), Comparison::Ratio(ratio) if (9.9..10.1).contains(&ratio)));
    }

    #[test]
    fn runs_that_overlap_are_no_ratio_whatever_their_medians() {
        let (one, other) = (summary(&[10.0, 11.0, 40.0]), summary(&[30.0, 35.0, 39.0]));
        assert!(matches!(one.compare(&other), Comparison::WithinNoise(_)));
        assert!(matches!(other.compare(&one), Comparison::WithinNoise(_)));
    }

    #[test]
    fn two_runs_are_too_few_for_a_ratio() {
        let (one, other) = (summary(&[10.0, 11.0]), summary(&[1.0, 1.0, 1.0]));
        assert!(matches!(one.compare(&other), Comparison::TooFewRuns(_)));
    }

    #[test]
    fn nothing_is_divided_by_zero() {
        assert_eq!(summary(&[1.0]).compare(&summary(&[0.0])), Comparison::Undefined);
    }
}
