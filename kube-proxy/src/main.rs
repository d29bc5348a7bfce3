//! The `kube-proxy` program: reads what it is asked to do, and does it.

mod cleanup;
mod client;
mod config;
mod conntrack;
mod engine;
mod events;
mod feature_gates;
mod flags;
mod http;
mod logging;
mod metrics;
mod node;
mod observe;
mod run;
mod slim;
mod version;
mod watch;

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use config::{Command, Loaded};

fn main() -> ExitCode {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let result = match config::load(&arguments) {
        Ok(loaded) => carry_out(loaded),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Logging may not be up yet, and what ends the process must be seen at any verbosity.
            let _ = writeln!(std::io::stderr(), "kube-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn carry_out(loaded: Loaded) -> anyhow::Result<()> {
    match loaded.command {
        Command::Print(text) => std::io::stdout().write_all(text.as_bytes()).context("standard output"),
        Command::WriteConfig { path, text } => {
            std::fs::write(&path, text).with_context(|| format!("{}", path.display()))
        }
        Command::Cleanup(settings) => {
            logging::init(&settings.logging)?;
            cleanup::everything(&settings.ipvs.exclude_cidrs)
        }
        Command::InitOnly(_) => anyhow::bail!("--init-only is not available in this build"),
        Command::Run(settings) => {
            let log = logging::init(&settings.logging)?;
            for notice in loaded.notices {
                tracing::info!("{notice}");
            }
            logging::announce(&settings);
            run::run(*settings, log)
        }
    }
}
