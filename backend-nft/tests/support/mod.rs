//! A node, pods and an outside client, each in a network namespace of its own, and programs that talk between them.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::{
    fs::File,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

pub mod flood;
pub mod routes;
pub mod stray;

/// Runs a program and panics with its message if it fails.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a command has a first word");
    let output = Command::new(program).args(words).output().expect("the program is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Feeds text to `nft -f -`.
pub fn load(program: &str, text: &str) -> Result<(), String> {
    let mut child = Command::new(program)
        .args(["-f", "-"])
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("nft is installed");
    child.stdin.take().expect("it was asked for").write_all(text.as_bytes()).expect("nft reads");
    let output = child.wait_with_output().expect("nft ends");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Moves this thread into a namespace of its own, where names for further ones can be made.
pub fn enter_node() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("tests run as root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("mounts can be made private");
    std::fs::create_dir_all("/run/netns").expect("/run can be written");
    mount(Some("tmpfs"), "/run/netns", Some("tmpfs"), MsFlags::empty(), none)
        .expect("a tmpfs can be mounted");
    run("ip link set lo up");
    without_address_detection(None);
    // Somewhere to go by default, as a real node has.
    run("ip link add uplink type veth peer name beyond");
    run("ip addr add 203.0.113.254/24 dev uplink");
    run("ip addr add fd77::fe/64 dev uplink nodad");
    run("ip link set uplink up");
    run("ip link set beyond up");
    run("ip route add default via 203.0.113.1");
    run("ip route add default via fd77::1");
    for parameter in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        std::fs::write(format!("/proc/sys/net/{parameter}"), "1").expect("forwarding can be switched on");
    }
}

/// Duplicate address detection would hold IPv6 addresses back for a second.
fn without_address_detection(host: Option<&str>) {
    within(host, || {
        for scope in ["all", "default"] {
            let file = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
            std::fs::write(file, "0").expect("tests run as root");
        }
    });
}

/// A namespace connected to the node: pods have 10.0.N.1 and fd00:N::1, where N is their number.
pub struct Host {
    pub name: String,
    pub v4: IpAddr,
    pub v6: IpAddr,
    /// The node's interface to it.
    pub link: String,
}

pub fn pod(number: u8) -> Host {
    host(&format!("pod{number}"), &format!("10.0.{number}"), &format!("fd00:{number}:"))
}

/// A client outside the cluster.
pub fn outside(number: u8) -> Host {
    host(&format!("out{number}"), &format!("192.168.{number}"), &format!("fd55:{number}:"))
}

fn host(name: &str, v4: &str, v6: &str) -> Host {
    let link = format!("v{name}");
    run(&format!("ip netns add {name}"));
    without_address_detection(Some(name));
    run(&format!("ip link add {link} type veth peer name eth0 netns {name}"));
    run(&format!("ip addr add {v4}.254/24 dev {link}"));
    run(&format!("ip addr add {v6}:fe/64 dev {link} nodad"));
    run(&format!("ip link set {link} up"));
    let inside = |command: &str| run(&format!("ip -n {name} {command}"));
    inside("link set lo up");
    inside(&format!("addr add {v4}.1/24 dev eth0"));
    inside(&format!("addr add {v6}:1/64 dev eth0 nodad"));
    inside("link set eth0 up");
    inside(&format!("route add default via {v4}.254"));
    inside(&format!("route add default via {v6}:fe"));
    let address = |text: String| text.parse().expect("an address");
    Host { name: name.to_owned(), v4: address(format!("{v4}.1")), v6: address(format!("{v6}:1")), link }
}

/// Runs something in a host's namespace (`None`: here) on a thread of its own.
pub fn within<T: Send + 'static>(host: Option<&str>, work: impl FnOnce() -> T + Send + 'static) -> T {
    let path = host.map(|name| format!("/run/netns/{name}"));
    thread::spawn(move || {
        if let Some(path) = path {
            let namespace = File::open(path).expect("the namespace exists");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("tests run as root");
        }
        work()
    })
    .join()
    .expect("the work does not panic")
}

/// What a client saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saw {
    /// The endpoint's name and the source address it saw.
    Answer {
        name: String,
        source: IpAddr,
    },
    Refused,
    /// No answer in time.
    Silence,
    Other(String),
}

impl Saw {
    pub fn name(&self) -> &str {
        match self {
            Self::Answer { name, .. } => name,
            other => panic!("no answer but {other:?}"),
        }
    }

    pub fn source(&self) -> IpAddr {
        match self {
            Self::Answer { source, .. } => *source,
            other => panic!("no answer but {other:?}"),
        }
    }
}

/// More than a second: an ICMPv6 error that comes while `connect` still holds the socket is lost on Linux, so that only
/// the answer to the first retransmission counts.
const PATIENCE: Duration = Duration::from_secs(2);

/// Starts a server that tells its name and the client's address; it ends with the test's process.
pub fn serve(host: &Host, port: u16) {
    serve_in(Some(&host.name), &host.name, port);
}

pub fn serve_in(namespace: Option<&str>, name: &str, port: u16) {
    let (ready, is_ready) = mpsc::channel();
    let (namespace, name) = (namespace.map(str::to_owned), name.to_owned());
    thread::spawn(move || {
        if let Some(namespace) = namespace {
            let namespace = File::open(format!("/run/netns/{namespace}")).expect("the namespace exists");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("tests run as root");
        }
        let udp = UdpSocket::bind(("::", port)).expect("the port is free");
        let tcp = TcpListener::bind(("::", port)).expect("the port is free");
        ready.send(()).expect("the test waits");
        let udp_name = name.clone();
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{udp_name} {}", plain(from.ip())).as_bytes(), from);
            }
        });
        for stream in tcp.incoming() {
            let Ok(mut stream) = stream else { continue };
            let Ok(from) = stream.peer_addr() else { continue };
            let _ = write!(stream, "{name} {}", plain(from.ip()));
        }
    });
    is_ready.recv().expect("the server starts");
}

fn plain(addr: IpAddr) -> IpAddr {
    addr.to_canonical()
}

fn answer(text: &str) -> Saw {
    match text.split_once(' ') {
        Some((name, source)) => {
            Saw::Answer { name: name.to_owned(), source: source.parse().expect("an address") }
        }
        None => Saw::Other(text.to_owned()),
    }
}

/// Connects once by TCP.
pub fn tcp(from: Option<&str>, to: SocketAddr) -> Saw {
    within(from, move || tcp_here(to))
}

pub fn tcp_here(to: SocketAddr) -> Saw {
    match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(mut stream) => {
            // Connected, it is answered, however late on a busy machine.
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout can be set");
            let mut text = String::new();
            match stream.read_to_string(&mut text) {
                Ok(_) => answer(&text),
                Err(error) => Saw::Other(error.to_string()),
            }
        }
        Err(error) => failure(&error),
    }
}

/// Asks once by UDP.
pub fn udp(from: Option<&str>, to: SocketAddr) -> Saw {
    within(from, move || {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a port is free");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        if let Err(error) = socket.connect(to).and_then(|()| socket.send(b"?")) {
            return failure(&error);
        }
        let mut buffer = [0; 256];
        match socket.recv(&mut buffer) {
            Ok(length) => answer(&String::from_utf8_lossy(&buffer[..length])),
            Err(error) => failure(&error),
        }
    })
}

fn failure(error: &std::io::Error) -> Saw {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::ConnectionRefused => Saw::Refused,
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Saw::Silence,
        _ => Saw::Other(error.to_string()),
    }
}

/// Tries until it holds, or a minute has passed.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    #[expect(clippy::disallowed_methods, reason = "a kernel test waits for real")]
    let now = Instant::now;
    let until = now() + Duration::from_secs(60);
    while !holds() {
        assert!(now() < until, "not within a minute: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Rules as kube-proxy 1.36 writes them for one Service with a cluster IP: its base chains, its maps, a chain for the
/// Service and a map of endpoints within its rule.
pub fn kube_proxy_rules(vip: &str, protocol: &str, endpoints: &[&str]) -> String {
    let count = endpoints.len();
    let slots: Vec<String> =
        endpoints.iter().enumerate().map(|(at, endpoint)| format!("{at} : {endpoint} . 8080")).collect();
    let slots = slots.join(", ");
    let bases = [
        ("filter-prerouting-pre-dnat", "filter", "prerouting", -110),
        ("filter-output-pre-dnat", "filter", "output", -110),
        ("filter-input", "filter", "input", 0),
        ("filter-forward", "filter", "forward", 0),
        ("filter-output", "filter", "output", 0),
        ("nat-prerouting", "nat", "prerouting", -100),
        ("nat-output", "nat", "output", -100),
        ("nat-postrouting", "nat", "postrouting", 100),
    ];
    let mut text = String::from("add table ip kube-proxy { comment \"rules for kube-proxy\"; }\n");
    for (name, kind, hook, priority) in bases {
        let chain =
            format!("chain ip kube-proxy {name} {{ type {kind} hook {hook} priority {priority}; }}\n");
        text += &format!("add {chain}delete chain ip kube-proxy {name}\nadd {chain}");
    }
    let service = format!("service-ABCDEFGH-test/web/{protocol}/http");
    let shared = ["firewall-check", "nodeport-endpoints-check", "services", "masquerading"];
    let checks = ["service-endpoints-check", "cluster-ips-check", service.as_str()];
    for chain in shared.into_iter().chain(checks) {
        text += &format!("add chain ip kube-proxy {chain}\nflush chain ip kube-proxy {chain}\n");
    }
    text += &format!(
        r#"add set ip kube-proxy cluster-ips {{ type ipv4_addr; }}
add element ip kube-proxy cluster-ips {{ {vip} }}
add set ip kube-proxy affinity-ABCDEFGH-test/web {{ type ipv4_addr; flags dynamic,timeout; timeout 3h; }}
add map ip kube-proxy service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map ip kube-proxy no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map ip kube-proxy firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
add map ip kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict; }}
add map ip kube-proxy no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
add set ip kube-proxy nodeport-ips {{ type ipv4_addr; }}
add element ip kube-proxy nodeport-ips {{ 203.0.113.254 }}
add rule ip kube-proxy {service} ip daddr {vip} {protocol} dport 80 ip saddr != 10.0.0.0/8 meta mark set mark or 0x4000
add rule ip kube-proxy {service} meta l4proto {protocol} dnat ip to numgen random mod {count} map {{ {slots} }}
add element ip kube-proxy service-ips {{ {vip} . {protocol} . 80 : goto {service} }}
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
add rule ip kube-proxy nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy masquerading mark and 0x4000 != 0 mark set mark xor 0x4000 masquerade fully-random
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject
add rule ip kube-proxy cluster-ips-check ip daddr {{ 172.30.0.0/16 }} drop
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
"#
    );
    text
}
