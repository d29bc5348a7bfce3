//! `replay`: another verb, over a file that `dump` wrote, on any machine.

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::Args;
use insight::{state::Filter, table::Table};

use super::common::Common;

/// Answer from a file that `dump` wrote, on any machine
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The file
    file: PathBuf,
    /// A verb with its options; none: what the file holds
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "VERB")]
    verb: Vec<OsString>,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    if !options.verb.is_empty() {
        return Ok(super::answer(options.verb.iter().cloned(), Some(&options.file)));
    }
    let common = common.over(&options.file);
    let state = common.state(Filter::default())?;
    let header = &state.header;
    common.answer(header, |look| {
        let mut table = Table::new()
            .text("NODE", 8)
            .column("MODE")
            .column("TAKEN")
            .number("SERVICES")
            .number("SLICES")
            .number("ASIDE")
            .number("CONFLICTS")
            .number("SYNCS")
            .column("VERSION")
            .wide();
        table.row([
            header.node.clone().into(),
            header.mode.as_str().into(),
            header.taken.to_string().into(),
            state.services.len().to_string().into(),
            state.slices.len().to_string().into(),
            state.asides.len().to_string().into(),
            state.conflicts.len().to_string().into(),
            state.syncs.len().to_string().into(),
            header.versions.switchyard.clone().into(),
        ]);
        table.print(look)
    })?;
    Ok(ExitCode::SUCCESS)
}
