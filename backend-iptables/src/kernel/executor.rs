//! Carries plans out: one `iptables-restore` per step. Looks at the tables, and lays refusals at the right door.

use std::{
    cell::Cell,
    fs,
    io::{self, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use proxy_core::{
    backend::{self, ApplyError, Figures, Outcome, Plan, Rejection, Step},
    model::Family,
};

use crate::{
    kernel::{
        accounting,
        drift::Standing,
        limits::AffinityLists,
        process::{LOCK_WAIT, collect, is_of_the_moment, message, not_run, now, run_restore, start_restore},
        trial,
        variant::{self, Machine, Programs, Version},
    },
    schema::{
        counters::Counters,
        found::{Found, Host},
        op::{Op, Tally},
        restore::{self, Line},
        variant::Variant,
    },
};

const WRITE: [&str; 4] = ["-w", LOCK_WAIT, "--noflush", "--counters"];

/// Writes one family's rules. Not to be shared: the kernel serialises writers anyway.
#[derive(Debug)]
pub struct Executor {
    family: Family,
    variant: Variant,
    programs: Programs,
    version: Version,
    standing: Standing,
    rules: Tally,
    last_written: Tally,
    affinity: AffinityLists,
    /// Whether rules may name packet counters; `None` before the first try.
    counters_usable: Option<bool>,
    /// How long programs have been running for us.
    waited: Cell<Duration>,
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
            standing: Standing::default(),
            rules: Tally::default(),
            last_written: Tally::default(),
            affinity: AffinityLists::of(family),
            counters_usable: None,
            waited: Cell::default(),
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

    /// Carries a step out, and tells how many rules it wrote.
    fn restore(&self, step: &Step<Op>) -> Result<Tally, ApplyError> {
        let running = start_restore(&self.programs.restore, &WRITE, |to| {
            let mut result = Ok(());
            restore::write(step, self.variant, &mut |_, lines| {
                if result.is_ok() {
                    result = to.write_all(lines.as_bytes());
                }
            });
            result
        })?;
        // Counted while the program works.
        let written = Tally::written(step);
        let run = running.wait()?;
        self.waited.set(self.waited.get() + run.took);
        if run.status.success() {
            return Ok(written);
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

    /// Reads what is there, and changes nothing.
    pub(crate) fn read_tables(&self, host: Host) -> Result<Found, ApplyError> {
        let begun = now();
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
        self.waited.set(self.waited.get() + begun.elapsed());
        let stderr = stderr.join().unwrap_or_default();
        if !status.success() {
            let reason = format!("{}: {}", self.programs.save, message(&stderr));
            return Err(ApplyError::Refused { reason, culprit: None });
        }
        Ok(found?)
    }

    /// The packet counters that rules may name. Where the kernel has the counters but not the match (`xt_nfacct`), a
    /// rule that names one would be refused, and everything else with it.
    fn counters(&mut self) -> Counters {
        let exist = accounting::ensure();
        let Some(name) = exist.any() else { return exist };
        if self.counters_usable.is_none() {
            let text = trial::of_rule(&format!("-m nfacct --nfacct-name {name}"));
            let run = run_restore(&self.programs.restore, &WRITE, |to| to.write_all(text.as_bytes()));
            self.counters_usable =
                run.ok().filter(|run| !is_of_the_moment(&run.stderr)).map(|run| run.status.success());
        }
        if self.counters_usable == Some(true) { exist } else { Counters::default() }
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
}

impl backend::Executor for Executor {
    type Op = Op;
    type Found = Found;

    fn survey(&mut self) -> Result<Found, ApplyError> {
        let begun = now();
        let counters = self.counters();
        self.waited.set(self.waited.get() + begun.elapsed());
        let host = Host {
            tcp_be_liberal: fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")
                .is_ok_and(|value| value.trim() != "0"),
            random_fully: self.version.is_at_least((1, 6, 2)),
            counters,
        };
        self.read_tables(host)
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        let mut outcome = Outcome::default();
        for step in &plan.steps {
            self.last_written = if step.ops.iter().any(|owned| owned.op.table().is_some()) {
                self.restore(step)?
            } else {
                Tally::default()
            };
            self.standing.remember(step);
            if let Some(tally) = step.ops.iter().find_map(|owned| match owned.op {
                Op::Tally(tally) => Some(tally),
                _ => None,
            }) {
                self.rules = tally;
            }
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
        let intact = self.standing.intact(self.family, self.variant, &self.programs.restore)?;
        if intact {
            self.affinity.report();
        }
        Ok(intact)
    }

    fn waited(&self) -> Duration {
        self.waited.get()
    }

    fn figures(&self) -> Figures {
        let tables = [
            ("filter", self.rules.filter, self.last_written.filter),
            ("nat", self.rules.nat, self.last_written.nat),
        ];
        Figures { rules: tables.into(), ..Figures::default() }
    }
}

const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

fn set_route_localnet() -> io::Result<()> {
    if fs::read_to_string(ROUTE_LOCALNET)?.trim() != "1" {
        fs::write(ROUTE_LOCALNET, "1")?;
    }
    Ok(())
}
