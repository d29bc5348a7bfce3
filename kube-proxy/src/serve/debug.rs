//! What `--profiling` opens: the verbosity of the log, and what a native program can say about itself.
//!
//! The sampling profiles of Go's pprof have no counterpart here (`perf` does that from outside); those paths say so.

use std::{fmt::Write as _, fs};

use http::{Method, StatusCode};

use super::answer::{self, Answer};
use crate::telemetry::logging::LogControl;

/// Serves `/debug/...`; `None` for paths that do not exist.
pub(super) fn respond(method: &Method, path: &str, body: &str, log: &LogControl) -> Option<Answer> {
    match path {
        "/debug/pprof" | "/debug/pprof/" => Some(answer::plain(StatusCode::OK, INDEX)),
        "/debug/pprof/cmdline" => Some(answer::plain(StatusCode::OK, command_line())),
        "/debug/pprof/threads" => Some(answer::plain(StatusCode::OK, threads())),
        "/debug/pprof/profile" | "/debug/pprof/trace" | "/debug/pprof/symbol" => Some(answer::plain(
            StatusCode::NOT_IMPLEMENTED,
            "this program has no Go runtime: use perf(1) on the node\n",
        )),
        "/debug/flags" | "/debug/flags/" => Some(answer::plain(StatusCode::OK, "/debug/flags/v\n")),
        "/debug/flags/v" => Some(set_verbosity(method, body, log)),
        _ => None,
    }
}

const INDEX: &str =
    "/debug/pprof/cmdline\tthe command line\n/debug/pprof/threads\tthreads, their state and time\n";

fn set_verbosity(method: &Method, body: &str, log: &LogControl) -> Answer {
    if *method != Method::PUT {
        return answer::plain(StatusCode::NOT_ACCEPTABLE, "unsupported http method\n");
    }
    match body.trim().parse::<u32>() {
        Ok(verbosity) if i32::try_from(verbosity).is_ok() => {
            log.set_verbosity(verbosity);
            answer::plain(StatusCode::OK, format!("successfully set klog.logging.verbosity to {verbosity}\n"))
        }
        _ => answer::plain(
            StatusCode::BAD_REQUEST,
            format!("failed set klog.logging.verbosity {body:?}: must be a number from 0 to {}\n", i32::MAX),
        ),
    }
}

/// Separated by zeros, as Go does.
fn command_line() -> String {
    let arguments: Vec<String> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    arguments.join("\0")
}

fn threads() -> String {
    let mut text = String::new();
    for entry in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let directory = entry.path();
        let read = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let status = read("status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        // schedstat: time on the processor, time waiting for it, in nanoseconds.
        let schedstat = read("schedstat");
        let on_processor: u64 =
            schedstat.split_ascii_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
        let _ = writeln!(
            text,
            "{}\t{}\t{}\t{} ms",
            entry.file_name().to_string_lossy(),
            read("comm").trim(),
            field("State:"),
            on_processor / 1_000_000
        );
    }
    text
}
