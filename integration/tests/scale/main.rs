//! The benchmark itself under test: against proxies of known slowness, on a tiny matrix in all modes, and its report in a
//! real browser.

mod browser;
mod known_delays;
mod known_losses;
mod live_cluster;
mod round_trips;
mod tiny_matrix;

use std::path::PathBuf;
use std::time::Duration;

use integration::scale::contender::{Contender, Mode};
use integration::scale::plan::Plan;
use integration::scale::server::ServerKind;

/// A plan that measures next to nothing, to start from.
fn smallest_plan(contenders: Vec<Contender>, folder: PathBuf) -> Plan {
    Plan {
        contenders,
        server: ServerKind::Embedded,
        shapes: vec!["10x2".parse().expect("a shape")],
        repetitions: 1,
        seed: 1,
        changes: 0,
        changes_time: Duration::from_secs(5),
        churn: Vec::new(),
        churn_time: Duration::from_secs(1),
        first_packets: 0,
        connections_time: Duration::from_millis(200),
        disturb: false,
        warm_up: false,
        // However late on a busy machine.
        limit: Duration::from_secs(120),
        patience: Duration::from_secs(60),
        folder,
    }
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("scale-test-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    folder
}

fn own(mode: Mode) -> Contender {
    Contender::own(&integration::lab::program().expect("kube-proxy is built"), mode).expect("it runs")
}
