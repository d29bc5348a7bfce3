//! What the process gives up before it starts its work: system calls that it never makes (seccomp), and writing to files and
//! connecting to ports that it has no business with (Landlock). All its threads and the programs that it starts inherit it.
//!
//! The list of system calls is data with a reason for each group: `deploy/seccomp/switchyard.json`, the very file that a
//! kubelet may be given too. What is not on it fails as on a kernel that does not know it (`ENOSYS`), so that programs
//! take the way that they have for older kernels.
//!
//! Landlock restrains writing and connecting, not reading: certificates, tokens and configuration are replaced by new files in
//! new folders, and have to be found there. Rules name folders that stay (`/proc`, not what is in it: a rule holds on to
//! the file that it was made for, and the kernel may make those in /proc anew at any time).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use landlock::{
    ABI, AccessFs, AccessNet, NetPort, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus,
    path_beneath_rules,
};
use seccompiler::{BpfMap, TargetArch, apply_filter_all_threads, compile_from_json};
use serde::Deserialize;
use serde_json::json;

use crate::telemetry::metrics;

/// What programs may call, and why.
const PROFILE: &str = include_str!("../../../deploy/seccomp/switchyard.json");

const SECCOMP: &str = "SWITCHYARD_SECCOMP";
const LANDLOCK: &str = "SWITCHYARD_LANDLOCK";
/// iptables' own: where its lock is.
const XTABLES_LOCK: &str = "XTABLES_LOCKFILE";

/// Where files may be written: kernel settings; locks and sockets; /dev/null. What is mounted read-only stays so.
const WRITABLE: [&str; 4] = ["/proc", "/run", "/var/run", "/dev"];
/// Names of the API server are looked up by TCP where an answer is long.
const DNS: u16 = 53;

/// What is asked for; `None`: nobody said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    seccomp: Option<Level>,
    landlock: Option<Level>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Off,
    /// The kernel's audit log tells what would have failed.
    Log,
    Enforce,
}

/// What the process does that it must be let do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// A program that hands out credentials, which may do anything.
    pub(crate) plugin: bool,
    /// Where it connects to; `None`: to any port.
    pub(crate) ports: Option<Vec<u16>>,
    /// Folders that it writes to beside those that every such process needs.
    pub(crate) folders: Vec<PathBuf>,
}

impl Wanted {
    /// What the environment asks for.
    pub(crate) fn from_environment() -> Result<Self, String> {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let level = |name: &str, allowed: &[(&str, Level)]| match variable(name).as_deref() {
            None | Some("") => Ok(None),
            Some(text) => {
                let found = allowed.iter().find(|(word, _)| *word == text).map(|(_, level)| Some(*level));
                let words: Vec<&str> = allowed.iter().map(|(word, _)| *word).collect();
                found.ok_or_else(|| format!("{name}: {text:?} is none of {}", words.join(", ")))
            }
        };
        let (off, log, enforce) = (("off", Level::Off), ("log", Level::Log), ("enforce", Level::Enforce));
        Ok(Self {
            seccomp: level(SECCOMP, &[off, log, enforce])?,
            landlock: level(LANDLOCK, &[off, enforce])?,
        })
    }

    /// Where nobody said: nothing that an image alone could break. A credential plugin may write and call what it likes.
    fn levels(self, plugin: bool) -> (Level, Level) {
        let (seccomp, landlock) =
            if plugin { (Level::Off, Level::Off) } else { (Level::Log, Level::Enforce) };
        (self.seccomp.unwrap_or(seccomp), self.landlock.unwrap_or(landlock))
    }
}

/// Confines this thread, and all that it starts from now on. What cannot be had is told in one line, and does no harm.
pub(crate) fn confine(wanted: Wanted, needs: &Needs) {
    let (seccomp, landlock) = wanted.levels(needs.plugin);
    let told = |name: &str, level: Level, result: anyhow::Result<String>| -> bool {
        match result {
            Ok(what) => {
                tracing::info!(level = ?level, what, "{name} is in force");
                true
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "{name} could not be applied; the process goes on without");
                false
            }
        }
    };
    // First Landlock: its system calls need no place in anybody's list of the other.
    let writes = landlock != Level::Off && told("Landlock", landlock, restrain(needs));
    let calls = seccomp != Level::Off && told("seccomp", seccomp, filter(seccomp));
    metrics::confined("landlock", writes);
    metrics::confined("seccomp", calls && seccomp == Level::Enforce);
}

/// Writing and connecting.
fn restrain(needs: &Needs) -> anyhow::Result<String> {
    let lock = std::env::var_os(XTABLES_LOCK).map(PathBuf::from);
    let lock = lock.as_deref().and_then(Path::parent).map(Path::to_path_buf);
    let folders = WRITABLE.iter().map(PathBuf::from).chain(lock).chain(needs.folders.iter().cloned());
    // The newest rights that this is tested with; older kernels do what they can.
    let writing = AccessFs::from_write(ABI::V3);
    let mut ruleset = Ruleset::default().handle_access(writing)?;
    if needs.ports.is_some() {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    let mut ruleset = ruleset.create()?.add_rules(path_beneath_rules(folders, writing))?;
    for port in needs.ports.iter().flatten().copied().chain(needs.ports.as_ref().map(|_| DNS)) {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    let connecting = match &needs.ports {
        Some(ports) => format!("TCP connections to ports {ports:?} and {DNS}"),
        None => "TCP connections to any port".to_owned(),
    };
    match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Ok(format!("writing beneath {WRITABLE:?}, {connecting}")),
        RulesetStatus::PartiallyEnforced => {
            Ok(format!("writing beneath {WRITABLE:?}, {connecting}, as far as this kernel can"))
        }
        RulesetStatus::NotEnforced => {
            anyhow::bail!("this kernel has no Landlock (CONFIG_SECURITY_LANDLOCK, lsm=)")
        }
    }
}

#[derive(Debug, Deserialize)]
struct Profile {
    syscalls: Vec<Group>,
}

#[derive(Debug, Deserialize)]
struct Group {
    names: Vec<String>,
    comment: String,
    includes: Option<Includes>,
}

#[derive(Debug, Deserialize)]
struct Includes {
    /// As container runtimes call them: amd64, arm64.
    arches: Vec<String>,
}

/// The profile's system calls on an architecture.
fn allowed(arch: TargetArch) -> anyhow::Result<Vec<String>> {
    let profile: Profile = serde_json::from_str(PROFILE).context("the profile")?;
    let own = match arch {
        TargetArch::x86_64 => "amd64",
        TargetArch::aarch64 => "arm64",
        TargetArch::riscv64 => "riscv64",
    };
    let mut names = Vec::new();
    for group in profile.syscalls {
        anyhow::ensure!(!group.comment.is_empty(), "no reason is given for {:?}", group.names);
        if group.includes.is_none_or(|only| only.arches.iter().any(|arch| arch == own)) {
            names.extend(group.names);
        }
    }
    Ok(names)
}

/// The profile as the kernel takes it.
fn compiled(arch: TargetArch, level: Level) -> anyhow::Result<BpfMap> {
    // ENOSYS of asm-generic/errno.h, as `defaultErrnoRet` of the profile says.
    let otherwise = if level == Level::Log { json!("log") } else { json!({ "errno": 38 }) };
    let rules: Vec<_> = allowed(arch)?.into_iter().map(|name| json!({ "syscall": name })).collect();
    let filter = json!({ "all": { "mismatch_action": otherwise, "match_action": "allow", "filter": rules } });
    Ok(compile_from_json(filter.to_string().as_bytes(), arch)?)
}

/// System calls.
fn filter(level: Level) -> anyhow::Result<String> {
    let arch = std::env::consts::ARCH;
    let arch = TargetArch::try_from(arch).map_err(|_| anyhow::anyhow!("no filter can be made for {arch}"))?;
    let filters = compiled(arch, level)?;
    let filter = filters.get("all").context("a filter")?;
    apply_filter_all_threads(filter)?;
    Ok(format!("{} system calls", allowed(arch)?.len()))
}

#[cfg(test)]
mod tests;
