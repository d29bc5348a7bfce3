//! A process and all that it started, as the kernel knows them, and the end of them all.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Those that it started and that have not ended.
pub(crate) fn children(process: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// A process that another one started. Its number alone may be another's by the time that it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Descendant {
    pub(crate) id: u32,
    /// In ticks since the kernel was started.
    begun: u64,
}

/// Its children, their children, and so on.
pub(crate) fn descendants(process: u32) -> Vec<Descendant> {
    let mut all = Vec::new();
    for child in children(process) {
        all.extend(begun(child).map(|begun| Descendant { id: child, begun }));
        all.extend(descendants(child));
    }
    all
}

/// Ends a process that is ours and not waited for, and what it has started: an `iptables-restore` may go on for many minutes.
pub(crate) fn kill_all(process: u32) {
    let below = descendants(process);
    kill_one(process);
    kill_orphans(&below);
}

/// Ends those that are left of what another process, which has ended, had started.
pub(crate) fn kill_orphans(processes: &[Descendant]) {
    for process in processes.iter().filter(|process| begun(process.id) == Some(process.begun)) {
        kill_one(process.id);
    }
}

fn kill_one(process: u32) {
    let Ok(process) = i32::try_from(process) else { return };
    // It may have ended just now.
    let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
}

/// starttime of proc_pid_stat(5), the 22nd field. The program's name may hold anything.
fn begun(process: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat[stat.rfind(')')? + 1..].split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread::sleep;
    use std::time::Duration;

    use super::{descendants, kill_all};

    #[test]
    fn what_a_process_started_ends_with_it() {
        let mut parent =
            Command::new("sh").args(["-c", "sh -c 'sleep 60 & wait' & wait"]).spawn().expect("sh starts");
        let below = (0..200).find_map(|_| {
            sleep(Duration::from_millis(20));
            let below = descendants(parent.id());
            (below.len() == 2).then_some(below)
        });
        let below = below.expect("a shell and its child");
        kill_all(parent.id());
        parent.wait().expect("it ends");
        let gone = (0..200).any(|_| {
            sleep(Duration::from_millis(20));
            // Whoever inherits them may not have waited for them yet.
            below.iter().all(|process| {
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id)).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            })
        });
        assert!(gone, "{below:?}");
    }
}
