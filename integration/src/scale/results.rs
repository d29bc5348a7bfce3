//! What was measured, raw, as it is saved and loaded again.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::contender::Contender;
use super::machine::Machine;
use super::question::{Question, Statistic};
use super::statistics::{Summary, quantile};

const FORMAT: u32 = 1;

/// Everything that one `scale run` found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub format: u32,
    /// Seconds since 1970.
    pub begun: u64,
    pub ended: Option<u64>,
    /// The arguments that `scale` was called with.
    pub command: Vec<String>,
    pub seed: u64,
    pub repetitions: usize,
    pub machine: Machine,
    /// The API server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    pub contenders: Vec<Contender>,
    pub workloads: Vec<WorkloadFacts>,
    pub samples: Vec<Sample>,
    /// What a reader must know before any figure.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadFacts {
    pub name: String,
    pub source: String,
    pub services: usize,
    pub endpoints: usize,
}

/// One measure, once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub measure: String,
    pub contender: String,
    pub workload: String,
    pub repetition: usize,
    /// In seconds, bytes, or a count.
    pub values: Vec<f64>,
    /// Why there is less than there should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<String>,
    /// The machine's load average at that time.
    pub load: f64,
}

impl Results {
    pub fn new(command: Vec<String>, seed: u64, repetitions: usize, machine: Machine) -> Self {
        Self {
            format: FORMAT,
            begun: super::machine::now(),
            ended: None,
            command,
            seed,
            repetitions,
            machine,
            server: None,
            contenders: Vec::new(),
            workloads: Vec::new(),
            samples: Vec::new(),
            notes: Vec::new(),
        }
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let results: Self =
            serde_json::from_str(&text).with_context(|| format!("{} holds no results", path.display()))?;
        if results.format != FORMAT {
            bail!("{} has format {}; this program reads {FORMAT}", path.display(), results.format);
        }
        Ok(results)
    }

    /// Replaces the file in one step: a reader, or a crash, never meets half of it.
    pub fn write(&self, path: &Path) -> Result<()> {
        let draft = path.with_extension("json.draft");
        fs::write(&draft, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("writing {}", draft.display()))?;
        fs::rename(&draft, path).with_context(|| format!("writing {}", path.display()))
    }

    /// One figure for each run: what a question makes of its values.
    pub fn figures(&self, question: &Question, workload: &str, contender: &str) -> Vec<f64> {
        self.matching(question, workload, contender)
            .iter()
            .filter_map(|sample| match question.statistic {
                Statistic::Quantile(share) => quantile(&sample.values, share),
            })
            .collect()
    }

    pub fn summary(&self, question: &Question, workload: &str, contender: &str) -> Option<Summary> {
        Summary::of(&self.figures(question, workload, contender))
    }

    /// Why a question has no or fewer answers here.
    pub fn unfinished<'a>(&'a self, question: &Question, workload: &str, contender: &str) -> Vec<&'a str> {
        let matching = self.matching(question, workload, contender);
        matching.into_iter().filter_map(|sample| sample.unfinished.as_deref()).collect()
    }

    /// Those that have anything to say about a measure: contenders in the order they were named, then floors.
    pub fn contenders_of(&self, measure: &str) -> Vec<&str> {
        let samples = self.samples.iter().filter(|sample| sample.measure == measure);
        let seen = unique(samples.map(|sample| &*sample.contender));
        self.all_names().into_iter().filter(|name| seen.contains(name)).collect()
    }

    /// Contenders and then floors: the place of a name is its colour in all charts.
    pub fn all_names(&self) -> Vec<&str> {
        let named = self.contenders.iter().map(|contender| &*contender.name);
        unique(named.chain(self.samples.iter().map(|sample| &*sample.contender)))
    }

    /// In the order in which they were measured.
    pub fn all_workloads(&self) -> Vec<&str> {
        unique(self.samples.iter().map(|sample| &*sample.workload))
    }

    pub fn workloads_of(&self, measure: &str) -> Vec<&str> {
        unique(self.samples.iter().filter(|sample| sample.measure == measure).map(|sample| &*sample.workload))
    }

    /// The least and the largest load average during the run.
    pub fn loads(&self) -> (f64, f64) {
        let loads = || self.samples.iter().map(|sample| sample.load);
        (loads().fold(f64::INFINITY, f64::min), loads().fold(0.0, f64::max))
    }

    fn matching<'a>(&'a self, question: &Question, workload: &str, contender: &str) -> Vec<&'a Sample> {
        let asked = |sample: &&Sample| {
            sample.measure == question.measure && sample.workload == workload && sample.contender == contender
        };
        self.samples.iter().filter(asked).collect()
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}
