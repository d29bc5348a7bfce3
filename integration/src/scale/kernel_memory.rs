//! Memory that the kernel uses for rules: what they are charged for, or what the whole machine has back without them.

use std::fs;
use std::io;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::contender::{Mode, Running};
use super::control_group::ControlGroup;
use super::site::Site;

/// The kernel frees in the background, after grace periods that last longer on a busy machine.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// From one look at what is being freed to the next.
const INTERVAL: Duration = Duration::from_millis(50);
/// How many looks in a row show that nothing more is freed.
const ENOUGH: u32 = 4;

/// How many bytes less the whole machine uses when all rules on the node are gone. Contenders must have ended.
pub(crate) fn of_machine(site: &Site) -> Result<f64> {
    // A tool that is not there, or has nothing to remove, leaves nothing to free.
    drop(site.node.output(Command::new("conntrack").arg("-F")));
    thread::sleep(PATIENCE);
    let before = machine_now()?;
    remove_rules(site);
    thread::sleep(PATIENCE);
    // Signed: meanwhile the rest of the machine may have taken more than this gave back.
    Ok(before as f64 - machine_now()? as f64)
}

/// What the kernel charges one contender for.
#[derive(Debug)]
pub(crate) struct Charges {
    group: Option<ControlGroup>,
    with_rules: Option<u64>,
}

impl Charges {
    /// Of IPVS the kernel charges nobody, and not every machine lets itself be asked.
    pub(crate) fn of(mode: Mode) -> Self {
        let group = if mode == Mode::Ipvs { None } else { ControlGroup::create() };
        Self { group, with_rules: None }
    }

    /// What the kernel holds for this process is charged from now on.
    pub(crate) fn follow(&mut self, running: &Running) {
        self.group = self.group.take().filter(|group| group.add(running.id()).is_ok());
    }

    pub(crate) fn are_known(&self) -> bool {
        self.with_rules.is_some()
    }

    /// The process has ended, and its rules stand.
    pub(crate) fn look(&mut self) -> Result<()> {
        self.with_rules = self.group.as_ref().map(settled).transpose()?;
        Ok(())
    }

    /// The rules are gone: how much of the charge was theirs; `None` where nothing is charged.
    pub(crate) fn of_rules(self) -> Result<Option<f64>> {
        let (Some(group), Some(with_rules)) = (self.group, self.with_rules) else { return Ok(None) };
        Ok(Some(with_rules as f64 - settled(&group)? as f64))
    }
}

/// How many bytes a group is charged for once it does not shrink any more: what has ended is freed in the background.
fn settled(group: &ControlGroup) -> Result<u64> {
    let mut least = group.kernel_bytes()?;
    let mut unchanged = 0;
    for _ in 0..PATIENCE.as_millis() / INTERVAL.as_millis() {
        thread::sleep(INTERVAL);
        let now = group.kernel_bytes()?;
        unchanged = if now < least { 0 } else { unchanged + 1 };
        least = least.min(now);
        if unchanged == ENOUGH {
            break;
        }
    }
    Ok(least)
}

/// Removes all rules of all modes from the node.
pub(crate) fn remove_rules(site: &Site) {
    let run = |command: &[&str]| {
        drop(site.node.output(Command::new(command[0]).args(&command[1..])));
    };
    run(&["nft", "flush", "ruleset"]);
    for table in ["nat", "filter", "mangle"] {
        run(&["iptables-legacy", "-t", table, "-F"]);
        run(&["iptables-legacy", "-t", table, "-X"]);
    }
    run(&["ipvsadm", "--clear"]);
    run(&["ipset", "destroy"]);
}

/// Slab, vmalloc and per-CPU memory, in bytes.
fn machine_now() -> io::Result<u64> {
    Ok(of(&fs::read_to_string("/proc/meminfo")?))
}

fn of(meminfo: &str) -> u64 {
    let kilobytes = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok());
    let counted = |line: &&str| ["Slab:", "VmallocUsed:", "Percpu:"].iter().any(|key| line.starts_with(key));
    meminfo.lines().filter(counted).filter_map(kilobytes).sum::<u64>() * 1024
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::{of, remove_rules, settled};
    use crate::scale::control_group::ControlGroup;
    use crate::scale::site::Site;

    /// A map of as many elements as these, in a table of its own.
    fn rules(table: &str, elements: u16) -> String {
        let list: Vec<String> =
            (0..elements).map(|index| format!("10.0.{}.{} : 10.1.0.1", index / 250, index % 250)).collect();
        format!(
            "table ip {table} {{\nmap m {{\ntype ipv4_addr : ipv4_addr\nelements = {{ {} }}\n}}\n}}\n",
            list.join(", ")
        )
    }

    #[test]
    fn only_memory_of_objects_is_counted() {
        let text = "MemTotal: 100 kB\nSlab:   5 kB\nSReclaimable: 3 kB\nVmallocUsed: 2 kB\nPercpu: 1 kB\n";
        assert_eq!(of(text), 8 * 1024);
    }

    /// On a machine without control groups nothing is measured by them, so there is nothing to test.
    #[test]
    fn a_group_is_charged_for_its_own_rules_and_for_nobody_elses() {
        let Some(group) = ControlGroup::create() else { return };
        let site = Site::build().expect("a network; run as root");
        let folder = std::env::temp_dir().join(format!("scale-charge-{}", std::process::id()));
        fs::write(&folder, rules("own", 10_000)).expect("the temporary folder is writable");
        // It waits until it is in the group.
        let script = format!("read go; exec nft -f {}", folder.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(std::process::Stdio::piped());
        let mut child = site.node.spawn(&mut command).expect("sh starts");
        group.add(child.id()).expect("the group is ours");
        drop(child.stdin.take());
        assert!(child.wait().expect("it ends").success());
        fs::remove_file(&folder).expect("the file is ours");
        let charged = settled(&group).expect("the group is there");

        site.node.nft(&rules("other", 10_000)).expect("the rules are valid");
        assert!(settled(&group).expect("the group is there") <= charged, "others are not charged to it");
        remove_rules(&site);
        let of_rules = charged - settled(&group).expect("the group is there");
        // At least a key, a value and a link of a hash table for each.
        assert!((10_000 * 24..10_000 * 256).contains(&of_rules), "{of_rules} bytes for 10,000 elements");
    }
}
