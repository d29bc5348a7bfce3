//! Runs kubectl, which knows clusters, credentials and their plugins.

use std::{
    ffi::{OsStr, OsString},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::arguments::Options;

/// kubectl with the options that choose a cluster.
#[derive(Debug)]
pub(crate) struct Kubectl {
    program: OsString,
    cluster: Vec<OsString>,
}

impl Kubectl {
    /// `KUBECTL` names another program than the `kubectl` of the search path.
    pub(crate) fn new(options: &Options) -> Self {
        let program = std::env::var_os("KUBECTL").filter(|name| !name.is_empty());
        let mut cluster: Vec<OsString> = Vec::new();
        if let Some(context) = &options.context {
            cluster.extend(["--context".into(), context.into()]);
        }
        if let Some(file) = &options.kubeconfig {
            cluster.extend(["--kubeconfig".into(), file.into()]);
        }
        Self { program: program.unwrap_or_else(|| "kubectl".into()), cluster }
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.cluster).args(words).stdin(Stdio::null());
        command
    }

    /// Reads an object or a list.
    pub(crate) fn get(&self, words: &[&str]) -> anyhow::Result<Value> {
        let mut command = self.command(&["get", "-o", "json"]);
        let output = command.args(words).stderr(Stdio::inherit()).output().with_context(|| self.missing())?;
        if !output.status.success() {
            bail!("kubectl get {} ended with {}", words.join(" "), output.status);
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("what kubectl get {} printed is no JSON", words.join(" ")))
    }

    /// `kubectl exec` of the verb in a proxy's container.
    pub(crate) fn exec(&self, options: &Options, pod: &str, terminal: bool, verb: &[String]) -> Command {
        let mut command =
            self.command(&["exec", "-n", &options.proxy_namespace, pod, "-c", &options.container]);
        if terminal {
            command.args(["-i", "-t"]).stdin(Stdio::inherit());
        }
        command.args(["--", "kube-proxy"]).args(verb.iter().map(OsStr::new));
        command
    }

    pub(crate) fn missing(&self) -> String {
        format!("{} cannot be run: is it installed?", self.program.to_string_lossy())
    }
}
