//! A kernel with IPVS for machines whose own has none: the whole comparison is started again inside the project's VM.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// How the VM is to be.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The `vm-run` program of `integration/vm`.
    pub program: PathBuf,
    /// `uml` or `qemu`.
    pub kind: String,
    pub processors: usize,
    pub memory: String,
    /// Seconds after which it is given up.
    pub timeout: u64,
}

/// Runs this program with the same arguments inside, where `folder` is writable.
pub fn run_inside(guest: &Guest, folder: &Path, arguments: &[OsString]) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let this = std::env::current_exe().context("where this program is")?;
    let status = Command::new(&guest.program)
        .args(["--vm", &guest.kind, "--cpus", &guest.processors.to_string(), "--mem", &guest.memory])
        .args(["--timeout", &guest.timeout.to_string(), "--share"])
        .arg(folder)
        .arg("--")
        .arg(this)
        .args(arguments)
        .status()
        .with_context(|| format!("starting {}", guest.program.display()))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(127) => bail!(
            "this kernel has no IPVS and the {} VM is not set up: run {}",
            guest.kind,
            guest.program.with_file_name("vm-setup").display()
        ),
        Some(124) => bail!(
            "the VM was given up after {} s; what was measured is in {}",
            guest.timeout,
            folder.display()
        ),
        _ => bail!("the comparison inside the VM failed: {status}"),
    }
}
