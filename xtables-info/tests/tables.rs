//! Against `iptables-legacy`, in a network namespace of one's own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use xtables_info::{Family, Tables};

fn run(line: &str) {
    assert!(Command::new("sh").args(["-c", line]).status().expect("sh is there").success(), "{line}");
}

#[test]
fn entries_follow_what_iptables_does() {
    for (family, program) in [(Family::V4, "iptables-legacy"), (Family::V6, "ip6tables-legacy")] {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may unshare");
        let tables = Tables::open(family).expect("the kernel has this family");
        let entries = || tables.info("nat").expect("the kernel has the table").entries;
        let empty = entries();
        run(&format!("{program} -w -t nat -N A"));
        assert_eq!(entries(), empty + 2, "a chain has a beginning and an end");
        run(&format!("{program} -w -t nat -A A -m mark --mark 1 -j RETURN"));
        assert_eq!(entries(), empty + 3);
        let size = tables.info("nat").expect("it is there").size;
        run(&format!("{program} -w -t nat -R A 1 -j RETURN"));
        assert_eq!(entries(), empty + 3);
        assert_ne!(tables.info("nat").expect("it is there").size, size, "a match less takes fewer bytes");
        run(&format!("{program} -w -t nat -F"));
        assert_eq!(entries(), empty + 2);
    }
}

#[test]
fn what_is_no_table_is_an_error() {
    unshare(CloneFlags::CLONE_NEWNET).expect("root may unshare");
    let tables = Tables::open(Family::V4).expect("the kernel has this family");
    assert!(tables.info("no-such-table").is_err());
    assert!(tables.info(&"x".repeat(40)).is_err());
}
