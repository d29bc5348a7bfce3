//! What the two encodings of the API cost a proxy: processor time of the whole program for its first sync and for each change
//! of an EndpointSlice, with lists and watches in JSON and in protobuf. It prints, and judges nothing.
//!
//! `encodings [SHAPE [RUNS]]`; a shape is one of `scale`'s, as `10kx10`. Needs root, and a `kube-proxy` that was built for
//! release: SWITCHYARD_KUBE_PROXY names it.

use std::fs;

use anyhow::{Context as _, Result};
use integration::lab::{Lab, Options, service};
use integration::network::Protocol::Tcp;
use integration::scale::workload::{Shape, Workload};
use serde_json::{Value, json};

/// How many changes are told one after the other.
const CHANGES: usize = 1_000;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let shape: Shape = arguments.next().as_deref().unwrap_or("10kx10").parse().map_err(anyhow::Error::msg)?;
    let runs: usize = arguments.next().map_or(Ok(5), |text| text.parse()).context("how many runs")?;
    let workload = Workload::generate(shape, 1);
    let encodings = [("JSON", "application/json"), ("protobuf", "application/vnd.kubernetes.protobuf")];
    let mut all: Vec<Vec<Spent>> = vec![Vec::new(); encodings.len()];
    for run in 0..runs {
        for (at, (name, content_type)) in encodings.into_iter().enumerate() {
            let spent = measure(&workload, content_type)?;
            println!("run {run}, {name}: {spent:?}");
            all[at].push(spent);
        }
    }
    println!("\n| encoding | first sync, s of CPU | a change, us of CPU |\n|---|---:|---:|");
    for ((name, _), mut spent) in encodings.into_iter().zip(all) {
        let mut median = |of: fn(&Spent) -> f64| {
            spent.sort_by(|a, b| of(a).total_cmp(&of(b)));
            of(&spent[spent.len() / 2])
        };
        let (first, change) = (median(|spent| spent.first_sync), median(|spent| spent.change));
        println!("| {name} | {first:.2} | {:.0} |", change * 1e6);
    }
    Ok(())
}

/// Seconds of CPU, of the program and of the kernel for it.
#[derive(Debug, Clone)]
struct Spent {
    first_sync: f64,
    change: f64,
}

fn measure(workload: &Workload, content_type: &str) -> Result<Spent> {
    let config = vec![("/clientConnection/contentType", json!(content_type))];
    let mut lab = Lab::without_proxy(Options { embedded_server: true, config, ..Options::default() })?;
    // The node is the lab's own.
    let objects = workload.objects().filter(|object: &Value| object["kind"] != "Node");
    lab.api.load(objects)?;
    lab.start_proxy()?;
    lab.settle();
    let first_sync = processor_time(&lab)?;
    for step in 1..=CHANGES {
        lab.api.apply(workload.moved_slice(step % workload.services.len(), step))?;
    }
    lab.apply(service("after", 200).port("t", 80, Tcp));
    lab.settle();
    let change = (processor_time(&lab)? - first_sync) / CHANGES as f64;
    Ok(Spent { first_sync, change })
}

/// Of the proxy since it began, by proc_pid_stat(5): fields 14 and 15, in hundredths of a second.
fn processor_time(lab: &Lab) -> Result<f64> {
    let process = lab.proxy_process().context("it runs")?;
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("the name's end")?;
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>);
    let ticks: u64 = ticks.collect::<Result<Vec<_>, _>>()?.into_iter().sum();
    Ok(ticks as f64 / 100.0)
}
