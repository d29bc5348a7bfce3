//! The real `kube-proxy` program, running in the node's namespace.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::network::Namespace;

/// Where it answers questions, in the lab's folder.
pub(super) const INSIGHT_SOCKET: &str = "insight.sock";

/// A running kube-proxy; killed when dropped.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    log: PathBuf,
}

impl Proxy {
    /// Starts it as kubeadm's DaemonSet does: with a configuration file and the node's name.
    /// `variables` are added to its environment.
    pub fn start(
        namespace: &Namespace,
        folder: &Path,
        config: &Value,
        node: &str,
        variables: &[(&'static str, String)],
    ) -> Result<Self> {
        let config_file = folder.join("config.conf");
        // JSON is YAML.
        fs::write(&config_file, config.to_string()).context("writing the configuration")?;
        let log = folder.join("kube-proxy.log");
        let file = File::options().create(true).append(true).open(&log).context("opening the log")?;
        let mut command = Command::new(program()?);
        confine(&mut command)
            .arg(format!("--config={}", config_file.display()))
            .arg(format!("--hostname-override={node}"))
            .arg("-v=2")
            // Another kube-proxy does not look at it.
            .env("SWITCHYARD_INSIGHT_SOCKET", folder.join(INSIGHT_SOCKET))
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = namespace.spawn(&mut command).context("starting kube-proxy")?;
        Ok(Self { child, log })
    }

    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// `Some` once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks it to end and waits until it has.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        let process = i32::try_from(self.child.id()).context("process numbers are small")?;
        kill(Pid::from_raw(process), Signal::SIGTERM)?;
        Ok(self.child.wait()?)
    }

    /// How many lines it has logged.
    pub fn log_lines(&self) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().lines().count()
    }

    /// Everything it logged.
    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines it logged.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whatever a test asks of the program, it asks of one that has given up all that it can; where the environment says otherwise,
/// that counts.
pub fn confine(command: &mut Command) -> &mut Command {
    for variable in ["SWITCHYARD_SECCOMP", "SWITCHYARD_LANDLOCK"] {
        if env::var_os(variable).is_none() && command.get_envs().all(|(name, _)| name != variable) {
            command.env(variable, "enforce");
        }
    }
    command
}

/// `SWITCHYARD_KUBE_PROXY`, or the program built beside this one.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SWITCHYARD_KUBE_PROXY") {
        return Ok(path.into());
    }
    let own = env::current_exe().context("a program has a path")?;
    let beside = own.ancestors().skip(1).take(2).map(|folder| folder.join("kube-proxy"));
    match beside.into_iter().find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("no kube-proxy beside {}: run `cargo build -p kube-proxy` first", own.display()),
    }
}
