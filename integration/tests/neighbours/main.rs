//! Who else writes into a node's kernel, beside each mode of ours: from all kinds of sources to all kinds of frontends
//! everything is as without them, and nothing of theirs is changed.
//!
//! What a neighbour leaves in the kernel is written here from its documentation and from reading its sources: the tables,
//! hooks, mark bits and tests on them, not its programs. Where a rule would name something that only a whole cluster has,
//! it names the lab's.
//!
//! To add one: a file with a [`Neighbour`], and a line in the list below.

mod aws_vpc_cni;
mod calico;
#[path = "../takeover/crossing.rs"]
#[allow(dead_code, reason = "the takeover tests ask it for more")]
mod crossing;
mod docker;
#[path = "../takeover/flood.rs"]
#[allow(dead_code, reason = "the takeover tests ask it for more")]
mod flood;
mod kube_router;
mod mesh;
mod moving_vip;
mod node_local_dns;
mod tailscale;

use std::io::Write as _;
use std::process::{Command, Stdio};

use integration::lab::{Lab, Mode, Options, service, slices};
use integration::network::Family;
use integration::network::Place::{Node, PodA, PodD};
use integration::network::Protocol::{Tcp, Udp};
use serde_json::json;

/// What somebody else has in a node's kernel.
#[derive(Debug, Default)]
struct Neighbour {
    /// For `ipset restore`.
    sets: String,
    /// For `iptables-restore`, of IPv4 and of IPv6.
    rules: [String; 2],
    /// For `ip -batch`.
    links: String,
    /// Kernel settings.
    settings: Vec<(&'static str, &'static str)>,
    /// What an administrator tells us to leave its bits of the mark to it.
    masquerade_bit: Option<u8>,
    variables: Vec<(&'static str, String)>,
}

impl Neighbour {
    /// The same rules for both families.
    fn alike(rules: impl Fn(Family) -> String) -> [String; 2] {
        Family::BOTH.map(rules)
    }

    /// Moves in.
    fn load(&self, lab: &Lab) {
        lab.network.namespace(Node).ip(&self.links, &self.settings).expect("links and settings");
        if !self.sets.is_empty() {
            feed(lab, &["ipset", "restore"], &self.sets);
        }
        for (program, rules) in ["iptables", "ip6tables"].into_iter().zip(&self.rules) {
            if !rules.is_empty() {
                feed(lab, &[&format!("{program}-{}-restore", variant(lab)), "-w", "--noflush"], rules);
            }
        }
    }

    /// What it has there at present.
    fn present(&self, lab: &Lab) -> Vec<String> {
        let variant = variant(lab);
        let lists = [
            format!("iptables-{variant}-save"),
            format!("ip6tables-{variant}-save"),
            "ipset list".to_owned(),
            "ip rule".to_owned(),
            "ip -6 rule".to_owned(),
        ];
        let theirs = |line: &&str| {
            // kube-router's chains begin like ours.
            let kube_router = line.contains("KUBE-ROUTER-") || line.contains("KUBE-POD-FW-");
            let ours = (line.contains("KUBE-") && !kube_router)
                || line.starts_with('#')
                || line.starts_with("COMMIT");
            // How often something is used.
            !ours && !line.starts_with("References") && !line.is_empty()
        };
        let mut all = Vec::new();
        for list in lists {
            let words: Vec<&str> = list.split(' ').collect();
            let output = lab.network.namespace(Node).output(Command::new(words[0]).args(&words[1..]));
            let text = String::from_utf8_lossy(&output.expect("it is installed").stdout).into_owned();
            let without_counters = |line: &str| line.split(" [").next().unwrap_or(line).to_owned();
            // A table that somebody looked at is there from then on, empty.
            let lines = text.lines().filter(theirs).filter(|line| !line.starts_with('*'));
            all.extend(lines.filter(|line| !is_builtin(line)).map(without_counters));
        }
        all
    }
}

/// The line of a chain that the kernel has of its own accord.
fn is_builtin(line: &str) -> bool {
    ["INPUT", "OUTPUT", "FORWARD", "PREROUTING", "POSTROUTING"]
        .into_iter()
        .any(|chain| line.starts_with(&format!(":{chain} ACCEPT")))
}

/// Everybody on a node uses the same one.
fn variant(lab: &Lab) -> &'static str {
    if lab.mode() == Mode::IptablesLegacy { "legacy" } else { "nft" }
}

fn feed(lab: &Lab, command: &[&str], input: &str) {
    let run = || {
        let mut child = Command::new(command[0]).args(&command[1..]).stdin(Stdio::piped()).spawn()?;
        child.stdin.take().expect("piped").write_all(input.as_bytes())?;
        child.wait()
    };
    let status = lab.network.namespace(Node).run(run).expect("the node is there").expect("it runs");
    assert!(status.success(), "{command:?}\n{input}");
}

/// Services of every kind.
fn services(lab: &mut Lab) {
    lab.apply(
        service("web", 1)
            .port("t", 80, Tcp)
            .node_port(30080)
            .port("u", 53, Udp)
            .external_ip(1)
            .load_balancer(1),
    );
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA, PodD]));
    lab.apply(service("near", 2).port("t", 80, Tcp).node_port(30081).load_balancer(2).external_local());
    lab.apply(slices("near").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.apply(service("far", 3).port("t", 80, Tcp).node_port(30082).load_balancer(3).external_local());
    lab.apply(slices("far").port("t", 8080, Tcp).ready(&[PodD]));
    lab.apply(service("sticky", 4).port("t", 80, Tcp).node_port(30083).affinity(600));
    lab.apply(slices("sticky").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.apply(service("empty", 5).port("t", 80, Tcp).node_port(30084).load_balancer(5));
}

/// Beside a neighbour that was there before, everything works as without it.
fn lives_beside(mode: Mode, neighbour: impl FnOnce(Mode) -> Neighbour) {
    let play = || {
        let neighbour = neighbour(mode);
        let mut config = vec![("/ipvs/strictARP", json!(true))];
        if let Some(bit) = neighbour.masquerade_bit {
            config.extend([
                ("/iptables/masqueradeBit", json!(bit)),
                ("/nftables", json!({"masqueradeBit": bit})),
            ]);
        }
        let variables = neighbour.variables.clone();
        let mut lab = Lab::without_proxy(Options { mode, config, variables, ..Options::default() })
            .expect("root, and a kube-proxy that was built");
        neighbour.load(&lab);
        let before = neighbour.present(&lab);
        lab.start_proxy().expect("it starts");
        services(&mut lab);
        lab.sweep();
        assert_eq!(neighbour.present(&lab), before, "something of theirs changed");
        // And after a restart, whose clean-up meets them again.
        lab.stop_proxy().expect("it runs");
        lab.start_proxy().expect("it starts again");
        lab.sweep();
        assert_eq!(neighbour.present(&lab), before, "something of theirs changed at the restart");
    };
    if mode == Mode::Ipvs { vm_test::with_ipvs(play) } else { play() }
}

/// One test for each neighbour and mode. `neighbours! { name => |mode| neighbour; }`
macro_rules! neighbours {
    ($($name:ident => $neighbour:expr;)+) => {$(
        mod $name {
            use integration::lab::Mode;

            #[test]
            fn beside_nftables_mode() {
                crate::lives_beside(Mode::Nftables, $neighbour);
            }

            #[test]
            fn beside_iptables_mode_legacy() {
                crate::lives_beside(Mode::IptablesLegacy, $neighbour);
            }

            #[test]
            fn beside_iptables_mode_nft() {
                crate::lives_beside(Mode::IptablesNft, $neighbour);
            }

            #[test]
            fn beside_ipvs_mode() {
                crate::lives_beside(Mode::Ipvs, $neighbour);
            }
        }
    )+};
}

neighbours! {
    with_nobody => |_| crate::Neighbour::default();
    with_calico => crate::calico::felix;
    with_calico_on_our_default_bits => crate::calico::felix_on_our_bits;
    with_docker => |_| crate::docker::engine();
    with_portmap => |_| crate::docker::portmap();
    with_kube_router => |_| crate::kube_router::policies();
    with_aws_vpc_cni => |_| crate::aws_vpc_cni::daemon();
    with_node_local_dns => |_| crate::node_local_dns::cache();
    with_unmasked_connmarks => |_| crate::mesh::connection_marks();
    with_tailscale => |_| crate::tailscale::daemon();
}
