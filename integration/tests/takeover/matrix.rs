//! From every layout of rules to every mode of ours, with connections held throughout: none may be cut.
//!
//! Time is real. What ends connections here are looks at virtual servers, after 1, 2, 4, 8, 16 and then every 30 seconds;
//! nothing else in the program knows how long a connection has lasted. Where an ipvs mode is left, they are held over six
//! of them, and longer than any fixed time that would be a drain; everything else happens at once.

use std::thread::sleep;
use std::time::Duration;

use integration::lab::{Lab, Mode, Objects as _, Options, service, slices};
use integration::network::Family;
use integration::network::Place::{PodA, PodD};
use integration::network::Protocol::Tcp;

use crate::held::{self, Held, PORT};
use crate::{
    assert_in_charge, eventually, feed_on_node, has_virtual_servers, layouts, remove_neighbours_server,
};

/// How long connections are held after an ipvs mode was left, and after anything else.
const LEAVING: Duration = Duration::from_secs(45);
const OTHERWISE: Duration = Duration::from_secs(6);

/// Whose rules the connections begin under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// kube-proxy's in its ipvs mode, IPv4.
    KubeProxyIpvs,
    KubeProxyIptables,
    KubeProxyNftables,
    Ours(Mode),
}

impl Before {
    fn is_ipvs(self) -> bool {
        matches!(self, Self::KubeProxyIpvs | Self::Ours(Mode::Ipvs))
    }

    fn load(self, lab: &mut Lab) {
        let port = |text: &str| text.replace("8080", &PORT.to_string());
        match self {
            Self::KubeProxyIpvs => {
                let sysctls = [("net/ipv4/vs/conntrack", "1"), ("net/ipv4/vs/expire_nodest_conn", "1")];
                let node = lab.network.namespace(integration::network::Place::Node);
                node.ip(layouts::IPVS_LINKS, &sysctls).expect("this kernel has IPVS and the dummy device");
                feed_on_node(lab, "ipvsadm", &["-R"], &port(layouts::IPVS_SERVERS));
                feed_on_node(lab, "ipset", &["restore"], &port(layouts::IPVS_SETS));
                feed_on_node(lab, "iptables-nft-restore", &["--noflush"], layouts::IPVS_RULES);
            }
            Self::KubeProxyIptables => {
                let v4 = layouts::iptables("172.30.0.1/32", "10.0.0.0/16", ["10.0.1.11", "10.0.2.11"]);
                let v6 =
                    layouts::iptables("fd00:30::1/128", "fd00:10::/32", ["fd00:10:1::11", "fd00:10:2::11"]);
                feed_on_node(lab, "iptables-nft-restore", &["--noflush"], &port(&v4));
                feed_on_node(lab, "ip6tables-nft-restore", &["--noflush"], &port(&v6));
            }
            Self::KubeProxyNftables => feed_on_node(lab, "nft", &["-f", "-"], &port(&layouts::nftables())),
            Self::Ours(_) => {
                lab.start_proxy().expect("it starts");
                lab.settle();
            }
        }
    }
}

/// Runs one pair.
fn pass(before: Before, after: Mode) {
    let mode = if let Before::Ours(mode) = before { mode } else { after };
    let mut lab = Lab::without_proxy(Options { mode, embedded_server: true, ..Options::default() })
        .expect("root, and a kube-proxy that was built");
    held::serve(&lab);
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080));
    lab.api
        .load(slices("web").port("t", PORT, Tcp).ready(&[PodA, PodD]).objects())
        .expect("complete objects");
    before.load(&mut lab);
    let families = if before == Before::KubeProxyIpvs { &[Family::V4][..] } else { &Family::BOTH };
    let held = Held::open(&lab, families);
    lab.stop_proxy().expect("it ends when it is asked to");
    // kubelet's hint of another variant must not decide.
    lab.forget_iptables_variant().expect("the node is there");
    lab.change_mode(after).expect("the configuration is written");
    lab.start_proxy().expect("it starts");
    lab.settle();
    let leaves = before.is_ipvs() && after != Mode::Ipvs;
    sleep(if leaves { LEAVING } else { OTHERWISE });
    if leaves {
        assert!(has_virtual_servers(&lab), "connections stand through them\n{}", lab.log());
    }
    let cut = held.end();
    assert!(cut.is_empty(), "{before:?} to {after:?}: {cut:#?}\n{}", lab.log());
    if leaves {
        eventually(&lab, "nobody uses them any more", || !has_virtual_servers(&lab));
    }
    remove_neighbours_server(&lab);
    assert_in_charge(&mut lab);
}

/// One test for each pair; those with IPVS in the VM where this kernel has none.
macro_rules! pairs {
    ($($name:ident: $before:expr => $($after:ident),+;)+) => {$(
        mod $name {
            use super::*;
            $(pairs!(@ $after, $before);)+
        }
    )+};
    (@ nftables, $before:expr) => {
        #[test]
        fn to_nftables_mode() {
            natively_or_in_vm($before, Mode::Nftables);
        }
    };
    (@ iptables, $before:expr) => {
        #[test]
        fn to_iptables_mode() {
            natively_or_in_vm($before, Mode::IptablesNft);
        }
    };
    (@ ipvs, $before:expr) => {
        #[test]
        fn to_ipvs_mode() {
            natively_or_in_vm($before, Mode::Ipvs);
        }
    };
}

fn natively_or_in_vm(before: Before, after: Mode) {
    if before.is_ipvs() || after == Mode::Ipvs {
        vm_test::with_ipvs(|| pass(before, after));
    } else {
        pass(before, after);
    }
}

pairs! {
    held_from_kube_proxys_ipvs: Before::KubeProxyIpvs => nftables, iptables, ipvs;
    held_from_kube_proxys_iptables: Before::KubeProxyIptables => nftables, iptables, ipvs;
    held_from_kube_proxys_nftables: Before::KubeProxyNftables => nftables, iptables, ipvs;
    held_from_our_ipvs: Before::Ours(Mode::Ipvs) => nftables, iptables, ipvs;
    held_from_our_iptables: Before::Ours(Mode::IptablesNft) => nftables, iptables, ipvs;
    held_from_our_nftables: Before::Ours(Mode::Nftables) => nftables, iptables, ipvs;
}
