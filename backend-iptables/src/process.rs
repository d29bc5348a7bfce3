//! Runs the programs: fed through a pipe while they read, their complaints collected and judged.

use std::{
    collections::HashSet,
    io::{self, BufWriter, Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

use nix::fcntl::{FcntlArg, fcntl};
use proxy_core::backend::ApplyError;

/// The size of the pipe to `iptables-restore`; the default (64 KiB) makes it wait for us.
const PIPE_SIZE: i32 = 1 << 20;

/// How a run ended.
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

/// Runs `iptables-restore` and feeds it while it reads.
pub(crate) fn run_restore(
    program: &str,
    arguments: &[&str],
    feed: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<Run, ApplyError> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| not_run(program, &error))?;
    // Read beside the writing: a program that complains much before it has read all would wait for us for ever.
    let stderr = collect(child.stderr.take());
    let fed = feed_stdin(&mut child, feed);
    let status = child.wait()?;
    let stderr = stderr.join().unwrap_or_default();
    match fed {
        // It stopped reading: its exit status says why.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe && !status.success() => {}
        fed => fed?,
    }
    Ok(Run { status, stderr })
}

fn feed_stdin(child: &mut Child, feed: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let stdin = child.stdin.take().expect("stdin is piped");
    // Refused when /proc/sys/fs/pipe-max-size is lower: then it is a little slower.
    let _ = fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    let mut to = BufWriter::with_capacity(1 << 18, stdin);
    feed(&mut to)?;
    to.flush()
}

/// Reads an error output to its end.
pub(crate) fn collect(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut from) = from {
            // What was read until an error is what there is to show.
            let _ = from.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    })
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
