//! A contender that loses connections on purpose, at times and in numbers that the test knows.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use integration::scale::contender::{Contender, Mode};
use integration::scale::machine::Machine;
use integration::scale::matrix;
use integration::scale::plan::BRIEF;
use integration::scale::results::{Results, Sample};
use integration::scale::workload::Workload;

use super::{folder, smallest_plan};

const SHAPE: &str = "10x2";
/// However late on a busy machine. What these contenders do not follow is waited for as long, too.
const PATIENT: Duration = Duration::from_secs(20);

/// Rules that lead every canary to its endpoint in a step, and all other Services to `endpoint`.
fn rules(workload: &Workload, endpoint: &str, step: impl Fn(usize) -> usize) -> String {
    let mut text = "table ip careless\ndelete table ip careless\ntable ip careless {\nchain nat {\n\
                    type nat hook prerouting priority -100\n"
        .to_owned();
    for (canary, service) in workload.canaries.iter().enumerate() {
        let own = workload.canary_endpoint(canary, step(canary));
        writeln!(text, "ip daddr {} tcp dport 80 dnat to {own}:8080", service.ip()).expect("a string");
    }
    for service in workload.answering() {
        writeln!(text, "ip daddr {} tcp dport 80 dnat to {endpoint}:8080", service.ip()).expect("a string");
    }
    text + "}\n}\n"
}

/// Installs rules when it is first started, and others from then on, after it did what `before` says.
fn contender(folder: &Path, rules: [String; 2], before: &str) -> Contender {
    for (index, rules) in rules.iter().enumerate() {
        fs::write(folder.join(format!("rules-{index}")), rules).expect("the folder is writable");
    }
    let text = format!(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo test && exit\ncd {0}\nif [ -e started ]; then\n{before}\n\
         nft -f rules-1\nelse\ntouch started\nnft -f rules-0\nfi\nexec sleep 60\n",
        folder.display()
    );
    let program = folder.join("contender");
    fs::write(&program, text).expect("the folder is writable");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    Contender::peer(&program, Mode::Nftables).expect("it tells its version")
}

/// All that happens to a contender whose canaries are at step `first` in its first rules. A restart comes after all
/// canaries were moved once, to step 1, and the first of them once more.
fn disturbed(name: &str, first: usize, before: &str, limits: (Duration, Duration)) -> Vec<Sample> {
    let folder = folder(name);
    let workload = Workload::generate(SHAPE.parse().expect("a shape"), 1);
    let after = |canary| if canary == 0 { 3 } else { 2 };
    let rules = [rules(&workload, "10.64.0.1", |_| first), rules(&workload, "10.64.0.2", after)];
    let mut plan = smallest_plan(vec![contender(&folder, rules, before)], folder.clone());
    plan.disturb = true;
    (plan.limit, plan.patience) = limits;
    let results = Results::new(Vec::new(), plan.seed, 1, Machine::look());
    let results = matrix::measure(&plan, results).expect("it can be measured");
    fs::remove_dir_all(folder).expect("the folder is ours");
    results.samples
}

fn figure(samples: &[Sample], measure: &str) -> f64 {
    let sample = samples.iter().find(|sample| sample.measure == measure);
    let sample = sample.unwrap_or_else(|| panic!("no answer to {measure}: {samples:#?}"));
    *sample.values.first().unwrap_or_else(|| panic!("{sample:?}"))
}

#[test]
fn a_restart_that_takes_rules_and_connections_away_for_a_while_is_found_to() {
    let samples = disturbed(
        "careless",
        1,
        "nft delete table ip careless; conntrack -F >/dev/null 2>&1; sleep 0.5; conntrack -F >/dev/null 2>&1",
        (PATIENT, BRIEF),
    );
    // As many as there are Services.
    assert_eq!(figure(&samples, "restart-broken"), 10.0);
    let seconds = figure(&samples, "restart");
    assert!(seconds >= 0.5, "{seconds} s, not 0.5");
    assert!(figure(&samples, "restart-failed") > 0.0, "half a second without rules is noticed");
}

#[test]
fn a_restart_that_replaces_rules_in_one_step_is_found_to_break_nothing() {
    let samples = disturbed("careful", 1, "sleep 0.2", (PATIENT, PATIENT));
    assert_eq!((figure(&samples, "restart-broken"), figure(&samples, "restart-failed")), (0.0, 0.0));
}

#[test]
fn what_does_not_follow_the_removal_of_endpoints_is_marked_and_gives_no_figure() {
    let samples = disturbed("deaf", 0, "true", (Duration::from_secs(3), BRIEF));
    for measure in ["removal", "removal-broken"] {
        let sample = samples.iter().find(|sample| sample.measure == measure).expect("it was asked");
        assert!(sample.values.is_empty() && sample.unfinished.is_some(), "{sample:?}");
    }
}
