//! Results as Markdown: one table for each question, and comparisons only where the runs allow them.

use std::fmt::Write as _;

use super::both_guests;
use super::comparison::ratios_allowed;
use super::panel::{Panel, topics};
use super::results::Results;

/// Several results in one text. The first contender of each is what the others are compared with.
pub fn markdown(all: &[Results]) -> String {
    let mut out = String::new();
    // Below the heading of a part, if there are several.
    let heading = if all.len() > 1 { "###" } else { "##" };
    if all.len() > 1 {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{}\n", parts(all));
    }
    for (index, results) in all.iter().enumerate() {
        if all.len() > 1 {
            let _ = writeln!(out, "## {}\n", part(index, results));
        }
        for line in preface(results, all) {
            // Writing to a string does not fail.
            let _ = writeln!(out, "{line}\n");
        }
        for topic in topics(results) {
            let _ = writeln!(out, "{heading} {}\n", topic.title);
            for panel in &topic.panels {
                write_panel(&mut out, panel, results, all);
            }
        }
    }
    if let Some(text) = both_guests::markdown(all) {
        let _ = writeln!(out, "## {}\n\n{text}", both_guests::TITLE);
    }
    out
}

fn write_panel(out: &mut String, panel: &Panel, results: &Results, all: &[Results]) {
    let grid = panel.grid(results);
    let head: String = grid.head.iter().map(|name| format!(" {name} |")).collect();
    let rule = "---|".repeat(grid.head.len());
    let _ = writeln!(out, "**{}**\n\n{}\n\n| |{head}\n|---|{rule}", panel.title(), panel.how());
    for (label, cells) in grid.rows {
        let cells: String = cells.iter().map(|cell| format!(" {cell} |")).collect();
        let _ = writeln!(out, "| {label} |{cells}");
    }
    out.push('\n');
    for line in panel.comparisons(results, all) {
        let _ = writeln!(out, "- {line}");
    }
    out.push('\n');
}

/// The first line of a report that holds several comparisons.
pub(crate) fn parts(all: &[Results]) -> String {
    let parts: Vec<String> = all.iter().enumerate().map(|(index, results)| part(index, results)).collect();
    let guests: Vec<&str> = all.iter().filter_map(|one| one.machine.guest.as_deref()).collect();
    let vm = if guests.is_empty() {
        String::new()
    } else {
        format!("IPVS ran inside a virtual machine ({}). ", guests.join(", "))
    };
    format!(
        "{vm}This report has {} parts, whose figures must not be compared with each other: {}.",
        all.len(),
        parts.join("; ")
    )
}

pub(crate) fn part(index: usize, results: &Results) -> String {
    match &results.machine.guest {
        None => format!("Part {}: on the machine itself", index + 1),
        Some(guest) => format!("Part {}: inside a virtual machine ({guest})", index + 1),
    }
}

/// What must be known before the figures. The first line names a VM, if one was used.
pub(crate) fn preface(results: &Results, all: &[Results]) -> Vec<String> {
    let mut lines = setting(results, all);
    if results.ended.is_none() {
        lines.push("**This comparison was interrupted: runs are missing.**".to_owned());
    }
    lines.extend(results.notes.iter().map(|note| format!("**Note:** {note}")));
    let aborted = results.samples.iter().filter(|sample| sample.measure == "run");
    lines.extend(aborted.map(|sample| {
        format!(
            "**Unfinished:** {} on {}, run {}: {}",
            sample.contender,
            sample.workload,
            sample.repetition,
            sample.unfinished.as_deref().unwrap_or_default()
        )
    }));
    lines
}

/// Where, with what and how it was measured.
pub(crate) fn setting(results: &Results, all: &[Results]) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(guest) = &results.machine.guest {
        let ratios = if ratios_allowed(results, all) {
            "the other kind of VM was run too: compare both before you trust a ratio"
        } else {
            "no ratio between backends is given, since one kind of VM alone distorts them"
        };
        let clocks = if guest == "uml" { " CPU times are not reliable in this kind of VM." } else { "" };
        lines.push(format!(
            "**All of this was measured inside a virtual machine ({guest}); {ratios}.{clocks}**"
        ));
    }
    let machine = &results.machine;
    let (least, most) = results.loads();
    lines.push(format!(
        "Measured on {} CPUs ({}), {:.0} GB, kernel {}{}. Load average during the run {least:.1} to {most:.1}, {:.1} before it.",
        machine.processors,
        if machine.processor.is_empty() { "unnamed" } else { &machine.processor },
        machine.memory_bytes as f64 / 1e9,
        machine.kernel,
        machine.tools.iter().map(|tool| format!(", {tool}")).collect::<String>(),
        machine.load,
    ));
    let versions: Vec<String> =
        results.contenders.iter().map(|one| format!("{} = {}", one.name, one.version)).collect();
    lines.push(format!(
        "Seed {}, {} runs of each, interleaved; figures are medians of runs (least–most). Contenders: {}.",
        results.seed,
        results.repetitions,
        versions.join("; ")
    ));
    lines.extend(results.server.iter().map(|server| format!("API server: {server}.")));
    let command: Vec<&str> = results.command.iter().map(|word| without_folder(word)).collect();
    lines.push(format!("Command: `scale {}`", command.join(" ")));
    lines
}

/// Where a program lies on somebody's machine is nobody else's business.
fn without_folder(word: &str) -> &str {
    if word.starts_with('/') { word.rsplit('/').next().unwrap_or(word) } else { word }
}

#[cfg(test)]
mod tests {
    use super::markdown;
    use crate::scale::machine::Machine;
    use crate::scale::results::{Results, Sample};

    fn results(guest: Option<&str>, runs: &[(&str, &[f64])]) -> Results {
        let machine = Machine { guest: guest.map(str::to_owned), ..Machine::look() };
        let mut results = Results::new(vec!["run".to_owned()], 1, 3, machine);
        results.ended = Some(1);
        for (contender, values) in runs {
            for (index, value) in values.iter().enumerate() {
                results.samples.push(Sample {
                    measure: "first-sync".to_owned(),
                    contender: (*contender).to_owned(),
                    workload: "10x1".to_owned(),
                    repetition: index + 1,
                    values: vec![*value],
                    unfinished: None,
                    load: 0.5,
                });
            }
        }
        results
    }

    #[test]
    fn clear_results_are_compared() {
        let mut all = [results(None, &[("fast", &[1.0, 1.1, 1.2]), ("slow", &[20.0, 22.0, 25.0])])];
        all[0].command = ["run", "--peer", "/home/me/kube-proxy"].map(str::to_owned).to_vec();
        let text = markdown(&all);
        assert!(text.contains("`scale run --peer kube-proxy`"), "{text}");
        assert!(text.contains("| 10x1 | 1.10 s (1.00–1.20 s) | 22.0 s (20.0–25.0 s) |"), "{text}");
        assert!(text.contains("slow is 20.0 × fast"), "{text}");
    }

    #[test]
    fn results_that_overlap_are_said_to_do_so_and_get_no_ratio() {
        let text = markdown(&[results(None, &[("one", &[1.0, 2.0, 9.0]), ("other", &[2.0, 6.0, 7.0])])]);
        assert!(text.contains("not told apart: their runs overlap"), "{text}");
        assert!(!text.contains(" × one"), "{text}");
    }

    #[test]
    fn one_kind_of_vm_is_named_first_and_gives_no_ratios() {
        let runs: &[(&str, &[f64])] = &[("fast", &[1.0, 1.0, 1.0]), ("slow", &[20.0, 22.0, 25.0])];
        let one = markdown(&[results(Some("uml"), runs)]);
        assert!(one.lines().next().is_some_and(|line| line.contains("virtual machine (uml)")), "{one}");
        assert!(!one.contains('×'), "{one}");
        let beside = markdown(&[results(None, runs), results(Some("uml"), runs)]);
        let first = beside.lines().next().unwrap_or_default();
        assert!(first.starts_with("IPVS ran inside a virtual machine (uml)."), "{beside}");
        assert_eq!(beside.matches("slow is 22.0 × fast").count(), 1, "outside the VM alone: {beside}");
        let both = markdown(&[results(Some("uml"), runs), results(Some("qemu"), runs)]);
        assert!(both.contains("slow is 22.0 × fast"), "{both}");
    }

    #[test]
    fn what_was_not_finished_is_marked() {
        let mut results = results(None, &[("one", &[1.0])]);
        results.samples[0].values.clear();
        results.samples[0].unfinished = Some("not complete after 5 s".to_owned());
        results.ended = None;
        let text = markdown(&[results]);
        assert!(text.contains("unfinished 1×: not complete after 5 s"), "{text}");
        assert!(text.contains("was interrupted"), "{text}");
    }
}
