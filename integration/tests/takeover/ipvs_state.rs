//! What kube-proxy's ipvs mode leaves, where more happened between its end and our start than nothing.

use std::thread::sleep;
use std::time::Duration;

use integration::lab::{
    Lab, Mode, Objects as _, Options, cluster_ip, node_address, seen_as_node, service, slices,
};
use integration::network::Place::{Client, PodA, PodB, PodC, PodD};
use integration::network::Protocol::Tcp;
use integration::network::{BRIEF, Family, Outcome, Probe};
use serde_json::json;

use crate::held::{self, Held, PORT};
use crate::{eventually, feed_on_node, flooded, load_kube_proxys_ipvs, on_node};

fn lab(options: Options) -> Lab {
    Lab::without_proxy(Options { mode: Mode::Ipvs, embedded_server: true, ..options })
        .expect("root, and a kube-proxy that was built")
}

#[test]
fn in_excluded_networks_what_a_service_wants_is_kept_up_to_date_in_ipvs_mode() {
    vm_test::with_ipvs(|| {
        // The node's own network, where people protect keepalived's virtual IPs.
        let config = vec![("/ipvs/excludeCIDRs", json!(["192.168.50.0/24", "198.51.100.0/24"]))];
        let mut lab = lab(Options { config, ..Options::default() });
        load_kube_proxys_ipvs(&lab);
        lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080));
        for endpoint in [PodC, PodD, PodB] {
            lab.apply(slices("web").port("t", 8080, Tcp).ready(&[endpoint]));
            if endpoint == PodC {
                lab.start_proxy().expect("it starts");
            }
            lab.expect(Client, node_address(0, Tcp, 30080), &seen_as_node(&[endpoint]));
            lab.expect(Client, cluster_ip(1, Tcp, 80), &seen_as_node(&[endpoint]));
        }
        // They protect from removal, be it of another's or of what was ours.
        lab.delete("Service", "web");
        lab.settle();
        let listing = on_node(&lab, "ipvsadm", &["-Ln"]);
        assert!(listing.contains("192.168.50.1:30080"), "{listing}");
        assert!(listing.contains("198.51.100.200:9999 rr"), "{listing}");
        assert!(listing.contains("10.0.1.12:8080"), "another's is as it was\n{listing}");
    });
}

#[test]
fn a_node_port_that_went_meanwhile_is_not_answered_in_ipvs_mode() {
    vm_test::with_ipvs(|| {
        let mut lab = lab(Options::default());
        load_kube_proxys_ipvs(&lab);
        let answers = |lab: &Lab| {
            let to = node_address(0, Tcp, 30080).address(Family::V4);
            let probe = Probe::new(Tcp, to).patience(BRIEF * 3);
            let outcome = lab.network.probe_one(Client, probe).expect("a socket");
            matches!(outcome, Outcome::Answered { .. })
        };
        assert!(answers(&lab), "kube-proxy's rules work");
        // It has another number now.
        lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30090));
        lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
        lab.start_proxy().expect("it starts");
        lab.expect(Client, node_address(0, Tcp, 30090), &seen_as_node(&[PodA]));
        assert!(!answers(&lab), "{}", lab.log());
        eventually(&lab, "its virtual server is still there", || {
            !on_node(&lab, "ipvsadm", &["-Ln"]).contains(":30080")
        });
        assert!(on_node(&lab, "ipvsadm", &["-Ln"]).contains("198.51.100.200:9999 rr"), "somebody else's");
    });
}

#[test]
fn what_drains_when_we_restart_goes_in_the_end_in_ipvs_mode() {
    vm_test::with_ipvs(|| {
        let mut lab = lab(Options::default());
        held::serve(&lab);
        load_kube_proxys_ipvs(&lab);
        let servers = "-E -t 172.30.0.1:80 -s rr
-d -t 172.30.0.1:80 -r 10.0.1.11:8080
-d -t 172.30.0.1:80 -r 10.0.2.11:8080
-a -t 172.30.0.1:80 -r 10.0.1.11:PORT -m -w 1
-a -t 192.168.50.1:30080 -r 10.0.1.11:PORT -m -w 1
-d -t 192.168.50.1:30080 -r 10.0.1.11:8080
-d -t 192.168.50.1:30080 -r 10.0.2.11:8080
";
        feed_on_node(&lab, "ipvsadm", &["-R"], &servers.replace("PORT", &PORT.to_string()));
        let held = Held::open(&lab, &[Family::V4]);
        // The Service was deleted meanwhile; its connections have some time.
        for _ in 0..2 {
            lab.start_proxy().expect("it starts");
            lab.settle();
            sleep(Duration::from_secs(3));
            lab.stop_proxy().expect("it runs");
        }
        lab.start_proxy().expect("it starts");
        lab.settle();
        let cut = held.end();
        assert!(cut.is_empty(), "{cut:#?}\n{}", lab.log());
        eventually(&lab, "nobody uses them any more", || {
            let listing = on_node(&lab, "ipvsadm", &["-Ln"]);
            !listing.contains("172.30.0.1:80 ") && !listing.contains(":30080")
        });
    });
}

/// As Docker's engine has it.
fn forward_nothing(lab: &Lab) {
    for program in ["iptables-nft", "ip6tables-nft"] {
        on_node(lab, program, &["-w", "-P", "FORWARD", "DROP"]);
    }
}

fn serve_web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080));
    lab.api
        .load(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]).objects())
        .expect("complete objects");
}

#[test]
fn a_restart_on_a_host_that_forwards_nothing_fails_no_connection_in_ipvs_mode() {
    vm_test::with_ipvs(|| {
        let mut lab = lab(Options::default());
        serve_web(&mut lab);
        lab.start_proxy().expect("it starts");
        lab.settle();
        eventually(&lab, "answers are not accepted", || {
            on_node(&lab, "ip6tables-nft-save", &[]).contains("KUBE-FORWARD -m comment")
        });
        forward_nothing(&lab);
        for family in Family::BOTH {
            flooded(&mut lab, family, "restarts where nothing is forwarded", |lab| {
                for _ in 0..3 {
                    lab.stop_proxy().expect("it runs");
                    lab.start_proxy().expect("it starts again");
                    lab.settle();
                    sleep(Duration::from_secs(2));
                }
            });
        }
    });
}

#[test]
fn a_rule_of_somebody_elses_that_leads_to_kube_proxys_chains_holds_up_nothing_in_ipvs_mode() {
    vm_test::with_ipvs(|| {
        let mut lab = lab(Options::default());
        serve_web(&mut lab);
        load_kube_proxys_ipvs(&lab);
        forward_nothing(&lab);
        // The CNI plugin portmap with `externalSetMarkChain`.
        let rule =
            ["-w", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport", "8888", "-j", "KUBE-MARK-MASQ"];
        on_node(&lab, "iptables-nft", &rule);
        flooded(&mut lab, Family::V4, "a chain of kube-proxy's in use", |lab| {
            lab.start_proxy().expect("it starts");
            lab.settle();
            let lab = &*lab;
            eventually(lab, "kube-proxy's other chains are still there", || {
                let save = on_node(lab, "iptables-nft-save", &["-t", "nat"]);
                !save.contains(":KUBE-SERVICES") && !save.contains(":KUBE-NODE-PORT")
            });
        });
        let save = on_node(&lab, "iptables-nft-save", &["-t", "nat"]);
        assert!(save.contains("-A KUBE-MARK-MASQ -j MARK"), "what is in use works on:\n{save}");
        assert!(save.contains("--dport 8888 -j KUBE-MARK-MASQ"), "{save}");
    });
}

#[test]
fn the_forward_chain_is_kept_while_connections_need_it_when_ipvs_is_left() {
    vm_test::with_ipvs(|| {
        let mut lab = lab(Options::default());
        held::serve(&lab);
        lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080));
        lab.api
            .load(slices("web").port("t", PORT, Tcp).ready(&[PodA, PodD]).objects())
            .expect("complete objects");
        lab.start_proxy().expect("it starts");
        lab.settle();
        eventually(&lab, "answers are not accepted", || {
            on_node(&lab, "ip6tables-nft-save", &[]).contains("KUBE-FORWARD -m comment")
        });
        forward_nothing(&lab);
        let held = Held::open(&lab, &Family::BOTH);
        lab.stop_proxy().expect("it runs");
        // The nftables mode accepts nothing for other tables; here the host's own firewall lets new connections through.
        lab.change_mode(Mode::Nftables).expect("the configuration is written");
        lab.start_proxy().expect("it starts");
        lab.settle();
        sleep(Duration::from_secs(8));
        let cut = held.end();
        assert!(cut.is_empty(), "{cut:#?}\n{}", lab.log());
        eventually(&lab, "nobody needs it any more", || {
            !on_node(&lab, "iptables-nft-save", &[]).contains("KUBE-FORWARD")
        });
    });
}
