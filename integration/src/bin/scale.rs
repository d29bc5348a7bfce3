//! The scale benchmark: compares the backends, and any kube-proxy, on the same cluster.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use integration::scale::cluster::{self, ClusterPlan};
use integration::scale::contender::{Contender, Mode};
use integration::scale::guest::{self, Guest};
use integration::scale::machine::{Machine, has_ipvs};
use integration::scale::matrix;
use integration::scale::panel::topics;
use integration::scale::plan::{BRIEF, Plan};
use integration::scale::results::Results;
use integration::scale::round_trip::{self, RoundTripPlan};
use integration::scale::server::ServerKind;
use integration::scale::workload::Shape;
use integration::scale::{document, html, round_trip_table, table};
use integration::{interrupt, real_apiserver};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

#[derive(Parser)]
#[command(version, about = "Compares service proxies on the same cluster, judged by packets")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare modes and binaries on this machine, in network namespaces (needs root).
    Run(Box<RunArguments>),
    /// What connecting and a byte there and back cost through each contender's rules and through none (needs root).
    RoundTrip(RoundTripArguments),
    /// Compare the nodes of a live cluster by their proxies' metrics.
    Cluster(Box<ClusterArguments>),
    /// Remove what an interrupted `scale cluster` left.
    Cleanup(CleanupArguments),
    /// Make the report again from saved results.
    Report(ReportArguments),
    /// List the built-in workloads.
    Workloads,
}

#[derive(Args)]
struct RunArguments {
    /// This project's binary; the one beside this program if no other kube-proxy is named either.
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
    /// Its modes to compare.
    #[arg(long, value_delimiter = ',', default_value = "nftables,iptables,ipvs")]
    modes: Vec<Mode>,
    /// Another kube-proxy.
    #[arg(long, value_name = "PATH", requires = "peer_mode")]
    peer: Option<PathBuf>,
    /// The modes of that other one to compare.
    #[arg(long, value_delimiter = ',', requires = "peer")]
    peer_mode: Vec<Mode>,
    /// Workloads: names (see `scale workloads`) or sizes such as 1000x10.
    #[arg(long, value_delimiter = ',', default_value = "100x10,1000x10")]
    workloads: Vec<Shape>,
    /// The API server: embedded, or real from the folder that KUBEBUILDER_ASSETS names; that, where one is named.
    #[arg(long, value_name = "embedded|real")]
    api_server: Option<ServerKind>,
    /// How often everything is repeated.
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Same seed, same cluster, same victims.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Single changes to measure; 0 for none.
    #[arg(long, default_value_t = 100)]
    changes: usize,
    /// Seconds that they may take together.
    #[arg(long, default_value_t = 20)]
    changes_seconds: u64,
    /// Changes a second.
    #[arg(long, value_delimiter = ',', num_args = 0.., default_value = "10,100")]
    churn: Vec<u32>,
    /// Seconds of each churn.
    #[arg(long, default_value_t = 10)]
    churn_seconds: u64,
    /// Connections to the first, middle and last Service; 0 for none.
    #[arg(long, default_value_t = 300)]
    first_packets: usize,
    /// Seconds of connections to random Services.
    #[arg(long, default_value_t = 2)]
    connections_seconds: u64,
    /// Leave out restarts and changes of the mode.
    #[arg(long)]
    no_disturbance: bool,
    /// Leave out the small runs that go before all others.
    #[arg(long)]
    no_warm_up: bool,
    /// Seconds after which a measure is given up.
    #[arg(long, default_value_t = 180)]
    limit: u64,
    /// Where results.json, report.md and report.html go.
    #[arg(long, default_value = "scale-results")]
    out: PathBuf,
    #[command(flatten)]
    guest: GuestArguments,
}

#[derive(Args)]
struct RoundTripArguments {
    /// This project's binary; the one beside this program unless given.
    #[arg(long, value_name = "PATH")]
    kube_proxy: Option<PathBuf>,
    /// Its modes to compare; IPVS only where this kernel has it, so perhaps inside `vm-run`.
    #[arg(long, value_delimiter = ',', default_value = "nftables")]
    modes: Vec<Mode>,
    /// Another kube-proxy.
    #[arg(long, value_name = "PATH", requires = "peer_mode")]
    peer: Option<PathBuf>,
    /// The modes of that other one to compare.
    #[arg(long, value_delimiter = ',', requires = "peer")]
    peer_mode: Vec<Mode>,
    /// Services and endpoints: a name (see `scale workloads`) or a size such as 10kx10.
    #[arg(long, default_value = "10kx10")]
    workload: Shape,
    /// Turns of each contender: 20 round trips and 5 connections to each kind of destination.
    #[arg(long, default_value_t = 500)]
    turns: usize,
    /// Seconds after which a contender's rules are given up.
    #[arg(long, default_value_t = 180)]
    limit: u64,
    /// Where round-trips.json and round-trips.md go.
    #[arg(long, default_value = "scale-results")]
    out: PathBuf,
    /// Also write the table into docs/benchmarks.md of this project's repository.
    #[arg(long, value_name = "REPOSITORY")]
    docs: Option<PathBuf>,
}

#[derive(Args)]
struct GuestArguments {
    /// The vm-run program, for IPVS where this kernel has none: then everything runs in the VM.
    #[arg(long, value_name = "PATH")]
    vm_run: Option<PathBuf>,
    /// Kinds of VM: uml, qemu, or both; ratios between backends are given only when both were run.
    #[arg(long, value_delimiter = ',', default_value = "uml", value_parser = ["uml", "qemu", "both"])]
    vm: Vec<String>,
    /// Leave out the modes outside the VM.
    #[arg(long)]
    vm_only: bool,
    #[arg(long, default_value_t = 2)]
    vm_cpus: usize,
    /// How often everything is repeated in the VM; as often as outside unless given.
    #[arg(long)]
    vm_repetitions: Option<usize>,
    #[arg(long, default_value = "3G")]
    vm_memory: String,
    /// Seconds after which the VM is given up.
    #[arg(long, default_value_t = 3600)]
    vm_timeout: u64,
}

#[derive(Args)]
struct ClusterArguments {
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    /// Made for this, and removed afterwards.
    #[arg(long, default_value = "switchyard-scale")]
    namespace: String,
    #[arg(long, default_value_t = 50)]
    services: usize,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 10)]
    endpoints: usize,
    /// Changes a second.
    #[arg(long, default_value_t = 10.0)]
    churn: f64,
    /// Seconds of churn in each repetition.
    #[arg(long, default_value_t = 30)]
    churn_seconds: u64,
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Nodes to watch; all whose proxy answers unless given.
    #[arg(long, value_delimiter = ',')]
    nodes: Vec<String>,
    /// Where a node's metrics are, if they cannot be read through the API server.
    #[arg(long, value_name = "NODE=http://HOST:PORT", value_parser = node_and_url)]
    metrics: Vec<(String, String)>,
    /// Choose cluster IPs from this range, for API servers that allocate none.
    #[arg(long, value_name = "CIDR")]
    cluster_ips: Option<ipnet::Ipv4Net>,
    /// Go ahead where the cluster, or what is asked for, is large.
    #[arg(long)]
    even_if_it_hurts: bool,
    /// Where results.json, report.md and report.html go.
    #[arg(long, default_value = "scale-results")]
    out: PathBuf,
}

#[derive(Args)]
struct CleanupArguments {
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
    #[arg(long, default_value = "switchyard-scale")]
    namespace: String,
}

#[derive(Args)]
struct ReportArguments {
    /// results.json of one or more runs.
    #[arg(required = true)]
    results: Vec<PathBuf>,
    /// Where report.md and report.html go.
    #[arg(long, default_value = "scale-results")]
    out: PathBuf,
    /// Also write each chart of the first results as an SVG file.
    #[arg(long)]
    charts: bool,
    /// Also write tables and charts into the documents of this project's repository; the README shows the first results.
    #[arg(long, value_name = "REPOSITORY")]
    docs: Option<PathBuf>,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Run(arguments) => run(&arguments),
        Command::RoundTrip(arguments) => round_trip(&arguments),
        Command::Cluster(arguments) => cluster(&arguments),
        Command::Cleanup(arguments) => {
            let removed = cluster::clean_up(&arguments.kubeconfig, &arguments.namespace)?;
            println!(
                "removed {} Services and {} EndpointSlices from namespace {}",
                removed.services, removed.slices, arguments.namespace
            );
            Ok(())
        }
        Command::Report(arguments) => report(&arguments),
        Command::Workloads => {
            for shape in Shape::named() {
                println!(
                    "{:<16} {:>6} Services {:>7} endpoints  {}",
                    shape.name, shape.services, shape.endpoints, shape.source
                );
            }
            Ok(())
        }
    }
}

/// Sockets by the hundred are held open at once; a machine may allow 1,024 unless asked.
fn raise_open_files() -> Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")
}

fn run(arguments: &RunArguments) -> Result<()> {
    raise_open_files()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("scale run makes network namespaces: run it as root");
    }
    interrupt::end_children_too().context("catching signals")?;
    let mut all = Vec::new();
    let inside = std::env::var_os("VM_RUN_GUEST").is_some();
    let mut here = plan(arguments)?;
    let elsewhere = !has_ipvs() && !inside && here.contenders.iter().any(|one| one.mode == Mode::Ipvs);
    if elsewhere {
        // Said before anything is measured: half a comparison after minutes helps nobody.
        arguments.guest.vm_run()?;
        here.contenders.retain(|one| one.mode != Mode::Ipvs);
    }
    let left_out = elsewhere && arguments.guest.vm_only;
    if !left_out && !here.contenders.is_empty() {
        let command = std::env::args().skip(1).collect();
        if let (true, Some(repetitions)) = (inside, arguments.guest.vm_repetitions) {
            here.repetitions = repetitions.max(1);
        }
        let results = Results::new(command, arguments.seed, here.repetitions, Machine::look());
        all.push(matrix::measure(&here, results)?);
    }
    if elsewhere {
        all.extend(run_in_guests(arguments)?);
    }
    write_reports(&all, &arguments.out)
}

/// All modes of a comparison run in the same place, so with IPVS in the VM all run there.
fn run_in_guests(arguments: &RunArguments) -> Result<Vec<Results>> {
    fs::create_dir_all(&arguments.out).with_context(|| format!("creating {}", arguments.out.display()))?;
    let folder = fs::canonicalize(&arguments.out)?;
    let mut all = Vec::new();
    for kind in arguments.guest.kinds() {
        let within = folder.join(kind);
        let guest = Guest {
            program: arguments.guest.vm_run()?.to_owned(),
            kind: kind.to_owned(),
            processors: arguments.guest.vm_cpus,
            memory: arguments.guest.vm_memory.clone(),
            timeout: arguments.guest.vm_timeout,
        };
        let mut inner: Vec<OsString> = without_out(std::env::args_os().skip(1));
        inner.push("--out".into());
        inner.push(within.clone().into());
        let file = within.join("results.json");
        // What an earlier run left must not be taken for this one's.
        drop(fs::remove_file(&file));
        if let Err(error) = guest::run_inside(&guest, &within, &inner) {
            if !file.exists() {
                return Err(error);
            }
            eprintln!("{error:#}");
        }
        all.push(Results::read(&file)?);
    }
    Ok(all)
}

impl GuestArguments {
    fn kinds(&self) -> Vec<&str> {
        let asked = |kind: &&str| self.vm.iter().any(|one| one == kind || one == "both");
        ["uml", "qemu"].into_iter().filter(asked).collect()
    }

    fn vm_run(&self) -> Result<&Path> {
        self.vm_run.as_deref().context(
            "this kernel has no IPVS: leave the mode out with --modes nftables,iptables, or name integration/vm/vm-run with --vm-run",
        )
    }
}

fn without_out(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in arguments {
        if std::mem::take(&mut skip) {
            continue;
        }
        if argument == "--out" {
            skip = true;
        } else if !argument.to_string_lossy().starts_with("--out=") {
            kept.push(argument);
        }
    }
    kept
}

fn round_trip(arguments: &RoundTripArguments) -> Result<()> {
    raise_open_files()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("scale round-trip makes network namespaces: run it as root");
    }
    interrupt::end_children_too().context("catching signals")?;
    let RoundTripArguments { kube_proxy, modes, peer, peer_mode, .. } = arguments;
    let plan = RoundTripPlan {
        contenders: contenders(kube_proxy.as_deref(), modes, peer.as_deref(), peer_mode)?,
        shape: arguments.workload.clone(),
        turns: arguments.turns.max(1),
        limit: Duration::from_secs(arguments.limit),
        folder: arguments.out.clone(),
    };
    if !has_ipvs() && plan.contenders.iter().any(|one| one.mode == Mode::Ipvs) {
        bail!("this kernel has no IPVS: leave the mode out, or run this inside integration/vm/vm-run");
    }
    let trips = round_trip::measure(&plan, std::env::args().skip(1).collect())?;
    trips.write(&arguments.out.join("round-trips.json"))?;
    let text = round_trip_table::markdown(&trips);
    fs::write(arguments.out.join("round-trips.md"), &text).context("writing the table")?;
    println!("{text}");
    arguments.docs.as_deref().map_or(Ok(()), |root| round_trip_table::write(&trips, root))
}

/// This project's binary in some modes, and another one in others.
fn contenders(
    own: Option<&Path>,
    modes: &[Mode],
    peer: Option<&Path>,
    peer_modes: &[Mode],
) -> Result<Vec<Contender>> {
    let mut contenders = Vec::new();
    let own = match (own, peer) {
        (Some(program), _) => Some(program.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(integration::lab::program()?),
    };
    if let Some(program) = &own {
        for mode in modes {
            contenders.push(Contender::own(program, *mode)?);
        }
    }
    if let Some(program) = peer {
        for mode in peer_modes {
            contenders.push(Contender::peer(program, *mode)?);
        }
    }
    if contenders.is_empty() {
        bail!(
            "there is nothing to compare: name a binary with --kube-proxy, and perhaps another with --peer"
        );
    }
    Ok(contenders)
}

fn plan(arguments: &RunArguments) -> Result<Plan> {
    let RunArguments { kube_proxy, modes, peer, peer_mode, .. } = arguments;
    Ok(Plan {
        contenders: contenders(kube_proxy.as_deref(), modes, peer.as_deref(), peer_mode)?,
        server: arguments.api_server.clone().map_or_else(usual_server, Ok)?,
        shapes: arguments.workloads.clone(),
        repetitions: arguments.repetitions.max(1),
        seed: arguments.seed,
        changes: arguments.changes,
        changes_time: Duration::from_secs(arguments.changes_seconds),
        churn: arguments.churn.clone(),
        churn_time: Duration::from_secs(arguments.churn_seconds),
        first_packets: arguments.first_packets,
        connections_time: Duration::from_secs(arguments.connections_seconds),
        disturb: !arguments.no_disturbance,
        warm_up: !arguments.no_warm_up,
        limit: Duration::from_secs(arguments.limit),
        patience: BRIEF,
        folder: arguments.out.clone(),
    })
}

/// A VM is slow enough without a real one.
fn usual_server() -> Result<ServerKind> {
    let real = real_apiserver::assets().is_some() && std::env::var_os("VM_RUN_GUEST").is_none();
    if real { "real" } else { "embedded" }.parse().map_err(anyhow::Error::msg)
}

fn cluster(arguments: &ClusterArguments) -> Result<()> {
    interrupt::ask_once().context("catching signals")?;
    let plan = ClusterPlan {
        kubeconfig: arguments.kubeconfig.clone(),
        namespace: arguments.namespace.clone(),
        services: arguments.services,
        endpoints: arguments.endpoints,
        per_second: arguments.churn,
        time: Duration::from_secs(arguments.churn_seconds),
        repetitions: arguments.repetitions.max(1),
        nodes: arguments.nodes.clone(),
        metrics: arguments.metrics.iter().cloned().collect(),
        cluster_ips: arguments.cluster_ips,
        even_if_it_hurts: arguments.even_if_it_hurts,
        folder: arguments.out.clone(),
    };
    let command = std::env::args().skip(1).collect();
    let results = cluster::measure(&plan, Results::new(command, 0, plan.repetitions, Machine::look()))?;
    write_reports(&[results], &arguments.out)
}

fn node_and_url(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((node, url)) if !node.is_empty() && url.starts_with("http://") => {
            Ok((node.to_owned(), url.to_owned()))
        }
        _ => Err(format!("{text:?} is not NODE=http://HOST:PORT")),
    }
}

fn report(arguments: &ReportArguments) -> Result<()> {
    let all: Vec<Results> =
        arguments.results.iter().map(|path| Results::read(path)).collect::<Result<_>>()?;
    write_reports(&all, &arguments.out)?;
    if let Some(root) = &arguments.docs {
        document::write(root, &all)?;
    }
    if arguments.charts {
        for panel in topics(&all[0]).iter().flat_map(|topic| &topic.panels) {
            let Some(chart) = panel.chart(&all[0]) else { continue };
            let path = arguments.out.join(format!("{}.svg", panel.slug()));
            fs::write(&path, chart).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

fn write_reports(all: &[Results], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    for (name, text) in [("report.md", table::markdown(all)), ("report.html", html::page(all))] {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}
