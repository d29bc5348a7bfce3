//! What is compared: a kube-proxy binary in one of its modes, driven through its configuration file only.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::{interrupt, process_tree};

use super::process_usage;
use super::server::Server;
use super::site::{CLUSTER_CIDR, Site};
use super::workload::NODE;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Nftables,
    Iptables,
    Ipvs,
}

/// A binary in a mode.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contender {
    /// As tables and charts call it.
    pub name: String,
    pub program: PathBuf,
    pub mode: Mode,
    /// What the binary says about itself.
    pub version: String,
    /// Not built from this project.
    pub peer: bool,
}

/// A running contender. It is killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
    pub(crate) started: Instant,
}

impl Mode {
    pub const ALL: [Self; 3] = [Self::Nftables, Self::Iptables, Self::Ipvs];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::Ipvs => "ipvs",
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|mode| mode.name() == text);
        known.ok_or_else(|| format!("{text:?} is no mode: nftables, iptables or ipvs"))
    }
}

impl Contender {
    /// This project's binary in a mode.
    pub fn own(program: &Path, mode: Mode) -> Result<Self> {
        let version = version_of(program)?;
        Ok(Self {
            name: format!("switchyard {}", mode.name()),
            program: program.to_owned(),
            mode,
            version,
            peer: false,
        })
    }

    /// Any other kube-proxy.
    pub fn peer(program: &Path, mode: Mode) -> Result<Self> {
        let version = version_of(program)?;
        let number = version.split_whitespace().last().unwrap_or_default();
        Ok(Self {
            name: format!("kube-proxy {} {}", number.split(['+', '-']).next().unwrap_or(number), mode.name()),
            program: program.to_owned(),
            mode,
            version,
            peer: true,
        })
    }

    /// Starts it on the node. `folder` is for its files.
    pub(crate) fn start(&self, site: &Site, folder: &Path, api: &Server) -> Result<Running> {
        let kubeconfig_file = folder.join("kubeconfig");
        fs::write(&kubeconfig_file, api.kubeconfig())?;
        let configuration = folder.join("config.yaml");
        fs::write(&configuration, self.configuration(&kubeconfig_file, api.content_type()))?;
        let log = folder.join("kube-proxy.log");
        let log_file = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&configuration).stdin(Stdio::null());
        command.stdout(log_file.try_clone()?).stderr(log_file);
        let started = Instant::now();
        let child =
            site.node.spawn(&mut command).with_context(|| format!("starting {}", self.program.display()))?;
        interrupt::remember(child.id());
        Ok(Running { child, log, started })
    }

    /// Everything else is left at its default: what users get is what is measured.
    fn configuration(&self, kubeconfig: &Path, content_type: Option<&str>) -> String {
        let content_type = content_type.map(|kind| format!(", contentType: {kind}")).unwrap_or_default();
        format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {}\n\
             hostnameOverride: {NODE}\nclusterCIDR: {CLUSTER_CIDR}\n\
             clientConnection: {{kubeconfig: {}{content_type}}}\n\
             conntrack: {{maxPerCore: 0}}\nhealthzBindAddress: 127.0.0.1:10256\nmetricsBindAddress: 127.0.0.1:10249\n",
            self.mode.name(),
            kubeconfig.display()
        )
    }
}

fn version_of(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .with_context(|| format!("running {} --version", program.display()))?;
    if !output.status.success() {
        bail!("{} --version: {}", program.display(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Fails with the end of its log if it has ended.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => {
                bail!("the contender ended by itself ({status}); its log ends:\n{}", self.log_end())
            }
        }
    }

    pub(crate) fn usage(&self) -> Result<process_usage::Usage> {
        process_usage::of(self.id()).with_context(|| format!("the usage of process {}", self.id()))
    }

    /// Asks it to end as Kubernetes would, and leaves what is in the kernel. One that does not listen is killed.
    pub(crate) fn stop(mut self, patience: Duration) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.id()).context("a process id")?);
        kill(pid, Signal::SIGTERM).context("ending the contender")?;
        let begun = Instant::now();
        let mut started = process_tree::descendants(self.id());
        while self.child.try_wait()?.is_none() {
            started.extend(process_tree::descendants(self.id()));
            if begun.elapsed() > patience {
                self.child.kill()?;
                self.child.wait()?;
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // A pod that ends leaves no process either.
        process_tree::kill_orphans(&started);
        Ok(())
    }

    fn log_end(&self) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(&self.log)?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(2_000)))?;
            let mut end = Vec::new();
            file.read_to_end(&mut end)?;
            Ok(String::from_utf8_lossy(&end).into_owned())
        };
        read().unwrap_or_else(|error| format!("{}: {error}", self.log.display()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        interrupt::forget(self.child.id());
        // It may have ended long ago, and its number may be another's.
        if let Ok(None) = self.child.try_wait() {
            process_tree::kill_all(self.child.id());
        }
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{Contender, Mode};

    #[test]
    fn the_configuration_names_the_mode_and_nothing_that_tunes_it() {
        let contender = Contender {
            name: String::new(),
            program: Path::new("/bin/true").to_owned(),
            mode: Mode::Ipvs,
            version: String::new(),
            peer: false,
        };
        let text = contender.configuration(Path::new("/kubeconfig"), None);
        let parsed: serde_json::Value = serde_saphyr::from_str(&text).expect("valid YAML");
        assert_eq!(parsed["mode"], "ipvs");
        for section in ["nftables", "ipvs", "iptables"] {
            assert!(parsed[section].is_null(), "{section} is left alone");
        }
    }

    #[test]
    fn a_program_that_cannot_be_run_is_named() {
        let refusal =
            Contender::own(Path::new("/nonexistent/kube-proxy"), Mode::Nftables).expect_err("no program");
        assert!(format!("{refusal:#}").contains("/nonexistent/kube-proxy"));
    }
}
