//! `dump`: what the engine was told and what it did, as a file.

use std::{
    fs::OpenOptions,
    io::{self, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;
use insight::state::{Filter, State};

use super::common::Common;

/// Write what this node's proxy was told and what it did to a file that `replay` reads
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The file; `-`, or none: standard output
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    match options.file.as_deref().filter(|path| path.as_os_str() != "-") {
        None => write(common, BufWriter::new(io::stdout().lock())).map(drop)?,
        Some(path) => {
            // It has the addresses of everything.
            let mut opened = OpenOptions::new();
            let file = opened.write(true).create(true).truncate(true).mode(0o600).open(path);
            let file = file.with_context(|| format!("{}", path.display()))?;
            write(common, BufWriter::new(file)).with_context(|| format!("{}", path.display()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write(common: &Common, mut to: impl Write) -> anyhow::Result<()> {
    let state: State = if common.is_live() {
        State::read(BufReader::new(common.ask(Filter::default())?))
            .context("the answer of the running process")?
    } else {
        common.state(Filter::default())?
    };
    state.write(&mut to).context("writing")?;
    to.flush().context("writing")?;
    Ok(())
}
