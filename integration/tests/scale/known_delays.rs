//! A shell script as a contender, whose rules come at times that the test knows.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use integration::scale::contender::{Contender, Mode};
use integration::scale::machine::Machine;
use integration::scale::matrix;
use integration::scale::results::{Results, Sample};
use integration::scale::workload::Workload;

use super::{folder, smallest_plan};

/// Installs rules for a part of the Services after `first` seconds and for the others after `then` more.
fn script(folder: &Path, workload: &Workload, first: f64, then: f64) -> Contender {
    let mut parts = ["early", "late"]
        .map(|name| format!("table ip {name} {{\nchain nat {{\ntype nat hook prerouting priority -100\n"));
    for (index, service) in workload.answering().enumerate() {
        let rule = format!("ip daddr {} tcp dport {} dnat to 10.64.0.1:8080", service.ip(), service.port());
        // The last one alone is late.
        writeln!(parts[usize::from(index == 0)], "{rule}").expect("a string");
    }
    for (name, rules) in ["early", "late"].into_iter().zip(parts) {
        fs::write(folder.join(name), rules + "}\n}\n").expect("the folder is writable");
    }
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo test && exit\nsleep {first}\nnft -f {0}/early\nsleep {then}\nnft -f {0}/late\nexec sleep 60\n",
        folder.display()
    );
    let program = folder.join("contender");
    fs::write(&program, text).expect("the folder is writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    Contender::peer(&program, Mode::Nftables).expect("it tells its version")
}

fn measure(name: &str, first: f64, then: f64, limit: Duration) -> Vec<Sample> {
    let folder = folder(name);
    let workload = Workload::generate("10x2".parse().expect("a shape"), 1);
    let contender = script(&folder, &workload, first, then);
    let mut plan = smallest_plan(vec![contender], folder.clone());
    plan.limit = limit;
    let results = Results::new(Vec::new(), plan.seed, 1, Machine::look());
    let results = matrix::measure(&plan, results).expect("it can be measured");
    fs::remove_dir_all(folder).expect("the folder is ours");
    results.samples.into_iter().filter(|sample| sample.measure == "first-sync").collect()
}

#[test]
fn a_first_sync_is_complete_when_the_last_service_works_and_not_before() {
    let samples = measure("late", 0.3, 0.5, Duration::from_secs(120));
    let [sample] = &*samples else { panic!("one sample: {samples:?}") };
    let seconds = sample.values[0];
    assert!(seconds >= 0.8, "{seconds} s, but one Service is without rules until 0.8 s");
}

#[test]
fn what_is_not_complete_in_time_is_marked_and_gives_no_figure() {
    let samples = measure("never", 0.1, 30.0, Duration::from_secs(1));
    let [sample] = &*samples else { panic!("one sample: {samples:?}") };
    assert!(sample.values.is_empty());
    assert!(sample.unfinished.as_deref().is_some_and(|why| why.contains("after 1 s")), "{sample:?}");
}
