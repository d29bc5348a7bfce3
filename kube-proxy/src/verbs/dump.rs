//! `dump`: what the engine was told and what it did, as a file.

use std::{
    fs::OpenOptions,
    hash::RandomState,
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use anyhow::Context as _;
use clap::Args;
use insight::{anonymise::anonymise, state::Filter};

use super::common::Common;

/// Write what this node's proxy was told and what it did to a file that `replay` reads
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The file; `-`, or none: standard output
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Replace names and addresses, so that every question is answered as before
    #[arg(long)]
    anonymise: bool,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    match options.file.as_deref().filter(|path| path.as_os_str() != "-") {
        None => write(options, common, BufWriter::new(io::stdout().lock()))?,
        Some(path) => {
            // It has the addresses of everything.
            let mut opened = OpenOptions::new();
            let file = opened.write(true).create(true).truncate(true).mode(0o600).open(path);
            let file = file.with_context(|| format!("{}", path.display()))?;
            write(options, common, BufWriter::new(file)).with_context(|| format!("{}", path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::disallowed_methods, reason = "nothing depends on the time")]
fn write(options: &Options, common: &Common, mut to: impl Write) -> anyhow::Result<()> {
    if common.is_live() && !options.anonymise {
        // As it comes, so that it is never held; what a cut connection leaves is known by its end.
        return common.copy(&mut to);
    }
    let mut state = common.state(Filter::default())?;
    if options.anonymise {
        state = anonymise(&state, &RandomState::new(), Instant::now());
    }
    state.write(&mut to).context("writing")?;
    to.flush().context("writing")
}
