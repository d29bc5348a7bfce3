//! Questions that are asked at several rates of changes, and answered by one curve.

use std::borrow::Cow;

use crate::scale::results::Results;

use super::{MEDIAN, P99, Question, Statistic, Unit, slug};

/// What is asked at each rate.
#[derive(Debug)]
pub struct Rate {
    /// Of the measure `churn-RATE`, or what follows it.
    ending: &'static str,
    pub(crate) title: &'static str,
    pub(crate) how: &'static str,
    unit: Unit,
    statistic: Statistic,
}

/// In the order of a report.
pub(crate) const RATES: &[Rate] = &[
    Rate {
        ending: "",
        title: "How late does a change arrive at so many changes a second? (median)",
        how: "One endpoint of a random Service is replaced at that rate; a change of another Service is followed until a packet shows it.",
        unit: Unit::Seconds,
        statistic: MEDIAN,
    },
    Rate {
        ending: "",
        title: "At so many changes a second, 99 % arrive within",
        how: "As above.",
        unit: Unit::Seconds,
        statistic: P99,
    },
    Rate {
        ending: "-cpu",
        title: "How much CPU, at so many changes a second?",
        how: "CPU time of the process and of its children that ended, user and system, for each second.",
        unit: Unit::Cores,
        statistic: MEDIAN,
    },
    Rate {
        ending: "-backlog",
        title: "How far behind is it after so many changes a second?",
        how: "From the last change of the churn until one more change, made after it, is in effect.",
        unit: Unit::Seconds,
        statistic: MEDIAN,
    },
    Rate {
        ending: "-failed",
        title: "How many new connections fail at so many changes a second, of a million?",
        how: "Connections to the Services under change, one a millisecond at most; all endpoints are up all the time.",
        unit: Unit::Count,
        statistic: MEDIAN,
    },
];

impl Rate {
    pub(crate) fn slug(&self) -> String {
        slug(&format!("churn{}", self.ending), self.statistic)
    }

    /// The question at each rate that was measured, slowest first.
    pub(crate) fn points(&self, results: &Results) -> Vec<(u32, Question)> {
        let mut rates: Vec<u32> =
            results.samples.iter().filter_map(|sample| self.rate_of(&sample.measure)).collect();
        rates.sort_unstable();
        rates.dedup();
        rates.into_iter().map(|rate| (rate, self.at(rate))).collect()
    }

    fn at(&self, rate: u32) -> Question {
        Question {
            measure: format!("churn-{rate}{}", self.ending).into(),
            title: Cow::Borrowed(self.title),
            how: self.how,
            unit: self.unit,
            statistic: self.statistic,
        }
    }

    fn rate_of(&self, measure: &str) -> Option<u32> {
        measure.strip_prefix("churn-")?.strip_suffix(self.ending)?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::RATES;

    #[test]
    fn a_rate_is_read_from_the_measure_it_belongs_to_and_from_no_other() {
        let rates = |measure| RATES.iter().filter_map(|rate| rate.rate_of(measure)).collect::<Vec<u32>>();
        assert_eq!(rates("churn-100"), [100, 100], "median and 99 %");
        assert_eq!(rates("churn-1000-backlog"), [1000]);
        assert!(rates("churn-own").is_empty() && rates("churn-own-cpu").is_empty());
    }
}
