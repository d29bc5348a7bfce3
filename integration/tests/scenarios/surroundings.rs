//! What else is on a node: marks and filters of others, strict source checks, pings, addresses that are somebody's already.

use std::process::Command;

use integration::lab::{
    Expect, Lab, Mode, Options, To, cluster_ip, load_balancer, node_address, seen_as_node, seen_as_sent,
    service, slices,
};
use integration::network::Place::{Client, Node, PodA, PodB, PodC, PodD};
use integration::network::Protocol::{Tcp, Udp};
use integration::network::{BRIEF, Family, Outcome, Ping, Place, Probe};
use serde_json::json;

crate::scenarios! {
    Options::default() =>
        marks_of_others_stay,
        masqueraded_connections_get_ports_by_chance,
        pings_are_answered_as_the_mode_does,
        strict_source_checks_are_no_obstacle,
        a_load_balancer_address_may_be_the_nodes_own,
        the_node_may_have_the_load_balancers_address_bound,
        a_firewall_that_forwards_nothing_lets_through_what_the_mode_accepts;
    Options {
        config: vec![("/iptables/masqueradeBit", json!(5)), ("/nftables", json!({"masqueradeBit": 5}))],
        ..Options::default()
    } =>
        another_bit_masquerades_as_well;
}

fn web(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).node_port(30080).port("u", 53, Udp).load_balancer(1));
    lab.apply(slices("web").port("t", 8080, Tcp).port("u", 53, Udp).ready(&[PodA, PodD]));
}

fn marks_of_others_stay(lab: &mut Lab) {
    web(lab);
    let rules = "table inet others {
        counter kept { }
        counter lost { }
        chain pre { type filter hook prerouting priority -200; ct state new meta mark set 0x10011; }
        chain post {
            type filter hook postrouting priority 300;
            ct state new meta mark 0x10011 counter name kept
            ct state new meta mark != { 0, 0x10011 } counter name lost
        }
    }";
    lab.network.namespace(Node).nft(rules).expect("rules of somebody else");
    for to in [node_address(0, Tcp, 30080), load_balancer(1, Udp, 53), cluster_ip(1, Tcp, 80)] {
        lab.expect(Client, to, &seen_as_node(&[PodA, PodD]));
    }
    lab.expect(PodC, cluster_ip(1, Udp, 53), &seen_as_sent(&[PodA, PodD]));
    let counters = lab
        .network
        .namespace(Node)
        .output(Command::new("nft").args(["list", "counters", "table", "inet", "others"]))
        .expect("the table is there");
    let text = String::from_utf8_lossy(&counters.stdout).into_owned();
    let packets = |name: &str| {
        let after = text.split_once(&format!("counter {name} {{")).expect("the counter is there").1;
        after.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).expect("a number")
    };
    assert_eq!(packets("lost"), 0, "{text}\n{}", lab.log());
    assert!(packets("kept") > 0, "{text}");
}

fn masqueraded_connections_get_ports_by_chance(lab: &mut Lab) {
    web(lab);
    lab.settle();
    for family in Family::BOTH {
        for to in [node_address(0, Tcp, 30080), load_balancer(1, Udp, 53)] {
            let probes: Vec<Probe> = (0..16)
                .map(|index| {
                    let mut probe = Probe::new(to_protocol(to), to.address(family));
                    probe.from.set_port(41_000 + index);
                    probe
                })
                .collect();
            let outcomes = lab.network.probe(Client, &probes).expect("sockets can be made");
            let kept = outcomes.iter().filter(|outcome| match outcome {
                Outcome::Answered { answer, sent_from } => answer.seen_source.port() == sent_from.port(),
                other => panic!("{family:?} {to:?}: {other}"),
            });
            // One by chance happens now and then, two in a hundred thousand times.
            assert!(kept.count() < 3, "{family:?} {to:?}: ports are kept");
        }
    }
}

fn to_protocol(to: To) -> integration::network::Protocol {
    if to.address(Family::V4).port() == 53 { Udp } else { Tcp }
}

fn pings_are_answered_as_the_mode_does(lab: &mut Lab) {
    web(lab);
    lab.settle();
    let [cluster, balancer] = match lab.mode() {
        // Whatever is no port of a cluster IP is refused.
        Mode::Nftables => [Ping::Refused, Ping::Silent],
        Mode::IptablesLegacy | Mode::IptablesNft => [Ping::Silent, Ping::Silent],
        // The addresses are the node's own.
        Mode::Ipvs => [Ping::Answered, Ping::Answered],
    };
    for family in Family::BOTH {
        for from in [Client, PodB] {
            for (to, expected) in [
                (family.service(1), cluster),
                (family.load_balancer(1), balancer),
                (PodD.address(family), Ping::Answered),
            ] {
                println!("{from:?} {to}: {expected:?}");
                // On a busy machine an answer may come too late.
                crate::eventually(|| lab.network.ping(from, to).expect("a socket") == expected);
            }
        }
    }
}

fn strict_source_checks_are_no_obstacle(lab: &mut Lab) {
    web(lab);
    let strict = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done";
    lab.network.namespace(Node).output(Command::new("sh").args(["-c", strict])).expect("a shell");
    lab.only(&[Family::V4]);
    for from in [Client, PodC, Node] {
        lab.expect(from, node_address(0, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
        lab.expect(from, load_balancer(1, Udp, 53), &seen_as_node(&[PodA, PodD]));
    }
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.sweep();
}

fn a_load_balancer_address_may_be_the_nodes_own(lab: &mut Lab) {
    // As with load balancers that are programs on the nodes.
    let web = || {
        let addresses = Family::BOTH.map(|family| json!({"ip": family.node_addresses()[0]}));
        let web = service("web", 1).port("t", 80, Tcp).node_port(30080).load_balancer(1);
        web.set("/status/loadBalancer/ingress", json!(addresses))
    };
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA, PodD]));
    lab.apply(web());
    for from in [Client, PodC, Node] {
        lab.expect(from, node_address(0, Tcp, 80), &seen_as_node(&[PodA, PodD]));
        lab.expect(from, node_address(0, Tcp, 30080), &seen_as_node(&[PodA, PodD]));
    }
    lab.sweep();
    lab.apply(web().external_local());
    lab.expect(Client, node_address(0, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.sweep();
    // The address is the node's own afterwards as it was before.
    lab.delete("Service", "web");
    lab.expect(Client, node_address(0, Tcp, 80), &Expect::NotTranslated);

    assert!(matches!(
        lab.ask(Client, integration::lab::directly(Node, Tcp, 8080), Family::V4),
        Outcome::Answered { .. }
    ));
}

fn the_node_may_have_the_load_balancers_address_bound(lab: &mut Lab) {
    let bound = Family::BOTH.map(|family| {
        format!("addr add {}/{} dev lo", family.load_balancer(1), if family == Family::V4 { 32 } else { 128 })
    });
    lab.network.namespace(Node).ip(&(bound.join("\n") + "\n"), &[]).expect("addresses can be added");
    let web = || service("web", 1).port("t", 80, Tcp).load_balancer(1);
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[PodA]));
    // The ranges name the node, whose connections to the address come from that address.
    for (ranges, expected) in
        [(["192.168.50.1/32", "fd00:50::1/128"], true), (["203.0.113.0/24", "2001:db8:113::/64"], false)]
    {
        lab.apply(web().source_ranges(&ranges));
        lab.settle();
        for family in Family::BOTH {
            let to = load_balancer(1, Tcp, 80).address(family);
            let probe = Probe::new(Tcp, to).from_address(to.ip()).patience(BRIEF * 4);
            let outcome = lab.network.probe_one(Node, probe).expect("a socket");
            let answered = matches!(outcome, Outcome::Answered { .. });
            assert_eq!(answered, expected, "{family:?} {ranges:?}: {outcome}\n{}", lab.log());
        }
    }
}

fn another_bit_masquerades_as_well(lab: &mut Lab) {
    web(lab);
    for to in [node_address(0, Tcp, 30080), load_balancer(1, Udp, 53), cluster_ip(1, Tcp, 80)] {
        lab.expect(Client, to, &seen_as_node(&[PodA, PodD]));
    }
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    lab.sweep();
}

fn a_firewall_that_forwards_nothing_lets_through_what_the_mode_accepts(lab: &mut Lab) {
    web(lab);
    lab.settle();
    // In ipvs mode the rule follows the removal of what other modes have left.
    let forwards = || {
        let save = lab.network.namespace(Node).output(&mut Command::new("ip6tables-nft-save"));
        String::from_utf8_lossy(&save.expect("iptables is installed").stdout).contains("KUBE-FORWARD")
    };
    if lab.mode() == Mode::Ipvs {
        crate::eventually(forwards);
    }
    let programs = match lab.mode() {
        Mode::IptablesLegacy => ["iptables-legacy", "ip6tables-legacy"],
        Mode::IptablesNft | Mode::Nftables | Mode::Ipvs => ["iptables-nft", "ip6tables-nft"],
    };
    for program in programs {
        let mut command = Command::new(program);
        command.args(["-w", "-P", "FORWARD", "DROP"]);
        lab.network.namespace(Node).output(&mut command).expect("a firewall of somebody else");
    }
    // The iptables mode accepts what it has marked, and answers; in ipvs mode answers are all that is forwarded. In
    // nftables nobody can accept for another table.
    let accepts = lab.mode() != Mode::Nftables;
    for family in Family::BOTH {
        for to in [node_address(0, Tcp, 30080), load_balancer(1, Udp, 53), cluster_ip(1, Tcp, 80)] {
            let outcome = quickly(lab, Client, to, family);
            assert_eq!(matches!(outcome, Outcome::Answered { .. }), accepts, "{family:?} {to:?}: {outcome}");
            // What the node itself sends is not forwarded.
            let outcome = quickly(lab, Node, to, family);
            assert!(matches!(outcome, Outcome::Answered { .. }), "{family:?} {to:?}: {outcome}");
        }
        let unmarked = quickly(lab, PodC, cluster_ip(1, Tcp, 80), family);
        let answered = matches!(unmarked, Outcome::Answered { .. });
        assert_eq!(answered, lab.mode() == Mode::Ipvs, "{family:?}: {unmarked}");
    }
}

fn quickly(lab: &Lab, from: Place, to: To, family: Family) -> Outcome {
    let probe = Probe::new(to_protocol(to), to.address(family)).patience(BRIEF * 3);
    lab.network.probe_one(from, probe).expect("sockets can be made")
}
