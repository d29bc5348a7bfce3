//! For random clusters, configurations, sources and targets: what the engine's routes come to in each mode is what the oracle
//! says. No packets; thousands of questions.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use insight::decision::{Decider, Source, SourceKind, Verdict};
use insight::engine::engine;
use insight::state::State;
use integration::history::{History, Step};
use integration::lab::{node, service_cidr};
use integration::network::{Family, Place, Protocol};
use integration::oracle::{self, DetectLocal, Mode, NodePorts, Oracle, Settings};
use integration::random::Random;
use serde_json::{Value, json};

/// Lines of a state file for a cluster of API objects, as a node with these settings would have written them. The objects stand
/// in it as they are; those that a proxy has nothing to do with are left out.
fn state(settings: &Settings, objects: &[Value]) -> State {
    let of_kind = |kind: &'static str| objects.iter().filter(move |object| object["kind"] == kind);
    let node = of_kind("Node").find(|node| node["metadata"]["name"] == settings.node_name.as_str());
    let node = node.expect("the node is there");
    let ips = node["status"]["addresses"].as_array().expect("a list");
    let ips: Vec<&Value> = ips.iter().map(|entry| &entry["address"]).collect();
    let texts =
        |networks: &[ipnet::IpNet]| -> Vec<String> { networks.iter().map(ToString::to_string).collect() };
    let mut interfaces: Vec<String> = settings.local_addresses.iter().map(ToString::to_string).collect();
    interfaces.extend(["127.0.0.1", "::1"].map(str::to_owned));
    let header = json!({
        "kind": "NodeState", "apiVersion": insight::state::API_VERSION,
        "node": settings.node_name, "taken": "2026-01-01T00:00:00Z",
        "mode": match settings.mode { Mode::Nftables => "nftables", Mode::Iptables => "iptables", Mode::Ipvs => "ipvs" },
        "versions": { "switchyard": "0", "kubernetes": "0" },
        "facts": {
            "serviceCIDRs": of_kind("ServiceCIDR").flat_map(|cidr| cidr["spec"]["cidrs"].as_array().expect("a list")).collect::<Vec<_>>(),
            "nodeIPs": ips, "interfaceAddresses": interfaces,
            "zone": node["metadata"]["labels"]["topology.kubernetes.io/zone"],
        },
        "allowServiceExternalIps": true,
        "environment": {
            "masqueradeMark": 0x4000, "masqueradeAll": settings.masquerade_all,
            "localPods": match &settings.detect_local {
                DetectLocal::Never => json!("unknown"),
                DetectLocal::Networks(networks) => json!({ "cidrs": texts(networks) }),
                DetectLocal::Interface => json!({ "interfacePrefix": "veth" }),
            },
            "nodePorts": match &settings.node_ports {
                NodePorts::Everywhere => json!("any"),
                NodePorts::Primary => json!("primary"),
                NodePorts::Within(networks) => json!({ "within": texts(networks) }),
                NodePorts::PrimaryAndWithin(networks) => json!({ "primaryAndWithin": texts(networks) }),
            },
            "localhostNodePorts": settings.localhost_node_ports,
        },
        "localhostV6NodePorts": settings.localhost_v6_node_ports,
        "families": [{ "family": "IPv4" }, { "family": "IPv6" }],
    });
    let labelled = |object: &Value, label: &str| object["metadata"]["labels"].get(label).is_some();
    let services: Vec<&Value> = of_kind("Service")
        .filter(|service| !labelled(service, "service.kubernetes.io/service-proxy-name"))
        .collect();
    let slices: Vec<&Value> =
        of_kind("EndpointSlice").filter(|slice| !labelled(slice, "service.kubernetes.io/headless")).collect();
    let end = json!({
        "kind": "End", "services": services.len(), "slices": slices.len(),
        "installed": 0, "asides": 0, "conflicts": 0, "syncs": 0,
    });
    let lines = [&header].into_iter().chain(services).chain(slices).chain([&end]);
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    State::read(text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn settings(random: &mut Random) -> Settings {
    let mode = random.one_of(&[Mode::Nftables, Mode::Iptables, Mode::Ipvs]);
    let networks = |of: fn(Family) -> ipnet::IpNet| DetectLocal::Networks(Family::BOTH.map(of).to_vec());
    let client_side =
        || ["192.168.70.0/24", "fd00:70::/64"].map(|net| net.parse().expect("a network")).to_vec();
    let addresses = Family::BOTH.iter().flat_map(|family| {
        family.node_addresses().into_iter().chain(Place::PodA.masqueraded_source(*family))
    });
    Settings {
        mode,
        node_name: Place::Node.name().to_owned(),
        detect_local: match random.below(4) {
            0 => DetectLocal::Never,
            1 => networks(Family::cluster_cidr),
            2 => networks(Family::node_pod_cidr),
            _ => DetectLocal::Interface,
        },
        masquerade_all: random.one_in(5),
        node_ports: match random.below(4) {
            0 => NodePorts::Everywhere,
            1 => NodePorts::Primary,
            2 => NodePorts::Within(client_side()),
            _ => NodePorts::PrimaryAndWithin(client_side()),
        },
        localhost_node_ports: mode != Mode::Ipvs && random.one_in(2),
        localhost_v6_node_ports: mode == Mode::Nftables && random.one_in(2),
        local_addresses: addresses.collect(),
    }
}

fn sources(family: Family) -> Vec<oracle::Source> {
    use oracle::SourceKind::{Elsewhere, LocalPod, Node};
    let at = |kind, address| oracle::Source { kind, address };
    let mut all: Vec<oracle::Source> =
        Place::LOCAL_PODS.iter().map(|pod| at(LocalPod, pod.address(family))).collect();
    let elsewhere = [Place::PodD, Place::PodE, Place::Node2, Place::Client];
    all.extend(elsewhere.iter().map(|place| at(Elsewhere, place.address(family))));
    all.push(at(Elsewhere, family.far_client()));
    all.extend(family.node_addresses().map(|address| at(Node, address)));
    // Within the pods' network, and a load balancer's own address that IPVS has bound to the node.
    all.extend(Place::PodA.masqueraded_source(family).map(|address| at(Node, address)));
    all.push(at(Node, family.load_balancer(12)));
    all
}

fn targets(oracle: &Oracle, family: Family, random: &mut Random) -> Vec<(Protocol, SocketAddr)> {
    let mut all = oracle.frontends(family);
    let known: BTreeSet<IpAddr> = all.iter().map(|(_, to)| to.ip()).collect();
    // The same addresses by other protocols and ports, free cluster IPs, strangers, and loopback.
    for (protocol, to) in all.clone() {
        let other = random.one_of(&[Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
        all.extend([(other, to), (protocol, SocketAddr::new(to.ip(), 9))]);
        let loopback: IpAddr =
            if family == Family::V4 { [127, 0, 0, 1].into() } else { "::1".parse().expect("an address") };
        all.push((protocol, SocketAddr::new(loopback, to.port())));
    }
    let strangers = [family.service(240), family.external(200), Place::PodE.address(family)];
    all.extend(
        strangers
            .into_iter()
            .filter(|ip| !known.contains(ip))
            .map(|ip| (Protocol::Tcp, SocketAddr::new(ip, 80))),
    );
    all.sort_unstable_by_key(|(protocol, at)| (*at, *protocol));
    all.dedup();
    all
}

/// The oracle's verdict in the words of the decision.
fn told(verdict: &Verdict) -> oracle::Verdict {
    match verdict {
        Verdict::To(chosen) => oracle::Verdict::Dnat(
            chosen
                .iter()
                .map(|one| (SocketAddr::new(one.target.addr, one.target.port), one.masqueraded))
                .collect(),
        ),
        Verdict::Refused => oracle::Verdict::Reject,
        Verdict::Dropped => oracle::Verdict::Drop,
        Verdict::Passed => oracle::Verdict::Pass,
    }
}

fn core_protocol(protocol: Protocol) -> proxy_core::model::Protocol {
    match protocol {
        Protocol::Tcp => proxy_core::model::Protocol::Tcp,
        Protocol::Udp => proxy_core::model::Protocol::Udp,
        Protocol::Sctp => proxy_core::model::Protocol::Sctp,
    }
}

#[expect(clippy::disallowed_methods, reason = "nothing depends on the time")]
fn ask_everything(seed: u64, steps: usize, kinds: &mut BTreeMap<&'static str, usize>) {
    let mut random = Random::new(seed ^ 0x1234_5678);
    let settings = settings(&mut random);
    let mut objects: BTreeMap<(String, String), Value> = BTreeMap::new();
    let key = |object: &Value| (object["kind"].to_string(), object["metadata"]["name"].to_string());
    for object in [node(Place::Node, "a"), node(Place::Node2, "b"), service_cidr()] {
        objects.insert(key(&object), object);
    }
    for (at, steps) in History::new(seed).take(steps).enumerate() {
        for step in steps {
            match step {
                Step::Apply { objects: applied, .. } => {
                    objects.extend(applied.into_iter().map(|object| (key(&object), object)));
                }
                Step::Delete { kind, name } => {
                    objects.remove(&(json!(kind).to_string(), json!(name).to_string()));
                }
                Step::Restart => {}
            }
        }
        // Every few steps: each asks thousands of questions.
        if at % 4 != 3 {
            continue;
        }
        let objects: Vec<Value> = objects.values().cloned().collect();
        let oracle = Oracle::new(settings.clone(), &objects);
        let state = state(&settings, &objects);
        let engine = engine(&state, Instant::now());
        let decider = Decider::new(&engine, state.header.mode, state.header.localhost_v6_node_ports);
        for family in Family::BOTH {
            for (protocol, to) in targets(&oracle, family, &mut random) {
                for source in sources(family) {
                    let expected = oracle.verdict(source, protocol, to);
                    let from = Source { kind: kind(source.kind), address: source.address };
                    let decision = decider.decide(from, core_protocol(protocol), to);
                    assert_eq!(
                        told(&decision.verdict),
                        expected,
                        "seed {seed}, step {at}: from {source:?} to {to} {protocol:?}\n{settings:?}\n{decision:?}"
                    );
                    assert!(!decision.because.is_empty(), "a reason: {decision:?}");
                    *kinds
                        .entry(match expected {
                            oracle::Verdict::Dnat(_) => "to endpoints",
                            oracle::Verdict::Reject => "refused",
                            oracle::Verdict::Drop => "dropped",
                            oracle::Verdict::Pass => "passed",
                        })
                        .or_default() += 1;
                }
            }
        }
    }
}

/// Files that real nodes wrote (`kube-proxy dump --anonymise`) are tests: put one into the folder, and all of its frontends are asked.
#[test]
#[expect(clippy::disallowed_methods, reason = "nothing depends on the time")]
fn states_of_real_nodes_are_decided_as_by_the_oracle() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../insight/tests/data");
    let mut asked = 0;
    for file in std::fs::read_dir(folder).expect("a folder") {
        let path = file.expect("a file").path();
        let text = std::fs::read(&path).expect("a file");
        let state = State::read(&text[..]).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let settings = oracle_settings(&state);
        let oracle = Oracle::new(settings, &state.objects());
        let engine = engine(&state, Instant::now());
        let decider = Decider::new(&engine, state.header.mode, state.header.localhost_v6_node_ports);
        let mut random = Random::new(1);
        for family in Family::BOTH {
            for (protocol, to) in targets(&oracle, family, &mut random) {
                for source in sources(family) {
                    let from = Source { kind: kind(source.kind), address: source.address };
                    let decision = decider.decide(from, core_protocol(protocol), to);
                    let expected = oracle.verdict(source, protocol, to);
                    assert_eq!(
                        told(&decision.verdict),
                        expected,
                        "{}: {source:?} to {to}: {decision:?}",
                        path.display()
                    );
                    asked += 1;
                }
            }
        }
    }
    assert!(asked > 500, "{asked} questions");
}

/// What the header says, for the oracle.
fn oracle_settings(state: &State) -> Settings {
    use insight::state::{LocalPods, Mode as Stated, NodePorts as Given};
    let environment = &state.header.environment;
    let mut local_addresses = state.header.facts.interface_addresses.clone();
    local_addresses.retain(|address| !address.is_loopback());
    Settings {
        mode: match state.header.mode {
            Stated::Nftables => Mode::Nftables,
            Stated::Iptables => Mode::Iptables,
            Stated::Ipvs => Mode::Ipvs,
        },
        node_name: state.header.node.clone(),
        detect_local: match &environment.local_pods {
            LocalPods::Unknown => DetectLocal::Never,
            LocalPods::Cidrs(cidrs) => DetectLocal::Networks(cidrs.clone()),
            LocalPods::Bridge(_) | LocalPods::InterfacePrefix(_) => DetectLocal::Interface,
        },
        masquerade_all: environment.masquerade_all,
        node_ports: match &environment.node_ports {
            Given::Any => NodePorts::Everywhere,
            Given::Primary => NodePorts::Primary,
            Given::Within(networks) => NodePorts::Within(networks.clone()),
            Given::PrimaryAndWithin(networks) => NodePorts::PrimaryAndWithin(networks.clone()),
        },
        localhost_node_ports: environment.localhost_node_ports,
        localhost_v6_node_ports: state.header.localhost_v6_node_ports,
        local_addresses,
    }
}

fn kind(kind: oracle::SourceKind) -> SourceKind {
    match kind {
        oracle::SourceKind::Node => SourceKind::Node,
        oracle::SourceKind::LocalPod => SourceKind::LocalPod,
        oracle::SourceKind::Elsewhere => SourceKind::Elsewhere,
    }
}

#[test]
fn decisions_are_those_of_the_oracle() {
    let mut kinds = BTreeMap::new();
    for seed in 0..20 {
        ask_everything(seed, 24, &mut kinds);
    }
    println!("{kinds:?}");
    for kind in ["to endpoints", "refused", "dropped", "passed"] {
        assert!(kinds.get(kind).is_some_and(|count| *count > 1000), "{kind} hardly happened: {kinds:?}");
    }
}
