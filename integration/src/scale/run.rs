//! One contender, one workload, once: all measures in a row, in a network of its own.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::changes::{self, Canaries};
use super::churn::{self, Churn};
use super::completeness::{self, Completion};
use super::connection::fetch;
use super::contender::{Contender, Running};
use super::disturbance::{self, Cluster, Disturbed};
use super::exposition::Snapshot;
use super::matrix::Plan;
use super::process_usage::PeakMemory;
use super::results::Sample;
use super::seed::Seed;
use super::server::{Prepared, Server};
use super::site::Site;
use super::workload::Workload;
use super::{first_packet, kernel_memory, listing, machine, neighbour};

/// Names of the floors, which are measured before every contender.
pub(crate) const FLOORS: [&str; 2] = ["floor: one DNAT rule", "floor: no translation"];
/// Where every contender is told to offer its metrics.
const METRICS: &str = "http://127.0.0.1:10249/metrics";
/// How often somebody else's transaction is tried.
const NEIGHBOURS: usize = 200;

/// Takes samples of one run.
pub(crate) struct Recorder<'a> {
    pub(crate) contender: String,
    pub(crate) workload: &'a str,
    pub(crate) repetition: usize,
    pub(crate) samples: Vec<Sample>,
    pub(crate) say: &'a mut dyn FnMut(&str),
}

impl Recorder<'_> {
    fn note(&mut self, measure: &str, values: Vec<f64>) {
        if !values.is_empty() {
            self.add(self.contender.clone(), measure, values, None);
        }
    }

    fn unfinished(&mut self, measure: &str, why: String) {
        self.add(self.contender.clone(), measure, Vec::new(), Some(why));
    }

    fn add(&mut self, contender: String, measure: &str, values: Vec<f64>, unfinished: Option<String>) {
        self.samples.push(Sample {
            measure: measure.to_owned(),
            contender,
            workload: self.workload.to_owned(),
            repetition: self.repetition,
            values,
            unfinished,
            load: machine::load(),
        });
    }
}

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
        let mut running = self.contender.start(&site, self.folder, &api)?;
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
        }

        if plan.changes > 0 {
            (recorder.say)("single changes");
            let latencies = changes::measure(
                &site,
                &api,
                &mut canaries,
                &mut self.seed,
                plan.changes,
                plan.changes_time,
                plan.limit,
            )?;
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
        self.list(&site, recorder)?;
        self.disturb(&site, &api, &mut canaries, running, recorder)?;
        (recorder.say)("removing the rules");
        recorder.note("kernel-memory", vec![kernel_memory::of_rules(&site)?]);
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
        let floors = first_packet::measure_floors(site, self.plan.first_packets)?;
        for measure in
            ["first-packet-first", "first-packet-middle", "first-packet-last", "first-packet-random"]
        {
            recorder.add(FLOORS[0].to_owned(), measure, floors.one_rule.clone(), None);
            recorder.add(FLOORS[1].to_owned(), measure, floors.direct.clone(), None);
        }
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
        recorder.note("connections", vec![packets.per_second]);
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
            let churn = Churn { per_second, time: self.plan.churn_time, limit: self.plan.limit };
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
            if churned.flooded.tried > 0 {
                recorder.note(
                    &format!("{measure}-failed"),
                    vec![per_million(churned.flooded.failed, churned.flooded.tried)],
                );
            }
        }
        Ok(())
    }

    fn list(&self, site: &Site, recorder: &mut Recorder<'_>) -> Result<()> {
        (recorder.say)("listing");
        match listing::measure(site, self.contender.mode, self.plan.limit)? {
            Some(listing) => {
                recorder.note("listing", vec![listing.seconds]);
                recorder.note("listing-bytes", vec![listing.bytes as f64]);
                recorder.note("objects", vec![listing.objects as f64]);
            }
            None => recorder.unfinished("listing", "the administrator's tool gave no listing".to_owned()),
        }
        Ok(())
    }

    fn disturb(
        &mut self,
        site: &Site,
        api: &Server,
        canaries: &mut Canaries<'_>,
        running: Running,
        recorder: &mut Recorder<'_>,
    ) -> Result<()> {
        if !self.plan.disturb {
            return running.stop(Duration::from_secs(10));
        }
        (recorder.say)("restart");
        let cluster =
            Cluster { site, api, workload: self.workload, folder: self.folder, limit: self.plan.limit };
        let (disturbed, mut running) =
            disturbance::replace(cluster, canaries, &mut self.seed, running, self.contender)?;
        note_disturbed(recorder, "restart", &disturbed);
        if let Some(successor) = self.successor {
            (recorder.say)(&format!("change to {}", successor.name));
            let (disturbed, next) =
                disturbance::replace(cluster, canaries, &mut self.seed, running, successor)?;
            running = next;
            let before = std::mem::replace(&mut recorder.contender, successor.name.clone());
            note_disturbed(recorder, "mode-change", &disturbed);
            recorder.contender = before;
        }
        running.stop(Duration::from_secs(10))
    }
}

fn note_disturbed(recorder: &mut Recorder<'_>, measure: &str, disturbed: &Disturbed) {
    match disturbed.completion {
        Completion::After(elapsed) => {
            recorder.note(measure, vec![elapsed.as_secs_f64()]);
            recorder.note(&format!("{measure}-user"), vec![disturbed.cpu.0]);
            recorder.note(&format!("{measure}-system"), vec![disturbed.cpu.1]);
        }
        Completion::Unfinished { unanswered } => {
            recorder.unfinished(measure, format!("{unanswered} changes were not in effect in time"));
        }
    }
    if disturbed.held > 0 {
        recorder.note(&format!("{measure}-broken"), vec![disturbed.broken as f64]);
    }
    recorder.note(
        &format!("{measure}-failed"),
        vec![per_million(disturbed.flooded.failed, disturbed.flooded.tried)],
    );
}

fn per_million(failed: usize, tried: usize) -> f64 {
    failed as f64 * 1e6 / tried.max(1) as f64
}

fn lost(count: usize, limit: Duration) -> String {
    format!("{count} changes had no effect within {} s", limit.as_secs())
}
