//! The `kube-proxy` program: reads what it is asked to do, and does it.

mod api;
mod engine;
mod host;
mod live;
mod log_runner;
mod reload;
mod run;
mod serve;
mod settings;
mod supervisor;
mod sync;
mod telemetry;
mod verbs;

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use settings::{Command, Loaded, effective::Settings};
use telemetry::logging::{self, LogControl};

fn main() -> ExitCode {
    if log_runner::is_asked_for(std::env::args_os().next().as_deref()) {
        return match log_runner::run() {
            Ok(code) => code.into(),
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "go-runner: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    if arguments.first().is_some_and(|first| verbs::is_verb(first)) {
        return verbs::main(&arguments);
    }
    let result = match settings::load(&arguments) {
        Ok(loaded) => carry_out(loaded, arguments),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let reason = api::watch::chain(error.as_ref());
            // What ends the process is seen at any verbosity, in the log's format as soon as there is a log.
            if tracing::dispatcher::has_been_set() {
                tracing::error!(err = reason, "command failed");
            } else {
                let _ = writeln!(std::io::stderr(), "kube-proxy: {reason}");
            }
            ExitCode::FAILURE
        }
    }
}

fn carry_out(loaded: Loaded, arguments: Vec<String>) -> anyhow::Result<()> {
    match loaded.command {
        Command::Help(text) => {
            let text = format!("{text}\n{}", verbs::list());
            std::io::stdout().write_all(text.as_bytes()).context("standard output")
        }
        Command::Print(text) => std::io::stdout().write_all(text.as_bytes()).context("standard output"),
        Command::WriteConfig { path, text } => {
            std::fs::write(&path, text).with_context(|| format!("{}", path.display()))
        }
        Command::Cleanup(settings) => {
            let _log = start_log(&settings, loaded.notices)?;
            host::cleanup::everything(&settings.ipvs.exclude_cidrs)
        }
        Command::CleanupOwn(settings) => {
            let _log = start_log(&settings, loaded.notices)?;
            host::cleanup::own()
        }
        Command::InitOnly(settings) => {
            let _log = start_log(&settings, loaded.notices)?;
            run::init(&settings)
        }
        Command::Run(settings) => {
            let log = start_log(&settings, loaded.notices)?;
            run::run(*settings, arguments, log)
        }
    }
}

fn start_log(settings: &Settings, notices: Vec<String>) -> anyhow::Result<LogControl> {
    let log = logging::init(&settings.logging)?;
    for notice in notices {
        tracing::info!("{notice}");
    }
    logging::announce(settings);
    Ok(log)
}
