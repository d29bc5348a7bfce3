//! Another program holds a lock that iptables waits for, or one of iptables' programs is slow: nothing that could go on
//! waits for it, it is told in few lines, and nothing is lost.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use integration::lab::{Lab, Mode, Options, cluster_ip, service, slices};
use integration::network::Place::{Node, PodA, PodB, PodD};
use integration::network::Protocol::{Tcp, Udp};
use integration::network::{BRIEF, Family, Outcome, Place, Probe};

/// A folder of this test's own, where its locks are.
fn folder() -> PathBuf {
    env::temp_dir().join(format!("locks-{}", process::id()))
}

fn lock(name: &str) -> PathBuf {
    folder().join(format!("{name}.lock"))
}

/// Held until it is dropped.
fn hold(name: &str) -> File {
    let file = File::create(lock(name)).expect("a file");
    file.lock().expect("nobody else holds it for long");
    file
}

/// `{iptables,ip6tables}-*-restore` wait for a lock of their own each, so that either family's can be slow.
fn slow_programs() -> Options {
    let bin = folder().join("bin");
    fs::create_dir_all(&bin).expect("a folder");
    for program in ["iptables", "ip6tables"] {
        for variant in ["legacy", "nft"] {
            let name = format!("{program}-{variant}-restore");
            let real = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(&name));
            let real = real.iter().find(|path| path.exists()).expect("iptables is installed");
            let text =
                format!("#!/bin/sh\nexec flock {} {} \"$@\"\n", lock(program).display(), real.display());
            fs::write(bin.join(&name), text).expect("a script");
            fs::set_permissions(bin.join(&name), fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
    }
    let path = env::var("PATH").unwrap_or_default();
    // These are no programs that the process may run when it is confined.
    let variables =
        vec![("PATH", format!("{}:{path}", bin.display())), ("SWITCHYARD_LANDLOCK", "off".to_owned())];
    Options { variables, ..Options::default() }
}

/// iptables' own lock is a file of the machine; this test's programs have another.
fn own_lock() -> Options {
    fs::create_dir_all(folder()).expect("a folder");
    let variables = vec![("XTABLES_LOCKFILE", lock("xtables").display().to_string())];
    Options { variables, ..Options::default() }
}

fn answered_by(lab: &Lab, family: Family) -> Option<String> {
    let probe = Probe::new(Tcp, cluster_ip(1, Tcp, 80).address(family)).patience(BRIEF);
    match lab.network.probe_one(PodB, probe).expect("a socket") {
        Outcome::Answered { answer, .. } => Some(answer.by),
        _ => None,
    }
}

fn serve(lab: &mut Lab, place: Place) {
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 8080, Udp).ready(&[place]));
}

fn web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).port("u", 80, Udp).node_port(30080).load_balancer(1));
    serve(lab, PodA);
    lab.settle();
}

fn one_familys_slow_program_is_nothing_to_the_other(lab: &mut Lab) {
    web(lab);
    let variant = if lab.mode() == Mode::IptablesLegacy { "legacy" } else { "nft" };
    for (held, free, program) in
        [("ip6tables", Family::V4, "iptables"), ("iptables", Family::V6, "ip6tables")]
    {
        let stuck = if free == Family::V4 { Family::V6 } else { Family::V4 };
        serve(lab, PodA);
        lab.settle();
        let lines = lab.log_lines();
        let lock = hold(held);
        for place in [PodD, PodA].repeat(3) {
            serve(lab, place);
            crate::eventually(|| answered_by(lab, free).as_deref() == Some(place.name()));
        }
        serve(lab, PodD);
        crate::eventually(|| answered_by(lab, free).as_deref() == Some("pod-d"));
        // What others do to the one that can be written is noticed and mended all the same.
        let mut flush = Command::new(format!("{program}-{variant}"));
        lab.network
            .namespace(Node)
            .output(flush.args(["-w", "-t", "nat", "-F", "KUBE-SERVICES"]))
            .expect("the damage is done");
        crate::eventually(|| answered_by(lab, free).as_deref() == Some("pod-d"));
        assert_eq!(
            answered_by(lab, stuck).as_deref(),
            Some("pod-a"),
            "the rules of before stand\n{}",
            lab.log()
        );
        drop(lock);
        crate::eventually(|| answered_by(lab, stuck).as_deref() == Some("pod-d"));
        let lines = lab.log_lines() - lines;
        assert!(lines < 100, "{lines} lines\n{}", lab.log());
    }
    lab.sweep();
}

fn a_lock_that_others_hold_is_told_and_loses_nothing(lab: &mut Lab) {
    web(lab);
    let lines = lab.log_lines();
    let lock = hold("xtables");
    serve(lab, PodD);
    // Both families have given up once at least, and have tried again.
    let told = |lab: &Lab| lab.whole_log().matches("holding the xtables lock").count();
    crate::eventually(|| told(lab) >= 4);
    for family in Family::BOTH {
        assert_eq!(answered_by(lab, family).as_deref(), Some("pod-a"), "the rules of before stand");
    }
    // What comes meanwhile is not lost either.
    lab.apply(service("late", 2).port("t", 80, Tcp));
    lab.apply(slices("late").port("t", 8080, Tcp).ready(&[PodA]));
    lab.delete("Service", "web");
    lab.apply(service("web", 1).port("t", 80, Tcp));
    drop(lock);
    lab.settle();
    for family in Family::BOTH {
        crate::eventually(|| answered_by(lab, family).as_deref() == Some("pod-d"));
    }
    lab.sweep();
    let (told, lines) = (told(lab), lab.log_lines() - lines);
    // A line for each try of five seconds and more, and not one for each Service.
    assert!(told < 40 && lines < 100, "{told} of {lines} lines\n{}", lab.log());
    let log = lab.whole_log();
    assert!(!log.contains("set aside"), "no Service is to blame for it: {log}");
}

fn run(mode: Mode, options: Options, scenario: impl FnOnce(&mut Lab)) {
    crate::run(mode, options, scenario);
    drop(fs::remove_dir_all(folder()));
}

#[test]
fn one_familys_slow_program_is_nothing_to_the_other_in_iptables_mode_legacy() {
    run(Mode::IptablesLegacy, slow_programs(), one_familys_slow_program_is_nothing_to_the_other);
}

#[test]
fn one_familys_slow_program_is_nothing_to_the_other_in_iptables_mode_nft() {
    run(Mode::IptablesNft, slow_programs(), one_familys_slow_program_is_nothing_to_the_other);
}

/// Only the legacy programs have it; both families share it.
#[test]
fn a_lock_that_others_hold_is_told_and_loses_nothing_in_iptables_mode_legacy() {
    run(Mode::IptablesLegacy, own_lock(), a_lock_that_others_hold_is_told_and_loses_nothing);
}
