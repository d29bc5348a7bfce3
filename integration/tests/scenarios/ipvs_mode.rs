//! What only the ipvs mode has: virtual IPs that are the node's own, schedulers of the kernel's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::Duration;

use integration::lab::{
    Expect, Lab, Mode, Options, cluster_ip, load_balancer, node_address, seen_as_node, seen_as_sent, service,
    slices,
};
use integration::network::Place::{Client, Node, PodA, PodB, PodC, PodD};
use integration::network::Protocol::{Tcp, Udp};
use integration::network::{ALWAYS, BRIEF, Family, Outcome, Place, Probe};
use serde_json::json;

const HEALTH: u16 = 32_100;
const PATIENCE: Duration = Duration::from_secs(3);

fn in_ipvs_mode(options: Options, scenario: impl FnOnce(&mut Lab)) {
    crate::run(Mode::Ipvs, Options { embedded_server: true, ..options }, scenario);
}

/// The status line of an answer over HTTP.
fn get(lab: &Lab, from: Place, at: SocketAddr) -> Result<String, std::io::Error> {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&at, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    };
    lab.network.namespace(from).run(ask)?
}

/// Load balancers that keep the destination address (Google's passthrough, LVS in direct routing) ask at the virtual IP.
#[test]
fn load_balancers_ask_for_health_at_the_virtual_ip_in_ipvs_mode() {
    in_ipvs_mode(Options::default(), |lab| {
        let near = || {
            let near =
                service("near", 2).port("t", 80, Tcp).node_port(30081).load_balancer(2).external_local();
            near.set("/spec/healthCheckNodePort", json!(HEALTH))
        };
        lab.apply(near());
        lab.apply(slices("near").port("t", 8080, Tcp).ready(&[PodA, PodD]));
        lab.settle();
        // A firewall of the host that lets nothing new in but what somebody accepts.
        let closes = "for p in iptables-nft ip6tables-nft; do
            $p -w -A INPUT -i ext0 -p tcp --dport 32100 -m conntrack --ctstate NEW -j DROP; done";
        lab.network.namespace(Node).output(Command::new("sh").args(["-c", closes])).expect("a firewall");
        for family in Family::BOTH {
            for addr in [family.load_balancer(2), family.node_addresses()[0]] {
                let at = SocketAddr::new(addr, HEALTH);
                crate::eventually(|| get(lab, Client, at).is_ok_and(|status| status.contains(" 200 ")));
                // Other ports stay refused.
                let other = SocketAddr::new(family.load_balancer(2), HEALTH + 1);
                assert!(get(lab, Client, other).is_err());
            }
        }
        lab.apply(slices("near").port("t", 8080, Tcp).ready(&[PodD]));
        lab.settle();
        let at = SocketAddr::new(Family::V4.load_balancer(2), HEALTH);
        crate::eventually(|| get(lab, Client, at).is_ok_and(|status| status.contains(" 503 ")));
        lab.delete("Service", "near");
        lab.settle();
        for family in Family::BOTH {
            let at = SocketAddr::new(family.load_balancer(2), HEALTH);
            crate::eventually(|| get(lab, Client, at).is_err());
        }
    });
}

/// What the kernel forgets only after its timeout would keep the client from ever being answered.
#[test]
fn a_client_that_asked_before_there_was_an_endpoint_is_answered_in_ipvs_mode() {
    in_ipvs_mode(Options::default(), |lab| {
        lab.apply(service("dns", 1).port("u", 53, Udp).node_port(30053).load_balancer(1));
        lab.settle();
        for family in Family::BOTH {
            for to in [node_address(0, Udp, 30053), load_balancer(1, Udp, 53), cluster_ip(1, Udp, 53)] {
                let flow = lab.network.udp_flow(Client, to.address(family)).expect("a socket");
                let outcome = flow.ask_until(5, BRIEF, |outcome| *outcome == Outcome::Refused);
                assert_eq!(outcome, Outcome::Refused, "{family:?} {to:?}\n{}", lab.log());
                lab.apply(slices("dns").port("u", 53, Udp).ready(&[PodA]));
                lab.settle();
                let outcome =
                    flow.ask_until(ALWAYS, BRIEF, |outcome| matches!(outcome, Outcome::Answered { .. }));
                assert!(
                    matches!(outcome, Outcome::Answered { .. }),
                    "{family:?} {to:?}: {outcome}\n{}",
                    lab.log()
                );
                lab.apply(slices("dns").port("u", 53, Udp).unready(&[PodA]));
                lab.settle();
            }
        }
    });
}

/// TCP is reset, however often: also while endpoints that just went drain.
#[test]
fn a_service_without_endpoints_refuses_every_connection_in_ipvs_mode() {
    in_ipvs_mode(Options::default(), |lab| {
        lab.apply(service("empty", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1));
        lab.apply(slices("empty").port("t", 8080, Tcp).ready(&[PodA, PodD]));
        lab.settle();
        lab.apply(slices("empty").port("t", 8080, Tcp).unready(&[PodA, PodD]));
        lab.settle();
        // As the kernel has it by default.
        let limit = "sysctl -qw net.ipv4.icmp_ratemask=6168 net.ipv6.icmp.ratelimit=1000";
        lab.network.namespace(Node).output(Command::new("sh").args(["-c", limit])).expect("settings");
        for family in Family::BOTH {
            for to in [cluster_ip(1, Tcp, 80), load_balancer(1, Tcp, 80), node_address(0, Tcp, 30080)] {
                for from in [Client, PodB, Node] {
                    let probes = vec![Probe::new(Tcp, to.address(family)).patience(BRIEF * 4); 20];
                    let outcomes = lab.network.probe(from, &probes).expect("sockets");
                    let refused = outcomes.iter().filter(|outcome| **outcome == Outcome::Refused).count();
                    assert_eq!(refused, 20, "{family:?} {from:?} {to:?}\n{}", lab.log());
                }
            }
        }
    });
}

/// A hash that knows no way around an endpoint of weight 0 would refuse its share.
#[test]
fn hashing_schedulers_refuse_nobody_while_an_endpoint_drains_in_ipvs_mode() {
    vm_test::with_ipvs(|| {
        for scheduler in ["mh", "sh", "dh"] {
            let config = vec![("/ipvs/scheduler", json!(scheduler))];
            let options = Options { mode: Mode::Ipvs, embedded_server: true, config, ..Options::default() };
            let mut lab = Lab::start(options).expect("root, and a kube-proxy that was built");
            lab.apply(service("web", 1).port("t", 80, Tcp).load_balancer(1));
            let to = load_balancer(1, Tcp, 80).address(Family::V4);
            for endpoints in [&[PodA, PodC, PodD][..], &[PodC, PodD], &[PodC], &[PodD]] {
                lab.apply(slices("web").port("t", 8080, Tcp).ready(endpoints));
                lab.settle();
                // From many ports, and from more than one address.
                for from in [Client, PodB] {
                    let outcomes = lab.network.probe(from, &vec![Probe::new(Tcp, to); 40]).expect("sockets");
                    for outcome in outcomes {
                        let Outcome::Answered { answer, .. } = outcome else {
                            panic!("{scheduler}, {endpoints:?}, {from:?}: {outcome}\n{}", lab.log());
                        };
                        assert!(endpoints.iter().any(|place| place.name() == answer.by), "{answer}");
                    }
                }
            }
        }
    });
}

/// An external address that is the node's own: its other ports stay the host's, in either form of binding.
#[test]
fn the_nodes_own_address_keeps_its_ports_in_ipvs_mode() {
    let own = |number: u8| {
        let addresses = Family::BOTH.map(|family| family.node_addresses()[1]);
        service("web", number).port("t", 80, Tcp).set("/spec/externalIPs", json!(addresses))
    };
    in_ipvs_mode(Options::default(), |lab| {
        lab.apply(own(1).set("/spec/externalTrafficPolicy", json!("Cluster")));
        lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
        lab.expect(Client, node_address(1, Tcp, 80), &seen_as_node(&[PodA, PodD]));
        lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
        for family in Family::BOTH {
            // The server of the place `Node` listens on its first address; the health server on all.
            let at = SocketAddr::new(family.node_addresses()[1], 10_256);
            assert!(get(lab, Client, at).is_ok(), "{at}\n{}", lab.log());
        }
        lab.delete("Service", "web");
        lab.expect(Client, node_address(1, Tcp, 80), &Expect::NotTranslated);
        lab.sweep();
    });
}
