//! Everything that is measured, in every mode, on a cluster of ten Services; then the report in a browser.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration::real_apiserver;
use integration::scale::contender::Mode;
use integration::scale::machine::Machine;
use integration::scale::question::questions;
use integration::scale::results::Results;
use integration::scale::server::ServerKind;
use integration::scale::workload::Shape;
use integration::scale::{html, matrix, table};

use super::browser;
use super::{folder, own, smallest_plan};

/// All measures of this in the modes given; the folder stays for what else is to be looked at.
fn measure(modes: &[Mode], folder: &Path) -> Results {
    let contenders = modes.iter().map(|mode| own(*mode)).collect();
    let mut plan = smallest_plan(contenders, folder.to_owned());
    plan.changes = 5;
    plan.churn = vec![10, 100];
    plan.first_packets = 10;
    plan.disturb = true;
    let results = Results::new(vec!["run".to_owned()], plan.seed, 1, Machine::look());
    matrix::measure(&plan, results).expect("it can be measured")
}

/// A busy machine may not have the time to make all changes that are asked for.
fn is_of_the_machine(unfinished: &str) -> bool {
    unfinished.starts_with("only ") && unfinished.ends_with(" changes a second could be made")
}

/// Every measure that a mode must have an answer to.
fn check_complete(results: &Results, modes: &[Mode]) {
    for sample in &results.samples {
        assert!(sample.unfinished.as_ref().is_none_or(|why| is_of_the_machine(why)), "{sample:?}");
        assert!(sample.values.iter().all(|value| value.is_finite()), "{sample:?}");
    }
    // Workloads with a churn of their own, and live clusters, are asked elsewhere.
    let asked = questions().map(|question| &*question.measure);
    let asked = asked.filter(|measure| !measure.starts_with("churn-own") && !measure.starts_with("cluster-"));
    let rates =
        ["churn-10", "churn-10-cpu", "churn-10-backlog", "churn-10-failed", "churn-100", "churn-100-cpu"];
    let phases =
        ["list", "decode", "plan", "encode", "kernel", "rest"].map(|phase| format!("first-sync-{phase}"));
    for measure in asked.chain(rates).chain(phases.iter().map(String::as_str)) {
        for mode in modes {
            let name = own(*mode).name;
            let answered = |measure: &str| {
                results.samples.iter().any(|sample| {
                    sample.measure == measure && sample.contender == name && !sample.values.is_empty()
                })
            };
            // Nothing announces what IPVS commits; and a machine charges for rules or it does not.
            let excused = measure == "one-change-commit" && *mode == Mode::Ipvs
                || measure.starts_with("mode-change") && modes.len() == 1
                || measure == "kernel-memory" && answered("kernel-memory-machine")
                || measure == "kernel-memory-machine" && answered("kernel-memory");
            assert!(answered(measure) || excused, "{name} has no answer to {measure}");
        }
    }
    let broken = |measure: &str| {
        let samples = results.samples.iter().filter(|sample| sample.measure == measure);
        samples.flat_map(|sample| &sample.values).sum::<f64>()
    };
    for measure in ["restart-broken", "mode-change-broken", "removal-broken", "removal-failed"] {
        assert!(broken(measure) == 0.0, "{measure}: {}", broken(measure));
    }
}

#[test]
fn nftables_and_iptables_answer_all_questions_and_the_report_stands_in_a_browser() {
    let folder = folder("tiny");
    let modes = [Mode::Nftables, Mode::Iptables];
    let results = measure(&modes, &folder);
    check_complete(&results, &modes);
    let saved = Results::read(&folder.join("results.json")).expect("it was saved");
    assert_eq!(saved, results);
    let text = table::markdown(&[saved]);
    assert!(text.contains("switchyard nftables") && text.contains("floor: no translation"), "{text}");
    let page = folder.join("report.html");
    fs::write(&page, html::page(&[results])).expect("the folder is writable");
    browser::check(&page);
    fs::remove_dir_all(folder).expect("the folder is ours");
}

/// Where KUBEBUILDER_ASSETS names one, as in the tests of the embedded API server.
#[test]
fn a_real_api_server_serves_the_same_cluster_with_the_rights_of_kube_proxy() {
    let Some(assets) = real_apiserver::assets() else { return };
    let folder = folder("tiny-real");
    let modes = [Mode::Nftables, Mode::Iptables];
    let mut plan = smallest_plan(modes.map(own).to_vec(), folder.clone());
    plan.server = ServerKind::Real(assets);
    // All types of Services, so that the server has to take each of them.
    plan.shapes = vec![Shape { services: 20, endpoints: 40, .."mixed".parse().expect("a shape") }];
    plan.changes = 3;
    plan.churn = vec![10];
    plan.disturb = true;
    let results = Results::new(vec!["run".to_owned()], plan.seed, 1, Machine::look());
    let results = matrix::measure(&plan, results).expect("it can be measured");
    assert!(results.notes.is_empty(), "{:?}", results.notes);
    for sample in &results.samples {
        assert!(sample.unfinished.as_ref().is_none_or(|why| is_of_the_machine(why)), "{sample:?}");
    }
    for (mode, measure) in modes.iter().flat_map(|mode| {
        ["first-sync", "one-change", "churn-10", "restart", "mode-change"].map(|measure| (mode, measure))
    }) {
        let name = own(*mode).name;
        let mut own = results.samples.iter().filter(|sample| sample.contender == name);
        assert!(own.any(|sample| sample.measure == measure), "{name} has no answer to {measure}");
    }
    let text = table::markdown(&[results]);
    assert!(text.contains("API server: kube-apiserver v1."), "{text}");
    fs::remove_dir_all(folder).expect("the folder is ours");
}

#[test]
fn ipvs_answers_all_questions() {
    vm_test::with_ipvs(|| {
        let folder = folder("tiny-ipvs");
        let results = measure(&[Mode::Ipvs], &folder);
        check_complete(&results, &[Mode::Ipvs]);
        assert!(results.notes.is_empty(), "{:?}", results.notes);
    });
}

#[test]
fn the_program_compares_saves_and_reports_again() {
    let folder = folder("program");
    let program = env!("CARGO_BIN_EXE_scale");
    let kube_proxy = integration::lab::program().expect("kube-proxy is built");
    let run = |arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().expect("scale starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    let out = folder.display().to_string();
    let kube_proxy = kube_proxy.display().to_string();
    let (done, text) = run(&[
        "run",
        "--kube-proxy",
        &kube_proxy,
        "--modes",
        "nftables",
        "--workloads",
        "5x1",
        "--repetitions",
        "1",
        "--changes",
        "2",
        "--churn",
        "5",
        "--churn-seconds",
        "1",
        "--first-packets",
        "5",
        "--connections-seconds",
        "1",
        "--no-disturbance",
        "--out",
        &out,
    ]);
    assert!(done, "{text}");
    let saved = format!("{out}/results.json");
    let again = format!("{out}/again");
    let (done, text) = run(&["report", &saved, "--charts", "--out", &again]);
    assert!(done, "{text}");
    let first = fs::read_to_string(folder.join("report.html")).expect("a report");
    assert_eq!(fs::read_to_string(folder.join("again/report.html")).expect("a report"), first);
    assert!(folder.join("again/first-sync-50.svg").is_file());

    let (done, text) = run(&["run", "--kube-proxy", &kube_proxy, "--modes", "ebpf", "--out", &out]);
    assert!(!done && text.contains("\"ebpf\" is no mode"), "{text}");
    fs::remove_dir_all(folder).expect("the folder is ours");
}

#[test]
fn an_interrupted_comparison_leaves_no_process_behind() {
    let folder = folder("interrupted");
    let kube_proxy = integration::lab::program().expect("kube-proxy is built");
    let mut child = Command::new(env!("CARGO_BIN_EXE_scale"))
        .args([
            "run",
            "--modes",
            "nftables",
            "--workloads",
            "5x1",
            "--no-warm-up",
            "--churn",
            "5",
            "--churn-seconds",
            "60",
        ])
        .arg("--kube-proxy")
        .arg(kube_proxy)
        .arg("--out")
        .arg(&folder)
        .spawn()
        .expect("scale starts");
    // A real API server, where one is named, takes a while to start.
    let contender = (0..1_200).find_map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        children(child.id()).first().copied()
    });
    let contender = contender.expect("a contender is started");
    std::thread::sleep(Duration::from_millis(300));
    let groups = control_groups(contender);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it runs");
    let status = child.wait().expect("it ends");
    assert_eq!(status.code(), Some(130));
    let gone = (0..3_000).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        !Path::new(&format!("/proc/{contender}")).exists() || is_dead(contender)
    });
    assert!(gone, "process {contender} is still there");
    assert!(!groups.iter().any(|group| group.is_dir()), "a control group is still there: {groups:?}");
    fs::remove_dir_all(folder).expect("the folder is ours");
}

/// The groups below our own that a process is in.
fn control_groups(process: u32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap_or_default();
    let own =
        text.lines().filter_map(|line| line.splitn(3, ':').nth(2)).filter(|path| path.contains("/scale-"));
    let tops = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified"].map(Path::new);
    own.flat_map(|path| tops.map(|top| top.join(path.trim_start_matches('/')))).collect()
}

fn children(process: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let ids: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
        .collect();
    // Not the short-lived `ip` that builds the network.
    ids.into_iter()
        .filter(|id| {
            fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|name| name.trim() == "kube-proxy")
        })
        .collect()
}

/// Ended, and not yet waited for by whoever inherited it.
fn is_dead(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}
