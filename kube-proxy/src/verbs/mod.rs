//! `kube-proxy VERB …`: questions about a node, answered from the state of the process that serves it, or from a file.
//!
//! A verb is a client: it gets the [`State`](insight::state::State), builds the engine from it in its own process (what is
//! intended comes from `proxy-core` itself), reads the kernel by itself where it needs to, and prints. Each verb is a file
//! with its options and `run`. To add one: the file, a variant of [`Verb`], and a line in [`Verb::run`].

mod bundle;
mod check;
pub(crate) mod common;
mod diff;
mod dump;
mod endpoints;
mod explain;
mod flows;
mod intended;
mod migrate;
mod plan;
mod replay;
mod services;
#[cfg(test)]
mod test_state;
mod top;
mod trace;
mod watching;
mod wrap;

use std::{ffi::OsString, io::Write as _, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};

use common::{Common, CommonOptions};

/// The command line is not understood (EX_USAGE of sysexits.h): below are the verbs' own codes.
const USAGE: u8 = 64;
/// The question could not be answered (EX_SOFTWARE).
const FAILED: u8 = 70;

#[derive(Debug, Parser)]
#[command(
    name = "kube-proxy",
    about = "Questions about a node that Switchyard serves",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(flatten)]
    common: CommonOptions,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(check::Options),
    Diff(diff::Options),
    Services(services::Options),
    Endpoints(endpoints::Options),
    Explain(explain::Options),
    Dump(dump::Options),
    Migrate(migrate::Options),
    Plan(plan::Options),
    Replay(replay::Options),
    Trace(trace::Options),
    Flows(flows::Options),
    Top(top::Options),
    Bundle(bundle::Options),
}

impl Verb {
    fn run(&self, common: &Common) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(options) => check::run(options, common),
            Self::Diff(options) => diff::run(options, common),
            Self::Services(options) => services::run(options, common),
            Self::Endpoints(options) => endpoints::run(options, common),
            Self::Explain(options) => explain::run(options, common),
            Self::Dump(options) => dump::run(options, common),
            Self::Migrate(options) => migrate::run(options, common),
            Self::Plan(options) => plan::run(options, common),
            Self::Replay(options) => replay::run(options, common),
            Self::Trace(options) => trace::run(options, common),
            Self::Flows(options) => flows::run(options, common),
            Self::Top(options) => top::run(options, common),
            Self::Bundle(options) => bundle::run(options, common),
        }
    }
}

/// Whether the first argument makes it a question. All other command lines are kube-proxy's.
pub(crate) fn is_verb(first: &str) -> bool {
    Arguments::command().get_subcommands().any(|verb| verb.get_name() == first)
}

/// All verbs, for `--help`.
pub(crate) fn list() -> String {
    let mut text = "Verbs (questions about this node; `kube-proxy VERB --help` says more):\n".to_owned();
    for verb in Arguments::command().get_subcommands() {
        let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
        text += &format!("  {:<12}{about}\n", verb.get_name());
    }
    text
}

/// Answers the question that the arguments ask.
pub(crate) fn main(arguments: &[String]) -> ExitCode {
    answer(arguments.iter().map(OsString::from), None)
}

/// `file`: where the state is, instead of the running process.
fn answer(arguments: impl Iterator<Item = OsString>, file: Option<&std::path::Path>) -> ExitCode {
    let arguments =
        match Arguments::try_parse_from([OsString::from("kube-proxy")].into_iter().chain(arguments)) {
            Ok(arguments) => arguments,
            Err(error) => {
                // Help is no mistake.
                let code = if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
                drop(error.print());
                return code;
            }
        };
    let common = Common::new(arguments.common, file);
    match arguments.verb.run(&common) {
        Ok(code) => code,
        // Who reads has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kube-proxy: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_as_clap_wants_it() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn only_verbs_are_verbs() {
        assert!(is_verb("dump"));
        for other in ["--help", "-v=2", "help", "run", "", "Dump", "--config=dump"] {
            assert!(!is_verb(other), "{other}");
        }
    }
}
