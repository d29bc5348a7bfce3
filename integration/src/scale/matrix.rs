//! All runs of a comparison: which, in which order, and what the user sees meanwhile.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::interrupt;

use super::contender::Contender;
use super::plan::Plan;
use super::recorder::Recorder;
use super::results::{Results, Sample, WorkloadFacts};
use super::run::Run;
use super::seed::Seed;
use super::server::Prepared;
use super::workload::{Shape, Workload};

/// The shape of warming up.
const WARM_UP: &str = "20x2";

/// Carries the plan out. Results are saved after every run, so that an interrupted comparison is not lost.
pub fn measure(plan: &Plan, mut results: Results) -> Result<Results> {
    if plan.contenders.is_empty() {
        bail!("there is nothing to compare: no mode was asked for");
    }
    fs::create_dir_all(&plan.folder).with_context(|| format!("creating {}", plan.folder.display()))?;
    let file = plan.folder.join("results.json");
    results.contenders.clone_from(&plan.contenders);
    results.server = Some(plan.server.describe()?);
    results.workloads = plan.shapes.iter().map(facts).collect();
    let mut progress = Progress::new(plan);
    if plan.warm_up {
        let workload = Workload::generate(WARM_UP.parse().map_err(anyhow::Error::msg)?, plan.seed);
        let small = Plan {
            changes: plan.changes.min(3),
            churn: Vec::new(),
            first_packets: plan.first_packets.min(10),
            connections_time: Duration::from_millis(100),
            disturb: false,
            ..plan.clone()
        };
        let server = plan.server.prepare(&workload)?;
        for contender in &plan.contenders {
            // What is thrown away may fail: the run that counts will say why.
            drop(run_one(&small, &workload, &server, contender, None, 0, &mut progress));
        }
    }
    let workloads: Vec<Workload> =
        plan.shapes.iter().map(|shape| Workload::generate(shape.clone(), plan.seed)).collect();
    let mut clusters = Vec::new();
    for workload in &workloads {
        progress.step(&workload.shape.name, "loading the API server");
        clusters.push((workload, plan.server.prepare(workload)?));
    }
    for repetition in 1..=plan.repetitions {
        for (workload, server) in &clusters {
            for turn in 0..plan.contenders.len() {
                // Each repetition begins with another one, so that none always follows the same.
                let index = (turn + repetition - 1) % plan.contenders.len();
                let contender = &plan.contenders[index];
                let successor = successor(plan, index);
                match run_one(plan, workload, server, contender, successor, repetition, &mut progress) {
                    Ok(samples) => results.samples.extend(samples),
                    Err(error) => {
                        let note = format!(
                            "{} on {}, run {repetition}, was not finished: {error:#}",
                            contender.name, workload.shape.name
                        );
                        progress.complain(&note);
                        results.notes.push(note);
                    }
                }
                results.write(&file)?;
            }
        }
    }
    progress.bar.finish_and_clear();
    results.ended = Some(super::machine::now());
    results.write(&file)?;
    Ok(results)
}

/// The contender whose mode is changed to: the next of another mode and the same kind.
fn successor(plan: &Plan, index: usize) -> Option<&Contender> {
    let own = &plan.contenders[index];
    (1..plan.contenders.len())
        .map(|step| &plan.contenders[(index + step) % plan.contenders.len()])
        .find(|other| other.mode != own.mode && other.peer == own.peer)
}

fn run_one(
    plan: &Plan,
    workload: &Workload,
    server: &Prepared<'_>,
    contender: &Contender,
    successor: Option<&Contender>,
    repetition: usize,
    progress: &mut Progress,
) -> Result<Vec<Sample>> {
    let folder = std::env::temp_dir().join(format!("scale-{}", std::process::id()));
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    interrupt::remember_folder(&folder);
    let what = format!("{} on {}, run {repetition}", contender.name, workload.shape.name);
    progress.begin(&what);
    // All contenders of a repetition draw the same numbers.
    let seed = Seed::new(plan.seed.wrapping_add(repetition as u64));
    let mut say = |step: &str| progress.step(&what, step);
    let mut recorder = Recorder {
        contender: contender.name.clone(),
        workload: &workload.shape.name,
        repetition,
        samples: Vec::new(),
        say: &mut say,
    };
    let run = Run { plan, workload, server, contender, successor, folder: &folder, seed };
    let outcome = run.measure(&mut recorder);
    let samples = recorder.samples;
    progress.end();
    // A log is read before this; nothing else is in there.
    drop(fs::remove_dir_all(&folder));
    interrupt::forget_folder(&folder);
    match outcome {
        Ok(()) => Ok(samples),
        Err(error) if samples.is_empty() => Err(error),
        Err(error) => {
            progress.complain(&format!("{what}: {error:#}"));
            let mut samples = samples;
            let load = super::machine::load();
            samples.push(Sample {
                measure: "run".to_owned(),
                contender: contender.name.clone(),
                workload: workload.shape.name.clone(),
                repetition,
                values: Vec::new(),
                unfinished: Some(format!("{error:#}")),
                load,
            });
            Ok(samples)
        }
    }
}

fn facts(shape: &Shape) -> WorkloadFacts {
    WorkloadFacts {
        name: shape.name.clone(),
        source: shape.source.to_owned(),
        services: shape.services,
        endpoints: shape.endpoints,
    }
}

/// A bar with the time that is left on a terminal, a line for each run elsewhere.
struct Progress {
    bar: ProgressBar,
    begun: Instant,
}

impl Progress {
    fn new(plan: &Plan) -> Self {
        let warm_up = if plan.warm_up { plan.contenders.len() } else { 0 };
        let runs = plan.contenders.len() * plan.shapes.len() * plan.repetitions + warm_up;
        let bar = ProgressBar::new(runs as u64);
        let style = ProgressStyle::with_template(
            "[{elapsed_precise}] {bar:30} {pos}/{len} runs, about {eta} left\n  {msg}",
        );
        bar.set_style(style.expect("the template is a constant"));
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar, begun: Instant::now() }
    }

    fn begin(&mut self, what: &str) {
        if self.bar.is_hidden() {
            eprintln!("[{:>5.0} s] {what}", self.begun.elapsed().as_secs_f64());
        }
        self.bar.set_message(what.to_owned());
    }

    fn step(&self, what: &str, step: &str) {
        self.bar.set_message(format!("{what}: {step}"));
    }

    fn end(&self) {
        self.bar.inc(1);
    }

    fn complain(&self, text: &str) {
        if self.bar.is_hidden() {
            eprintln!("{text}");
        } else {
            self.bar.println(text);
        }
    }
}
