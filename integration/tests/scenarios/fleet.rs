//! The plan for a fleet of docs/ipvs-users.md, step by step on one node: what the page has an operator run there is run, as
//! it stands on the page, and says what the page promises.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration::lab::{
    Lab, Mode, Options, cluster_ip, load_balancer, node_address, program, seen_as_node, seen_as_sent,
    service, slices,
};
use integration::network::Place::{Client, Node, PodA, PodB, PodD};
use integration::network::Protocol::{Tcp, Udp};
use integration::network::{BRIEF, Family, Outcome, Probe};
use serde_json::json;

#[path = "../takeover/layouts.rs"]
#[allow(dead_code, unused_imports, reason = "the takeover tests load more")]
mod layouts;

fn on_node(lab: &Lab, script: &str) -> String {
    let output = lab.network.namespace(Node).output(Command::new("sh").args(["-c", script]));
    String::from_utf8_lossy(&output.expect("the shell runs").stdout).into_owned()
}

/// The commands for a node that the page has, by how they begin.
fn of_the_page(begins: &str) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/ipvs-users.md");
    let text = fs::read_to_string(page).expect("the page");
    let mut commands =
        text.lines().filter_map(|line| line.strip_prefix("    ")).filter(|line| line.starts_with(begins));
    let command = commands.next().unwrap_or_else(|| panic!("no command begins with {begins}"));
    command.split("  #").next().unwrap_or(command).to_owned()
}

fn run_of_the_page(lab: &Lab, begins: &str) -> String {
    on_node(lab, &of_the_page(begins)).trim().to_owned()
}

fn metric(lab: &Lab, name: &str) -> Option<f64> {
    let text = on_node(lab, "curl -s localhost:10249/metrics");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}

fn serves(lab: &mut Lab) {
    lab.expect(PodB, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.expect(Client, cluster_ip(1, Tcp, 80), &seen_as_node(&[PodA, PodD]));
    lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    lab.expect(PodB, load_balancer(2, Udp, 53), &seen_as_sent(&[PodA, PodD]));
}

#[test]
fn the_plan_for_a_fleet_does_as_the_page_says_in_ipvs_mode() {
    vm_test::with_ipvs(|| {
        // A flow of UDP is in use until IPVS forgets it: after five minutes by default.
        let config = vec![("/ipvs/udpTimeout", json!("3s"))];
        let options = Options { mode: Mode::Ipvs, embedded_server: true, config, ..Options::default() };
        let mut lab = Lab::without_proxy(options).expect("root, and a kube-proxy that was built");
        // A node on which kube-proxy in ipvs mode ran until now.
        let sysctls = [("net/ipv4/vs/conntrack", "1"), ("net/ipv4/vs/expire_nodest_conn", "1")];
        lab.network.namespace(Node).ip(layouts::IPVS_LINKS, &sysctls).expect("IPVS and the dummy device");
        let feeds = [
            ("ipvsadm -R", layouts::IPVS_SERVERS),
            ("ipset restore", layouts::IPVS_SETS),
            ("iptables-nft-restore --noflush", layouts::IPVS_RULES),
        ];
        for (command, input) in feeds {
            on_node(&lab, &format!("{command} <<'E'\n{input}\nE"));
        }
        let before = on_node(&lab, "ipvsadm -Ln");
        let servers: Vec<&str> = before.lines().filter(|line| line.starts_with("TCP")).collect();
        assert_eq!(servers.len(), 3, "{before}");
        lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080));
        lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
        lab.apply(service("dns", 2).port("u", 53, Udp).load_balancer(2).external_local());
        lab.apply(slices("dns").port("u", 53, Udp).ready(&[PodA, PodD]));

        // 1. One node: another image, nothing else.
        lab.start_proxy().expect("it starts");
        serves(&mut lab);
        let health = run_of_the_page(&lab, "curl -s localhost:10256/healthz");
        assert!(health.contains("lastUpdated"), "{health}");
        assert!(lab.whole_log().contains("Using ipvs Proxier"), "{}", lab.log());
        let now = on_node(&lab, "ipvsadm -Ln");
        assert!(servers.iter().all(|line| now.contains(line.trim_end())), "{before}\n{now}");
        let count: usize = run_of_the_page(&lab, "ipvsadm -Ln | grep -c").parse().expect("a number");
        assert!(count >= servers.len(), "{count}");
        // The two cluster IPs, the load balancer's and that of the lab's own Service.
        assert_eq!(run_of_the_page(&lab, "ip route show table local proto 89"), "4", "{}", lab.log());

        // 2. A day: what there is to watch.
        let text = on_node(&lab, "curl -s localhost:10249/metrics");
        let values = |name: &str| -> Vec<&str> {
            text.lines()
                .filter(|line| line.starts_with(name))
                .filter_map(|line| line.split(' ').nth(1))
                .collect()
        };
        assert_eq!(values("switchyard_set_aside_service_ports"), ["0", "0"], "in both families");
        // What never happened is not counted yet.
        for name in ["switchyard_sync_failures_total", "switchyard_drift_repairs_total"] {
            assert!(values(name).iter().all(|value| *value == "0"), "{name}: {:?}", values(name));
        }

        // 4. Leave IPVS, and 5. back.
        lab.stop_proxy().expect("it runs");
        lab.change_mode(Mode::Nftables).expect("the configuration is written");
        lab.start_proxy().expect("it starts");
        serves(&mut lab);
        crate::eventually(|| {
            metric(&lab, "switchyard_ipvs_leaving{what=\"connections\"}") == Some(0.0)
                && !on_node(&lab, "ip link").contains("kube-ipvs0")
        });
        let left = on_node(&lab, "ipvsadm -Ln");
        assert!(left.contains("198.51.100.200:9999 rr") && !left.contains("172.30.0.1:80"), "{left}");
        lab.stop_proxy().expect("it runs");
        lab.change_mode(Mode::Ipvs).expect("the configuration is written");
        lab.start_proxy().expect("it starts");
        serves(&mut lab);

        // From step 1 to kube-proxy: it binds addresses itself and takes the virtual servers over; then what it does not know goes.
        lab.stop_proxy().expect("it runs");
        on_node(&lab, "ip addr add 172.30.0.1/32 dev kube-ipvs0");
        let cleanup = program().expect("kube-proxy was built");
        on_node(&lab, &format!("{} --cleanup-own", cleanup.display()));
        assert!(!on_node(&lab, "nft list tables").contains("kube-proxy-ipvs"));
        for family in ["-4", "-6"] {
            assert_eq!(on_node(&lab, &format!("ip {family} route show table local proto 89")), "");
        }
        let left = on_node(&lab, "ipvsadm -Ln");
        assert!(!left.contains("FWM") && left.contains("172.30.0.1:80 rr"), "{left}");
        let probe = Probe::new(Tcp, cluster_ip(1, Tcp, 80).address(Family::V4)).patience(BRIEF * 4);
        let outcome = lab.network.probe_one(PodB, probe).expect("a socket");
        assert!(matches!(outcome, Outcome::Answered { .. }), "{outcome}\n{left}");
    });
}
