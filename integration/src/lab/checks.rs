//! Questions to a lab: what a scenario says by hand, what the oracle computes and what packets do must agree.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{BARRIER, Expect, FAR_CLIENT, Lab, Mode, Origin, PATIENCE, To, judge, now, own_addresses};
use crate::network::{BRIEF, Family, Outcome, Place, Probe, Protocol};
use crate::oracle::{Oracle, Verdict};
use crate::random::Random;

/// How many connections are tried at once to see all endpoints.
const SAMPLES: usize = 32;

/// Targets to try from one origin.
type Job = (Origin, Vec<(Protocol, SocketAddr)>);

impl Lab {
    /// Checks an expectation in all families, by the oracle and by packets.
    pub fn expect(&mut self, from: impl Into<Origin>, to: To, expect: &Expect) {
        self.settle();
        let from = from.into();
        let oracle = self.oracle();
        for family in self.families.clone() {
            let address = to.address(family);
            let verdict = oracle.verdict(self.source(from, address), to.protocol, address);
            let what = format!("{from:?} -> {} {address}", to.protocol);
            assert!(
                expect.agrees(&verdict, from.place, family),
                "{what}: {expect:?}, yet the oracle says {verdict}"
            );
            if let Err(wrong) = self.eventually(from, to.protocol, address, &verdict, SAMPLES, true) {
                panic!("{what}: {wrong}\n{}", self.log());
            }
        }
    }

    /// Asks once, whatever the answer.
    pub fn ask(&mut self, from: impl Into<Origin>, to: To, family: Family) -> Outcome {
        self.settle();
        let probe = self.probe(from.into(), to.protocol, to.address(family));
        self.network.probe_one(probe.0.place, probe.1).expect("sockets can be made")
    }

    /// Checks everything that any Service claims, from every kind of source, and what lies beside it.
    pub fn sweep(&mut self) {
        self.settle();
        let oracle = self.oracle();
        let jobs = self.everything(&oracle);
        if let Err(wrong) = self.check_jobs(&oracle, jobs) {
            panic!("{wrong}\n{}", self.log());
        }
    }

    /// Checks about `count` of what a sweep would check.
    pub fn check_sample(&mut self, random: &mut Random, count: usize) -> Result<()> {
        self.settle();
        let oracle = self.oracle();
        let mut jobs = self.everything(&oracle);
        let all: usize = jobs.iter().map(|(_, targets)| targets.len()).sum();
        for (_, targets) in &mut jobs {
            targets.retain(|_| random.below(all.max(1) as u64) < count as u64);
        }
        self.check_jobs(&oracle, jobs)
    }

    /// Every address and port that a Service claims, the ports beside them and an address nobody has, from all origins.
    fn everything(&self, oracle: &Oracle) -> Vec<Job> {
        let origins = [
            Origin::from(Place::Client),
            FAR_CLIENT,
            Origin::from(Place::Node),
            Origin::from(Place::PodA),
            Origin::from(Place::PodB),
        ];
        let barrier = Family::BOTH.map(|family| family.service(BARRIER));
        let mut jobs = Vec::new();
        for family in &self.families {
            let mut targets = oracle.frontends(*family);
            targets.retain(|(_, at)| !barrier.contains(&at.ip()));
            let beside: Vec<_> = targets
                .iter()
                .map(|(protocol, at)| (*protocol, SocketAddr::new(at.ip(), at.port() + 1)))
                .collect();
            targets.extend(beside);
            targets.push((Protocol::Tcp, SocketAddr::new(family.service(249), 80)));
            targets.sort_unstable_by_key(|(protocol, at)| (*at, *protocol));
            targets.dedup();
            jobs.extend(origins.map(|origin| (origin, targets.clone())));
        }
        jobs
    }

    fn check_jobs(&self, oracle: &Oracle, jobs: Vec<Job>) -> Result<()> {
        let wrongs: Vec<String> = thread::scope(|scope| {
            let run = |(origin, targets): Job| {
                scope.spawn(move || {
                    self.check_all(oracle, origin, &targets).err().map(|wrong| wrong.to_string())
                })
            };
            let running: Vec<_> = jobs.into_iter().map(run).collect();
            let end = |job: thread::ScopedJoinHandle<'_, Option<String>>| {
                job.join().unwrap_or_else(|_| Some("a check panicked".into()))
            };
            running.into_iter().filter_map(end).collect()
        });
        if wrongs.is_empty() { Ok(()) } else { bail!("{}", wrongs.join("\n")) }
    }

    /// Checks many targets from one origin at once; those that fail are asked again until the time is up.
    pub fn check_all(&self, oracle: &Oracle, from: Origin, targets: &[(Protocol, SocketAddr)]) -> Result<()> {
        let mut left: Vec<(Protocol, SocketAddr, Verdict)> = targets
            .iter()
            .map(|(protocol, at)| (*protocol, *at, oracle.verdict(self.source(from, *at), *protocol, *at)))
            .collect();
        let deadline = now() + PATIENCE;
        loop {
            let probes: Vec<Probe> = left
                .iter()
                .map(|(protocol, at, verdict)| {
                    self.probe(from, *protocol, *at).1.patience(patience_for(verdict))
                })
                .collect();
            let outcomes = self.network.probe(from.place, &probes)?;
            let mut wrongs = Vec::new();
            let mut still = Vec::new();
            for ((protocol, at, verdict), outcome) in left.into_iter().zip(outcomes) {
                if let Err(wrong) = judge(&verdict, from.place, at, &self.may_refuse(at), &outcome) {
                    wrongs.push(format!("{from:?} -> {protocol} {at}: {wrong}"));
                    still.push((protocol, at, verdict));
                }
            }
            if still.is_empty() {
                return Ok(());
            }
            if now() > deadline {
                bail!("{}", wrongs.join("\n"));
            }
            left = still;
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends `samples` connections at once until all of them fare as the verdict says and, if `all` is set, every
    /// endpoint has answered.
    fn eventually(
        &self,
        from: Origin,
        protocol: Protocol,
        to: SocketAddr,
        verdict: &Verdict,
        samples: usize,
        all: bool,
    ) -> Result<()> {
        let deadline = now() + PATIENCE;
        let samples =
            if matches!(verdict, Verdict::Dnat(_)) && protocol != Protocol::Sctp { samples } else { 3 };
        let mut seen = BTreeSet::new();
        loop {
            let probe = self.probe(from, protocol, to).1.patience(patience_for(verdict));
            let outcomes = self.network.probe(from.place, &vec![probe; samples])?;
            let wrong = outcomes
                .iter()
                .find_map(|outcome| judge(verdict, from.place, to, &self.may_refuse(to), outcome).err());
            for outcome in &outcomes {
                if let Outcome::Answered { answer, .. } = outcome {
                    seen.insert((answer.by.clone(), answer.port));
                }
            }
            let complete = match verdict {
                Verdict::Dnat(endpoints) => !all || seen.len() >= endpoints.len(),
                _ => true,
            };
            match wrong {
                None if complete => return Ok(()),
                _ if now() < deadline => {
                    if wrong.is_some() {
                        seen.clear();
                    }
                    thread::sleep(Duration::from_millis(20));
                }
                Some(wrong) => bail!("{wrong}"),
                None => bail!("only {seen:?} answered, but it should be {verdict}"),
            }
        }
    }

    /// A probe as this lab sends it: from an address that is known beforehand.
    fn probe(&self, from: Origin, protocol: Protocol, to: SocketAddr) -> (Origin, Probe) {
        let source = self.source(from, to);
        let leave_to_kernel = from.place == Place::Node && source.address == to.ip();
        let probe = Probe::new(protocol, to);
        (from, if leave_to_kernel { probe } else { probe.from_address(source.address) })
    }

    /// Addresses that may be refused where nothing translates them: the node's own, and with IPVS every address of a
    /// Service until the last connection to it has ended.
    fn may_refuse(&self, to: SocketAddr) -> Vec<IpAddr> {
        let mut addresses = own_addresses();
        if self.options.mode == Mode::Ipvs {
            addresses.push(to.ip());
        }
        addresses
    }
}

fn patience_for(verdict: &Verdict) -> Duration {
    match verdict {
        Verdict::Dnat(_) | Verdict::Reject => Duration::from_secs(5),
        Verdict::Drop | Verdict::Pass => BRIEF,
    }
}
