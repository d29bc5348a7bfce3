//! Somebody else removes what the proxy wrote: it comes back without any change in the API.

use std::process::Command;

use integration::lab::{Lab, Mode, Options, cluster_ip, service, slices};
use integration::network::Place::{Node, PodA, PodB, PodD};
use integration::network::Protocol::Tcp;
use integration::network::{BRIEF, Family, Outcome, PATIENT, Probe};
use serde_json::json;

crate::scenarios! {
    Options {
        config: vec![
            ("/ipvs/syncPeriod", json!("2s")), ("/ipvs/minSyncPeriod", json!("0s")),
        ],
        ..Options::default()
    } =>
        everything_flushed_comes_back,
        one_piece_deleted_comes_back;
}

fn works(lab: &Lab) -> bool {
    Family::BOTH.into_iter().all(|family| {
        let probe = Probe::new(Tcp, cluster_ip(1, Tcp, 80).address(family)).patience(BRIEF);
        matches!(lab.network.probe_one(PodB, probe).expect("a socket"), Outcome::Answered { .. })
    })
}

fn breaks_and_heals(lab: &mut Lab, commands: &[&str]) {
    lab.settle();
    crate::eventually(|| works(lab));
    for command in commands {
        lab.network
            .namespace(Node)
            .output(Command::new("sh").args(["-c", command]))
            .expect("the damage is done");
    }
    let deadline = crate::now() + PATIENT;
    while !works(lab) {
        assert!(crate::now() < deadline, "{commands:?} is not repaired\n{}", lab.log());
    }
    lab.sweep();
}

fn web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.apply(service("empty", 2).port("t", 80, Tcp));
}

fn everything_flushed_comes_back(lab: &mut Lab) {
    web(lab);
    let commands: &[&str] = match lab.mode() {
        Mode::Nftables => &["nft flush ruleset"],
        Mode::IptablesLegacy => &[
            "for t in nat filter mangle; do iptables-legacy -w -t $t -F; iptables-legacy -w -t $t -X; done",
            "for t in nat filter mangle; do ip6tables-legacy -w -t $t -F; ip6tables-legacy -w -t $t -X; done",
        ],
        Mode::IptablesNft => &["nft flush ruleset"],
        Mode::Ipvs => &["ipvsadm -C", "nft flush ruleset"],
    };
    breaks_and_heals(lab, commands);
    breaks_and_heals(lab, commands);
}

fn one_piece_deleted_comes_back(lab: &mut Lab) {
    web(lab);
    let commands: &[&str] = match lab.mode() {
        Mode::Nftables => {
            &["nft delete chain ip kube-proxy nat-prerouting", "nft delete table ip6 kube-proxy"]
        }
        Mode::IptablesLegacy => &["iptables-legacy -w -t nat -F", "ip6tables-legacy -w -t nat -F"],
        Mode::IptablesNft => &["iptables-nft -w -t nat -F", "ip6tables-nft -w -t nat -F"],
        Mode::Ipvs => &["ip link del kube-ipvs0"],
    };
    breaks_and_heals(lab, commands);
    if matches!(lab.mode(), Mode::IptablesLegacy | Mode::IptablesNft) {
        let variant = if lab.mode() == Mode::IptablesLegacy { "legacy" } else { "nft" };
        let each = |prefix: &str, what: &str| {
            format!(
                "for p in iptables ip6tables; do $p-{variant}-save -t nat | grep -o '^:{prefix}-[A-Z0-9]*' | tr -d : | \
                 while read chain; do $p-{variant} -w -t nat {what}; done; done"
            )
        };
        breaks_and_heals(lab, &[&each("KUBE-SVC", "-F $chain")]);
        breaks_and_heals(lab, &[&each("KUBE-SEP", "-F $chain")]);
        breaks_and_heals(lab, &[&each("KUBE-SEP", "-D $chain 2")]);
        breaks_and_heals(lab, &[&format!("iptables-{variant} -w -F; ip6tables-{variant} -w -F")]);
    }
    if lab.mode() == Mode::Nftables {
        for map in ["vips", "nodeports", "endpoints", "dispatch"] {
            let flush = |family| {
                format!(
                    "name=$(nft list maps {family} | grep -o ' {map}-[0-9][0-9]*') && nft flush map {family} kube-proxy $name"
                )
            };
            breaks_and_heals(lab, &[&flush("ip"), &flush("ip6")]);
        }
    }
    if lab.mode() == Mode::Ipvs {
        for at in Family::BOTH.map(|family| cluster_ip(1, Tcp, 80).address(family)) {
            breaks_and_heals(lab, &[&format!("ipvsadm -D -t {at}")]);
            breaks_and_heals(lab, &[&format!("ip route del local {} dev kube-ipvs0 table local", at.ip())]);
        }
    }
}
