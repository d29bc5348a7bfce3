//! The `process_*` metrics of this process, read from /proc when they are asked for.

use std::{fmt::Write as _, fs};

use nix::unistd::{SysconfVar, sysconf};

/// What they are in the Prometheus text format; what cannot be read is left out.
pub(super) fn render() -> String {
    let mut out = String::new();
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as f64;
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(Stat::parse) {
        let cpu = (stat.user_ticks + stat.system_ticks) as f64 / ticks;
        push(
            &mut out,
            "cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            cpu,
        );
        push(
            &mut out,
            "virtual_memory_bytes",
            "gauge",
            "Virtual memory size in bytes.",
            stat.virtual_bytes as f64,
        );
        push(
            &mut out,
            "resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            stat.resident_pages as f64 * page,
        );
        if let Some(start) = start_time(&stat, ticks) {
            let help = "Start time of the process since unix epoch in seconds.";
            push(&mut out, "start_time_seconds", "gauge", help, start);
        }
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        push(&mut out, "open_fds", "gauge", "Number of open file descriptors.", entries.count() as f64);
    }
    if let Ok(limits) = fs::read_to_string("/proc/self/limits") {
        for (name, row, help) in [
            ("max_fds", "Max open files", "Maximum number of open file descriptors."),
            (
                "virtual_memory_max_bytes",
                "Max address space",
                "Maximum amount of virtual memory available in bytes.",
            ),
        ] {
            if let Some(limit) = soft_limit(&limits, row) {
                push(&mut out, name, "gauge", help, limit);
            }
        }
    }
    if let Ok(netstat) = fs::read_to_string("/proc/self/net/netstat") {
        for (name, column, help) in [
            (
                "network_receive_bytes_total",
                "InOctets",
                "Number of bytes received by the process over the network.",
            ),
            (
                "network_transmit_bytes_total",
                "OutOctets",
                "Number of bytes sent by the process over the network.",
            ),
        ] {
            if let Some(value) = octets(&netstat, column) {
                push(&mut out, name, "counter", help, value);
            }
        }
    }
    out
}

/// When the process started, in seconds since the Unix epoch.
pub(crate) fn start_time_seconds() -> Option<f64> {
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten()? as f64;
    start_time(&Stat::parse(&fs::read_to_string("/proc/self/stat").ok()?)?, ticks)
}

fn start_time(stat: &Stat, ticks: f64) -> Option<f64> {
    let all = fs::read_to_string("/proc/stat").ok()?;
    let boot: f64 = all.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + stat.start_ticks as f64 / ticks)
}

fn push(out: &mut String, name: &str, kind: &str, help: &str, value: f64) {
    let _ =
        writeln!(out, "# HELP process_{name} {help}\n# TYPE process_{name} {kind}\nprocess_{name} {value}\n");
}

/// The fields of /proc/[pid]/stat that matter (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    user_ticks: u64,
    system_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in parentheses, and may hold anything.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first field of the rest is number 3 of the manual.
        let number = |of_manual: usize| fields.get(of_manual - 3)?.parse().ok();
        Some(Self {
            user_ticks: number(14)?,
            system_ticks: number(15)?,
            start_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }
}

fn soft_limit(limits: &str, row: &str) -> Option<f64> {
    let value = limits.lines().find_map(|line| line.strip_prefix(row))?.split_ascii_whitespace().next()?;
    // As the Go client does: no limit is the largest number.
    if value == "unlimited" { Some(u64::MAX as f64) } else { value.parse().ok() }
}

/// A column of the `IpExt` rows: a row of names, then a row of values.
fn octets(netstat: &str, column: &str) -> Option<f64> {
    let mut rows = netstat.lines().filter(|line| line.starts_with("IpExt:"));
    let (names, values) = (rows.next()?, rows.next()?);
    let at = names.split_ascii_whitespace().position(|name| name == column)?;
    values.split_ascii_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_program_may_hold_anything() {
        let mut fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        fields[0] = "S".to_owned();
        let stat = Stat::parse(&format!("1 (a) b) {}", fields.join(" "))).expect("a stat line");
        assert_eq!(
            stat,
            Stat { user_ticks: 14, system_ticks: 15, start_ticks: 22, virtual_bytes: 23, resident_pages: 24 }
        );
        assert_eq!(Stat::parse("1 (a) S 1"), None);
    }

    #[test]
    fn limits_and_octets_are_found_by_name() {
        let limits = "Limit    Soft Limit  Hard Limit Units\nMax address space  unlimited  unlimited bytes\nMax open files  1024  524288  files\n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(soft_limit(limits, "Max address space"), Some(u64::MAX as f64));
        let netstat = "TcpExt: A\nTcpExt: 1\nIpExt: X InOctets OutOctets\nIpExt: 1 22 33\n";
        assert_eq!(octets(netstat, "OutOctets"), Some(33.0));
        assert_eq!(octets(netstat, "Nothing"), None);
    }

    #[test]
    fn this_process_has_all_of_them() {
        let text = render();
        for name in [
            "cpu_seconds_total",
            "max_fds",
            "network_receive_bytes_total",
            "network_transmit_bytes_total",
            "open_fds",
            "resident_memory_bytes",
            "start_time_seconds",
            "virtual_memory_bytes",
            "virtual_memory_max_bytes",
        ] {
            assert!(text.contains(&format!("\nprocess_{name} ")), "{name}: {text}");
        }
    }
}
