//! Which words are the plugin's, and which the verb's. The plugin's options may stand before and after the verb, as kubectl's do.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgAction, CommandFactory as _, Parser};

/// The question could not be asked (EX_SOFTWARE of sysexits.h); below are the verbs' own codes.
pub(crate) const FAILED: u8 = 70;

/// The verbs are the proxy's own: an older proxy may know fewer, a newer one more.
const AFTER_HELP: &str = "\
Verbs (each has its own -h):
  services   what is asked for and what is in force, by Service
  endpoints  the endpoints of a Service, and why each is used or left out
  explain    who gets the traffic from here to there, and what decides it
  diff       intended rules against the kernel's
  plan       what a change would do to a node, unapplied
  migrate    what a change of mode, or from kube-proxy, would change for this cluster
  trace      follows matching packets through all hooks
  flows      connections as they begin, end and are refused
  top        Services, endpoints or clients by connections and bytes
  check      whether a node has what is needed
  dump       a node's state as a file, for `kube-proxy replay`
  bundle     that and logs, metrics and kernel listings

A client or target may be pod/NAME, pod/NAMESPACE/NAME or node/NAME: its address takes its place. Where one pod is the client and no
node is named, the node of that pod answers.

Exit codes are the verb's; of several nodes, the highest. 64: not understood, 70: not answered.";

/// Asks Switchyard's proxies about their nodes.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-switchyard",
    bin_name = "kubectl switchyard",
    version,
    after_help = AFTER_HELP,
    override_usage = "kubectl switchyard VERB [ARGUMENTS] [-n NAMESPACE | -A] [-o FORMAT] [--node NAME | --all-nodes]"
)]
pub(crate) struct Options {
    /// Ask the proxy of this node; may be given several times
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    pub(crate) node: Vec<String>,
    /// Ask the proxies of all nodes
    #[arg(long, conflicts_with = "node")]
    pub(crate) all_nodes: bool,
    /// The context of the kubeconfig file
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The kubeconfig file
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Where the proxies' pods are
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    pub(crate) proxy_namespace: String,
    /// Which pods are proxies
    #[arg(long, value_name = "LABELS", default_value = "k8s-app=kube-proxy")]
    pub(crate) selector: String,
    /// Their container
    #[arg(long, value_name = "NAME", default_value = "kube-proxy")]
    pub(crate) container: String,
    /// How many seconds a node may take, where several are asked
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

impl Options {
    pub(crate) fn patience(&self) -> Duration {
        Duration::from_secs(self.timeout)
    }
}

/// What a command line asks.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) options: Options,
    /// The verb and all that is said to it.
    pub(crate) verb: Vec<String>,
}

impl Asked {
    /// The code to end with, where there is nothing to ask: help, the version, a mistake.
    pub(crate) fn of(words: impl Iterator<Item = OsString>) -> Result<Self, ExitCode> {
        let (own, verb) = divided(words.map(|word| word.to_string_lossy().into_owned()));
        let options = Options::try_parse_from([String::from("kubectl switchyard")].into_iter().chain(own))
            .map_err(|error| said(&error))?;
        if verb.is_empty() {
            let _ = Options::command().print_help();
            return Err(ExitCode::from(64));
        }
        Ok(Self { options, verb })
    }
}

fn said(error: &clap::Error) -> ExitCode {
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
}

/// The plugin's own options, and the rest. Before the verb everything that begins with a hyphen is the plugin's, so that a
/// mistake is noticed here, except what verbs take: `-n`, `-A`, `-o`.
fn divided(words: impl Iterator<Item = String>) -> (Vec<String>, Vec<String>) {
    let command = Options::command();
    let takes_value = |name: &str| {
        command
            .get_arguments()
            .find(|argument| argument.get_long() == Some(name))
            .map(|argument| argument.get_action().takes_values())
    };
    let (mut own, mut rest, mut verb) = (Vec::new(), Vec::new(), false);
    let mut words = words.peekable();
    while let Some(word) = words.next() {
        if word == "--" {
            rest.push(word);
            rest.extend(words);
            break;
        }
        let long = word.strip_prefix("--").map(|long| long.split_once('=').map_or(long, |(name, _)| name));
        match long.and_then(takes_value) {
            Some(takes) => {
                let separate = takes && !word.contains('=');
                own.push(word);
                if separate {
                    own.extend(words.next());
                }
            }
            None if verb => rest.push(word),
            None if matches!(word.as_str(), "-h" | "--help" | "-V" | "--version") => own.push(word),
            // The verb's options with a value, before the verb.
            None if matches!(word.as_str(), "-n" | "--namespace" | "-o" | "--output") => {
                rest.push(word);
                rest.extend(words.next());
            }
            None if ["-A", "--all-namespaces"].contains(&word.as_str())
                || ["-n", "-o", "--namespace=", "--output="].iter().any(|start| word.starts_with(start)) =>
            {
                rest.push(word);
            }
            None if word.starts_with('-') => own.push(word),
            None => {
                verb = true;
                rest.push(word);
            }
        }
    }
    // Nothing but options for a verb that is missing.
    if verb { (own, rest) } else { (own, Vec::new()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(line: &str) -> Result<Asked, ExitCode> {
        Asked::of(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_plugins_options_may_stand_anywhere_and_the_verbs_are_left_alone() {
        for line in [
            "--node a --context c services -A -o json web",
            "services --node=a -A --context c -o json web",
            "services -A -o json web --context=c --node a",
        ] {
            let asked = asked(line).expect(line);
            assert_eq!(asked.options.node, ["a"], "{line}");
            assert_eq!(asked.options.context.as_deref(), Some("c"), "{line}");
            assert_eq!(asked.verb, ["services", "-A", "-o", "json", "web"], "{line}");
        }
        let asked =
            asked("-n shop -o wide explain pod/a web:80 --why-not 10.0.0.1 -p udp").expect("a question");
        assert_eq!(asked.verb.join(" "), "-n shop -o wide explain pod/a web:80 --why-not 10.0.0.1 -p udp");
    }

    #[test]
    fn what_follows_two_hyphens_is_the_verbs() {
        let asked = asked("explain --all-nodes -- a --node").expect("a question");
        assert!(asked.options.all_nodes);
        assert_eq!(asked.verb, ["explain", "--", "a", "--node"]);
        assert!(asked.options.node.is_empty());
    }

    #[test]
    fn mistakes_are_noticed_here() {
        for line in
            ["", "--no-such-option services", "services --node", "--all-nodes --node a services", "-n shop"]
        {
            assert!(asked(line).is_err(), "{line}");
        }
    }

    #[test]
    fn usage_begins_as_a_plugins_does() {
        let help = Options::command().render_help().to_string();
        assert!(help.contains("Usage: kubectl switchyard VERB"), "{help}");
        Options::command().debug_assert();
    }
}
