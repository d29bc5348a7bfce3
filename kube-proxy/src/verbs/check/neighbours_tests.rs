use super::*;
use crate::verbs::check::report::Status;

fn process(id: u32, name: &str, arguments: &[&str]) -> Process {
    let arguments = arguments.iter().map(|text| (*text).to_owned()).collect();
    Process { id, parent: 1, name: name.to_owned(), arguments, here: true }
}

#[test]
fn two_proxies_are_a_fault_and_a_question_is_no_proxy() {
    let one = process(10, "kube-proxy", &["kube-proxy", "--config=/x"]);
    let question = process(11, "kube-proxy", &["kube-proxy", "diff", "--watch"]);
    let found = proxies(&[one.clone(), question.clone()], 11);
    assert_eq!(found.iter().map(|one| one.status).collect::<Vec<_>>(), [Status::Ok]);
    let other = process(12, "kube-proxy", &["/usr/local/bin/kube-proxy", "--hostname-override=x"]);
    let elsewhere = Process { here: false, ..other.clone() };
    assert_eq!(proxies(&[one.clone(), elsewhere], 99)[0].status, Status::Ok, "it has rules of its own");
    let started = Process { parent: 10, ..other.clone() };
    assert_eq!(
        proxies(&[one.clone(), started], 99)[0].status,
        Status::Ok,
        "it is about to be another program"
    );
    let found = proxies(&[one, question, other], 99);
    assert_eq!(found[0].status, Status::Fail);
    assert!(found[0].what.contains("10, 12"), "{found:?}");
}

#[test]
fn others_that_serve_services_are_named_where_they_do() {
    let without = process(5, "kube-router", &["kube-router", "--run-router=true"]);
    assert_eq!(proxies(&[without], 1)[0].status, Status::Ok);
    let with = process(5, "kube-router", &["kube-router", "--run-service-proxy=true"]);
    assert_eq!(proxies(&[with], 1)[0].status, Status::Warn);
}

#[test]
fn firewall_managers_are_known_by_what_they_would_do() {
    let root = std::env::temp_dir().join(format!("check-firewalls-{}", std::process::id()));
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).expect("a folder");
    fs::create_dir_all(root.join("etc/ufw")).expect("a folder");
    let statuses = |all: &[Process]| -> Vec<Status> {
        firewalls(&root, all).iter().map(|finding| finding.status).collect()
    };
    assert_eq!(statuses(&[]), [Status::Ok]);
    fs::write(root.join("etc/nftables.conf"), "#!/usr/sbin/nft -f\n\nflush ruleset\n").expect("a file");
    assert_eq!(statuses(&[]), [Status::Ok], "it is not enabled");
    fs::write(wants.join("nftables.service"), "").expect("a file");
    assert_eq!(statuses(&[]), [Status::Warn]);
    fs::write(root.join("etc/ufw/ufw.conf"), "# x\nENABLED=yes\n").expect("a file");
    let firewalld = process(7, "firewalld", &["/usr/bin/python3", "/usr/sbin/firewalld", "--nofork"]);
    assert_eq!(statuses(&[firewalld]), [Status::Warn; 3]);
    fs::remove_dir_all(root).expect("it was made");
}

#[test]
fn a_chain_of_others_that_drops_is_named_with_its_hook() {
    let load = |text: &str| {
        let run = std::process::Command::new("nft").arg(text).output().expect("nft is installed");
        assert!(run.status.success(), "{text}: {}", String::from_utf8_lossy(&run.stderr));
    };
    let found = netlink::scratch::in_own_namespace(|| {
        let before = hooks(Mode::Nftables);
        load("add table inet fence");
        load("add chain inet fence way { type filter hook forward priority 5; policy drop; }");
        load("add table ip kube-proxy");
        load("add chain ip kube-proxy ours { type filter hook forward priority 0; policy drop; }");
        (before, hooks(Mode::Nftables))
    });
    let (before, after) = found.expect("tests run as root");
    assert_eq!(before[0].status, Status::Ok);
    assert_eq!(after.len(), 1, "{after:?}");
    assert_eq!(after[0].status, Status::Warn);
    assert!(
        after[0].what.contains("chain way of table inet fence")
            && after[0].what.contains("hook forward, priority 5")
    );
}
