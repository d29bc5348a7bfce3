//! Runs the programs: their input prepared, their complaints collected and judged.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufWriter, Read, Seek as _, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use proxy_core::backend::ApplyError;

/// How long a program waits for others that hold /run/xtables.lock, in seconds.
pub(crate) const LOCK_WAIT: &str = "5";

/// A program that works for so long hangs. Far more than the slowest machine needs for the largest tables.
const HANGS: Duration = Duration::from_secs(1800);

/// How a run ended.
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
    /// From its start to its end.
    pub(crate) took: Duration,
}

/// Runs `iptables-restore` on what `feed` writes.
pub(crate) fn run_restore(
    program: &str,
    arguments: &[&str],
    feed: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Run, ApplyError> {
    start_restore(program, arguments, feed)?.wait()
}

/// Starts `iptables-restore` on what `feed` writes. The text goes through memory that the program reads as a file: through
/// a pipe it would be woken, and wake us, for every page.
pub(crate) fn start_restore(
    program: &str,
    arguments: &[&str],
    feed: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Running, ApplyError> {
    let text = in_memory(feed).map_err(|error| ApplyError::Refused {
        reason: format!("cannot write the text for {program}: {error}"),
        culprit: None,
    })?;
    let begun = now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(text)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| not_run(program, &error))?;
    let (tell, complaints) = mpsc::channel();
    let stderr = child.stderr.take();
    thread::spawn(move || {
        // Nobody may wait any more.
        let _ = tell.send(read_to_end(stderr));
    });
    Ok(Running { child, begun, complaints })
}

/// A program that runs.
pub(crate) struct Running {
    child: Child,
    begun: Instant,
    complaints: Receiver<String>,
}

impl Running {
    /// Waits for its end, which ends what it writes; one that hangs is killed.
    pub(crate) fn wait(self) -> Result<Run, ApplyError> {
        self.wait_for(HANGS)
    }

    fn wait_for(mut self, most: Duration) -> Result<Run, ApplyError> {
        let complaints = self.complaints.recv_timeout(most);
        if complaints.is_err() {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        Ok(Run { status, stderr: complaints.unwrap_or_default(), took: self.begun.elapsed() })
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a program takes is told, and nothing is decided by it"
)]
pub(crate) fn now() -> Instant {
    Instant::now()
}

fn in_memory(feed: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<File> {
    let mut to = BufWriter::with_capacity(
        1 << 18,
        File::from(memfd_create(c"iptables-restore", MFdFlags::MFD_CLOEXEC)?),
    );
    feed(&mut to)?;
    let mut file = to.into_inner()?;
    file.rewind()?;
    Ok(file)
}

/// Reads an error output to its end, beside what the caller reads.
pub(crate) fn collect(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || read_to_end(from))
}

fn read_to_end(from: Option<impl Read>) -> String {
    let mut text = Vec::new();
    if let Some(mut from) = from {
        // What was read until an error is what there is to show.
        let _ = from.read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Nothing was applied: the program did not even start.
pub(crate) fn not_run(program: &str, error: &io::Error) -> ApplyError {
    ApplyError::Refused { reason: format!("cannot run {program}: {error}"), culprit: None }
}

/// The part of an error output that says something.
pub(crate) fn message(stderr: &str) -> String {
    let mut seen = HashSet::new();
    let lines: Vec<&str> = stderr
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with("Try `") && !line.starts_with("# Warning"))
        .filter(|line| seen.insert(*line))
        .take(4)
        .collect();
    lines.join("; ")
}

/// Whether a failure comes from the machine's present state rather than from what was written.
pub(crate) fn is_of_the_moment(stderr: &str) -> bool {
    [
        "Cannot allocate memory",
        "Memory allocation problem",
        "Resource temporarily unavailable",
        "Device or resource busy",
        "No buffer space available",
        "Too many open files",
        "Interrupted system call",
        "holding the xtables lock",
        "can't open lock file",
        "Permission denied",
        "Operation not permitted",
    ]
    .iter()
    .any(|text| stderr.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed_and_one_that_ends_says_why() {
        let hangs = start_restore("sleep", &["1000"], |_| Ok(())).expect("it starts");
        let run = hangs.wait_for(Duration::from_millis(10)).expect("it ends");
        assert_eq!(run.status.code(), None, "killed");
        let fails =
            start_restore("sh", &["-c", "cat >&2; exit 3"], |to| to.write_all(b"no")).expect("it starts");
        let run = fails.wait().expect("it ends");
        assert_eq!((run.status.code(), &*run.stderr), (Some(3), "no"));
    }
}
