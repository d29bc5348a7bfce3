//! One cell of a table, and how one contender stands to another: only where the runs allow it.

use super::quantity::{show, show_summary};
use super::question::Question;
use super::recorder::FLOORS;
use super::results::Results;
use super::statistics::{Comparison, Summary};

/// A VM distorts each backend in its own way; two kinds of VM at least show how far.
pub(crate) fn ratios_allowed(results: &Results, all: &[Results]) -> bool {
    let ran = |kind: &str| all.iter().any(|one| one.machine.guest.as_deref() == Some(kind));
    results.machine.guest.is_none() || (ran("uml") && ran("qemu"))
}

pub(crate) fn cell(results: &Results, question: &Question, workload: &str, contender: &str) -> String {
    let mut parts = Vec::new();
    if let Some(summary) = results.summary(question, workload, contender) {
        parts.push(show_summary(&summary, question.unit));
    }
    let unfinished = results.unfinished(question, workload, contender);
    if let Some(first) = unfinished.first() {
        parts.push(format!("unfinished {}×: {first}", unfinished.len()));
    }
    if parts.is_empty() { "–".to_owned() } else { parts.join("; ") }
}

/// How the others stand to the first contender.
pub(crate) fn comparisons(
    results: &Results,
    all: &[Results],
    question: &Question,
    workload: &str,
) -> Vec<String> {
    if !ratios_allowed(results, all) {
        return Vec::new();
    }
    let contenders = results.contenders_of(&question.measure);
    let mut measured = contenders
        .iter()
        .filter(|name| !FLOORS.contains(name))
        .filter_map(|name| Some((*name, results.summary(question, workload, name)?)));
    let Some((reference, of_reference)) = measured.next() else { return Vec::new() };
    measured.map(|(name, summary)| compare(name, &summary, reference, &of_reference, question)).collect()
}

/// For a cell: how often the first contender's figure this one is; `≈` where their runs overlap.
pub(crate) fn ratio_to_first(
    results: &Results,
    all: &[Results],
    question: &Question,
    workload: &str,
    name: &str,
) -> Option<String> {
    let first = results.contenders_of(&question.measure).into_iter().find(|one| !FLOORS.contains(one))?;
    if first == name || !ratios_allowed(results, all) {
        return None;
    }
    let [one, other] = [name, first].map(|name| results.summary(question, workload, name));
    match one?.compare(&other?) {
        Comparison::Ratio(ratio) => Some(format!("{}×", factor(ratio))),
        Comparison::WithinNoise(_) => Some("≈".to_owned()),
        Comparison::TooFewRuns(_) | Comparison::Undefined => None,
    }
}

fn compare(name: &str, one: &Summary, reference: &str, other: &Summary, question: &Question) -> String {
    let median = |summary: &Summary| show(summary.median, question.unit);
    match one.compare(other) {
        Comparison::Ratio(ratio) => format!("{name} is {} × {reference}", factor(ratio)),
        Comparison::WithinNoise(_) => {
            format!(
                "{name} and {reference} are not told apart: their runs overlap ({} and {})",
                median(one),
                median(other)
            )
        }
        Comparison::TooFewRuns(ratio) => {
            format!("{name} is {} × {reference} in too few runs to know the noise", factor(ratio))
        }
        Comparison::Undefined => format!("{name}: {}, {reference}: {}", median(one), median(other)),
    }
}

fn factor(ratio: f64) -> String {
    if ratio >= 100.0 {
        format!("{ratio:.0}")
    } else if ratio >= 10.0 {
        format!("{ratio:.1}")
    } else {
        format!("{ratio:.2}")
    }
}
