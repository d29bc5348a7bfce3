//! Carries plans out: one `iptables-restore` per step. Looks at the tables, and lays refusals at the right door.

use std::{
    cell::Cell,
    collections::BTreeSet,
    fs,
    io::{self, BufReader},
    mem,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nft_netlink::generation::OwnCommits;
use proxy_core::{
    backend::{self, ApplyError, Figures, Outcome, Plan, Step},
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
        chains::Table,
        counters::Counters,
        found::{Found, Host},
        op::{Op, Tally},
        restore::{self, Line},
        variant::Variant,
    },
};

/// How often it is looked whether affinity has room.
const AFFINITY_PAUSE: Duration = Duration::from_secs(30);
/// How often the programs are run at most to find which of many chains cannot be deleted.
const MOST_DELETIONS: usize = 200;
/// How many of those are told of.
const MOST_NAMED: usize = 100;

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
    /// Chains that could not be deleted.
    in_use: BTreeSet<(Table, Box<str>)>,
    /// When that was last looked at.
    affinity_seen: Instant,
    /// Somebody else changed the tables, and the next plan mends it.
    repairs: bool,
    /// Whether rules may name packet counters; `None` before the first try.
    counters_usable: Option<bool>,
    /// `route_localnet` was 0, and is 1 with no guard but the rules.
    opened_without_guard: bool,
    /// How long programs have been running for us.
    waited: Cell<Duration>,
}

/// How a program ended that was given a step.
enum Ran {
    Through(Tally),
    /// `deletion`: it complains about the deletion of a chain.
    Refused {
        deletion: bool,
        stderr: String,
    },
}

/// Why iptables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A program cannot be run at all.
    #[error("cannot run {program}: {source}")]
    Missing {
        /// Its name.
        program: String,
        /// Why it cannot be run.
        source: io::Error,
    },
    /// A program runs, and the kernel refuses what it asks for.
    #[error("{program} does not work on this kernel: {reason}")]
    Unusable {
        /// Its name.
        program: String,
        /// What it said.
        reason: String,
    },
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
            standing: Standing::new(family, variant, programs.save.clone()),
            programs,
            version,
            in_use: BTreeSet::new(),
            rules: Tally::default(),
            last_written: Tally::default(),
            affinity: AffinityLists::of(family),
            affinity_seen: now(),
            repairs: false,
            counters_usable: None,
            opened_without_guard: false,
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

    /// Has transactions be counted together with those of the other family.
    #[must_use]
    pub fn counting(mut self, own: &OwnCommits) -> Self {
        self.standing.count_with(own);
        self
    }

    /// Whether it has nothing left to look at: all that was written since was our own.
    #[cfg(test)]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.standing.is_at_rest()
    }

    /// Which set of tables it writes.
    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// Carries a step out, and tells how many rules it wrote. Chains that others use stay, emptied.
    fn restore(&mut self, step: &Step<Op>) -> Result<Tally, ApplyError> {
        match self.run_step(step)? {
            Ran::Through(written) => Ok(written),
            Ran::Refused { deletion: true, .. } => {
                // Somebody's rule leads to a chain that is to go: that must not keep anything else.
                let emptied = restore::without_deletions(step);
                let written = match self.run_step(&emptied)? {
                    Ran::Through(written) => written,
                    Ran::Refused { stderr, .. } => return Err(self.refusal(&emptied, &stderr)),
                };
                let chains: Vec<(Table, Box<str>)> =
                    step.ops.iter().flat_map(|owned| owned.op.deleted()).collect();
                self.delete_what_can_be(&chains);
                Ok(written)
            }
            Ran::Refused { stderr, .. } => Err(self.refusal(step, &stderr)),
        }
    }

    fn run_step(&mut self, step: &Step<Op>) -> Result<Ran, ApplyError> {
        let mut commits = 0;
        let running = start_restore(&self.programs.restore, &WRITE, |to| {
            let mut result = Ok(());
            restore::write(step, self.variant, &mut |op, lines| {
                commits += u32::from(op.is_none() && lines == "COMMIT\n");
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
            self.standing.committed(commits);
            return Ok(Ran::Through(written));
        }
        if run.status.code().is_none() {
            // Killed: it may have committed a table or not.
            return Err(ApplyError::Lost(io::Error::other(format!(
                "{}: {}",
                self.programs.restore, run.status
            ))));
        }
        let line = restore::complained_line(&run.stderr)
            .and_then(|number| restore::line(step, self.variant, number));
        let deletion = line.is_some_and(|line| line.text.starts_with("-X "));
        Ok(Ran::Refused { deletion, stderr: run.stderr })
    }

    /// Deletes chains that are empty, by halves where that fails, so that one that is in use keeps none of the others.
    fn delete_what_can_be(&mut self, chains: &[(Table, Box<str>)]) {
        let mut tries = 0;
        let mut left = vec![chains];
        while let Some(chains) = left.pop() {
            tries += 1;
            let text = restore::deletion(chains);
            let run = run_restore(&self.programs.restore, &WRITE, |to| to.write_all(text.as_bytes()));
            if run.is_ok_and(|run| run.status.success()) {
                continue;
            }
            match chains {
                _ if tries > MOST_DELETIONS => {}
                [(table, chain)] => {
                    if self.in_use.len() < MOST_NAMED && self.in_use.insert((*table, chain.clone())) {
                        tracing::warn!(
                            family = %self.family,
                            %table,
                            chain = %chain,
                            "this chain is no longer wanted and stays, emptied: a rule of others leads to it"
                        );
                    }
                }
                _ => {
                    let (first, second) = chains.split_at(chains.len() / 2);
                    left.extend([second, first]);
                }
            }
        }
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
        self.standing.before_survey();
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
        if mem::take(&mut self.repairs) {
            tell_repairs(self.family, plan);
        }
        for step in &plan.steps {
            self.standing.before_writing();
            if step.ops.iter().any(|owned| owned.op == Op::LeaveLocalnet)
                && let Err(error) = self.leave_localnet()
            {
                tracing::warn!(sysctl = ROUTE_LOCALNET, %error, "node ports on 127.0.0.1 are off, what they needed is not");
            }
            self.last_written = if step.ops.iter().any(|owned| owned.op.table().is_some()) {
                self.restore(step)?
            } else {
                Tally::default()
            };
            self.standing.written(step);
            if let Some(sums) = step.ops.iter().find_map(|owned| match owned.op {
                Op::Sums(sums) => Some(sums),
                _ => None,
            }) {
                self.rules = sums.rules;
            }
            // An extra: where it cannot be set (/proc/sys is read-only in many containers), all else works.
            if step.ops.iter().any(|owned| owned.op == Op::RouteLocalnet)
                && let Err(error) = self.set_route_localnet()
            {
                tracing::warn!(sysctl = ROUTE_LOCALNET, %error, "node ports on 127.0.0.1 will not work");
            }
        }
        Ok(Outcome::default())
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        let intact = self.standing.intact()?;
        self.repairs = !intact;
        if intact && now().saturating_duration_since(self.affinity_seen) >= AFFINITY_PAUSE {
            self.affinity_seen = now();
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

/// Says what was missing or changed.
fn tell_repairs(family: Family, plan: &Plan<Op>) {
    const NAMED: usize = 5;
    let mut places = Vec::new();
    let mut more = 0;
    for owned in plan.steps.iter().flat_map(|step| &step.ops) {
        let texts: Vec<String> = match &owned.op {
            Op::Fill { chains, .. } => chains.iter().map(|chain| format!("nat {chain}")).collect(),
            Op::Declare { table, chain } => vec![format!("{table} {chain}")],
            Op::Insert(jump) => vec![format!("{} {} -> {}", jump.table, jump.from, jump.to)],
            _ => Vec::new(),
        };
        for text in texts {
            if places.len() < NAMED {
                places.push(text);
            } else {
                more += 1;
            }
        }
    }
    if !places.is_empty() {
        tracing::info!(%family, chains = places.join(", "), more, "mends what others have changed");
    }
}

const ROUTE_LOCALNET: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";

impl Executor {
    /// With the guard that outlives these rules; where the kernel has no nf_tables for it, they are the guard while they
    /// stand.
    fn set_route_localnet(&mut self) -> io::Result<()> {
        match localnet::open() {
            Ok(()) => Ok(()),
            Err(localnet::Error::Setting(error)) => Err(error),
            Err(_) if fs::read_to_string(ROUTE_LOCALNET)?.trim() == "1" => Ok(()),
            Err(_) => {
                fs::write(ROUTE_LOCALNET, "1")?;
                self.opened_without_guard = true;
                Ok(())
            }
        }
    }

    fn leave_localnet(&mut self) -> Result<(), localnet::Error> {
        if mem::take(&mut self.opened_without_guard) {
            fs::write(ROUTE_LOCALNET, "0")?;
        }
        localnet::leave()
    }
}
