//! The questions that a report answers: what was measured for each, and which figure stands for a run.

mod changing;
mod connecting;
mod footprint;
mod live_cluster;
mod rates;
mod stacks;
mod syncing;

use std::borrow::Cow;

pub(crate) use changing::QUESTIONS as CHANGING;
pub(crate) use connecting::QUESTIONS as CONNECTING;
pub(crate) use footprint::QUESTIONS as FOOTPRINT;
pub(crate) use live_cluster::QUESTIONS as LIVE_CLUSTER;
pub(crate) use rates::RATES;
pub use rates::Rate;
pub(crate) use stacks::STACKS;
pub use stacks::Stack;
pub(crate) use syncing::{DISTURBANCES, FIRST_SYNC};

/// One question: one row of figures for each contender.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The measure whose samples answer it.
    pub measure: Cow<'static, str>,
    pub title: Cow<'static, str>,
    /// How it was measured, in a sentence.
    pub how: &'static str,
    pub unit: Unit,
    pub statistic: Statistic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
    Count,
    PerSecond,
    /// CPU seconds for each second.
    Cores,
}

/// Which figure of one run's values is meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistic {
    /// 0.5 is the median, 1 the largest. Of a single value, that value.
    Quantile(f64),
}

const P1: Statistic = Statistic::Quantile(0.01);
const P10: Statistic = Statistic::Quantile(0.1);
const MEDIAN: Statistic = Statistic::Quantile(0.5);
const P90: Statistic = Statistic::Quantile(0.9);
const P99: Statistic = Statistic::Quantile(0.99);
const LARGEST: Statistic = Statistic::Quantile(1.0);

/// All questions that stand for themselves, in the order of a report.
pub fn questions() -> impl Iterator<Item = &'static Question> {
    [FIRST_SYNC, CHANGING, FOOTPRINT, CONNECTING, DISTURBANCES, LIVE_CLUSTER].into_iter().flatten()
}

impl Question {
    /// A name for anchors and files.
    pub fn slug(&self) -> String {
        slug(&self.measure, self.statistic)
    }
}

fn slug(measure: &str, statistic: Statistic) -> String {
    let Statistic::Quantile(share) = statistic;
    format!("{measure}-{:.0}", share * 100.0)
}

const fn question(
    measure: &'static str,
    title: &'static str,
    how: &'static str,
    unit: Unit,
    statistic: Statistic,
) -> Question {
    Question { measure: Cow::Borrowed(measure), title: Cow::Borrowed(title), how, unit, statistic }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{Question, questions};

    #[test]
    fn no_two_questions_share_a_name() {
        let slugs: HashSet<String> = questions().map(Question::slug).collect();
        assert_eq!(slugs.len(), questions().count());
    }
}
