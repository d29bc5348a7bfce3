//! Over rule sets in kube-proxy's layout, in namespaces of the tests' own. Needs root; run under nextest.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use nix::sched::{CloneFlags, unshare};

use super::*;

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

/// As kube-proxy's nftables mode writes it, for one Service; and a table of somebody else's.
const NFTABLES: &str = "
table ip kube-proxy {
    comment \"rules for kube-proxy\"
    set cluster-ips { type ipv4_addr; elements = { 172.30.0.1 }; }
    map service-ips {
        type ipv4_addr . inet_proto . inet_service : verdict
        elements = { 172.30.0.1 . tcp . 80 : goto service-AAAAAAAA-ns/web/tcp/http }
    }
    chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }
    chain service-AAAAAAAA-ns/web/tcp/http { meta l4proto tcp dnat ip to 10.0.0.1:8080; }
    chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
}
table ip6 kube-proxy { chain services { }; }
table inet other { chain input { type filter hook input priority 0; tcp dport 22 accept; }; }
";

/// As kube-proxy's iptables mode writes it, with chains of the ipvs mode, kubelet's, and somebody else's.
const IPTABLES: &str = "*mangle
:KUBE-PROXY-CANARY - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-NODE-PORT - [0:0]
:MINE - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT
-A INPUT -j KUBE-FIREWALL
-A INPUT -j MINE
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-NODE-PORT -m set --match-set KUBE-HEALTH-CHECK-NODE-PORT dst -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-SEP-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:CNI-HOSTPORT - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -j CNI-HOSTPORT
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 172.30.0.1/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-AAAAAAAAAAAAAAAA
-A KUBE-SVC-AAAAAAAAAAAAAAAA -j KUBE-SEP-AAAAAAAAAAAAAAAA
-A KUBE-SEP-AAAAAAAAAAAAAAAA -p tcp -m tcp -j DNAT --to-destination 10.0.0.1:8080
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
COMMIT
";

const IPSETS: &str = "create KUBE-CLUSTER-IP hash:ip,port
create KUBE-HEALTH-CHECK-NODE-PORT bitmap:port range 0-65535
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
add KUBE-NODE-PORT-TCP 30080
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

fn set_up_iptables() {
    run("ipset", "restore", IPSETS);
    for variant in VARIANTS {
        run(&format!("iptables-{variant}-restore"), "", IPTABLES);
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
    run("nft", "-f -", NFTABLES);
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
fn each_mode_spares_its_own() {
    own_namespace();
    run("nft", "-f -", NFTABLES);
    set_up_iptables();
    let before = VARIANTS.map(iptables);
    assert_eq!(remove(&parts_foreign_to(Some(Mode::Nftables)), &[], Duration::ZERO), []);
    assert!(run("nft", "list tables", "").contains("table ip kube-proxy"));
    assert_only_others_left();

    for variant in VARIANTS {
        run(&format!("iptables-{variant}-restore"), "", "*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n");
    }
    run("ipset", "destroy", "");
    set_up_iptables();
    let remove_for_iptables: Vec<Part> = parts_foreign_to(Some(Mode::Iptables))
        .into_iter()
        // The set that a rule of the ipvs mode refers to is in use here; the backend would have removed that rule.
        .filter(|part| *part != Part::IpSets)
        .collect();
    assert_eq!(remove(&remove_for_iptables, &[], Duration::ZERO), []);
    assert_eq!(VARIANTS.map(iptables), before);
    assert!(!run("nft", "list tables", "").contains("table ip kube-proxy"));
}

#[test]
fn node_ports_are_read_from_the_sets_that_name_them() {
    own_namespace();
    run("ipset", "restore", IPSETS);
    let mut ports: Vec<u16> = ipset::node_ports().expect("readable").into_iter().collect();
    ports.sort_unstable();
    assert_eq!(ports, [30053, 30080, 30132, 30443]);
}

#[test]
fn a_set_in_use_is_named_and_keeps_nothing_else_from_going() {
    own_namespace();
    run("ipset", "restore", IPSETS);
    run(
        "iptables-legacy-restore",
        "",
        "*filter\n-A INPUT -m set --match-set KUBE-NODE-PORT-TCP dst -j ACCEPT\nCOMMIT\n",
    );
    run("nft", "-f -", NFTABLES);
    let error = everything(&[]).expect_err("one is in use").to_string();
    assert!(error.starts_with("encountered an error while tearing down rules: ipsets: "), "{error}");
    assert!(error.contains("KUBE-NODE-PORT-TCP"), "{error}");
    assert_eq!(ipsets(), ["KUBE-NODE-PORT-OF-MINE", "KUBE-NODE-PORT-TCP", "MINE"]);
    assert!(!run("nft", "list tables", "").contains("kube-proxy"));
}
