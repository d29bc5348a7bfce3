//! One contender, one workload, once: all measures in a row, in a network of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::connection::fetch;

use super::changes::{self, Canaries};
use super::churn::{self, Churn};
use super::completeness::{self, Completion};
use super::contender::{Contender, Mode, Running};
use super::disturbance::{self, Cluster};
use super::exposition::Snapshot;
use super::kernel_memory::Charges;
use super::plan::Plan;
use super::process_usage::PeakMemory;
use super::recorder::{FLOORS, Recorder, lost};
use super::seed::Seed;
use super::server::{Prepared, Server};
use super::site::Site;
use super::workload::Workload;
use super::{first_packet, kernel_memory, listing, neighbour, removal};

/// Where every contender is told to offer its metrics.
const METRICS: &str = "http://127.0.0.1:10249/metrics";
/// How often somebody else's transaction is tried.
const NEIGHBOURS: usize = 200;

/// What is measured against.
pub(crate) struct Run<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) workload: &'a Workload,
    pub(crate) server: &'a Prepared<'a>,
    pub(crate) contender: &'a Contender,
    /// Another one, to change to afterwards.
    pub(crate) successor: Option<&'a Contender>,
    pub(crate) folder: &'a Path,
    pub(crate) seed: Seed,
}

impl Run<'_> {
    pub(crate) fn measure(mut self, recorder: &mut Recorder<'_>) -> Result<()> {
        let (plan, workload) = (self.plan, self.workload);
        (recorder.say)("building the cluster");
        let site = Site::build().context("building the network of a run")?;
        let api = self.server.start(&site).context("starting the API server")?;
        let mut canaries = Canaries::new(workload);
        self.floors(&site, recorder)?;

        (recorder.say)("first sync");
        // Before the process, which must be gone when its control group is removed.
        let mut charges = Charges::of(self.contender.mode);
        let mut running = self.contender.start(&site, self.folder, &api)?;
        charges.follow(&running);
        let peak = PeakMemory::watch(running.id());
        let completion = completeness::wait(&site, workload, &mut running, &mut self.seed, plan.limit)?;
        let usage = running.usage()?;
        let Completion::After(elapsed) = completion else {
            self.give_up(recorder, completion);
            return Ok(());
        };
        recorder.note("first-sync", vec![elapsed.as_secs_f64()]);
        recorder.note("first-sync-user", vec![usage.user]);
        recorder.note("first-sync-system", vec![usage.system]);
        completeness::settle(&running, plan.limit)?;
        recorder.note("memory", vec![running.usage()?.resident as f64]);
        // Only what a contender offers: it is judged by packets all the same.
        if let Ok(text) = site.node.run(|| fetch(METRICS))? {
            let own_account = Snapshot::parse(&text).value("kubeproxy_sync_proxy_rules_duration_seconds_sum");
            recorder.note("first-sync-in-syncs", own_account.into_iter().collect());
            let phases = Snapshot::of_ipv4(&text, "switchyard_first_sync_seconds", "phase");
            recorder.note_phases(&phases, elapsed.as_secs_f64());
        }

        if plan.changes > 0 {
            (recorder.say)("single changes");
            let limits = (plan.changes_time, plan.limit);
            let (latencies, _) =
                changes::measure(&site, &api, &mut canaries, &mut self.seed, plan.changes, limits)?;
            if latencies.lost > 0 {
                recorder.unfinished("one-change", lost(latencies.lost, plan.limit));
            }
            recorder.note("one-change", latencies.effect);
            recorder.note("one-change-commit", latencies.commit);
            recorder.note("probe", latencies.probe);
        }
        self.first_packets(&site, recorder)?;
        (recorder.say)("another table's transaction");
        recorder.note("neighbour", neighbour::measure(&site, NEIGHBOURS)?);
        self.churn(&site, &api, &mut canaries, &running, recorder)?;
        completeness::settle(&running, plan.limit)?;
        recorder.note("memory-after-churn", vec![running.usage()?.resident as f64]);
        recorder.note("memory-peak", vec![peak.so_far() as f64]);
        drop(peak);
        self.list(&site, recorder);
        let last = self.disturb(&site, &api, &mut canaries, running, &mut charges, recorder)?;
        (recorder.say)("removing the rules");
        if last.mode == Mode::Ipvs || !charges.are_known() {
            // The rules of a mode that was changed to are what is left.
            let bytes = kernel_memory::of_machine(&site)?;
            recorder.add(last.name.clone(), "kernel-memory-machine", vec![bytes], None);
        }
        kernel_memory::remove_rules(&site);
        recorder.note("kernel-memory", charges.of_rules()?.into_iter().collect());
        Ok(())
    }

    fn give_up(&self, recorder: &mut Recorder<'_>, completion: Completion) {
        if let Completion::Unfinished { unanswered } = completion {
            let limit = self.plan.limit.as_secs();
            recorder.unfinished(
                "first-sync",
                format!("not complete after {limit} s: {unanswered} Services of a sample silent"),
            );
        }
    }

    fn floors(&self, site: &Site, recorder: &mut Recorder<'_>) -> Result<()> {
        if self.plan.first_packets == 0 {
            return Ok(());
        }
        let floors =
            first_packet::measure_floors(site, self.plan.first_packets, self.plan.connections_time / 4)?;
        for measure in
            ["first-packet-first", "first-packet-middle", "first-packet-last", "first-packet-random"]
        {
            recorder.add(FLOORS[0].to_owned(), measure, floors.one_rule.clone(), None);
            recorder.add(FLOORS[1].to_owned(), measure, floors.direct.clone(), None);
        }
        recorder.add(FLOORS[0].to_owned(), "connections", floors.one_rule_per_second, None);
        recorder.add(FLOORS[1].to_owned(), "connections", floors.direct_per_second, None);
        Ok(())
    }

    fn first_packets(&mut self, site: &Site, recorder: &mut Recorder<'_>) -> Result<()> {
        if self.plan.first_packets == 0 {
            return Ok(());
        }
        (recorder.say)("first packets");
        let packets = first_packet::measure(
            site,
            self.workload,
            self.contender.mode,
            &mut self.seed,
            self.plan.first_packets,
            self.plan.connections_time,
        )?;
        if packets.failed > 0 {
            let failed = packets.failed;
            recorder
                .unfinished("connections", format!("{failed} connections failed although nothing changed"));
        }
        recorder.note("first-packet-first", packets.first);
        recorder.note("first-packet-middle", packets.middle);
        recorder.note("first-packet-last", packets.last);
        // Quantiles need no more than this, and results are kept for ever.
        recorder.note("first-packet-random", packets.random.into_iter().take(5_000).collect());
        recorder.note("connections", packets.per_second);
        Ok(())
    }

    fn churn(
        &mut self,
        site: &Site,
        api: &Server,
        canaries: &mut Canaries<'_>,
        running: &Running,
        recorder: &mut Recorder<'_>,
    ) -> Result<()> {
        let plan_seconds = self.plan.churn_time.as_secs_f64();
        let named = self.plan.churn.iter().map(|rate| (f64::from(*rate), rate.to_string()));
        let own = self.workload.shape.own_churn.map(|rate| (rate, "own".to_owned()));
        for (per_second, name) in named.chain(own) {
            (recorder.say)(&format!("churn, {per_second:.0} changes a second"));
            let Plan { churn_time: time, limit, patience, .. } = *self.plan;
            let churn = Churn { per_second, time, limit, patience };
            let churned = churn::measure(site, api, self.workload, canaries, running, &mut self.seed, churn)?;
            let measure = format!("churn-{name}");
            if churned.lost > 0 {
                recorder.unfinished(&measure, lost(churned.lost, self.plan.limit));
            }
            // One change may be due just when it ends.
            if churned.achieved + 1.0 / plan_seconds < 0.9 * per_second {
                let achieved = churned.achieved;
                recorder.unfinished(&measure, format!("only {achieved:.0} changes a second could be made"));
            }
            recorder.note(&measure, churned.latencies);
            recorder.note(&format!("{measure}-cpu"), vec![churned.cpu]);
            match churned.backlog {
                Some(backlog) => recorder.note(&format!("{measure}-backlog"), vec![backlog]),
                None => recorder.unfinished(&format!("{measure}-backlog"), lost(1, self.plan.limit)),
            }
            recorder.note_failed(&measure, churned.flooded);
        }
        Ok(())
    }

    fn list(&self, site: &Site, recorder: &mut Recorder<'_>) {
        (recorder.say)("listing");
        let Some(listing) = listing::measure(site, self.contender.mode, self.plan.limit) else {
            recorder.unfinished("listing", "the administrator's tool gave no listing".to_owned());
            return;
        };
        recorder.note("listing", vec![listing.seconds]);
        recorder.note("listing-bytes", vec![listing.bytes as f64]);
        recorder.note("objects", vec![listing.census.total() as f64]);
        for (measure, count) in listing.census.by_measure().into_iter().filter(|(_, count)| *count > 0) {
            recorder.note(measure, vec![count as f64]);
        }
    }

    /// Ends endpoints, then the process, then the mode. Answers whose rules are there in the end.
    fn disturb(
        &mut self,
        site: &Site,
        api: &Server,
        canaries: &mut Canaries<'_>,
        mut running: Running,
        charges: &mut Charges,
        recorder: &mut Recorder<'_>,
    ) -> Result<&Contender> {
        let (workload, limit, patience) = (self.workload, self.plan.limit, self.plan.patience);
        if !self.plan.disturb {
            running.stop(Duration::from_secs(10))?;
            charges.look()?;
            return Ok(self.contender);
        }
        (recorder.say)("removing endpoints");
        let removed =
            removal::measure(site, api, workload, canaries, (limit, patience), || running.check_alive())?;
        recorder.note_removed(&removed, limit);
        (recorder.say)("restart");
        let cluster = Cluster { site, api, workload, folder: self.folder, limit, patience };
        let (disturbed, mut running) =
            disturbance::replace(cluster, canaries, &mut self.seed, running, self.contender, || {
                charges.look()
            })?;
        recorder.note_disturbed("restart", &disturbed);
        let mut last = self.contender;
        if let Some(successor) = self.successor {
            (recorder.say)(&format!("change to {}", successor.name));
            let (disturbed, next) =
                disturbance::replace(cluster, canaries, &mut self.seed, running, successor, || Ok(()))?;
            (running, last) = (next, successor);
            let before = std::mem::replace(&mut recorder.contender, successor.name.clone());
            recorder.note_disturbed("mode-change", &disturbed);
            recorder.contender = before;
        }
        running.stop(Duration::from_secs(10))?;
        Ok(last)
    }
}
