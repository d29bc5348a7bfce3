//! CPU time and memory of a process with its children, as the kernel accounts for them.

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use crate::process_tree::children;

/// So far, of the process and of all children that have ended and were waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usage {
    /// Seconds in programs.
    pub(crate) user: f64,
    /// Seconds in the kernel.
    pub(crate) system: f64,
    /// Bytes resident now, of the process alone.
    pub(crate) resident: u64,
}

pub(crate) fn of(process: u32) -> io::Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let [user, system, children_user, children_system] =
        times(&stat).ok_or_else(|| io::Error::other(format!("not a stat line: {stat:?}")))?;
    Ok(Usage {
        user: user + children_user,
        system: system + children_system,
        resident: resident(process).unwrap_or(0),
    })
}

/// utime, stime, cutime, cstime of proc_pid_stat(5), in seconds. The program's name may hold anything.
fn times(stat: &str) -> Option<[f64; 4]> {
    let after_name = &stat[stat.rfind(')')? + 1..];
    let mut fields = after_name.split_whitespace().skip(11);
    let hertz = sysconf(SysconfVar::CLK_TCK).ok().flatten().filter(|hertz| *hertz > 0)? as f64;
    let mut next = || Some(fields.next()?.parse::<f64>().ok()? / hertz);
    Some([next()?, next()?, next()?, next()?])
}

fn resident(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()? * 1024)
}

fn resident_of_tree(process: u32) -> u64 {
    let below: u64 = children(process).into_iter().map(resident_of_tree).sum();
    resident(process).unwrap_or(0) + below
}

/// Looks at the memory of a process and its children again and again, and keeps the largest sum.
#[derive(Debug)]
pub(crate) struct PeakMemory {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl PeakMemory {
    pub(crate) fn watch(process: u32) -> Self {
        let (peak, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (into, until) = (peak.clone(), stop.clone());
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                into.fetch_max(resident_of_tree(process), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(25));
            }
        });
        Self { peak, stop, thread: Some(thread) }
    }

    pub(crate) fn so_far(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeVal;

    use super::{PeakMemory, of, times};

    #[test]
    fn a_program_with_a_wicked_name_is_read_right() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 100 25 20 0 1 0";
        let [user, system, children_user, children_system] = times(stat).expect("a stat line");
        assert_eq!((user / system, children_user / children_system), (5.0, 4.0));
    }

    /// Seconds that this process has computed for, as the kernel tells the process itself.
    fn own() -> f64 {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("this process");
        let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    }

    #[test]
    fn a_process_that_computes_is_charged_for_as_long_as_it_did() {
        let charged = || of(std::process::id()).map(|usage| usage.user + usage.system).expect("this process");
        let (outer, before, inner) = (own(), charged(), own());
        while own() < inner + 0.3 {
            std::hint::black_box(0);
        }
        let (inner, after, outer) = (own() - inner, charged(), own() - outer);
        let charged = after - before;
        // `proc_pid_stat(5)` counts in hundredths of a second, for user and system each.
        assert!(
            (inner - 0.04..=outer + 0.04).contains(&charged),
            "{charged} s charged for {inner} to {outer} s"
        );
    }

    #[test]
    fn the_peak_counts_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & read line; kill $!"]).stdin(Stdio::piped());
        let mut child = command.spawn().expect("sh starts");
        let peak = PeakMemory::watch(child.id());
        let counted = (0..6_000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            peak.so_far() > of(child.id()).expect("it runs").resident
        });
        assert!(counted, "{} with children, {:?} alone", peak.so_far(), of(child.id()));
        drop(child.stdin.take());
        child.wait().expect("it ends");
    }
}
