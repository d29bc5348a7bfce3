//! Over rule sets in kube-proxy's layout, in namespaces of the tests' own. Needs root; run under nextest.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use backend_ipvs::schema::found::NodePort;
use ipvs_netlink::Protocol;
use nix::sched::{CloneFlags, unshare};

use super::*;

#[path = "../../../../integration/src/kube_proxy_layouts.rs"]
#[expect(unreachable_pub, reason = "it belongs to a library")]
mod layouts;

fn own_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
}

fn run(program: &str, arguments: &str, input: &str) -> String {
    let mut child = Command::new(program)
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{program} {arguments}");
    String::from_utf8(output.stdout).expect("text")
}

/// A table of somebody else's.
const OTHER_TABLE: &str =
    "table inet other { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }";

/// Chains of the kubelet's and of somebody else's, and a chain that kube-proxy's ipvs mode has had in filter.
const OTHER_CHAINS: &str = "*mangle
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-FIREWALL - [0:0]
:KUBE-NODE-PORT - [0:0]
:MINE - [0:0]
-A INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT
-A INPUT -j KUBE-FIREWALL
-A INPUT -j MINE
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-NODE-PORT -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
COMMIT
*nat
:CNI-HOSTPORT - [0:0]
-A PREROUTING -j CNI-HOSTPORT
COMMIT
";

/// Of every kind that the ipvs mode has, beside those of the shared layout; and two of somebody else's.
const MORE_SETS: &str = "create KUBE-HEALTH-CHECK-NODE-PORT bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 30443
create KUBE-NODE-PORT-SCTP-HASH hash:ip,port
add KUBE-NODE-PORT-SCTP-HASH 192.168.0.10,sctp:30132
create KUBE-6-NODE-PORT-UDP bitmap:port range 0-65535
add KUBE-6-NODE-PORT-UDP 30053
create KUBE-6-LOOP-BACK hash:ip,port,ip family inet6
create KUBE-6-LOAD-BALANCER-SOURCE-CID hash:ip,port,net family inet6
create MINE hash:ip
create KUBE-NODE-PORT-OF-MINE bitmap:port range 0-65535
add KUBE-NODE-PORT-OF-MINE 30099
";

const VARIANTS: [&str; 2] = ["legacy", "nft"];

fn set_up_nftables() {
    run("nft", "-f -", &(layouts::nftables() + OTHER_TABLE));
}

fn set_up_ipsets() {
    run("ipset", "restore", &(layouts::IPVS_SETS.to_owned() + MORE_SETS));
}

/// A node that has run kube-proxy in its ipvs and then in its iptables mode; both have jumps of the same text.
fn set_up_iptables() {
    set_up_ipsets();
    let iptables = layouts::iptables("172.30.0.1/32", "10.0.0.0/16", ["10.0.1.11", "10.0.2.11"]);
    for variant in VARIANTS {
        for rules in [OTHER_CHAINS, layouts::IPVS_RULES, &iptables] {
            run(&format!("iptables-{variant}-restore"), "--noflush", rules);
        }
    }
}

/// What is left, without counters and comments.
fn iptables(variant: &str) -> Vec<String> {
    let save = run(&format!("iptables-{variant}-save"), "", "");
    let kept = save.lines().filter(|line| line.starts_with('-') || line.starts_with(":KUBE"));
    kept.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect()
}

fn ipsets() -> Vec<String> {
    let mut names: Vec<String> = run("ipset", "list -n", "").lines().map(Into::into).collect();
    names.sort();
    names
}

fn assert_only_others_left() {
    for variant in VARIANTS {
        let mut left = iptables(variant);
        left.sort();
        assert_eq!(
            left,
            [
                "-A INPUT -j KUBE-FIREWALL",
                "-A INPUT -j MINE",
                "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
                "-A PREROUTING -j CNI-HOSTPORT",
                ":KUBE-FIREWALL -",
                ":KUBE-KUBELET-CANARY -",
            ],
            "{variant}"
        );
    }
    assert_eq!(ipsets(), ["KUBE-NODE-PORT-OF-MINE", "MINE"]);
}

#[test]
fn everything_of_every_mode_goes_and_nothing_else() {
    own_namespace();
    set_up_nftables();
    set_up_iptables();
    everything(&[]).expect("removed");
    let tables = run("nft", "list tables", "");
    assert!(!tables.contains("kube-proxy"), "{tables}");
    assert!(tables.contains("table inet other"), "{tables}");
    assert_only_others_left();
    everything(&[]).expect("nothing is left to remove");
}

#[test]
fn a_bare_machine_has_nothing_to_remove() {
    own_namespace();
    everything(&[]).expect("nothing is there");
}

#[test]
fn b3_what_node_ports_on_localhost_needed_goes_with_cleanup() {
    own_namespace();
    let open = || {
        std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet").expect("a setting").trim()
            == "1"
    };
    localnet::open().expect("opened");
    assert!(open());
    everything(&[]).expect("removed");
    assert!(!open());
    assert!(!run("nft", "list tables", "").contains("localnet"));
}

#[test]
fn each_mode_spares_its_own() {
    own_namespace();
    set_up_nftables();
    set_up_iptables();
    let before = VARIANTS.map(iptables);
    assert_eq!(remove(&parts_foreign_to(Some(Mode::Nftables)), None), []);
    assert!(run("nft", "list tables", "").contains("table ip kube-proxy"));
    assert_only_others_left();

    own_namespace();
    set_up_nftables();
    set_up_iptables();
    let remove_for_iptables: Vec<Part> = parts_foreign_to(Some(Mode::Iptables))
        .into_iter()
        // The set that a rule of the ipvs mode refers to is in use here; the backend would have removed that rule.
        .filter(|part| *part != Part::IpSets)
        .collect();
    assert_eq!(remove(&remove_for_iptables, None), []);
    assert_eq!(VARIANTS.map(iptables), before);
    assert!(!run("nft", "list tables", "").contains("table ip kube-proxy"));
}

#[test]
fn node_ports_are_read_from_the_sets_that_name_them() {
    own_namespace();
    set_up_ipsets();
    let mut ports: Vec<NodePort> = ipset::node_ports().expect("readable").into_iter().collect();
    ports.sort_unstable();
    let expected =
        [(Protocol::Tcp, 30080), (Protocol::Tcp, 30443), (Protocol::Udp, 30053), (Protocol::Sctp, 30132)];
    assert_eq!(ports, expected.map(|(protocol, port)| NodePort { protocol, port }));
}

#[test]
fn a_set_in_use_is_named_and_keeps_nothing_else_from_going() {
    own_namespace();
    set_up_ipsets();
    run(
        "iptables-legacy-restore",
        "",
        "*filter\n-A INPUT -m set --match-set KUBE-NODE-PORT-TCP dst -j ACCEPT\nCOMMIT\n",
    );
    set_up_nftables();
    let error = everything(&[]).expect_err("one is in use").to_string();
    assert!(error.starts_with("encountered an error while tearing down rules: ipsets: "), "{error}");
    assert!(error.contains("KUBE-NODE-PORT-TCP"), "{error}");
    assert_eq!(ipsets(), ["KUBE-NODE-PORT-OF-MINE", "KUBE-NODE-PORT-TCP", "MINE"]);
    assert!(!run("nft", "list tables", "").contains("kube-proxy"));
}
