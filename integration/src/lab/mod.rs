//! A node with a real kube-proxy, an API server and a network around it, and questions to ask of them.
//!
//! An expectation is checked three ways: what the scenario says by hand, what the oracle computes from the API objects, and
//! what real packets do.

mod expect;
mod objects;
mod proxy;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::history::Random;
use crate::network::{
    BRIEF, Family, Network, Outcome, POD_BRIDGE, POD_INTERFACE_PREFIX, Place, Probe, Protocol, Wiring,
};
use crate::oracle::{self, NodePorts, Oracle, Settings, Source, SourceKind, Verdict};

pub use expect::{
    Expect, FAR_CLIENT, Origin, To, cluster_ip, directly, external_ip, judge, load_balancer, loopback,
    node_address, seen_as_node, seen_as_sent,
};
pub use objects::{NAMESPACE, Objects, Service, Slices, node, service, service_cidr, slices};
pub use proxy::{Proxy, program};

/// How long a change may take until it is in force, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many connections are tried at once to see all endpoints.
const SAMPLES: usize = 32;
/// The cluster IP that tells whether a change has arrived.
const BARRIER: u8 = 250;

/// Targets to try from one origin.
type Job = (Origin, Vec<(Protocol, SocketAddr)>);

/// A mode of the proxy as it can be run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    IptablesLegacy,
    IptablesNft,
    Ipvs,
}

/// How the proxy tells local pods from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detect {
    Never,
    ClusterCidr,
    NodeCidr,
    InterfacePrefix,
    Bridge,
}

/// What a lab is to be like; the default is a plain node in nftables mode.
#[derive(Debug, Clone)]
pub struct Options {
    pub mode: Mode,
    pub detect: Detect,
    pub masquerade_all: bool,
    pub node_port_addresses: Vec<String>,
    /// Other fields of the configuration, by JSON pointer.
    pub config: Vec<(&'static str, Value)>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Nftables,
            detect: Detect::ClusterCidr,
            masquerade_all: false,
            node_port_addresses: Vec::new(),
            config: Vec::new(),
        }
    }
}

#[derive(Debug)]
pub struct Lab {
    pub network: Network,
    pub api: ApiServer,
    options: Options,
    folder: PathBuf,
    config: Value,
    proxy: Option<Proxy>,
    families: Vec<Family>,
    barriers: u16,
    /// Whether something was applied that has not been waited for.
    unsettled: bool,
}

impl Lab {
    /// Builds the network, the API server with both nodes and the ServiceCIDR, and starts the proxy.
    pub fn start(options: Options) -> Result<Self> {
        let mut lab = Self::without_proxy(options)?;
        lab.start_proxy()?;
        Ok(lab)
    }

    /// The same, but the proxy is started later.
    pub fn without_proxy(options: Options) -> Result<Self> {
        let wiring = if options.detect == Detect::Bridge { Wiring::Bridged } else { Wiring::Routed };
        let network = Network::build(wiring).context("building the network (this needs root)")?;
        let on_node = network.namespace(Place::Node);
        let api = on_node.run(|| ApiServer::start(SocketAddr::from(([127, 0, 0, 1], 6443))))??;
        api.load([node(Place::Node, "a"), node(Place::Node2, "b"), service_cidr()])?;
        let folder = std::env::temp_dir().join(format!("lab-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let kubeconfig = folder.join("kubeconfig.conf");
        fs::write(&kubeconfig, api.kubeconfig())?;
        let mut config = configuration(&options, &kubeconfig.display().to_string());
        for (pointer, value) in &options.config {
            let (parent, field) = pointer.rsplit_once('/').context("a JSON pointer begins with a slash")?;
            config.pointer_mut(parent).with_context(|| format!("no {parent} in the configuration"))?[field] =
                value.clone();
        }
        let lab = Self {
            network,
            api,
            options,
            folder,
            config,
            proxy: None,
            families: Family::BOTH.to_vec(),
            barriers: 0,
            unsettled: true,
        };
        lab.choose_iptables_variant()?;
        Ok(lab)
    }

    pub fn start_proxy(&mut self) -> Result<()> {
        let node = self.network.namespace(Place::Node);
        self.proxy = Some(Proxy::start(node, &self.folder, &self.config, Place::Node.name())?);
        self.unsettled = true;
        Ok(())
    }

    /// Ends the proxy with SIGTERM; its rules stay.
    pub fn stop_proxy(&mut self) -> Result<()> {
        if let Some(proxy) = self.proxy.take() {
            proxy.terminate()?;
        }
        Ok(())
    }

    /// Has the next start of the proxy be one in another mode.
    pub fn change_mode(&mut self, mode: Mode) -> Result<()> {
        self.options.mode = mode;
        self.config["mode"] = configuration(&self.options, "")["mode"].clone();
        self.choose_iptables_variant()
    }

    /// Takes back what tells the proxy which iptables to use.
    pub fn forget_iptables_variant(&self) -> Result<()> {
        let Some(suffix) = self.iptables_suffix() else { return Ok(()) };
        for program in ["iptables", "ip6tables"] {
            let mut command = Command::new(format!("{program}-{suffix}"));
            command.args(["-w", "-t", "mangle", "-X", "KUBE-KUBELET-CANARY"]);
            self.network.namespace(Place::Node).output(&mut command)?;
        }
        Ok(())
    }

    fn iptables_suffix(&self) -> Option<&'static str> {
        match self.options.mode {
            Mode::IptablesLegacy => Some("legacy"),
            Mode::IptablesNft => Some("nft"),
            Mode::Nftables | Mode::Ipvs => None,
        }
    }

    pub fn mode(&self) -> Mode {
        self.options.mode
    }

    /// Asks in these families only from now on.
    pub fn only(&mut self, families: &[Family]) {
        self.families = families.to_vec();
    }

    pub fn apply(&mut self, objects: impl Objects) {
        self.api.load(objects.objects()).expect("a scenario's objects are complete");
        self.unsettled = true;
    }

    pub fn delete(&mut self, kind: &str, name: &str) {
        self.api.delete(kind, NAMESPACE, name).expect("a scenario deletes what it applied");
        self.unsettled = true;
    }

    /// Deletes the slices that `slices(service).named(suffix)` made.
    pub fn delete_slices(&mut self, service: &str, suffix: &str) {
        for family in ["v4", "v6"] {
            self.delete("EndpointSlice", &format!("{service}-{suffix}-{family}"));
        }
    }

    /// The oracle for the present objects.
    pub fn oracle(&self) -> Oracle {
        let kinds = ["Service", "EndpointSlice", "Node", "ServiceCIDR"];
        let objects: Vec<Value> = kinds.iter().flat_map(|kind| self.api.objects(kind)).collect();
        Oracle::new(self.settings(), &objects)
    }

    /// Waits until everything applied so far is in force: a Service applied last answers.
    pub fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        self.barriers += 1;
        let (name, port) = (format!("barrier-{}", self.barriers), 1_000 + self.barriers);
        self.apply(slices(&name).port("b", 8080, Protocol::Tcp).ready(&[Place::PodD]));
        self.apply(service(&name, BARRIER).port("b", port, Protocol::Tcp));
        if self.barriers > 1 {
            let previous = format!("barrier-{}", self.barriers - 1);
            self.delete_slices(&previous, "1");
            self.delete("Service", &previous);
        }
        self.unsettled = false;
        let deadline = now() + PATIENCE;
        for family in Family::BOTH {
            let to = SocketAddr::new(family.service(BARRIER), port);
            loop {
                let probe = Probe::new(Protocol::Tcp, to).patience(Duration::from_millis(100));
                let outcome = self.network.probe_one(Place::Node, probe).expect("sockets can be made");
                if matches!(outcome, Outcome::Answered { .. }) {
                    break;
                }
                if let Some(status) = self.proxy.as_mut().and_then(Proxy::ended) {
                    panic!("kube-proxy ended with {status}:\n{}", self.log());
                }
                assert!(
                    now() < deadline,
                    "{family:?}: a new Service does not answer: {outcome}\n{}",
                    self.log()
                );
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

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
        self.network.probe_one(from_place(&probe), probe.1).expect("sockets can be made")
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

    /// The source address and kind that a connection has.
    pub fn source(&self, from: Origin, to: SocketAddr) -> Source {
        let family = Family::of(to.ip());
        let address = match from.place {
            Place::Client if from.far => family.far_client(),
            // A connection to one of one's own addresses comes from that address. IPVS makes every VIP such an address,
            // but in IPv6 any other address of the node may be chosen.
            Place::Node if is_own(to.ip()) || (self.options.mode == Mode::Ipvs && to.is_ipv4()) => to.ip(),
            Place::Node => family.node_addresses()[1],
            place => place.address(family),
        };
        let kind = match from.place {
            Place::Node => SourceKind::Node,
            Place::PodA | Place::PodB | Place::PodC => SourceKind::LocalPod,
            _ => SourceKind::Elsewhere,
        };
        Source { kind, address }
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

    /// The last lines of the proxy's log and the rules in force, for a failure's message.
    pub fn log(&self) -> String {
        let log = self.proxy.as_ref().map(Proxy::log_tail).unwrap_or_default();
        let list = |command: &mut Command| {
            let output = self.network.namespace(Place::Node).output(command);
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default()
        };
        let rules = match self.options.mode {
            Mode::Nftables | Mode::IptablesNft => list(Command::new("nft").args(["list", "ruleset"])),
            Mode::IptablesLegacy => list(&mut Command::new("iptables-legacy-save")),
            Mode::Ipvs => {
                list(Command::new("ipvsadm").arg("-Ln"))
                    + &list(Command::new("nft").args(["list", "ruleset"]))
            }
        };
        format!("--- kube-proxy's log ends with\n{log}\n--- rules\n{rules}")
    }

    fn settings(&self) -> Settings {
        let iptables = matches!(self.options.mode, Mode::IptablesLegacy | Mode::IptablesNft);
        let words: Vec<&str> = self.options.node_port_addresses.iter().map(String::as_str).collect();
        Settings {
            mode: match self.options.mode {
                Mode::Nftables => oracle::Mode::Nftables,
                Mode::IptablesLegacy | Mode::IptablesNft => oracle::Mode::Iptables,
                Mode::Ipvs => oracle::Mode::Ipvs,
            },
            node_name: Place::Node.name().to_owned(),
            detect_local: match self.options.detect {
                Detect::Never => oracle::DetectLocal::Never,
                Detect::ClusterCidr => {
                    oracle::DetectLocal::Networks(Family::BOTH.map(Family::cluster_cidr).to_vec())
                }
                Detect::NodeCidr => {
                    oracle::DetectLocal::Networks(Family::BOTH.map(Family::node_pod_cidr).to_vec())
                }
                Detect::InterfacePrefix | Detect::Bridge => oracle::DetectLocal::Interface,
            },
            masquerade_all: self.options.masquerade_all,
            node_ports: match words.as_slice() {
                [] if self.options.mode == Mode::Nftables => NodePorts::Primary,
                ["primary"] => NodePorts::Primary,
                [] => NodePorts::Everywhere,
                networks => {
                    NodePorts::Within(networks.iter().filter_map(|network| network.parse().ok()).collect())
                }
            },
            localhost_node_ports: iptables
                && (words.is_empty() || words.iter().any(|network| network.starts_with("127."))),
            local_addresses: own_addresses(),
        }
    }

    /// kubelet's hint decides which of the two iptables the proxy uses.
    fn choose_iptables_variant(&self) -> Result<()> {
        let Some(suffix) = self.iptables_suffix() else { return Ok(()) };
        for program in ["iptables", "ip6tables"] {
            let mut command = Command::new(format!("{program}-{suffix}"));
            command.args(["-w", "-t", "mangle", "-N", "KUBE-KUBELET-CANARY"]);
            self.network.namespace(Place::Node).output(&mut command)?;
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.proxy = None;
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn configuration(options: &Options, kubeconfig: &str) -> Value {
    let mode = match options.mode {
        Mode::Nftables => "nftables",
        Mode::IptablesLegacy | Mode::IptablesNft => "iptables",
        Mode::Ipvs => "ipvs",
    };
    let cluster_cidr = Family::BOTH.map(|family| family.cluster_cidr().to_string()).join(",");
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "mode": mode,
        // The embedded server speaks JSON only.
        "clientConnection": {"kubeconfig": kubeconfig, "contentType": "application/json"},
        "clusterCIDR": if options.detect == Detect::ClusterCidr { cluster_cidr } else { String::new() },
        "detectLocalMode": match options.detect {
            Detect::Never | Detect::ClusterCidr => "ClusterCIDR",
            Detect::NodeCidr => "NodeCIDR",
            Detect::InterfacePrefix => "InterfaceNamePrefix",
            Detect::Bridge => "BridgeInterface",
        },
        "detectLocal": {"bridgeInterface": POD_BRIDGE, "interfaceNamePrefix": POD_INTERFACE_PREFIX},
        "nodePortAddresses": options.node_port_addresses,
        // These belong to the host, not to a network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0},
        "iptables": {"masqueradeAll": options.masquerade_all},
        "nftables": {"masqueradeAll": options.masquerade_all},
        "ipvs": {},
    })
}

/// All addresses of the node's interfaces.
fn own_addresses() -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for family in Family::BOTH {
        addresses.extend(family.node_addresses());
        addresses.extend(Place::PodA.masqueraded_source(family));
    }
    addresses
}

fn is_own(address: IpAddr) -> bool {
    address.is_loopback() || own_addresses().contains(&address)
}

fn patience_for(verdict: &Verdict) -> Duration {
    match verdict {
        Verdict::Dnat(_) | Verdict::Reject => Duration::from_secs(2),
        Verdict::Drop | Verdict::Pass => BRIEF,
    }
}

fn from_place(probe: &(Origin, Probe)) -> Place {
    probe.0.place
}

#[expect(clippy::disallowed_methods, reason = "waiting for a process is a matter of real time")]
fn now() -> Instant {
    Instant::now()
}
