//! Kernel settings that the configuration asks for: connection tracking, localhost NodePorts, the OOM score.
//!
//! A setting is written only where it differs. One that cannot be made is reported and the process goes on: where
//! /proc/sys is read-only (LXC, rootless nodes), traffic to Services still works.

use std::{
    fs, io,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use crate::settings::effective::ConntrackSettings;

/// kube-proxy's bound on what it scales with processors: beyond it, memory rather than connections runs out.
const MOST_SCALED_FLOWS: u64 = 1 << 20;
const HASH_SIZE: &str = "module/nf_conntrack/parameters/hashsize";

/// Where settings live.
#[derive(Debug, Clone)]
pub(crate) struct Sysctl {
    proc: PathBuf,
    sys: PathBuf,
}

/// A value for a file below /proc/sys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) value: i64,
}

/// A setting that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot set {name} to {value}: {source}{}", advice(source))]
pub(crate) struct SysctlError {
    name: String,
    value: i64,
    source: io::Error,
}

/// What a write changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Unchanged,
    /// From this value, if it could be read.
    Changed(Option<i64>),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
            " (set it on the host, and 0 in the configuration, where the container may not)"
        }
        io::ErrorKind::NotFound => " (this kernel does not have it, or its module is not loaded)",
        _ => "",
    }
}

impl Sysctl {
    /// The running kernel's.
    pub(crate) fn kernel() -> Self {
        Self { proc: "/proc/sys".into(), sys: "/sys".into() }
    }

    pub(crate) fn set(&self, setting: &Setting) -> Result<Written, SysctlError> {
        let written = self.write(&self.proc.join(setting.name), setting.name, setting.value)?;
        if let Written::Changed(before) = written {
            tracing::info!(entry = setting.name, value = setting.value, before, "Set sysctl");
        }
        Ok(written)
    }

    /// Whether the kernel has this value, whoever was to set it; the error says what is in the way. Nothing is written.
    pub(crate) fn expect(&self, setting: &Setting) -> Result<(), SysctlError> {
        let path = self.proc.join(setting.name);
        let found = read(&path);
        if found == Some(setting.value) {
            return Ok(());
        }
        let obstacle = fs::OpenOptions::new().write(true).open(&path).err();
        let source =
            obstacle.unwrap_or_else(|| io::Error::other(format!("another program has set it to {found:?}")));
        Err(SysctlError { name: setting.name.to_owned(), value: setting.value, source })
    }

    /// Sets everything that is asked for; what fails comes back, to be reported.
    pub(crate) fn set_conntrack(&self, wanted: &ConntrackSettings) -> Vec<SysctlError> {
        let settings = conntrack(wanted, self.processors());
        let mut errors: Vec<SysctlError> =
            settings.iter().filter_map(|setting| self.set(setting).err()).collect();
        let flows = settings.iter().find(|setting| setting.name == CONNTRACK_MAX);
        if let Some(flows) = flows
            && let Err(error) = self.widen_hash(flows.value / 4)
        {
            errors.push(error);
        }
        errors
    }

    /// A table of flows with a hash too small is slow; the kernel does not widen it by itself.
    fn widen_hash(&self, least: i64) -> Result<Written, SysctlError> {
        let path = self.sys.join(HASH_SIZE);
        match read(&path) {
            Some(size) if size >= least => Ok(Written::Unchanged),
            _ => {
                tracing::info!(conntrackHashsize = least, "Setting conntrack hashsize");
                self.write(&path, HASH_SIZE, least)
            }
        }
    }

    fn write(&self, path: &Path, name: &str, value: i64) -> Result<Written, SysctlError> {
        let before = read(path);
        if before == Some(value) {
            return Ok(Written::Unchanged);
        }
        // Without creating it: a missing file is a missing feature.
        let result = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.to_string().as_bytes()));
        match result {
            Ok(()) => Ok(Written::Changed(before)),
            Err(source) => Err(SysctlError { name: name.to_owned(), value, source }),
        }
    }

    /// The machine's processors, not those that this process may use: the table of flows is the machine's.
    fn processors(&self) -> u64 {
        let online = fs::read_to_string(self.sys.join("devices/system/cpu/online")).ok();
        online
            .as_deref()
            .and_then(count_processors)
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get) as u64)
    }
}

/// Lets packets from 127.0.0.1 leave for an endpoint.
pub(crate) const ROUTE_LOCALNET: Setting = Setting { name: "net/ipv4/conf/all/route_localnet", value: 1 };

const CONNTRACK_MAX: &str = "net/netfilter/nf_conntrack_max";

/// What the kernel should have.
fn conntrack(wanted: &ConntrackSettings, processors: u64) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut push = |name, value: u64| {
        settings.push(Setting { name, value: i64::try_from(value).unwrap_or(i64::MAX) });
    };
    if wanted.max_per_core > 0 {
        // kube-proxy 1.36 forgets the minimum where the scaled value reaches the bound.
        let scaled = (u64::from(wanted.max_per_core) * processors).min(MOST_SCALED_FLOWS);
        push(CONNTRACK_MAX, scaled.max(wanted.min.into()));
    }
    for (name, timeout) in [
        ("net/netfilter/nf_conntrack_tcp_timeout_established", wanted.tcp_established_timeout),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", wanted.tcp_close_wait_timeout),
        ("net/netfilter/nf_conntrack_udp_timeout", wanted.udp_timeout),
        ("net/netfilter/nf_conntrack_udp_timeout_stream", wanted.udp_stream_timeout),
    ] {
        if let Some(timeout) = timeout {
            push(name, timeout.as_secs());
        }
    }
    if wanted.tcp_be_liberal {
        push("net/netfilter/nf_conntrack_tcp_be_liberal", 1);
    }
    settings
}

/// Makes the kernel spare, or choose, this process when memory runs out. A failure is of no consequence.
pub(crate) fn set_oom_score(score: i32) {
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::debug!(%error, score, "Failed to apply OOMScore");
    }
}

fn read(path: &Path) -> Option<i64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number of processors in a list such as `0-3,8`.
fn count_processors(list: &str) -> Option<u64> {
    let mut count = 0;
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    fn nothing() -> ConntrackSettings {
        ConntrackSettings {
            max_per_core: 0,
            min: 131_072,
            tcp_established_timeout: None,
            tcp_close_wait_timeout: None,
            tcp_be_liberal: false,
            udp_timeout: None,
            udp_stream_timeout: None,
        }
    }

    /// A copy of the files that matter, with these values.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("switchyard-sysctl-{name}-{}", std::process::id()));
            for (file, value) in files {
                let path = root.join(file);
                fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
                fs::write(path, value).expect("a file");
            }
            Self(root)
        }

        fn sysctl(&self) -> Sysctl {
            Sysctl { proc: self.0.join("proc"), sys: self.0.join("sys") }
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.0.join(file)).expect("a file")
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_table_of_flows_grows_with_processors_within_bounds() {
        for (per_core, min, processors, expected) in [
            (32_768, 131_072, 2, Some(131_072)),
            (32_768, 131_072, 8, Some(262_144)),
            (32_768, 131_072, 64, Some(1_048_576)),
            (32_768, 2_000_000, 64, Some(2_000_000)),
            (0, 131_072, 64, None),
        ] {
            let wanted = ConntrackSettings { max_per_core: per_core, min, ..nothing() };
            let value = conntrack(&wanted, processors).first().map(|setting| setting.value);
            assert_eq!(value, expected, "{per_core} {min} {processors}");
        }
    }

    #[test]
    fn only_what_is_asked_for_is_set() {
        assert_eq!(conntrack(&nothing(), 4), []);
        let all = ConntrackSettings {
            tcp_established_timeout: Some(Duration::from_secs(86_400)),
            tcp_close_wait_timeout: Some(Duration::from_secs(3600)),
            tcp_be_liberal: true,
            udp_timeout: Some(Duration::from_secs(30)),
            udp_stream_timeout: Some(Duration::from_secs(60)),
            ..nothing()
        };
        let all: Vec<(&str, i64)> = conntrack(&all, 4)
            .iter()
            .map(|setting| (&setting.name["net/netfilter/nf_conntrack_".len()..], setting.value))
            .collect();
        assert_eq!(
            all,
            [
                ("tcp_timeout_established", 86_400),
                ("tcp_timeout_close_wait", 3600),
                ("udp_timeout", 30),
                ("udp_timeout_stream", 60),
                ("tcp_be_liberal", 1),
            ]
        );
    }

    #[test]
    fn the_hash_is_widened_but_never_narrowed() {
        let files = [
            ("proc/net/netfilter/nf_conntrack_max", "65536"),
            ("sys/module/nf_conntrack/parameters/hashsize", "16384"),
            ("sys/devices/system/cpu/online", "0-3,8\n"),
        ];
        let tree = Tree::new("hash", &files);
        let wanted = ConntrackSettings { max_per_core: 40_000, min: 0, ..nothing() };
        assert!(tree.sysctl().set_conntrack(&wanted).is_empty());
        assert_eq!(tree.read(files[0].0), "200000");
        assert_eq!(tree.read(files[1].0), "50000");
        let wanted = ConntrackSettings { max_per_core: 1_000, min: 0, ..nothing() };
        assert!(tree.sysctl().set_conntrack(&wanted).is_empty());
        assert_eq!((tree.read(files[0].0), tree.read(files[1].0)), ("5000".to_owned(), "50000".to_owned()));
    }

    #[test]
    fn an_equal_value_is_not_written() {
        let tree = Tree::new("equal", &[("proc/net/ipv4/conf/all/route_localnet", "1\n")]);
        assert_eq!(tree.sysctl().set(&ROUTE_LOCALNET).expect("a setting"), Written::Unchanged);
        assert_eq!(tree.read("proc/net/ipv4/conf/all/route_localnet"), "1\n");
    }

    #[test]
    fn what_others_were_to_set_is_looked_at_and_not_written() {
        let path = "proc/net/ipv4/conf/all/route_localnet";
        let tree = Tree::new("expect", &[(path, "1\n")]);
        tree.sysctl().expect(&ROUTE_LOCALNET).expect("it is set");
        fs::write(tree.0.join(path), "0\n").expect("a file");
        let text = tree.sysctl().expect(&ROUTE_LOCALNET).expect_err("it is not").to_string();
        assert!(text.contains("another program has set it to Some(0)"), "{text}");
        assert_eq!(tree.read(path), "0\n");
        fs::remove_file(tree.0.join(path)).expect("a file");
        let text = tree.sysctl().expect(&ROUTE_LOCALNET).expect_err("it is not").to_string();
        assert!(text.contains("this kernel does not have it"), "{text}");
    }

    #[test]
    fn what_cannot_be_set_is_reported_and_the_rest_is_set() {
        let tree = Tree::new("partly", &[("proc/net/netfilter/nf_conntrack_udp_timeout", "10")]);
        let wanted = ConntrackSettings {
            tcp_be_liberal: true,
            udp_timeout: Some(Duration::from_secs(30)),
            ..nothing()
        };
        let errors = tree.sysctl().set_conntrack(&wanted);
        assert_eq!(tree.read("proc/net/netfilter/nf_conntrack_udp_timeout"), "30");
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1);
        assert!(
            texts[0].starts_with("cannot set net/netfilter/nf_conntrack_tcp_be_liberal to 1: "),
            "{texts:?}"
        );
        assert!(texts[0].contains("its module is not loaded"), "{texts:?}");
    }

    #[test]
    fn lists_of_processors_are_counted() {
        assert_eq!(count_processors("0-3,8\n"), Some(5));
        assert_eq!(count_processors("0"), Some(1));
        assert_eq!(count_processors(""), None);
    }

    #[test]
    fn the_kernel_takes_the_settings_of_a_network_namespace() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests run as root)");
        let wanted = ConntrackSettings {
            tcp_be_liberal: true,
            udp_timeout: Some(Duration::from_secs(33)),
            tcp_close_wait_timeout: Some(Duration::from_secs(3601)),
            ..nothing()
        };
        let sysctl = Sysctl::kernel();
        let errors = sysctl.set_conntrack(&wanted);
        assert!(errors.is_empty(), "{errors:?}");
        for (name, value) in [("tcp_be_liberal", 1), ("udp_timeout", 33), ("tcp_timeout_close_wait", 3601)] {
            let path = format!("/proc/sys/net/netfilter/nf_conntrack_{name}");
            assert_eq!(read(Path::new(&path)), Some(value), "{name}");
        }
        assert_eq!(sysctl.set(&ROUTE_LOCALNET).expect("a setting"), Written::Changed(Some(0)));
    }
}
