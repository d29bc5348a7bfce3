//! What `explain` says at the end is what packets do, in every mode; what stands in the way is named; a dump answers as the
//! node does.

use std::net::SocketAddr;
use std::process::Command;

use integration::lab::{FAR_CLIENT, Lab, Mode, Options, Origin, service, slices};
use integration::network::{BRIEF, Family, Outcome, Place, Probe, Protocol};
use integration::oracle::Verdict;
use serde_json::{Value, json};

/// One Service of each kind.
fn cluster(lab: &mut Lab) {
    use Place::{PodA, PodB, PodD};
    use Protocol::{Tcp, Udp};
    lab.apply(service("web", 1).port("http", 80, Tcp).port("dns", 53, Udp).node_port(30_053));
    lab.apply(slices("web").port("http", 8080, Tcp).port("dns", 53, Udp).ready(&[PodA, PodD]));
    // Endpoints only elsewhere.
    let elsewhere = || slices("local").port("http", 8080, Tcp).ready(&[PodD]);
    lab.apply(service("local", 2).port("http", 80, Tcp).node_port(30_080).load_balancer(2).external_local());
    lab.apply(elsewhere());
    lab.apply(service("inside", 3).port("http", 80, Tcp).internal_local());
    lab.apply(slices("inside").port("http", 8080, Tcp).ready(&[PodD]));
    lab.apply(service("empty", 4).port("http", 80, Tcp).external_ip(4));
    lab.apply(slices("empty").port("http", 8080, Tcp).unready(&[PodA]));
    lab.apply(
        service("guarded", 5)
            .port("http", 80, Tcp)
            .load_balancer(5)
            .source_ranges(&["203.0.113.0/24", "2001:db8:113::/64"]),
    );
    lab.apply(slices("guarded").port("http", 8080, Tcp).ready(&[PodA]).terminating(&[PodB]));
    // Its external IP is another's, its endpoints are for zones, and clients stay.
    lab.apply(service("twin", 6).port("http", 80, Tcp).external_ip(4).affinity(600));
    let all = json!({"ready": true, "serving": true, "terminating": false});
    let hinted = slices("twin").port("http", 8080, Tcp).endpoint(PodA, all.clone()).hinted(&["a"], &[]);
    lab.apply(hinted.endpoint(PodD, all).hinted(&["b"], &[]));
    lab.settle();
}

fn start(mode: Mode) -> Lab {
    let node_port_addresses = vec![
        "192.168.50.0/24".to_owned(),
        "192.168.70.0/24".to_owned(),
        "fd00:50::/64".to_owned(),
        "fd00:70::/64".to_owned(),
    ];
    let mut lab = Lab::start(Options { mode, node_port_addresses, ..Options::default() })
        .expect("root, and a kube-proxy that was built");
    cluster(&mut lab);
    lab
}

fn outcome(lab: &Lab, from: Origin, protocol: Protocol, to: SocketAddr, verdict: &Verdict) -> Outcome {
    let mut probe = Probe::new(protocol, to);
    if !matches!(verdict, Verdict::Dnat(_) | Verdict::Reject) {
        probe = probe.patience(BRIEF);
    }
    if from.far {
        probe = probe.from_address(Family::of(to.ip()).far_client());
    }
    lab.network.probe_one(from.place, probe).expect("sockets can be made")
}

fn explained_as_packets_fare(mode: Mode) {
    let lab = start(mode);
    let oracle = lab.oracle();
    let origins =
        [Origin::from(Place::Client), FAR_CLIENT, Origin::from(Place::Node), Origin::from(Place::PodB)];
    let mut asked = 0;
    for family in Family::BOTH {
        let mut targets = oracle.frontends(family);
        // The lab's own, and most of the node's addresses, which are all alike.
        targets.retain(|(_, to)| to.ip() != family.service(250) && to.ip() != family.node_addresses()[2]);
        targets.push((Protocol::Tcp, SocketAddr::new(family.service(1), 81)));
        for (protocol, to) in targets {
            for from in origins {
                let verdict = oracle.verdict(lab.source(from, to), protocol, to);
                let address = match from.place {
                    Place::Node => "node".to_owned(),
                    _ if from.far => family.far_client().to_string(),
                    place => place.address(family).to_string(),
                };
                let (code, said) = lab.verb(&["explain", &address, &to.to_string(), "-p", protocol.name()]);
                let outcome = outcome(&lab, from, protocol, to, &verdict);
                let right = match (&verdict, &outcome) {
                    // Nobody's: whoever listens there, or the next router, has the last word.
                    (Verdict::Pass, _) => code == 0,
                    (_, Outcome::Answered { .. }) => code == 0,
                    (_, Outcome::Refused) => code == 1,
                    (_, Outcome::Silent) => code == 2,
                    (_, Outcome::Failed(_)) => false,
                };
                assert!(
                    right,
                    "from {address} to {to} {protocol:?}: {outcome} ({verdict}), and explain ends with {code}:\n{said}"
                );
                asked += 1;
            }
        }
    }
    assert!(asked > 60, "{asked} questions");
}

/// Whatever another table drops is named with its chain.
fn what_another_table_drops_is_named(mode: Mode) {
    let lab = start(mode);
    let to = SocketAddr::new(Family::V4.service(5), 80);
    let client = Place::Client.address(Family::V4).to_string();
    let (code, said) = lab.verb(&["explain", &client, &to.to_string()]);
    assert_eq!(code, 0, "{said}");
    let rules = "table inet guard { chain way { type filter hook forward priority 5; policy accept; \
                 ct state established accept; ip daddr 10.0.1.11 tcp dport 8080 drop comment \"no web\"; }; }";
    let node = lab.network.namespace(Place::Node);
    node.output(Command::new("nft").arg(rules)).expect("nft");
    let (code, said) = lab.verb(&["explain", &client, &to.to_string()]);
    println!("{said}");
    assert_eq!(code, 2, "{said}");
    let last = said.trim_end().lines().last().expect("a sentence");
    assert!(last.contains("inet guard way (hook forward, priority 5)") && last.contains("no web"), "{said}");
    let probe = Probe::new(Protocol::Tcp, to).patience(BRIEF);
    assert_eq!(lab.network.probe_one(Place::Client, probe).expect("a socket"), Outcome::Silent);
    // Where it depends on what is not known, nothing is claimed.
    let unsure = "flush chain inet guard way; add rule inet guard way ip daddr 10.0.1.11 meta mark 7 drop";
    node.output(Command::new("nft").arg(unsure)).expect("nft");
    let (code, said) = lab.verb(&["explain", &client, &to.to_string()]);
    assert_eq!(code, 4, "{said}");
}

/// A policy of the chain FORWARD stops what no rule lets through, and what the proxy has marked goes on where it says so.
fn a_forward_policy_is_named(mode: Mode, iptables: &str) {
    let lab = start(mode);
    let node = lab.network.namespace(Place::Node);
    node.output(Command::new(iptables).args(["-w", "-P", "FORWARD", "DROP"])).expect("iptables");
    let to = SocketAddr::new(Family::V4.service(5), 80);
    for from in [Place::PodB, Place::Client] {
        let address = from.address(Family::V4).to_string();
        let (code, said) = lab.verb(&["explain", &address, &to.to_string()]);
        let outcome =
            lab.network.probe_one(from, Probe::new(Protocol::Tcp, to).patience(BRIEF)).expect("a socket");
        let expected = if matches!(outcome, Outcome::Answered { .. }) { 0 } else { 2 };
        assert_eq!(code, expected, "{from:?}: {outcome}\n{said}");
        // Only what the proxy's own rules in iptables let through is not stopped.
        let lets_through = mode != Mode::Nftables && from == Place::Client;
        assert_eq!(expected == 0, lets_through, "{from:?}: {outcome}\n{said}");
        assert!(lets_through || said.contains("FORWARD (hook forward, priority 0)"), "{said}");
    }
}

/// Without what only the live node has.
fn comparable(text: &str) -> Value {
    let mut answer: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    for live in ["kernel", "flows", "others"] {
        answer.as_object_mut().expect("an object").remove(live);
    }
    answer
}

fn a_dump_answers_as_the_node_does(mode: Mode) {
    let lab = start(mode);
    let file = lab.folder().join("dump.ndjson").display().to_string();
    let (code, said) = lab.verb(&["dump", &file]);
    assert_eq!(code, 0, "{said}");
    if let Some(kept) = std::env::var_os("SWITCHYARD_KEEP_DUMP") {
        std::fs::copy(&file, kept).expect("a copy");
    }
    let pod = Place::PodB.address(Family::V4).to_string();
    let questions: [&[&str]; 6] = [
        &["services", "-A", "-o", "json"],
        &["services", "lab/web", "-o", "json"],
        &["endpoints", "guarded", "-n", "lab", "-o", "json"],
        &["explain", &pod, "lab/web:http", "-o", "json"],
        &["explain", "outside", "node:30080", "-o", "json"],
        &["explain", "node", "lab/empty", "-o", "json"],
    ];
    for question in questions {
        let (live, said) = lab.verb(question);
        let mut again = vec!["replay", &*file];
        again.extend(question);
        let (replayed, later) = lab.verb(&again);
        assert_eq!((replayed, comparable(&later)), (live, comparable(&said)), "{question:?}");
    }
    // The same under other names.
    let hidden = lab.folder().join("hidden.ndjson").display().to_string();
    assert_eq!(lab.verb(&["dump", "--anonymise", &hidden]).0, 0);
    let text = std::fs::read_to_string(&hidden).expect("a file");
    for name in ["guarded", "172.30.", "10.0.1.", "198.51.100.", "fd00:30:"] {
        assert!(!text.contains(name), "{name} in\n{text}");
    }
    let states = |file: &str| {
        let (_, said) = lab.verb(&["replay", file, "services", "-A", "-o", "json"]);
        let all = comparable(&said);
        let all = all["services"].as_array().expect("a list").clone();
        let mut states: Vec<String> = all
            .iter()
            .map(|service| {
                let ports = service["ports"].as_array().expect("a list").iter();
                let ports: Vec<String> = ports
                    .map(|port| format!("{}/{} {}", port["used"], port["endpoints"], port["inForce"]))
                    .collect();
                format!("{} {} {ports:?}", service["family"], service["state"])
            })
            .collect();
        states.sort();
        states
    };
    assert_eq!(states(&file), states(&hidden));
    let states = states(&file);
    assert!(!states.iter().any(|state| state.contains("notInForce")), "{states:?}");
    assert!(states.iter().any(|state| state.contains("disputed")), "{states:?}");
}

#[test]
fn explained_as_packets_fare_in_nftables_mode() {
    explained_as_packets_fare(Mode::Nftables);
}

#[test]
fn explained_as_packets_fare_in_iptables_mode_in_legacy_tables() {
    explained_as_packets_fare(Mode::IptablesLegacy);
}

#[test]
fn explained_as_packets_fare_in_iptables_mode_in_nft_tables() {
    explained_as_packets_fare(Mode::IptablesNft);
}

#[test]
fn explained_as_packets_fare_in_ipvs_mode() {
    vm_test::with_ipvs(|| explained_as_packets_fare(Mode::Ipvs));
}

#[test]
fn what_another_table_drops_is_named_in_nftables_mode() {
    what_another_table_drops_is_named(Mode::Nftables);
}

#[test]
fn what_another_table_drops_is_named_in_iptables_mode() {
    what_another_table_drops_is_named(Mode::IptablesNft);
}

#[test]
fn a_forward_policy_is_named_in_nftables_mode() {
    a_forward_policy_is_named(Mode::Nftables, "iptables-nft");
}

#[test]
fn a_forward_policy_of_legacy_tables_is_named_in_nftables_mode() {
    a_forward_policy_is_named(Mode::Nftables, "iptables-legacy");
}

#[test]
fn a_forward_policy_is_named_in_iptables_mode_in_legacy_tables() {
    a_forward_policy_is_named(Mode::IptablesLegacy, "iptables-legacy");
}

#[test]
fn a_forward_policy_is_named_in_iptables_mode_in_nft_tables() {
    a_forward_policy_is_named(Mode::IptablesNft, "iptables-nft");
}

#[test]
fn a_dump_answers_as_the_node_does_in_nftables_mode() {
    a_dump_answers_as_the_node_does(Mode::Nftables);
}

#[test]
fn a_dump_answers_as_the_node_does_in_iptables_mode() {
    a_dump_answers_as_the_node_does(Mode::IptablesLegacy);
}

#[test]
fn a_dump_answers_as_the_node_does_in_ipvs_mode() {
    vm_test::with_ipvs(|| a_dump_answers_as_the_node_does(Mode::Ipvs));
}
