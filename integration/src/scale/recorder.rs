//! Takes down what one run finds.

use std::time::Duration;

use super::completeness::Completion;
use super::disturbance::Disturbed;
use super::flood::Flooded;
use super::machine;
use super::removal::Removed;
use super::results::Sample;

/// Names of the floors, which are measured before every contender.
pub(crate) const FLOORS: [&str; 2] = ["floor: one DNAT rule", "floor: no translation"];

/// Takes samples of one run.
pub(crate) struct Recorder<'a> {
    pub(crate) contender: String,
    pub(crate) workload: &'a str,
    pub(crate) repetition: usize,
    pub(crate) samples: Vec<Sample>,
    pub(crate) say: &'a mut dyn FnMut(&str),
}

impl Recorder<'_> {
    pub(crate) fn note(&mut self, measure: &str, values: Vec<f64>) {
        if !values.is_empty() {
            self.add(self.contender.clone(), measure, values, None);
        }
    }

    pub(crate) fn unfinished(&mut self, measure: &str, why: String) {
        self.add(self.contender.clone(), measure, Vec::new(), Some(why));
    }

    pub(crate) fn add(
        &mut self,
        contender: String,
        measure: &str,
        values: Vec<f64>,
        unfinished: Option<String>,
    ) {
        self.samples.push(Sample {
            measure: measure.to_owned(),
            contender,
            workload: self.workload.to_owned(),
            repetition: self.repetition,
            values,
            unfinished,
            load: machine::load(),
        });
    }

    /// Where a first sync's time went, by the contender's own account; the rest of the whole is nobody's.
    pub(crate) fn note_phases(&mut self, phases: &[(String, f64)], whole: f64) {
        if phases.is_empty() {
            return;
        }
        for (phase, seconds) in phases {
            self.note(&format!("first-sync-{phase}"), vec![*seconds]);
        }
        let told: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
        self.note("first-sync-rest", vec![(whole - told).max(0.0)]);
    }

    /// What a restart or a change of the mode brought.
    pub(crate) fn note_disturbed(&mut self, measure: &str, disturbed: &Disturbed) {
        match disturbed.completion {
            Completion::After(elapsed) => {
                self.note(measure, vec![elapsed.as_secs_f64()]);
                self.note(&format!("{measure}-user"), vec![disturbed.cpu.0]);
                self.note(&format!("{measure}-system"), vec![disturbed.cpu.1]);
            }
            Completion::Unfinished { unanswered } => {
                self.unfinished(measure, format!("{unanswered} changes were not in effect in time"));
            }
        }
        if disturbed.held > 0 {
            self.note(&format!("{measure}-broken"), vec![disturbed.broken as f64]);
        }
        self.note_failed(measure, disturbed.flooded);
    }

    /// What the removal of endpoints brought.
    pub(crate) fn note_removed(&mut self, removed: &Removed, limit: Duration) {
        match removed.completion {
            Completion::After(elapsed) => self.note("removal", vec![elapsed.as_secs_f64()]),
            Completion::Unfinished { unanswered } => self.unfinished("removal", lost(unanswered, limit)),
        }
        if removed.settled {
            self.note("removal-broken", vec![removed.broken as f64]);
        } else {
            self.unfinished("removal-broken", lost(1, limit));
        }
        self.note_failed("removal", removed.flooded);
    }

    /// How many new connections failed meanwhile.
    pub(crate) fn note_failed(&mut self, measure: &str, flooded: Flooded) {
        if flooded.tried > 0 {
            let of_a_million = flooded.failed as f64 * 1e6 / flooded.tried as f64;
            self.note(&format!("{measure}-failed"), vec![of_a_million]);
        }
    }
}

/// Why a figure is missing.
pub(crate) fn lost(count: usize, limit: Duration) -> String {
    format!("{count} changes had no effect within {} s", limit.as_secs())
}
