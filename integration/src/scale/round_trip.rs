//! What a packet's way costs: connecting, and a byte there and back on a connection that stands, through each contender's
//! rules and through none.
//!
//! All contenders stand at the same time, each on a node of its own, and take turns for a few connections and bytes each, so
//! that whatever else the machine does falls on all alike. Client and endpoints keep to one processor: what another
//! processor's waking costs would drown the difference.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::answering::Answering;
use super::completeness::{self, Completion};
use super::connecting::{identity, open};
use super::contender::{Contender, Running};
use super::first_packet::kernel_order;
use super::machine::{Machine, load};
use super::seed::Seed;
use super::server::Server;
use super::site::{DIRECT, Site};
use super::statistics::quantile;
use super::workload::{ENDPOINT_PORT, NODE, Shape, Workload};
use crate::apiserver::ApiServer;
use crate::network::Namespace;

/// A pod on the node itself, beside the client.
const NEIGHBOUR: &str = "10.96.2.2";
/// Where the API server is, on the node.
const SERVER: &str = "127.0.0.1:6443";
const PATIENCE: Duration = Duration::from_secs(10);
/// Round trips and connections of one turn.
const TRIPS: usize = 20;
const CONNECTIONS: usize = 5;

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct RoundTripPlan {
    pub contenders: Vec<Contender>,
    pub shape: Shape,
    /// Turns of each.
    pub turns: usize,
    /// Until a contender's rules must be complete.
    pub limit: Duration,
    /// For what the contenders write.
    pub folder: PathBuf,
}

/// All figures, as they are saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoundTrips {
    pub command: Vec<String>,
    pub machine: Machine,
    /// Load averages before and after.
    pub load: [f64; 2],
    pub workload: String,
    pub services: usize,
    pub turns: usize,
    /// The first is a node without any rules.
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

/// One kind of destination, with a figure for each column that has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Connecting, or a round trip.
    pub what: String,
    pub to: String,
    pub figures: Vec<Option<Figure>>,
}

/// In microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    pub p10: f64,
    pub p50: f64,
}

/// A kind of destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    /// Which Service in the order of the kernel; none is the endpoint itself.
    service: Option<(&'static str, usize, usize)>,
    same_node: bool,
}

/// A node with everything on it.
struct Stand {
    site: Site,
    _neighbour: (Namespace, Answering),
    /// Its rules stay, and so does it.
    _running: Option<Running>,
    _server: Option<Server>,
    targets: Vec<Target>,
}

/// One way of one node.
struct Target {
    kind: usize,
    to: SocketAddr,
    standing: TcpStream,
    connects: Vec<f64>,
    trips: Vec<f64>,
}

/// The endpoint itself, then three Services; each on another node and on the same.
fn kinds() -> Vec<Kind> {
    let services = [None, Some(("first", 0, 1)), Some(("middle", 1, 2)), Some(("last", 1, 1))];
    let both = |service| [false, true].map(|same_node| Kind { service, same_node });
    services.into_iter().flat_map(both).collect()
}

impl Kind {
    fn name(self) -> String {
        let node = if self.same_node { "same node" } else { "other node" };
        match self.service {
            None => format!("the endpoint itself, {node}"),
            Some((which, ..)) => format!("the {which} Service, {node}"),
        }
    }

    fn address(self, order: &[(SocketAddr, bool)]) -> Result<SocketAddr> {
        let Some((_, part, parts)) = self.service else {
            let neighbour = SocketAddr::new(NEIGHBOUR.parse().context("an address")?, ENDPOINT_PORT);
            return Ok(if self.same_node { neighbour } else { DIRECT });
        };
        let own: Vec<SocketAddr> =
            order.iter().filter(|(_, same)| *same == self.same_node).map(|(at, _)| *at).collect();
        let last = own.len().checked_sub(1).context("there are too few Services")?;
        Ok(own[last * part / parts])
    }
}

/// Carries the plan out.
pub fn measure(plan: &RoundTripPlan, command: Vec<String>) -> Result<RoundTrips> {
    ensure!(plan.shape.services >= 2, "two Services at least: one for each node");
    fs::create_dir_all(&plan.folder).with_context(|| format!("creating {}", plan.folder.display()))?;
    let workload = Workload::generate(plan.shape.clone(), 1);
    let before = load();
    let mut stands = vec![Stand::build(&workload, None, plan)?];
    for contender in &plan.contenders {
        eprintln!("{} writes its rules", contender.name);
        stands.push(Stand::build(&workload, Some(contender), plan)?);
    }
    eprintln!(
        "measuring {} turns of {} ways",
        plan.turns,
        stands.iter().map(|one| one.targets.len()).sum::<usize>()
    );
    for turn in 0..plan.turns {
        for index in 0..stands.len() {
            // Each turn begins with another, so that none always follows the same.
            let at = (index + turn) % stands.len();
            stands[at].take_turn()?;
        }
    }
    let mut columns = vec!["no rules at all".to_owned()];
    columns.extend(plan.contenders.iter().map(|one| one.name.clone()));
    let rows = rows(&stands);
    let load = [before, load()];
    let machine = Machine::look();
    let (workload, services) = (plan.shape.name.clone(), plan.shape.services);
    Ok(RoundTrips { command, machine, load, workload, services, turns: plan.turns, columns, rows })
}

fn rows(stands: &[Stand]) -> Vec<Row> {
    type Of = fn(&Target) -> &Vec<f64>;
    let whats: [(&str, Of); 2] =
        [("connect", |target| &target.connects), ("round trip", |target| &target.trips)];
    let row = |(what, of): (&str, Of), (number, kind): (usize, Kind)| {
        let figures = stands.iter().map(|stand| {
            let target = stand.targets.iter().find(|target| target.kind == number)?;
            let quantile = |share| Some(quantile(of(target), share)? * 1e6);
            Some(Figure { p10: quantile(0.1)?, p50: quantile(0.5)? })
        });
        Row { what: what.to_owned(), to: kind.name(), figures: figures.collect() }
    };
    let kinds = || kinds().into_iter().enumerate();
    whats.into_iter().flat_map(|what| kinds().map(move |kind| row(what, kind))).collect()
}

impl Stand {
    fn build(workload: &Workload, contender: Option<&Contender>, plan: &RoundTripPlan) -> Result<Self> {
        let (site, neighbour) = pinned(|| -> Result<_> {
            let site = Site::build().context("building a network")?;
            let neighbour = add_neighbour(&site)?;
            Ok((site, neighbour))
        })?;
        let mut stand =
            Self { site, _neighbour: neighbour, _running: None, _server: None, targets: Vec::new() };
        let mut order = Vec::new();
        if let Some(contender) = contender {
            let server = start_server(&stand.site, workload)?;
            let folder = plan.folder.join(contender.name.replace([' ', '/'], "-"));
            fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
            let mut running = contender.start(&stand.site, &folder, &server)?;
            let mut seed = Seed::new(1);
            let completion = completeness::wait(&stand.site, workload, &mut running, &mut seed, plan.limit)?;
            ensure!(
                matches!(completion, Completion::After(_)),
                "{}: the rules are not complete in time",
                contender.name
            );
            completeness::settle(&running, plan.limit)?;
            order = kernel_order(&stand.site, workload, contender.mode)?
                .into_iter()
                .filter_map(|at| {
                    let index = workload.services.iter().position(|service| service.address == at)?;
                    Some((at, is_on_node(index)))
                })
                .collect();
            stand._running = Some(running);
            stand._server = Some(server);
        }
        stand.targets = stand.open_targets(&order)?;
        Ok(stand)
    }

    fn open_targets(&self, order: &[(SocketAddr, bool)]) -> Result<Vec<Target>> {
        let wanted = kinds().into_iter().enumerate();
        let wanted = wanted.filter(|(_, kind)| kind.service.is_none() || !order.is_empty());
        let mut targets = Vec::new();
        for (number, kind) in wanted {
            let to = kind.address(order)?;
            let standing = self.site.client.run(|| -> Result<TcpStream> {
                let (mut stream, _) = open(to, PATIENCE).with_context(|| format!("connecting to {to}"))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let reached = identity(&mut stream)?.to_string();
                ensure!(
                    (reached == NEIGHBOUR) == kind.same_node,
                    "{to} led to {reached}, not to {}",
                    kind.name()
                );
                Ok(stream)
            })??;
            targets.push(Target { kind: number, to, standing, connects: Vec::new(), trips: Vec::new() });
        }
        Ok(targets)
    }

    fn take_turn(&mut self) -> Result<()> {
        let Self { site, targets, .. } = self;
        pinned(|| {
            site.client.run(|| -> Result<()> {
                for target in targets {
                    target.measure()?;
                }
                Ok(())
            })?
        })
    }
}

impl Target {
    fn measure(&mut self) -> Result<()> {
        let mut byte = [0_u8];
        for trip in 0..=TRIPS {
            let begun = Instant::now();
            self.standing.write_all(b"x")?;
            self.standing.read_exact(&mut byte)?;
            // The first finds cold caches.
            if trip > 0 {
                self.trips.push(begun.elapsed().as_secs_f64());
            }
        }
        for connection in 0..=CONNECTIONS {
            let (_, took) = open(self.to, PATIENCE).with_context(|| format!("connecting to {}", self.to))?;
            if connection > 0 {
                self.connects.push(took.as_secs_f64());
            }
        }
        Ok(())
    }
}

/// A pod on the node, which answers.
fn add_neighbour(site: &Site) -> Result<(Namespace, Answering)> {
    let pod = Namespace::create("neighbour")?;
    let link = format!(
        "link add ext1 type veth peer name eth0 netns {}\nlink set ext1 up\naddr add 10.96.2.1/24 dev ext1\n",
        pod.path()
    );
    site.node.ip(&link, &[])?;
    pod.ip(
        &format!("link set eth0 up\naddr add {NEIGHBOUR}/24 dev eth0\nroute add default via 10.96.2.1\n"),
        &[],
    )?;
    let answering = pod.run(|| Answering::start(ENDPOINT_PORT))??;
    Ok((pod, answering))
}

/// Every second Service has its one endpoint on the node.
const fn is_on_node(index: usize) -> bool {
    index % 2 == 1
}

fn start_server(site: &Site, workload: &Workload) -> Result<Server> {
    let server = site.node.run(|| ApiServer::start(SERVER.parse().expect("a constant")))??;
    server.load(workload.objects().map(moved_to_the_node)).context("loading the workload")?;
    Ok(Server::Embedded(server))
}

/// Slices of every second Service, with another endpoint.
fn moved_to_the_node(mut object: Value) -> Value {
    let service = object["metadata"]["labels"]["kubernetes.io/service-name"].as_str();
    let index = service.and_then(|name| name.strip_prefix("s-")?.parse::<usize>().ok());
    if object["kind"] == "EndpointSlice" && index.is_some_and(is_on_node) {
        object["endpoints"] = json!([{
            "addresses": [NEIGHBOUR],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": NODE,
        }]);
    }
    object
}

/// Does something on one processor: whatever threads it starts stay there too.
fn pinned<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let pinned = scope.spawn(|| {
            let own = Pid::from_raw(0);
            let allowed = sched_getaffinity(own).context("asking for the processors")?;
            let last = (0..CpuSet::count()).rev().find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
            let mut one = CpuSet::new();
            one.set(last.context("no processor is allowed")?)?;
            sched_setaffinity(own, &one).context("keeping to one processor")?;
            work()
        });
        pinned.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl RoundTrips {
    /// Saves what was measured.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    /// Reads it back.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} holds no round trips", path.display()))
    }
}
