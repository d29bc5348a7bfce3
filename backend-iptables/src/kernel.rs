//! Runs `iptables-restore`: one process per step, fed while it reads.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{self, BufReader, BufWriter, Read, Write},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
};

use nix::fcntl::{FcntlArg, fcntl};
use proxy_core::{
    backend::{self, ApplyError, Figures, Outcome, Plan, Rejection, Step},
    model::Family,
};

use crate::{
    accounting,
    chains::{CANARY, JUMPS, KUBELET_JUMPS, Table},
    limits::AffinityLists,
    restore::{self, Line, Op, Tally},
    survey::{Found, Host},
    trial,
    variant::{self, Machine, Programs, Variant, Version},
};

/// How long a program waits for others that hold /run/xtables.lock, in seconds.
const LOCK_WAIT: &str = "5";

const WRITE: [&str; 4] = ["-w", LOCK_WAIT, "--noflush", "--counters"];

/// The size of the pipe to `iptables-restore`; the default (64 KiB) makes it wait for us.
const PIPE_SIZE: i32 = 1 << 20;

/// Writes one family's rules. Not to be shared: the kernel serialises writers anyway.
#[derive(Debug)]
pub struct Executor {
    family: Family,
    variant: Variant,
    programs: Programs,
    version: Version,
    /// Rules of ours that do not depend on Services, as they were written last: [`Executor::intact`] looks for them.
    standing: BTreeMap<(Table, &'static str), Arc<str>>,
    rules: Tally,
    last_written: Tally,
    affinity: AffinityLists,
}

/// Why iptables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot run {program}: {source}")]
    Missing { program: String, source: io::Error },
    #[error("{program} does not work on this kernel: {reason}")]
    Unusable { program: String, reason: String },
}

impl Executor {
    /// The variant is the one that the rest of the node uses.
    pub fn open(family: Family) -> Result<Self, OpenError> {
        let installed = variant::installed(family);
        let variant = match installed[..] {
            [] => None,
            [only] => Some(only),
            _ => Some(variant::choose(&Machine)),
        };
        Self::open_programs(family, Programs::of(family, variant))
    }

    /// With a variant of one's own choice.
    pub fn open_variant(family: Family, variant: Variant) -> Result<Self, OpenError> {
        Self::open_programs(family, Programs::of(family, Some(variant)))
    }

    /// Without a look at the tables, which would create those of the legacy variant.
    pub(crate) fn for_cleanup(family: Family, variant: Variant) -> Result<Self, ApplyError> {
        let programs = Programs::of(family, Some(variant));
        let version =
            variant::version(&programs.iptables).map_err(|error| not_run(&programs.iptables, &error))?;
        Ok(Self::new(family, variant, programs, version))
    }

    fn new(family: Family, variant: Variant, programs: Programs, version: Version) -> Self {
        Self {
            family,
            variant,
            programs,
            version,
            standing: BTreeMap::new(),
            rules: Tally::default(),
            last_written: Tally::default(),
            affinity: AffinityLists::of(family),
        }
    }

    fn open_programs(family: Family, programs: Programs) -> Result<Self, OpenError> {
        let version = variant::version(&programs.iptables)
            .map_err(|source| OpenError::Missing { program: programs.iptables.clone(), source })?;
        let executor = Self::new(family, version.variant, programs, version);
        let probe = Command::new(&executor.programs.iptables)
            .args(["-w", LOCK_WAIT, "-t", "nat", "-S", "POSTROUTING"])
            .output()
            .map_err(|source| OpenError::Missing { program: executor.programs.iptables.clone(), source })?;
        if !probe.status.success() {
            let reason = String::from_utf8_lossy(&probe.stderr).trim().to_owned();
            return Err(OpenError::Unusable { program: executor.programs.iptables, reason });
        }
        Ok(executor)
    }

    pub fn variant(&self) -> Variant {
        self.variant
    }

    fn restore(&self, step: &Step<Op>) -> Result<(), ApplyError> {
        let run = run_restore(&self.programs.restore, &WRITE, |to| {
            let mut result = Ok(());
            restore::write(step, self.variant, &mut |_, lines| {
                if result.is_ok() {
                    result = to.write_all(lines.as_bytes());
                }
            });
            result
        })?;
        if run.status.success() {
            return Ok(());
        }
        if run.status.code().is_none() {
            // Killed: it may have committed a table or not.
            return Err(ApplyError::Lost(io::Error::other(format!(
                "{}: {}",
                self.programs.restore, run.status
            ))));
        }
        Err(self.refusal(step, &run.stderr))
    }

    /// Finds the operation that a failed restore complains about.
    fn refusal(&self, step: &Step<Op>, stderr: &str) -> ApplyError {
        let mut reason = message(stderr);
        if is_of_the_moment(stderr) {
            return ApplyError::Refused { reason, culprit: None };
        }
        let line =
            restore::complained_line(stderr).and_then(|number| restore::line(step, self.variant, number));
        if let Some(Line { text, op: Some(op) }) = line {
            reason = format!("{reason}: {text}");
            return ApplyError::Refused { reason, culprit: step.ops[op].owner };
        }
        // It complains about `COMMIT`: the kernel refused the table whole.
        let culprit = trial::find_culprit(step, |text| {
            let run = run_restore(&self.programs.restore, &WRITE, |to| to.write_all(text.as_bytes())).ok()?;
            if !run.status.success() && is_of_the_moment(&run.stderr) {
                return None;
            }
            Some(run.status.success())
        });
        ApplyError::Refused { reason, culprit }
    }

    /// Remembers the rules that stand for the tables.
    fn remember(&mut self, step: &Step<Op>) {
        self.last_written = Tally::written(step);
        for owned in &step.ops {
            match &owned.op {
                Op::Declare { table, chain } => {
                    self.standing.remove(&(*table, *chain));
                }
                Op::Append { table, chain, rules, standing: true } | Op::Stands { table, chain, rules } => {
                    self.standing.insert((*table, chain), rules.clone());
                }
                Op::Tally(tally) => self.rules = *tally,
                _ => {}
            }
        }
    }

    /// A restore that changes nothing and fails if something is missing.
    fn check_text(&self) -> String {
        let mut text = String::new();
        for table in Table::ALL {
            text.push_str(&format!("*{table}\n-S {CANARY}\n"));
            for jump in JUMPS.iter().chain(&KUBELET_JUMPS).filter(|jump| jump.table == table) {
                text.push_str(&format!("-C {} {}\n", jump.from, jump.rule()));
            }
            for ((_, _), rules) in self.standing.iter().filter(|((of, _), _)| *of == table) {
                for rule in rules.lines() {
                    text.push_str(&rule.replacen("-A ", "-C ", 1));
                    text.push('\n');
                }
            }
            text.push_str("COMMIT\n");
        }
        text
    }
}

impl backend::Executor for Executor {
    type Op = Op;
    type Found = Found;

    fn survey(&mut self) -> Result<Found, ApplyError> {
        let host = Host {
            tcp_be_liberal: fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
                .is_ok_and(|value| value.trim() != "0"),
            random_fully: self.version.is_at_least((1, 6, 2)),
            counters: accounting::ensure(),
        };
        let mut child = Command::new(&self.programs.save)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| not_run(&self.programs.save, &error))?;
        let stderr = collect(child.stderr.take());
        let stdout = child.stdout.take().expect("stdout is piped");
        let found = Found::read(BufReader::with_capacity(1 << 16, stdout), host);
        let status = child.wait()?;
        let stderr = stderr.join().unwrap_or_default();
        if !status.success() {
            let reason = format!("{}: {}", self.programs.save, message(&stderr));
            return Err(ApplyError::Refused { reason, culprit: None });
        }
        Ok(found?)
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        let mut outcome = Outcome::default();
        for step in &plan.steps {
            if step.ops.iter().any(|owned| owned.op.table().is_some()) {
                self.restore(step)?;
            }
            self.remember(step);
            for owned in step.ops.iter().filter(|owned| owned.op == Op::RouteLocalnet) {
                if let Err(error) = set_route_localnet() {
                    let reason = format!("node ports on 127.0.0.1 will not work: {ROUTE_LOCALNET}: {error}");
                    outcome.rejected.push(Rejection { owner: owned.owner, reason });
                }
            }
        }
        Ok(outcome)
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        if self.standing.is_empty() {
            return Ok(true);
        }
        let text = self.check_text();
        // The nft variant carries out nothing in a test, not even checks; with nothing to change, it writes nothing.
        let test: &[&str] = match self.variant {
            Variant::Legacy => &["-w", LOCK_WAIT, "--noflush", "--test"],
            Variant::Nft => &["-w", LOCK_WAIT, "--noflush"],
        };
        let run = run_restore(&self.programs.restore, test, |to| to.write_all(text.as_bytes()))?;
        if run.status.success() {
            self.affinity.report();
            return Ok(true);
        }
        if run.status.code().is_none() || is_of_the_moment(&run.stderr) {
            return Err(ApplyError::Lost(io::Error::other(message(&run.stderr))));
        }
        let missing = restore::complained_line(&run.stderr).and_then(|number| text.lines().nth(number - 1));
        tracing::info!(
            family = %self.family,
            missing = missing.unwrap_or("unknown"),
            "rules of ours are missing: {}",
            message(&run.stderr),
        );
        Ok(false)
    }

    fn figures(&self) -> Figures {
        let tables = [
            ("filter", self.rules.filter, self.last_written.filter),
            ("nat", self.rules.nat, self.last_written.nat),
        ];
        Figures { rules: tables.into(), ..Figures::default() }
    }
}

struct Run {
    status: ExitStatus,
    stderr: String,
}

fn run_restore(
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

fn collect(from: Option<impl Read + Send + 'static>) -> thread::JoinHandle<String> {
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
fn not_run(program: &str, error: &io::Error) -> ApplyError {
    ApplyError::Refused { reason: format!("cannot run {program}: {error}"), culprit: None }
}

/// The part of an error output that says something.
fn message(stderr: &str) -> String {
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
fn is_of_the_moment(stderr: &str) -> bool {
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

const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

fn set_route_localnet() -> io::Result<()> {
    if fs::read_to_string(ROUTE_LOCALNET)?.trim() != "1" {
        fs::write(ROUTE_LOCALNET, "1")?;
    }
    Ok(())
}
