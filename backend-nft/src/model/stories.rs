//! The stories in `tests/stories`: objects go in, and the text says what is written to the table and where packets go.
//!
//! A line that is not indented is a command; the indented lines after it are what it answers. `SWITCHYARD_STORIES=write`
//! writes the answers anew. The commands:
//!
//! - `service NAME cluster-ip=IP port=NAME:PORT[/PROTOCOL]`, and perhaps `node-port=N`, `load-balancer=IP`, `affinity=SECONDS`,
//!   `internal=Local`, `external=Local`, `ranges=NET,...`: a Service as it is now.
//! - `slice NAME of SERVICE port=NAME:PORT[/PROTOCOL] ADDRESS...`: an EndpointSlice as it is now; behind an address `@here` says
//!   that it is on this node, `!terminating` that it is about to go and `!gone` that it serves no more.
//! - `gone service NAME`, `gone slice NAME`.
//! - `plan`: what is written now; `--` stands between two steps.
//! - `later`: two seconds pass, and what is owed to the past is done.
//! - `packet SOURCE -> ADDRESS:PORT[/PROTOCOL]`: where the first packet of a connection may go. A source `here` is the node
//!   itself.

use std::{
    cell::RefCell,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_core::{
    backend::{ApplyError, Executor, Outcome, Plan},
    environment::{EnvironmentSettings, LocalPods, NodePortSettings},
    model::{
        Endpoint, Family, Input, Kind, NodeHint, ObjectName, Protocol, Service, ServicePort, Slice,
        SlicePort, TrafficPolicy,
    },
    reconciler::{Pace, Reconciler},
};

use crate::{
    model::table::{Fate, Model, Packet},
    plan::Planner,
    schema::{found::Found, operation::Op},
};

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 50, 254));

/// The table of a story, and what was written to it since somebody asked.
struct Table {
    model: Model,
    written: Vec<String>,
}

struct Kernel(Rc<RefCell<Table>>);

impl Executor for Kernel {
    type Op = Op;
    type Found = Found;

    fn survey(&mut self) -> Result<Found, ApplyError> {
        Ok(self.0.borrow().model.found())
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        let mut table = self.0.borrow_mut();
        table.model.apply(plan).expect("the kernel would take it");
        table.written.push(plan.to_string());
        Ok(Outcome::default())
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        Ok(true)
    }
}

struct Play {
    engine: Reconciler<Planner, Kernel>,
    table: Rc<RefCell<Table>>,
    now: Instant,
}

impl Play {
    #[expect(clippy::disallowed_methods, reason = "somewhere to begin")]
    fn begin() -> Self {
        let table = Table { model: Model::new(Family::V4), written: Vec::new() };
        let table = Rc::new(RefCell::new(table));
        let settings = EnvironmentSettings {
            masquerade_mark: 0x4000,
            masquerade_all: false,
            local_pods: LocalPods::Cidrs(Box::new(["10.0.0.0/8".parse().expect("a network")])),
            node_ports: NodePortSettings::Any,
            localhost_node_ports: false,
            refused_on_localhost: Box::default(),
        };
        let backend = (Family::V4, Planner::new(Family::V4), Kernel(Rc::clone(&table)));
        let engine = Reconciler::new(settings, Pace::default(), vec![backend]);
        let mut play = Self { engine, table, now: Instant::now() };
        play.tell(Input::ServiceCidrs(Box::new(["172.30.0.0/16".parse().expect("a network")])));
        play.tell(Input::InterfaceAddresses(Box::new([NODE])));
        play.tell(Input::NodeIps(Box::new([NODE])));
        for kind in [Kind::Service, Kind::Slice] {
            play.tell(Input::Listing(kind));
            play.tell(Input::Listed(kind));
        }
        // The rules of an empty cluster are nobody's story: `tests/snapshots` has them.
        play.pass(Duration::from_secs(1));
        play.table.borrow_mut().written.clear();
        play
    }

    fn tell(&mut self, input: Input) {
        self.engine.handle(input, self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        self.engine.sync_due(&mut || now);
    }

    fn written(&mut self) -> Vec<String> {
        let written = std::mem::take(&mut self.table.borrow_mut().written).join("\n");
        written.lines().map(|line| if line.is_empty() { "--".to_owned() } else { line.to_owned() }).collect()
    }

    /// What a command answers.
    fn command(&mut self, line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["service", name, fields @ ..] => self.tell(Input::Service(Arc::new(service(name, fields)))),
            ["slice", name, "of", of, fields @ ..] => {
                self.tell(Input::Slice(Arc::new(slice(name, of, fields))));
            }
            ["gone", "service", name] => self.tell(Input::ServiceGone(object(name))),
            ["gone", "slice", name] => self.tell(Input::SliceGone(object(name))),
            ["plan"] => {
                self.pass(Duration::from_millis(10));
                return self.written();
            }
            ["later"] => {
                self.pass(Duration::from_secs(2));
                return self.written();
            }
            ["packet", source, "->", to] => return self.packet(source, to),
            _ => panic!("no command: {line}"),
        }
        Vec::new()
    }

    fn packet(&mut self, source: &str, to: &str) -> Vec<String> {
        let (to, protocol) = with_protocol(to);
        let own = source == "here";
        let packet = Packet {
            source: if own { NODE } else { source.parse().expect("an address") },
            interface: (!own).then(|| "eth0".into()),
            protocol,
            to: to.parse().expect("an address and a port"),
            priority: 0,
        };
        let ends = self.table.borrow_mut().model.trace(&packet, &[NODE]);
        let word = |fate: &Fate| match fate {
            Fate::Translated { to, masqueraded: false } => format!("to {to}"),
            Fate::Translated { to, masqueraded: true } => format!("to {to}, masqueraded"),
            Fate::Rejected => "refused".to_owned(),
            Fate::Dropped => "dropped".to_owned(),
            Fate::Passed => "no Service's".to_owned(),
        };
        ends.iter().map(|end| word(&end.fate)).collect()
    }
}

fn object(name: &str) -> ObjectName {
    ObjectName::new("shop", name)
}

fn with_protocol(text: &str) -> (&str, Protocol) {
    match text.rsplit_once('/') {
        Some((text, "udp")) => (text, Protocol::Udp),
        Some((text, "sctp")) => (text, Protocol::Sctp),
        Some((text, "tcp")) => (text, Protocol::Tcp),
        _ => (text, Protocol::Tcp),
    }
}

/// `NAME:PORT[/PROTOCOL]`
fn port(text: &str) -> (Arc<str>, u16, Protocol) {
    let (text, protocol) = with_protocol(text);
    let (name, number) = text.split_once(':').expect("a name, a colon and a number");
    (name.into(), number.parse().expect("a port"), protocol)
}

fn service(name: &str, fields: &[&str]) -> Service {
    let mut service = Service {
        name: object(name),
        created: 0,
        cluster_ips: Box::default(),
        external_ips: Box::default(),
        ignored_external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: Box::default(),
        options: Box::default(),
    };
    for field in fields {
        let (key, value) = field.split_once('=').expect("a field and its value");
        let addresses = || -> Box<[IpAddr]> { Box::new([value.parse::<IpAddr>().expect("an address")]) };
        match key {
            "cluster-ip" => service.cluster_ips = addresses(),
            "external-ip" => service.external_ips = addresses(),
            "load-balancer" => service.load_balancer_ips = addresses(),
            "affinity" => service.affinity = Some(value.parse().expect("seconds")),
            "internal" => service.internal_policy = TrafficPolicy::Local,
            "external" => service.external_policy = TrafficPolicy::Local,
            "ranges" => {
                let nets = value.split(',').map(|net| net.parse().expect("a network"));
                service.source_ranges = Some(nets.collect());
            }
            "port" => {
                let (name, port, protocol) = port(value);
                service.ports = Box::new([ServicePort { name, protocol, port, node_port: None }]);
            }
            "node-port" => service.ports[0].node_port = Some(value.parse().expect("a port")),
            _ => panic!("no field of a Service: {field}"),
        }
    }
    service
}

fn slice(name: &str, of: &str, fields: &[&str]) -> Slice {
    let (ports, endpoints): (Vec<&str>, Vec<&str>) = fields.iter().partition(|field| field.contains('='));
    let port = |field: &&str| {
        let (name, port, protocol) = port(field.strip_prefix("port=").expect("a port"));
        SlicePort { name, protocol, port }
    };
    let endpoint = |text: &&str| {
        let (text, condition) = text.split_once('!').unwrap_or((text, ""));
        let (addr, place) = text.split_once('@').unwrap_or((text, ""));
        Endpoint {
            addr: addr.parse().expect("an address"),
            ready: condition.is_empty(),
            serving: condition != "gone",
            terminating: !condition.is_empty(),
            local: place == "here",
            for_nodes: NodeHint::Absent,
            for_zones: None,
        }
    };
    Slice {
        name: object(name),
        service: object(of),
        family: Family::V4,
        ports: ports.iter().map(port).collect(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        trigger_time: None,
    }
}

/// The story as it is: its commands and comments, and what they answer now.
fn told(story: &str) -> String {
    let mut play = Play::begin();
    let mut text = String::new();
    for line in story.lines().filter(|line| !line.starts_with("    ")) {
        text.push_str(line);
        text.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        for answer in play.command(line) {
            text.push_str("    ");
            text.push_str(&answer);
            text.push('\n');
        }
    }
    text
}

#[test]
fn stories_go_as_they_are_told() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stories");
    let rewrite = std::env::var("SWITCHYARD_STORIES").is_ok_and(|word| word == "write");
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the folder of stories") {
        let path = entry.expect("a file").path();
        let story = fs::read_to_string(&path).expect("a story");
        let now = told(&story);
        count += 1;
        if rewrite {
            fs::write(&path, now).expect("it may be written");
        } else {
            let first = story.lines().zip(now.lines()).position(|(was, is)| was != is);
            let line = 1 + first.unwrap_or_else(|| story.lines().count().min(now.lines().count()));
            assert!(story == now, "{}, line {line}: now it goes like this\n{now}", path.display());
        }
    }
    assert!(count >= 6, "only {count} stories");
}

#[test]
fn a_story_that_goes_otherwise_is_found_out() {
    let story = "service web cluster-ip=172.30.0.1 port=http:80\nplan\n    nothing\n";
    assert!(!told(story).contains("nothing"), "answers are never taken from the story");
    let to: SocketAddr = "172.30.0.1:80".parse().expect("an address");
    assert!(told(&format!("{story}packet 10.0.0.9 -> {to}\n")).contains("    refused\n"));
}
