//! Where a result was measured: processor, kernel, tools, and how busy the machine was with other things.

use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A kind of virtual machine of `integration/vm`, as it is known inside.
const GUEST_VARIABLE: &str = "VM_RUN_GUEST";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    pub processor: String,
    pub processors: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    /// `uml` or `qemu` when measured in the project's throw-away VM.
    pub guest: Option<String>,
    /// Versions of the tools that contenders and measures run.
    pub tools: Vec<String>,
    /// Load average of the last minute when it began.
    pub load: f64,
}

impl Machine {
    pub fn look() -> Self {
        let first_value = |file: &str, key: &str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(key)).map(str::to_owned);
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned())).unwrap_or_default()
        };
        let memory = first_value("/proc/meminfo", "MemTotal");
        let kilobytes = memory.split_whitespace().next().and_then(|number| number.parse::<u64>().ok());
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            processor: first_value("/proc/cpuinfo", "model name"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: kilobytes.unwrap_or(0) * 1024,
            kernel: release.trim().to_owned(),
            guest: std::env::var(GUEST_VARIABLE).ok().filter(|guest| guest != "host"),
            tools: [["nft", "--version"], ["iptables", "--version"], ["ipvsadm", "--version"]]
                .iter()
                .filter_map(|[program, argument]| first_line(program, argument))
                .collect(),
            load: load(),
        }
    }
}

/// The load average of the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0.0)
}

/// Whether this kernel can do IPVS.
pub fn has_ipvs() -> bool {
    fs::exists("/proc/net/ip_vs").unwrap_or(false)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn first_line(program: &str, argument: &str) -> Option<String> {
    let output = Command::new(program).arg(argument).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::Machine;

    #[test]
    fn the_machine_is_described() {
        let machine = Machine::look();
        assert!(machine.processors > 0 && machine.memory_bytes > 0);
        assert!(machine.kernel.starts_with(|first: char| first.is_ascii_digit()), "{}", machine.kernel);
    }
}
