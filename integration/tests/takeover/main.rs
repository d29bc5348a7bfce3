//! Connections through a Service while its rules pass from one owner to the next: from kube-proxy to us, from one of our
//! processes to its successor, from mode to mode. None may fail, and none may lose a packet.

mod crossing;
mod flood;
mod held;
mod ipvs_state;
mod layouts;
mod matrix;

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use flood::{Flood, now};
use integration::lab::{Lab, Mode, Objects as _, Options, cluster_ip, seen_as_sent, service, slices};
use integration::network::Place::{Client, Node, PodA, PodB, PodC, PodD};
use integration::network::Protocol::Tcp;
use integration::network::{Family, Outcome, Probe};
use serde_json::json;

/// Connections a second, from both kinds of clients together.
const RATE: u32 = 200;
/// How many connections come to an end before and after what happens.
const MARGIN: usize = 60;
/// How long a takeover may take on a busy machine. What IPVS has left goes when nobody uses it, and a connection that was closing when the mode changed is in use for
/// two minutes (FIN_WAIT in ip_vs_proto_tcp.c); then somebody must look.
const LONGEST_LEAVE: Duration = Duration::from_secs(300);

fn lab(mode: Mode) -> Lab {
    let mut lab = Lab::without_proxy(Options { mode, embedded_server: true, ..Options::default() })
        .expect("root, and a kube-proxy that was built");
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab
}

/// So many other Services that a takeover takes its time.
fn crowd(lab: &mut Lab) {
    // The VM's one processor takes as long for these as the machine's own for those.
    let count: u16 = if vm_test::in_vm() { 300 } else { 1000 };
    let mut objects = Vec::new();
    for number in 0..count {
        let v4 = format!("172.30.{}.{}", 1 + number / 250, 1 + number % 250);
        let v6 = format!("fd00:30::{:x}", 0x1000 + number);
        let name = format!("crowd-{number}");
        let with_addresses = service(&name, 1)
            .port("t", 80, Tcp)
            .set("/spec/clusterIP", json!(v4))
            .set("/spec/clusterIPs", json!([v4, v6]));
        objects.extend(with_addresses.objects());
        objects.extend(slices(&name).port("t", 8080, Tcp).ready(&[PodA, PodB, PodD]).objects());
    }
    lab.api.load(objects).expect("complete objects");
}

/// Keeps connections coming, of a pod to the cluster IP and of an outside client to the NodePort, while `act` runs.
fn flooded(lab: &mut Lab, family: Family, what: &str, act: impl FnOnce(&mut Lab)) {
    let cluster_ip = SocketAddr::new(family.service(1), 80);
    let node_port = SocketAddr::new(Node.address(family), 30080);
    let ways = [(PodB, cluster_ip), (Client, node_port)];
    // The first packets to a neighbour whose link address is not known yet may be lost without anybody's fault.
    for (from, to) in ways {
        for _ in 0..16 {
            lab.network.probe_one(from, Probe::new(Tcp, to)).expect("a socket");
        }
    }
    let floods = ways.map(|(from, to)| (to, Flood::start(lab, from, to, RATE / 2)));
    floods.iter().for_each(|(_, flood)| flood.wait_for(MARGIN));
    act(lab);
    floods.iter().for_each(|(_, flood)| flood.wait_for(MARGIN));
    let counts = floods.map(|(to, flood)| {
        flood.stop(lab).unwrap_or_else(|wrong| panic!("{what}, to {to}: {wrong}\n{}", lab.log()))
    });
    println!("{what} ({family:?}): {counts:?} connections, none failed");
}

/// Runs a command on the node and returns what it printed.
fn on_node(lab: &Lab, program: &str, arguments: &[&str]) -> String {
    let output = lab.network.namespace(Node).output(Command::new(program).args(arguments));
    String::from_utf8_lossy(&output.expect("it succeeds").stdout).into_owned()
}

fn feed_on_node(lab: &Lab, program: &str, arguments: &[&str], input: &str) {
    let feed = || {
        let mut child = Command::new(program).args(arguments).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().expect("piped").write_all(input.as_bytes())?;
        child.wait()
    };
    let status = lab.network.namespace(Node).run(feed).expect("the node is there").expect("it runs");
    assert!(status.success(), "{program} {arguments:?}");
}

fn eventually(lab: &Lab, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = now() + LONGEST_LEAVE;
    while !holds() {
        assert!(now() < deadline, "{what}\n{}", lab.log());
        sleep(Duration::from_millis(50));
    }
}

fn has_iptables_rules(lab: &Lab, variant: &str) -> bool {
    ["iptables", "ip6tables"].iter().any(|program| {
        let save = on_node(lab, &format!("{program}-{variant}-save"), &[]);
        save.lines().any(|line| line.starts_with(":KUBE-S") || line.contains("-j KUBE-SERVICES"))
    })
}

fn has_nftables_table(lab: &Lab) -> bool {
    on_node(lab, "nft", &["list", "tables"]).contains("kube-proxy")
}

/// The rules in force are written by this process: a change of the API's objects reaches them.
fn assert_in_charge(lab: &mut Lab) {
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodC]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodC]));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
}

fn load_kube_proxys_nftables(lab: &Lab) {
    feed_on_node(lab, "nft", &["-f", "-"], &layouts::nftables());
}

fn load_kube_proxys_iptables(lab: &Lab, variant: &str) {
    let v4 = layouts::iptables("172.30.0.1/32", "10.0.0.0/16", ["10.0.1.11", "10.0.2.11"]);
    let v6 = layouts::iptables("fd00:30::1/128", "fd00:10::/32", ["fd00:10:1::11", "fd00:10:2::11"]);
    feed_on_node(lab, &format!("iptables-{variant}-restore"), &["--noflush"], &v4);
    feed_on_node(lab, &format!("ip6tables-{variant}-restore"), &["--noflush"], &v6);
}

/// Starts over what is there, in both families one after the other, and waits until `over` holds.
fn takes_over(mode: Mode, prepare: impl Fn(&Lab), over: impl Fn(&Lab) -> bool, what: &str) {
    for family in Family::BOTH {
        let mut lab = lab(mode);
        prepare(&lab);
        flooded(&mut lab, family, what, |lab| {
            lab.start_proxy().expect("it starts");
            lab.settle();
            let lab = &*lab;
            eventually(lab, &format!("{what}: the old rules are still there"), || over(lab));
        });
        assert_in_charge(&mut lab);
    }
}

#[test]
fn a_moment_without_rules_is_noticed() {
    let lab = lab(Mode::Nftables);
    load_kube_proxys_nftables(&lab);
    let flood = || Flood::start(&lab, PodB, SocketAddr::new(Family::V4.service(1), 80), RATE);
    let quiet = flood();
    quiet.wait_for(MARGIN);
    quiet.stop(&lab).expect("kube-proxy's rules work");
    let disturbed = flood();
    disturbed.wait_for(MARGIN);
    on_node(&lab, "nft", &["delete", "table", "ip", "kube-proxy"]);
    let before = disturbed.sent(&lab);
    eventually(&lab, "no connection is begun", || disturbed.sent(&lab) > before);
    on_node(&lab, "nft", &["delete", "table", "ip6", "kube-proxy"]);
    load_kube_proxys_nftables(&lab);
    disturbed.wait_for(MARGIN);
    let why = disturbed.stop(&lab).expect_err("connections of that moment failed, or lost packets");
    println!("{why}");
}

#[test]
fn kube_proxys_nftables_rules_are_taken_over_in_nftables_mode() {
    takes_over(
        Mode::Nftables,
        load_kube_proxys_nftables,
        |lab| !on_node(lab, "nft", &["list", "ruleset"]).contains("service-2HVXDNZT"),
        "from kube-proxy's nftables to nftables",
    );
}

#[test]
fn kube_proxys_iptables_rules_are_taken_over_in_nftables_mode() {
    for variant in ["legacy", "nft"] {
        takes_over(
            Mode::Nftables,
            |lab| load_kube_proxys_iptables(lab, variant),
            |lab| !has_iptables_rules(lab, variant),
            &format!("from kube-proxy's iptables ({variant}) to nftables"),
        );
    }
}

#[test]
fn kube_proxys_iptables_rules_are_taken_over_in_iptables_mode() {
    for (mode, variant) in [(Mode::IptablesLegacy, "legacy"), (Mode::IptablesNft, "nft")] {
        takes_over(
            mode,
            |lab| load_kube_proxys_iptables(lab, variant),
            |lab| {
                let save = on_node(lab, &format!("iptables-{variant}-save"), &[]);
                !save.contains("KUBE-SEP-AAAAAAAAAAAAAAAA")
            },
            &format!("from kube-proxy's iptables ({variant}) to iptables"),
        );
    }
}

#[test]
fn kube_proxys_nftables_rules_are_taken_over_in_iptables_mode() {
    takes_over(
        Mode::IptablesNft,
        load_kube_proxys_nftables,
        |lab| !has_nftables_table(lab),
        "from kube-proxy's nftables to iptables",
    );
}

#[test]
fn a_restart_fails_no_connection() {
    for mode in [Mode::Nftables, Mode::IptablesLegacy, Mode::IptablesNft] {
        let mut lab = lab(mode);
        crowd(&mut lab);
        lab.start_proxy().expect("it starts");
        lab.settle();
        flooded(&mut lab, Family::V4, &format!("restart in {mode:?}"), |lab| {
            for _ in 0..3 {
                lab.stop_proxy().expect("it runs");
                sleep(Duration::from_millis(200));
                lab.start_proxy().expect("it starts again");
                lab.settle();
            }
        });
        assert_in_charge(&mut lab);
    }
}

/// Changes mode again and again.
fn changes_of_mode(changes: &[(Mode, Mode)]) {
    let mut lab = lab(changes[0].0);
    crowd(&mut lab);
    lab.start_proxy().expect("it starts");
    lab.settle();
    for (from, to) in changes {
        flooded(&mut lab, Family::V4, &format!("{from:?} to {to:?}"), |lab| {
            lab.stop_proxy().expect("it runs");
            // Kubelet's hint of another variant must not decide.
            lab.forget_iptables_variant().expect("the node is there");
            lab.change_mode(*to).expect("the configuration is written");
            lab.start_proxy().expect("it starts again");
            lab.settle();
            let lab = &*lab;
            eventually(lab, &format!("{from:?} to {to:?}: the old rules are still there"), || {
                let iptables = match to {
                    Mode::IptablesLegacy => !has_iptables_rules(lab, "nft"),
                    Mode::IptablesNft => !has_iptables_rules(lab, "legacy"),
                    _ => !has_iptables_rules(lab, "nft") && !has_iptables_rules(lab, "legacy"),
                };
                let nftables = match to {
                    Mode::Nftables => !on_node(lab, "nft", &["list", "sets"]).contains("set ipvs-"),
                    Mode::Ipvs => !on_node(lab, "nft", &["list", "maps"]).contains("dispatch"),
                    _ => !has_nftables_table(lab),
                };
                // A connection that changed hands in the middle may stay known to IPVS for a quarter of an hour, and its
                // virtual server with it: the tests that hold connections see it go.
                iptables && nftables
            });
        });
        assert_in_charge(&mut lab);
    }
}

/// Of Services; one of somebody else's does not count.
fn has_virtual_servers(lab: &Lab) -> bool {
    let servers = lab.network.namespace(Node).run(|| std::fs::read_to_string("/proc/thread-self/net/ip_vs"));
    let servers = servers.expect("the node is there").unwrap_or_default();
    let service = |line: &str| line.starts_with("TCP") && !line.starts_with("TCP  C63364C8:270F ");
    servers.lines().any(service) || on_node(lab, "ip", &["-o", "link"]).contains("kube-ipvs0")
}

fn load_kube_proxys_ipvs(lab: &Lab) {
    let sysctls = [("net/ipv4/vs/conntrack", "1"), ("net/ipv4/vs/expire_nodest_conn", "1")];
    lab.network
        .namespace(Node)
        .ip(layouts::IPVS_LINKS, &sysctls)
        .expect("this kernel has IPVS and the dummy device");
    feed_on_node(lab, "ipvsadm", &["-R"], layouts::IPVS_SERVERS);
    feed_on_node(lab, "ipset", &["restore"], layouts::IPVS_SETS);
    feed_on_node(lab, "iptables-nft-restore", &["--noflush"], layouts::IPVS_RULES);
}

/// Somebody else takes its IPVS server away, if it is there.
fn remove_neighbours_server(lab: &Lab) {
    let command = "ipvsadm -D -t 198.51.100.200:9999 2>/dev/null; true";
    on_node(lab, "sh", &["-c", command]);
}

/// The IPVS server of somebody else's is still there.
fn assert_neighbour_untouched(lab: &Lab) {
    assert!(on_node(lab, "ipvsadm", &["-Ln"]).contains("198.51.100.200:9999 rr"));
}

fn kube_proxys_ipvs_is_taken_over(mode: Mode) {
    let mut lab = lab(mode);
    load_kube_proxys_ipvs(&lab);
    flooded(&mut lab, Family::V4, &format!("from kube-proxy's ipvs to {mode:?}"), |lab| {
        lab.start_proxy().expect("it starts");
        lab.settle();
        let lab = &*lab;
        eventually(lab, "kube-proxy's rules are still there", || {
            // In filter our own ipvs mode has a chain of that name too.
            let save = on_node(lab, "iptables-nft-save", &["-t", "nat"]);
            let sets = on_node(lab, "ipset", &["list", "-n"]);
            !save.contains("KUBE-NODE-PORT -")
                && !sets.contains("KUBE")
                && (mode == Mode::Ipvs || !has_virtual_servers(lab))
        });
    });
    assert_neighbour_untouched(&lab);
    assert_in_charge(&mut lab);
    lab.stop_proxy().expect("it runs");
    let program = integration::lab::program().expect("built").display().to_string();
    on_node(&lab, &program, &["--cleanup"]);
    assert_neighbour_untouched(&lab);
    assert!(!has_virtual_servers(&lab));
}

#[test]
fn kube_proxys_ipvs_is_taken_over_in_nftables_mode() {
    vm_test::with_ipvs(|| kube_proxys_ipvs_is_taken_over(Mode::Nftables));
}

#[test]
fn kube_proxys_ipvs_is_taken_over_in_iptables_mode() {
    vm_test::with_ipvs(|| kube_proxys_ipvs_is_taken_over(Mode::IptablesNft));
}

#[test]
fn kube_proxys_ipvs_is_taken_over_in_ipvs_mode() {
    vm_test::with_ipvs(|| kube_proxys_ipvs_is_taken_over(Mode::Ipvs));
}

#[test]
fn a_change_of_mode_fails_no_connection() {
    use Mode::{IptablesLegacy, IptablesNft, Nftables};
    changes_of_mode(&[
        (Nftables, IptablesNft),
        (IptablesNft, Nftables),
        (Nftables, IptablesLegacy),
        (IptablesLegacy, Nftables),
    ]);
}

#[test]
fn a_change_from_and_to_ipvs_fails_no_connection() {
    use Mode::{IptablesNft, Ipvs, Nftables};
    vm_test::with_ipvs(|| {
        changes_of_mode(&[
            (Nftables, Ipvs),
            (Ipvs, Nftables),
            (Nftables, Ipvs),
            (Ipvs, IptablesNft),
            (IptablesNft, Ipvs),
        ]);
    });
}

/// kube-proxy comes back in nftables mode over what we left, which may not be in its way.
fn is_rolled_back(mode: Mode) {
    let mut lab = lab(mode);
    lab.start_proxy().expect("it starts");
    lab.settle();
    lab.stop_proxy().expect("it runs");
    feed_on_node(&lab, "nft", &["-f", "-"], &layouts::nftables_first_sync());
    let endpoints = |family: Family| {
        let to = SocketAddr::new(family.service(1), 80);
        let outcomes = lab.network.probe(PodB, &vec![Probe::new(Tcp, to); 32]).expect("sockets");
        let by = outcomes.into_iter().map(|outcome| match outcome {
            Outcome::Answered { answer, .. } => answer.by,
            other => panic!("{mode:?}, {family:?}: {other}"),
        });
        by.collect::<BTreeSet<String>>()
    };
    let both = BTreeSet::from(["pod-a".to_owned(), "pod-d".to_owned()]);
    assert_eq!(Family::BOTH.map(endpoints), [both.clone(), both]);
    // The rules in force are kube-proxy's: without them nothing is left of the Service.
    on_node(&lab, "nft", &["flush", "chain", "ip", "kube-proxy", "services"]);
    let to = SocketAddr::new(Family::V4.service(1), 80);
    let probe = Probe::new(Tcp, to).patience(Duration::from_secs(1));
    let outcome = lab.network.probe_one(PodB, probe).expect("a socket");
    assert!(!matches!(outcome, Outcome::Answered { .. }), "{mode:?}: {outcome}");
}

#[test]
fn kube_proxy_can_take_back_what_nftables_mode_left() {
    is_rolled_back(Mode::Nftables);
}

#[test]
fn kube_proxy_can_take_back_what_ipvs_mode_left() {
    vm_test::with_ipvs(|| {
        // Its nftables mode removes the virtual servers before it begins.
        let mut lab = lab(Mode::Ipvs);
        lab.start_proxy().expect("it starts");
        lab.settle();
        lab.stop_proxy().expect("it runs");
        on_node(&lab, "ipvsadm", &["-C"]);
        on_node(&lab, "ip", &["link", "delete", "kube-ipvs0"]);
        feed_on_node(&lab, "nft", &["-f", "-"], &layouts::nftables_first_sync());
        for family in Family::BOTH {
            let probe = Probe::new(Tcp, SocketAddr::new(family.service(1), 80));
            let outcome = lab.network.probe_one(PodB, probe).expect("a socket");
            assert!(matches!(outcome, Outcome::Answered { .. }), "{family:?}: {outcome}");
        }
    });
}

#[test]
fn nothing_is_removed_before_the_first_sync() {
    let mut lab = lab(Mode::Nftables);
    load_kube_proxys_iptables(&lab, "nft");
    lab.api.set_faults(|faults| {
        faults.refuse.insert("endpointslices".to_owned(), 403);
    });
    flooded(&mut lab, Family::V4, "a first sync that cannot be", |lab| {
        lab.start_proxy().expect("it starts");
        sleep(Duration::from_secs(3));
        assert!(has_iptables_rules(lab, "nft"), "these are what Services work by");
        lab.api.set_faults(|faults| faults.refuse.clear());
        lab.settle();
        let lab = &*lab;
        eventually(lab, "the old rules are still there", || !has_iptables_rules(lab, "nft"));
    });
    assert_in_charge(&mut lab);
}

#[test]
fn cleanup_leaves_nothing_behind() {
    for mode in [Mode::Nftables, Mode::IptablesLegacy, Mode::IptablesNft] {
        let mut lab = lab(mode);
        lab.start_proxy().expect("it starts");
        lab.settle();
        lab.stop_proxy().expect("it runs");
        let answers = |lab: &Lab| {
            let to = SocketAddr::new(Family::V4.service(1), 80);
            let probe = Probe::new(Tcp, to).patience(Duration::from_secs(1));
            let outcome = lab.network.probe_one(PodB, probe).expect("a socket");
            matches!(outcome, Outcome::Answered { .. })
        };
        eventually(&lab, "the rules outlive the process", || answers(&lab));
        let program = integration::lab::program().expect("built").display().to_string();
        on_node(&lab, &program, &["--cleanup"]);
        assert!(!answers(&lab), "{mode:?}");
        assert!(!has_nftables_table(&lab), "{mode:?}");
        for variant in ["legacy", "nft"] {
            assert!(!has_iptables_rules(&lab, variant), "{mode:?}: {variant}");
        }
        on_node(&lab, &program, &["--cleanup"]);
    }
}
