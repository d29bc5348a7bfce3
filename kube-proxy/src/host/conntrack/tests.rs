//! With real tables of connections, in namespaces of the tests' own. Needs root; run under nextest (a process each).

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::{Arc, mpsc},
};

use nix::sched::{CloneFlags, unshare};
use proxy_core::{
    claims::ClaimKey,
    environment::{EnvironmentSettings, LocalPods, NodeFacts, NodePortSettings},
};

use super::*;

fn own_namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
}

fn at(text: &str) -> (IpAddr, u16) {
    let addr: SocketAddr = text.parse().expect("an address and a port");
    (addr.ip(), addr.port())
}

fn environment(family: Family) -> Environment {
    let settings = EnvironmentSettings {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Unknown,
        node_ports: NodePortSettings::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
    };
    let interface_addresses = ["192.168.0.10", "2001:db8::10"].map(|ip| ip.parse().expect("an address"));
    let facts = NodeFacts { interface_addresses: interface_addresses.into(), ..NodeFacts::default() };
    settings.resolve(family, &facts)
}

fn rule(frontend: &str, serving: &[&str]) -> FlowRule {
    let (addr, port) = at(frontend);
    node_rule((Protocol::Udp, Some(addr), port), serving)
}

fn node_rule(frontend: ClaimKey, serving: &[&str]) -> FlowRule {
    let serving: Arc<[_]> = serving.iter().map(|endpoint| at(endpoint)).collect();
    FlowRule { frontend, serving, translated: true, untranslated: true, urgent: true }
}

fn entry(protocol: u8, zone: u16, client: &str, destination: &str, replier: &str) -> conntrack::Flow {
    let tuple = |source: &str, destination: &str| {
        let ((source, source_port), (destination, destination_port)) = (at(source), at(destination));
        conntrack::Tuple { source, destination, protocol, source_port, destination_port, icmp: None }
    };
    conntrack::Flow {
        original: tuple(client, destination),
        reply: tuple(replier, client),
        zone,
        status: 0,
        id: None,
        timeout: 600,
        mark: 0,
        tcp_state: None,
    }
}

fn insert(entries: &[conntrack::Flow]) {
    let mut socket = Socket::open(netlink::Protocol::Netfilter).expect("a socket");
    let mut requests = Pipeline::new();
    for entry in entries {
        entry.push_insert(&mut requests);
    }
    let failures = requests.run(&mut socket).expect("sent");
    assert!(failures.is_empty(), "{failures:?}");
}

/// Client, destination, replier and zone of every entry, as text.
fn listed(family: AddressFamily) -> BTreeSet<String> {
    let mut socket = Socket::open(netlink::Protocol::Netfilter).expect("a socket");
    let mut all = BTreeSet::new();
    let filter = Filter { family: Some(family), ..Filter::default() };
    let outcome = conntrack::walk(&mut socket, &filter, |flow| {
        let (client, to, from) = (flow.original, flow.original, flow.reply);
        all.insert(format!(
            "{}:{} > {}:{} = {}:{} zone {}",
            client.source,
            client.source_port,
            to.destination,
            to.destination_port,
            from.source,
            from.source_port,
            flow.zone
        ));
    });
    assert_eq!(outcome.expect("readable"), Dump::Complete);
    all
}

fn thread(work: Work) -> io::Result<()> {
    std::thread::Builder::new().spawn(work).map(drop)
}

/// The reconciler, and what it tells.
fn reconciler() -> (ConntrackReconciler, Receiver<Pass>) {
    let (sender, told) = mpsc::channel();
    let told_pass = move |pass| {
        let _ = sender.send(pass);
    };
    let reconciler = ConntrackReconciler::spawn(false, thread, told_pass, |_, _| {});
    (reconciler.expect("a thread"), told)
}

fn next(told: &Receiver<Pass>) -> Pass {
    told.recv_timeout(Duration::from_secs(60)).expect("a pass")
}

#[test]
fn exactly_the_stale_flows_go() {
    own_namespace();
    let client = "192.0.2.1:1000";
    insert(&[
        // These stay: healthy, of another protocol,
        entry(17, 0, client, "172.30.0.1:53", "10.0.0.1:5353"),
        entry(6, 0, client, "172.30.0.1:53", "10.0.0.9:5353"),
        // to an unrelated host on the number of a NodePort, to a Service without a rule,
        entry(17, 0, "192.0.2.1:1001", "203.0.113.5:30053", "203.0.113.5:30053"),
        entry(17, 0, "192.0.2.1:1002", "172.30.0.2:53", "10.0.0.9:5353"),
        // untranslated in a zone of somebody else's.
        entry(17, 7, "192.0.2.1:1003", "172.30.0.1:53", "172.30.0.1:53"),
        // These go, the last without the healthy flow of the same tuple in another zone.
        entry(17, 0, "192.0.2.1:1004", "172.30.0.1:53", "10.0.0.9:5353"),
        entry(17, 0, "192.0.2.1:1005", "172.30.0.1:53", "172.30.0.1:53"),
        entry(17, 0, "192.0.2.1:1006", "192.168.0.10:30053", "10.0.0.9:5353"),
        entry(17, 7, client, "172.30.0.1:53", "10.0.0.9:5353"),
    ]);
    assert_eq!(listed(AddressFamily::V4).len(), 9);

    let (reconciler, told) = reconciler();
    let rules = vec![
        rule("172.30.0.1:53", &["10.0.0.1:5353"]),
        node_rule((Protocol::Udp, None, 30053), &["10.0.0.1:5353"]),
    ];
    reconciler.submit(rules, &environment(Family::V4));
    let pass = next(&told);
    assert!(pass.error.is_none(), "{pass:?}");
    assert_eq!((pass.family, pass.deleted), (Family::V4, 4));
    let left = listed(AddressFamily::V4);
    assert_eq!(
        left.iter().map(String::as_str).collect::<Vec<_>>(),
        [
            "192.0.2.1:1000 > 172.30.0.1:53 = 10.0.0.1:5353 zone 0",
            "192.0.2.1:1000 > 172.30.0.1:53 = 10.0.0.9:5353 zone 0",
            "192.0.2.1:1001 > 203.0.113.5:30053 = 203.0.113.5:30053 zone 0",
            "192.0.2.1:1002 > 172.30.0.2:53 = 10.0.0.9:5353 zone 0",
            "192.0.2.1:1003 > 172.30.0.1:53 = 172.30.0.1:53 zone 7",
        ]
    );
}

#[test]
fn each_family_has_passes_of_its_own() {
    own_namespace();
    insert(&[
        entry(17, 0, "192.0.2.1:1", "172.30.0.1:53", "10.0.0.9:53"),
        entry(17, 0, "[2001:db8::1]:1", "[fd00::1]:53", "[fd01::9]:53"),
    ]);
    let (reconciler, told) = reconciler();
    reconciler.submit(vec![rule("[fd00::1]:53", &[])], &environment(Family::V6));
    let pass = next(&told);
    assert_eq!((pass.family, pass.deleted), (Family::V6, 1));
    assert_eq!(listed(AddressFamily::V6).len(), 0);
    assert_eq!(listed(AddressFamily::V4).len(), 1);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "no more passes than seconds")]
fn what_comes_within_a_second_is_served_by_one_pass() {
    own_namespace();
    let (reconciler, told) = reconciler();
    let started = Instant::now();
    reconciler.submit(vec![rule("172.30.0.1:53", &[])], &environment(Family::V4));
    assert_eq!(next(&told).deleted, 0);
    let entries: Vec<_> = (1..=100)
        .map(|last| {
            entry(17, 0, &format!("192.0.2.{last}:1000"), &format!("172.30.0.{last}:53"), "10.0.0.9:53")
        })
        .collect();
    insert(&entries);
    for last in 1..=100 {
        reconciler.submit(vec![rule(&format!("172.30.0.{last}:53"), &[])], &environment(Family::V4));
    }
    let (mut passes, mut deleted) = (1, 0);
    while deleted < 100 {
        deleted += next(&told).deleted;
        passes += 1;
    }
    // On a machine that took a second over it there may be more than these two.
    let seconds = started.elapsed().as_secs_f64() / MIN_INTERVAL.as_secs_f64();
    assert!(f64::from(passes - 1) <= seconds, "{passes} passes in {seconds} intervals");
    assert!(told.recv_timeout(MIN_INTERVAL + MIN_INTERVAL / 2).is_err(), "nothing is left to do");
}

#[test]
fn more_stale_flows_than_a_portion_go_in_one_pass() {
    own_namespace();
    let count = 3 * PORTION + 1;
    let entries: Vec<_> = (0..count)
        .map(|n| {
            let client = format!("192.0.{}.{}:1000", n / 200, 1 + n % 200);
            entry(17, 0, &client, "172.30.0.1:53", "10.0.0.9:53")
        })
        .collect();
    insert(&entries);
    let (reconciler, told) = reconciler();
    reconciler.submit(vec![rule("172.30.0.1:53", &["10.0.0.1:53"])], &environment(Family::V4));
    assert_eq!(next(&told).deleted, count);
    assert!(listed(AddressFamily::V4).is_empty());
}

#[test]
fn it_ends_when_nobody_can_submit_any_more() {
    let (reconciler, told) = reconciler();
    drop(reconciler);
    assert!(matches!(told.recv_timeout(Duration::from_secs(60)), Err(RecvTimeoutError::Disconnected)));
}

#[test]
fn a_dump_that_saw_half_of_the_table_is_begun_anew() {
    let mut dumps = 0;
    let outcome = complete(|| {
        dumps += 1;
        if dumps < 3 { Ok(Dump::Interrupted) } else { Ok(Dump::Complete) }
    });
    assert!(outcome.is_ok());
    assert_eq!(dumps, 3);

    let mut dumps = 0;
    let outcome = complete(|| {
        dumps += 1;
        Err(netlink::Error::RepliesLost)
    });
    assert!(outcome.is_ok());
    assert_eq!(dumps, MOST_DUMPS);

    assert!(matches!(complete(|| Err(netlink::Error::TimedOut)), Err(netlink::Error::TimedOut)));
}

fn run(program: &str, arguments: &str, input: &str) {
    let mut child = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    assert!(child.wait().expect("it ends").success(), "{program} {arguments}");
}

/// Two endpoints and a client on one interface, and a route for the VIPs.
fn set_up_loopback() {
    run("ip", "link set lo up", "");
    for addr in ["10.0.0.1", "10.0.0.2", "192.0.2.1"] {
        run("ip", &format!("address add {addr}/32 dev lo"), "");
    }
    run("ip", "route add 172.30.0.0/16 dev lo src 192.0.2.1", "");
}

/// Makes this the only rule of translation.
fn translate(rule: &str) {
    let chain =
        "add table ip t\nadd chain ip t out { type nat hook output priority -100; }\nflush chain ip t out";
    run("nft", "-f -", &format!("{chain}\nadd rule ip t out {rule}\n"));
}

/// Sends one datagram and says whether the server got it.
fn arrives(client: &UdpSocket, vip: &str, server: &UdpSocket) -> bool {
    // A datagram to nobody may be answered by an error that the next call reports.
    let _ = client.send_to(b"x", vip);
    let mut buffer = [0; 8];
    server.recv_from(&mut buffer).is_ok()
}

#[test]
fn a_real_flow_leaves_an_endpoint_that_is_gone_and_is_translated_though_older_than_its_rule() {
    own_namespace();
    set_up_loopback();
    let server = |addr: &str| {
        let socket = UdpSocket::bind((addr, 5353)).expect("bound");
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
        socket
    };
    let (one, two) = (server("10.0.0.1"), server("10.0.0.2"));
    let translate =
        |vip: &str, to: &str| translate(&format!("ip daddr {vip} udp dport 53 dnat to {to}:5353"));
    // Connections are tracked, but this one is not translated, as before its Service was made.
    translate("172.30.0.9", "10.0.0.1");
    let client = UdpSocket::bind("192.0.2.1:0").expect("bound");
    let vip = "172.30.0.1:53";
    assert!(!arrives(&client, vip, &one));
    translate("172.30.0.1", "10.0.0.1");
    assert!(!arrives(&client, vip, &one), "the kernel goes on as the flow began");

    let (reconciler, told) = reconciler();
    reconciler.submit(vec![rule(vip, &["10.0.0.1:5353"])], &environment(Family::V4));
    assert_eq!(next(&told).deleted, 1);
    assert!(arrives(&client, vip, &one));

    translate("172.30.0.1", "10.0.0.2");
    assert!(arrives(&client, vip, &one), "the kernel goes on as the flow began");
    reconciler.submit(vec![rule(vip, &["10.0.0.2:5353"])], &environment(Family::V4));
    assert_eq!(next(&told).deleted, 1);
    assert!(arrives(&client, vip, &two));

    reconciler.submit(vec![rule(vip, &["10.0.0.2:5353"])], &environment(Family::V4));
    assert_eq!(next(&told).deleted, 0, "a healthy flow stays");
    assert!(arrives(&client, vip, &two));
}

#[test]
fn a_connection_to_an_endpoint_that_is_gone_is_reset() {
    own_namespace();
    set_up_loopback();
    let listen = |addr: &str| TcpListener::bind((addr, 8080)).expect("bound");
    let (one, _two) = (listen("10.0.0.1"), listen("10.0.0.2"));
    translate("ip daddr 172.30.0.1 tcp dport 80 dnat to 10.0.0.1:8080");
    let mut client = TcpStream::connect("172.30.0.1:80").expect("translated");
    client.set_read_timeout(Some(Duration::from_secs(60))).expect("set");
    let (_served, _) = one.accept().expect("connected");
    translate("ip daddr 172.30.0.1 tcp dport 80 dnat to 10.0.0.2:8080");

    let rule = |serving: &str| FlowRule {
        untranslated: false,
        ..node_rule((Protocol::Tcp, Some(at("172.30.0.1:80").0), 80), &[serving])
    };
    let (reconciler, told) = reconciler();
    reconciler.submit(vec![rule("10.0.0.1:8080")], &environment(Family::V4));
    assert_eq!(next(&told).deleted, 0, "its endpoint is there");
    client.write_all(b"x").expect("the connection stands");
    reconciler.submit(vec![rule("10.0.0.2:8080")], &environment(Family::V4));
    assert_eq!(next(&told).deleted, 1);
    let reset = client.write_all(b"x").and_then(|()| client.read(&mut [0; 8]));
    assert_eq!(reset.map_err(|error| error.kind()), Err(ErrorKind::ConnectionReset));
}

#[test]
fn tcp_is_cut_only_where_it_is_asked_for() {
    assert_eq!(resets_tcp(None), Ok(false));
    assert_eq!(resets_tcp(Some("")), Ok(false));
    assert_eq!(resets_tcp(Some("false")), Ok(false));
    assert_eq!(resets_tcp(Some("true")), Ok(true));
    assert_eq!(
        resets_tcp(Some("yes")),
        Err("SWITCHYARD_RESET_TCP: \"yes\" is neither true nor false".to_owned())
    );
}

#[test]
fn a_sweep_asks_about_flows_that_are_neither_translated_nor_answered() {
    own_namespace();
    let answered = |flow: conntrack::Flow| conntrack::Flow { status: status::SEEN_REPLY, ..flow };
    insert(&[
        entry(17, 0, "192.0.2.1:1000", "172.30.0.1:53", "172.30.0.1:53"),
        entry(17, 0, "192.0.2.1:1001", "172.30.0.1:53", "172.30.0.1:53"),
        entry(132, 0, "192.0.2.1:1002", "172.30.0.2:99", "172.30.0.2:99"),
        // Translated, answered, in a zone of somebody else's.
        entry(17, 0, "192.0.2.1:1003", "172.30.0.3:53", "10.0.0.1:53"),
        answered(entry(17, 0, "192.0.2.1:1004", "172.30.0.4:53", "172.30.0.4:53")),
        entry(17, 7, "192.0.2.1:1005", "172.30.0.5:53", "172.30.0.5:53"),
    ]);
    let (sender, asked) = mpsc::channel();
    let ask = move |family, destinations: Destinations| {
        let _ = sender.send((family, destinations.into_iter().collect::<BTreeSet<_>>()));
    };
    let reconciler = ConntrackReconciler::spawn(false, thread, |_| {}, ask).expect("a thread");
    reconciler.begin(&environment(Family::V4));
    let (family, destinations) = asked.recv_timeout(Duration::from_secs(60)).expect("it asks");
    let to = |protocol, text| (protocol, at(text).0, at(text).1);
    let expected = [to(Protocol::Udp, "172.30.0.1:53"), to(Protocol::Sctp, "172.30.0.2:99")];
    assert_eq!((family, destinations), (Family::V4, BTreeSet::from(expected)));
}
