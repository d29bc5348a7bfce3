//! What a comparison is to measure.

use std::path::PathBuf;
use std::time::Duration;

pub use super::connecting::BRIEF;
use super::contender::Contender;
use super::server::ServerKind;
use super::workload::Shape;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Plan {
    pub contenders: Vec<Contender>,
    pub server: ServerKind,
    pub shapes: Vec<Shape>,
    pub repetitions: usize,
    pub seed: u64,
    /// Single changes, and how long they may take together.
    pub changes: usize,
    pub changes_time: Duration,
    /// Changes a second.
    pub churn: Vec<u32>,
    pub churn_time: Duration,
    /// Connections to each place.
    pub first_packets: usize,
    pub connections_time: Duration,
    /// Whether restarts and changes of the mode are measured.
    pub disturb: bool,
    /// Whether a small run of each contender goes before all others and is thrown away.
    pub warm_up: bool,
    /// What takes longer is given up, and the report says so.
    pub limit: Duration,
    /// A new connection that takes longer has failed.
    pub patience: Duration,
    /// For results.
    pub folder: PathBuf,
}
