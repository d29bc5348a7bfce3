//! The way to the API server is cut without a word: packets of the connections that there are vanish, new ones get through,
//! as after the fail-over of a virtual address.

use std::{
    fs,
    net::SocketAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use integration::{
    lab::{Lab, Mode, Options, Secure, service, slices},
    network::{
        Family, Outcome,
        Place::{Node, PodA, PodC},
        Probe,
        Protocol::Tcp,
    },
};

/// The limit is 45 s; a machine that does other things as well is given more. Without questions on the connection it takes 150 s.
const NEVER: Duration = Duration::from_secs(75);

/// Ports from which somebody on the node is connected to the API server (`/proc/net/tcp`, proc_net_tcp(5)).
fn connected(lab: &Lab) -> Vec<u16> {
    let port = lab.api.address().port();
    let table = lab.network.namespace(Node).run(|| fs::read_to_string("/proc/thread-self/net/tcp"));
    let table = table.expect("a namespace").expect("a table");
    let fields = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let port_of = |address: &str| u16::from_str_radix(address.rsplit(':').next()?, 16).ok();
    fields
        .filter(|fields| port_of(fields[2]) == Some(port) && fields[3] == "01")
        .filter_map(|fields| port_of(fields[1]))
        .collect()
}

#[test]
fn connections_whose_packets_vanish_are_found_dead() {
    packets_vanish(Options { embedded_server: true, ..Options::default() });
}

#[test]
fn connections_of_tls_whose_packets_vanish_are_found_dead() {
    packets_vanish(Options { secure: Some(Secure::HTTP2), ..Options::default() });
}

#[expect(clippy::disallowed_methods, reason = "tells late from never")]
fn packets_vanish(options: Options) {
    crate::run(Mode::Nftables, options, |lab| {
        lab.settle();
        let ports = connected(lab);
        assert!(!ports.is_empty());
        let set: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let set = set.join(", ");
        let rules = format!(
            "add table inet vanish\n\
             add chain inet vanish in {{ type filter hook input priority -400; }}\n\
             add rule inet vanish in tcp sport {{ {set} }} drop\n\
             add rule inet vanish in tcp dport {{ {set} }} drop\n"
        );
        lab.network.namespace(Node).nft(&rules).expect("rules");
        lab.apply(service("late", 1).port("t", 80, Tcp));
        lab.apply(slices("late").port("t", 8080, Tcp).ready(&[PodA]));
        let begun = Instant::now();
        for family in Family::BOTH {
            let to = SocketAddr::new(family.service(1), 80);
            let answers = || {
                let outcome = lab.network.probe_one(PodC, Probe::new(Tcp, to)).expect("a socket");
                matches!(outcome, Outcome::Answered { .. })
            };
            while !answers() {
                assert!(begun.elapsed() < NEVER, "{family:?}: deaf\n{}", lab.log());
                sleep(Duration::from_millis(200));
            }
        }
        println!("in force again {} s after the packets began to vanish", begun.elapsed().as_secs());
        let now = connected(lab);
        assert!(now.iter().all(|port| !ports.contains(port)), "{ports:?} {now:?}");
    });
}
