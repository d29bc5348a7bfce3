//! A node with a real kube-proxy, an API server and a network around it, and questions to ask of them.
//!
//! An expectation is checked three ways: what the scenario says by hand, what the oracle computes from the API objects, and
//! what real packets do.

mod checks;
mod configuration;
mod expect;
mod objects;
mod proxy;
mod real;
mod secured;

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::apiserver::ApiServer;
use crate::network::{Family, Network, Outcome, Place, Probe, Protocol, Wiring};
use crate::oracle::{Oracle, Source, SourceKind};

pub use configuration::{Detect, Mode, Options};
pub use expect::{
    Expect, FAR_CLIENT, Origin, To, cluster_ip, directly, external_ip, judge, load_balancer, loopback,
    node_address, seen_as_node, seen_as_sent,
};
pub use objects::{NAMESPACE, Objects, Service, Slices, node, service, service_cidr, slices};
pub use proxy::{Proxy, confine, program};
use real::RealCluster;
pub use secured::{Secure, Secured};

/// Longer than a change takes until it is in force on the busiest machine, in the slowest VM: it only catches "never".
const PATIENCE: Duration = Duration::from_secs(300);
/// The cluster IP that tells whether a change has arrived.
const BARRIER: u8 = 250;

#[derive(Debug)]
pub struct Lab {
    pub network: Network,
    /// Where the objects are, or, beside a real API server, what that one made of them.
    pub api: ApiServer,
    /// Of an API server that speaks TLS.
    pub secured: Option<Secured>,
    real: Option<RealCluster>,
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
        let folder = std::env::temp_dir().join(format!("lab-{}", std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let secured = options.secure.map(|secure| Secured::create(&folder, secure, on_node)).transpose()?;
        let address = SocketAddr::from(([127, 0, 0, 1], 6443));
        let api = on_node.run(|| match &secured {
            Some(secured) => ApiServer::start_secure(address, secured.security.clone()),
            None => ApiServer::start(address),
        })??;
        let embedded = options.embedded_server || secured.is_some();
        let real = if embedded { None } else { RealCluster::start_if_wanted(on_node)? };
        let kubeconfig = folder.join("kubeconfig.conf");
        let text = match (&real, &secured) {
            (Some(real), _) => real.kubeconfig(),
            (None, Some(secured)) => secured.kubeconfig(&api.url()),
            (None, None) => api.kubeconfig(),
        };
        fs::write(&kubeconfig, text)?;
        let mut config = configuration::file(&options, &kubeconfig.display().to_string());
        for (pointer, value) in &options.config {
            let (parent, field) = pointer.rsplit_once('/').context("a JSON pointer begins with a slash")?;
            config.pointer_mut(parent).with_context(|| format!("no {parent} in the configuration"))?[field] =
                value.clone();
        }
        let own_objects = match &real {
            Some(real) => real.own_objects(on_node)?,
            None => vec![service_cidr()],
        };
        api.load(own_objects)?;
        let lab = Self {
            network,
            api,
            secured,
            real,
            options,
            folder,
            config,
            proxy: None,
            families: Family::BOTH.to_vec(),
            barriers: 0,
            unsettled: true,
        };
        lab.put(node(Place::Node, "a"))?;
        lab.put(node(Place::Node2, "b"))?;
        lab.choose_iptables_variant()?;
        Ok(lab)
    }

    pub fn start_proxy(&mut self) -> Result<()> {
        let node = self.network.namespace(Place::Node);
        let (name, variables) = (Place::Node.name(), &self.options.variables);
        self.proxy = Some(Proxy::start(node, &self.folder, &self.config, name, variables)?);
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
        self.config["mode"] = configuration::file(&self.options, "")["mode"].clone();
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
        for object in objects.objects() {
            self.put(object).expect("a scenario's objects are complete");
        }
        self.unsettled = true;
    }

    fn put(&self, object: Value) -> Result<()> {
        let object = match &self.real {
            Some(real) => real.write(self.network.namespace(Place::Node), &object)?,
            None => object,
        };
        self.api.apply(object)?;
        Ok(())
    }

    pub fn delete(&mut self, kind: &str, name: &str) {
        self.delete_in(kind, NAMESPACE, name);
        self.unsettled = true;
    }

    /// Deletes an object of no namespace; unlike Services and slices it is not waited for.
    pub fn delete_global(&self, kind: &str, name: &str) {
        self.delete_in(kind, "", name);
    }

    fn delete_in(&self, kind: &str, namespace: &str, name: &str) {
        let object = self.api.object(kind, namespace, name).expect("a scenario deletes what it applied");
        if let Some(real) = &self.real {
            real.delete(self.network.namespace(Place::Node), &object).expect("the API server deletes it");
        }
        self.api.delete(kind, namespace, name).expect("it was found");
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
        Oracle::new(self.options.settings(), &objects)
    }

    /// Waits until everything applied so far is in force: a Service applied last answers.
    pub fn settle(&mut self) {
        if !std::mem::take(&mut self.unsettled) {
            return;
        }
        self.barriers += 1;
        // Both watches have brought what they had when a new port of one leads to a new port of the other.
        let (name, port) = (format!("b{}", self.barriers), 1_000 + self.barriers);
        self.apply(slices("barrier").port(&name, 8080, Protocol::Tcp).ready(&[Place::PodD]));
        self.apply(service("barrier", BARRIER).port(&name, port, Protocol::Tcp));
        self.unsettled = false;
        let deadline = now() + PATIENCE;
        for family in Family::BOTH {
            let to = SocketAddr::new(family.service(BARRIER), port);
            let mut patience = Duration::from_millis(100);
            loop {
                let probe = Probe::new(Protocol::Tcp, to).patience(patience);
                // Where an answer takes longer than that, a longer wait is what it takes.
                patience = (patience * 2).min(Duration::from_secs(3));
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

    /// What `kube-proxy VERB …` says on the node: its exit code and what it prints, errors first.
    pub fn verb(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(program().expect("kube-proxy was built"));
        command
            .arg(arguments[0])
            .arg(format!("--socket={}", self.folder.join(proxy::INSIGHT_SOCKET).display()))
            .args(&arguments[1..])
            .stdin(std::process::Stdio::null());
        let output = self.network.namespace(Place::Node).run(|| command.output()).expect("a thread");
        let output = output.expect("it runs");
        let text = [output.stderr, output.stdout].map(|text| String::from_utf8_lossy(&text).into_owned());
        (output.status.code().unwrap_or(-1), text.concat())
    }

    /// Where a test may put files of its own; it goes with the lab.
    pub fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// The number of the proxy's process, if it runs.
    pub fn proxy_process(&self) -> Option<u32> {
        self.proxy.as_ref().map(Proxy::process)
    }

    /// The proxy's resident memory in KiB.
    pub fn proxy_memory(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most resident memory that the proxy has had since [`Lab::begin_peak`], in KiB.
    pub fn peak_proxy_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// From here on the peak counts (`clear_refs` of proc(5): 5 sets `VmHWM` to the present size). A kernel without
    /// `CONFIG_PROC_PAGE_MONITOR`, as the VM's, counts it from the start of the process, which is no less.
    pub fn begin_peak(&self) -> Result<()> {
        let proxy = self.proxy.as_ref().context("no proxy is running")?;
        match fs::write(format!("/proc/{}/clear_refs", proxy.process()), "5") {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.context("resetting the peak of memory"),
        }
    }

    fn memory(&self, field: &str) -> u64 {
        let status = self.proxy.as_ref().map(|proxy| format!("/proc/{}/status", proxy.process()));
        let text = status.and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
        let figure = text.lines().find_map(|line| line.strip_prefix(field));
        figure.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
    }

    /// Where the running proxy answers questions.
    pub fn insight_socket(&self) -> PathBuf {
        self.folder.join(proxy::INSIGHT_SOCKET)
    }

    /// How many lines the proxy has logged.
    pub fn log_lines(&self) -> usize {
        self.proxy.as_ref().map(Proxy::log_lines).unwrap_or_default()
    }

    /// All that the proxy has logged.
    pub fn whole_log(&self) -> String {
        self.proxy.as_ref().map(Proxy::log_text).unwrap_or_default()
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

#[expect(clippy::disallowed_methods, reason = "waiting for a process is a matter of real time")]
fn now() -> Instant {
    Instant::now()
}
