//! Memory that the whole kernel uses for its objects: coarse, but there on every machine without any privilege.

use std::fs;
use std::io;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::site::Site;

/// Longer than the kernel takes to free in the background.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// How many bytes less there are when all rules on the node are gone. The contender must have ended.
pub(crate) fn of_rules(site: &Site) -> Result<f64> {
    let run = |command: &[&str]| {
        // A tool that is not there, or has nothing to remove, leaves nothing to free.
        drop(site.node.output(Command::new(command[0]).args(&command[1..])));
    };
    run(&["conntrack", "-F"]);
    thread::sleep(PATIENCE);
    let before = now()?;
    run(&["nft", "flush", "ruleset"]);
    for table in ["nat", "filter", "mangle"] {
        run(&["iptables-legacy", "-t", table, "-F"]);
        run(&["iptables-legacy", "-t", table, "-X"]);
    }
    run(&["ipvsadm", "--clear"]);
    run(&["ipset", "destroy"]);
    thread::sleep(PATIENCE);
    // Signed: meanwhile the rest of the machine may have taken more than this gave back.
    Ok(before as f64 - now()? as f64)
}

/// Slab, vmalloc and per-CPU memory, in bytes.
fn now() -> io::Result<u64> {
    Ok(of(&fs::read_to_string("/proc/meminfo")?))
}

fn of(meminfo: &str) -> u64 {
    let kilobytes = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    let counted = |line: &&str| ["Slab:", "VmallocUsed:", "Percpu:"].iter().any(|key| line.starts_with(key));
    meminfo.lines().filter(counted).filter_map(kilobytes).sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use super::of;

    #[test]
    fn only_memory_of_objects_is_counted() {
        let text = "MemTotal: 100 kB\nSlab:   5 kB\nSReclaimable: 3 kB\nVmallocUsed: 2 kB\nPercpu: 1 kB\n";
        assert_eq!(of(text), 8 * 1024);
    }
}
