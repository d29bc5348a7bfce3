//! A node and its neighbours in network namespaces of their own, with real TCP between them.

#![allow(dead_code, unreachable_pub, reason = "every test file uses a part of it")]

use std::{
    fs,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use backend_iptables::{Executor, Planner, Variant};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use proxy_core::{
    backend::{ApplyError, Change, Effect, Executor as _, Planned, Planner as _},
    environment::{Environment, LocalPods, NodePortAddresses},
    model::{Family, Protocol, ServiceName, ServicePortName, TrafficPolicy},
    route::{Frontend, FrontendKind, Route, Target},
};

/// The node is the namespace of the calling thread.
pub struct Node {
    pub family: Family,
    pub client: Peer,
    pub outside: Peer,
    pub servers: [Peer; 2],
}

/// A namespace behind one interface of the node.
pub struct Peer {
    pub addr: IpAddr,
    pub gateway: IpAddr,
    run: mpsc::Sender<Box<dyn FnOnce() + Send>>,
}

impl Node {
    /// Enters a network namespace and a mount namespace, the latter for a lock file of our own.
    pub fn new(family: Family) -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("root may unshare");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
            .expect("the mount namespace is ours");
        mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("/run is a directory");
        ip("link set lo up");
        no_duplicate_detection();
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("writable in our namespace");
        fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").expect("writable in our namespace");
        let prefix = |at: u8| match family {
            Family::V4 => format!("10.244.{at}."),
            Family::V6 => format!("fd00:10:244:{at}::"),
        };
        let outside = match family {
            Family::V4 => "192.168.7.".to_owned(),
            Family::V6 => "fd00:192:168:7::".to_owned(),
        };
        let node = Self {
            family,
            client: Peer::new("client", &prefix(1)),
            outside: Peer::new("outside", &outside),
            servers: [Peer::new("server0", &prefix(2)), Peer::new("server1", &prefix(3))],
        };
        // As every node: without a route to it, a refused address would be unreachable instead.
        ip(&format!("route add default via {}", node.outside.addr));
        node
    }

    pub fn environment(&self) -> Environment {
        let pods = match self.family {
            Family::V4 => "10.244.0.0/16",
            Family::V6 => "fd00:10:244::/48",
        };
        Environment {
            family: self.family,
            masquerade_mark: 0x4000,
            masquerade_all: false,
            local_pods: LocalPods::Cidrs([pods.parse().expect("a network")].into()),
            node_ports: NodePortAddresses::Any,
            localhost_node_ports: false,
            refused_on_localhost: Box::default(),
            loopback_node_ports: Box::default(),
            service_cidrs: Box::default(),
            node_ips: [self.outside.gateway].into(),
            interface_addresses: Box::default(),
        }
    }
}

impl Peer {
    fn new(name: &str, prefix: &str) -> Self {
        let (run, jobs) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (tell, ready) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("root may unshare");
            no_duplicate_detection();
            tell.send(nix::unistd::gettid()).expect("the test waits");
            for job in jobs {
                job();
            }
        });
        let tid = ready.recv().expect("the thread has started");
        let bits = if prefix.contains(':') { "64 nodad" } else { "24" };
        ip(&format!("link add {name} type veth peer name eth0 netns {tid}"));
        ip(&format!("addr add {prefix}1/{bits} dev {name}"));
        ip(&format!("link set {name} up"));
        let peer = Self {
            addr: format!("{prefix}2").parse().expect("an address"),
            gateway: format!("{prefix}1").parse().expect("an address"),
            run,
        };
        let (addr, gateway) = (peer.addr, peer.gateway);
        peer.run(move || {
            ip("link set lo up");
            ip(&format!("addr add {addr}/{bits} dev eth0"));
            ip("link set eth0 up");
            ip(&format!("route add default via {gateway}"));
            wait_until_up("eth0");
        });
        wait_until_up(name);
        peer
    }

    /// Does something in this namespace.
    pub fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let (tell, result) = mpsc::channel();
        self.run
            .send(Box::new(move || tell.send(job()).expect("the caller waits")))
            .expect("the thread runs");
        result.recv().expect("the job has not panicked")
    }

    /// Answers every TCP connection with our name and the client's address.
    pub fn serve(&self, name: &'static str, port: u16) {
        let at = SocketAddr::new(self.addr, port);
        self.run(move || serve_tcp(name, at));
    }

    pub fn connect(&self, to: IpAddr, port: u16) -> io::Result<Answer> {
        self.run(move || connect(to, port))
    }
}

/// Answers every TCP connection in the calling thread's namespace.
pub fn serve_tcp(name: &'static str, at: SocketAddr) {
    let listener = TcpListener::bind(at).expect("a free port");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let Ok(client) = stream.peer_addr() else { continue };
            let _ = write!(stream, "{name} {}", client.ip());
        }
    });
}

/// Who answered, and whom it took for the client.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Answer {
    pub server: String,
    pub source: IpAddr,
}

/// Connects from the calling thread's namespace. The time allows for a second try of the kernel's after one second: on a
/// veth pair the refusal of the first SYN may come back while `connect` still holds the socket, and is then ignored.
pub fn connect(to: IpAddr, port: u16) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, port), Duration::from_millis(2500))?;
    // Connected, it is answered, however late on a busy machine.
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (server, source) = text.split_once(' ').ok_or_else(|| io::Error::other("no answer"))?;
    Ok(Answer { server: server.to_owned(), source: source.parse().map_err(io::Error::other)? })
}

/// Whether a UDP datagram is refused by ICMP.
pub fn udp_refused(to: IpAddr, port: u16) -> bool {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.connect((to, port)).expect("a route");
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
    let _ = socket.send(b"x");
    socket.recv(&mut [0; 8]).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Without it a link-local address works at once, and the node can ask for its neighbours when it forwards.
fn no_duplicate_detection() {
    for of in ["all", "default"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{of}/accept_dad"), "0")
            .expect("writable in our namespace");
    }
}

/// The kernel notices the carrier a little later, and loses what is sent until then.
fn wait_until_up(interface: &str) {
    for _ in 0..3_000 {
        if run(&format!("ip link show dev {interface}")).contains("state UP") {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("{interface} does not come up");
}

pub fn ip(arguments: &str) {
    run(&format!("ip {arguments}"));
}

/// Runs a command line and returns what it prints.
pub fn run(line: &str) -> String {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh is there");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A planner and an executor, driven as the engine drives them.
pub struct Proxy {
    pub planner: Planner,
    pub executor: Executor,
    pub environment: Environment,
    pub routes: Vec<(ServicePortName, Arc<Route>)>,
}

impl Proxy {
    pub fn new(variant: Variant, environment: Environment) -> Self {
        let family = environment.family;
        let executor = Executor::open_variant(family, variant).expect("iptables works here");
        Self { planner: Planner::new(family), executor, environment, routes: Vec::new() }
    }

    pub fn full(&mut self) -> Result<(), ApplyError> {
        let found = self.executor.survey()?;
        let plan = self.planner.plan_full(&self.routes, &self.environment, found, now());
        let result = self.executor.apply(&plan);
        self.planner.settle(if result.is_ok() { Effect::Applied } else { Effect::Nothing });
        result.map(|_| ())
    }

    /// Looks again and again until it is seen that somebody changed the tables.
    pub fn notices_damage(&mut self) -> bool {
        (0..600).any(|_| {
            let intact = self.executor.intact().expect("the check runs");
            if intact {
                thread::sleep(Duration::from_millis(20));
            }
            !intact
        })
    }

    /// Looks for longer than the pause between two readings of all rules.
    pub fn finds_all_intact(&mut self) -> bool {
        (0..40).all(|_| {
            thread::sleep(Duration::from_millis(40));
            self.executor.intact().expect("the check runs")
        })
    }

    /// Sets or removes one route, and returns the text that did it.
    pub fn change(&mut self, name: &ServicePortName, route: Option<Route>) -> Result<String, ApplyError> {
        let after = route.map(Arc::new);
        let at = self.routes.binary_search_by(|(other, _)| other.cmp(name));
        let before = at.ok().map(|at| self.routes[at].1.clone());
        let change = Change { name: name.clone(), before, after: after.clone() };
        let Planned::Plan(plan) = self.planner.plan(&[change], &self.environment, now()) else {
            panic!("the planner wants to start over");
        };
        let result = self.executor.apply(&plan);
        self.planner.settle(if result.is_ok() { Effect::Applied } else { Effect::Nothing });
        result?;
        match (at, after) {
            (Ok(at), Some(after)) => self.routes[at].1 = after,
            (Ok(at), None) => drop(self.routes.remove(at)),
            (Err(at), Some(after)) => self.routes.insert(at, (name.clone(), after)),
            (Err(_), None) => {}
        }
        Ok(plan.steps.iter().map(|step| backend_iptables::restore::text(step, Variant::Nft)).collect())
    }
}

#[expect(clippy::disallowed_methods, reason = "the test drives the backend by the real clock")]
pub fn now() -> Instant {
    Instant::now()
}

pub fn name(name: &str, port: &str) -> ServicePortName {
    ServicePortName { service: ServiceName::new("default", name), port: port.into(), protocol: Protocol::Tcp }
}

pub fn target(addr: IpAddr, port: u16, local: bool) -> Target {
    Target { addr, port, local }
}

pub fn frontend(kind: FrontendKind, at: Option<IpAddr>, port: u16) -> Frontend {
    Frontend { kind, at, port }
}

/// A route of a cluster IP.
pub fn cluster_ip(at: IpAddr, port: u16, cluster: &[Target]) -> Route {
    Route {
        policy: Arc::default(),
        protocol: Protocol::Tcp,
        frontends: [frontend(FrontendKind::ClusterIp, Some(at), port)].into(),
        external_policy: TrafficPolicy::Cluster,
        cluster: cluster.into(),
        local: Box::default(),
        any_endpoint: !cluster.is_empty(),
        lost: Box::default(),
        endpoints: 0,
        kept: Box::default(),
    }
}
