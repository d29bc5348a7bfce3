//! Ratios from both kinds of virtual machine, side by side: where they disagree, the VM was measured and not the backend.

use super::comparison::ratio_to_first;
use super::panel::{Panel, topics};
use super::results::Results;

/// What each kind of VM says of a contender beside the first one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) uml: String,
    pub(crate) qemu: String,
}

/// Empty unless both kinds were run.
pub(crate) fn rows(all: &[Results]) -> Vec<Row> {
    let of_kind = |kind: &str| all.iter().find(|one| one.machine.guest.as_deref() == Some(kind));
    let (Some(uml), Some(qemu)) = (of_kind("uml"), of_kind("qemu")) else { return Vec::new() };
    let mut rows = Vec::new();
    for panel in topics(uml).iter().flat_map(|topic| &topic.panels) {
        // Of several quantiles the median says enough.
        let wanted = if matches!(panel, Panel::One(_)) { 1 } else { usize::MAX };
        for asked in panel.questions().into_iter().take(wanted) {
            for workload in uml.workloads_of(&asked.question.measure) {
                for name in uml.contenders_of(&asked.question.measure) {
                    let ratio = |results| ratio_to_first(results, all, asked.question, workload, name);
                    let (Some(of_uml), Some(of_qemu)) = (ratio(uml), ratio(qemu)) else { continue };
                    let label = format!("{workload}, {name}: {}", asked.title);
                    rows.push(Row { label, uml: of_uml, qemu: of_qemu });
                }
            }
        }
    }
    rows
}

/// As Markdown; nothing unless both kinds were run.
pub(crate) fn markdown(all: &[Results]) -> Option<String> {
    let rows = rows(all);
    let lines: String =
        rows.iter().map(|row| format!("| {} | {} | {} |\n", row.label, row.uml, row.qemu)).collect();
    (!rows.is_empty()).then(|| format!("{EXPLANATION}\n\n| | uml | qemu |\n|---|---|---|\n{lines}"))
}

pub(crate) const TITLE: &str = "Both kinds of virtual machine, side by side";
pub(crate) const EXPLANATION: &str = "How often the figure of the first contender each other one has; ≈ where their runs overlap. \
     Believe what both kinds agree about.";

#[cfg(test)]
mod tests {
    use super::{markdown, rows};
    use crate::scale::machine::Machine;
    use crate::scale::results::{Results, Sample};

    fn results(guest: &str, slow: [f64; 3]) -> Results {
        let machine = Machine { guest: Some(guest.to_owned()), ..Machine::look() };
        let mut results = Results::new(vec!["run".to_owned()], 1, 3, machine);
        for (contender, values) in [("fast", [1.0, 1.1, 1.2]), ("slow", slow)] {
            for (index, value) in values.into_iter().enumerate() {
                results.samples.push(Sample {
                    measure: "first-sync".to_owned(),
                    contender: contender.to_owned(),
                    workload: "10x1".to_owned(),
                    repetition: index + 1,
                    values: vec![value],
                    unfinished: None,
                    load: 0.5,
                });
            }
        }
        results
    }

    #[test]
    fn each_ratio_stands_beside_that_of_the_other_kind() {
        let all = [results("uml", [20.0, 22.0, 25.0]), results("qemu", [1.0, 2.0, 3.0])];
        let rows = rows(&all);
        let [row] = &*rows else { panic!("one row: {rows:?}") };
        assert_eq!((&*row.uml, &*row.qemu), ("20.0×", "≈"));
        assert!(markdown(&all).is_some_and(|text| text.contains("| 20.0× | ≈ |")));
    }

    #[test]
    fn one_kind_alone_gives_none() {
        assert_eq!(markdown(&[results("uml", [20.0, 22.0, 25.0])]), None);
    }
}
