//! Connections told as they begin and end, in a network namespace of the test's own. Needs root; run under nextest.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use netlink::{
    conntrack::{Filter, protocol, status, tcp_state, walk_counted},
    flow_events::{FlowEvent, FlowMonitor, Interest, Moment},
    wait,
};
use nix::sched::{CloneFlags, unshare};
use std::os::fd::AsFd as _;

fn run(program: &str, arguments: &str) {
    let status = Command::new(program).args(arguments.split(' ')).status().expect("it is installed");
    assert!(status.success(), "{program} {arguments}");
}

/// A namespace in which 127.0.0.9 is translated to 127.0.0.1, as a Service is.
fn namespace() {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (needs root)");
    run("ip", "link set lo up");
    std::fs::write("/proc/sys/net/netfilter/nf_conntrack_acct", "1").expect("a setting");
    run("nft", "add table ip t");
    run("nft", "add chain ip t out { type nat hook output priority -100 ; }");
    run("nft", "add rule ip t out ip daddr 127.0.0.9 dnat to 127.0.0.1");
    // So that the kernel tracks connections at all.
    run("nft", "add rule ip t out ct state new counter");
}

/// Takes events until there were so many ends, or fails.
fn events(monitor: &mut FlowMonitor, ends: usize) -> Vec<FlowEvent> {
    let mut events: Vec<FlowEvent> = Vec::new();
    let mut tries = 0;
    loop {
        let taken = monitor.drain(10_000, |event| events.push(*event)).expect("readable");
        assert_eq!(taken.missed, 0);
        if events.iter().filter(|event| event.moment == Moment::Ended).count() >= ends {
            return events;
        }
        tries += 1;
        assert!(tries < 1200, "{} events, the last is {:?}", events.len(), events.last());
        wait(&[monitor.as_fd()], Duration::from_millis(100)).expect("waited");
    }
}

fn exchange(address: &str) -> u64 {
    let listener = TcpListener::bind("127.0.0.1:80").expect("a listener");
    let mut client = TcpStream::connect(address).expect("connected");
    let (mut server, _) = listener.accept().expect("accepted");
    client.write_all(b"hello").expect("sent");
    let mut text = [0; 5];
    server.read_exact(&mut text).expect("received");
    5
}

#[test]
fn a_connection_is_told_from_its_beginning_to_its_end_with_what_it_carried() {
    namespace();
    let mut monitor = FlowMonitor::open(Interest::default(), 1 << 20).expect("a monitor");
    let carried = exchange("127.0.0.9:80");
    // The kernel forgets it two minutes after its end, or now.
    run("conntrack", "-D -p tcp");
    let events = events(&mut monitor, 1);
    let first = events.first().expect("events");
    assert_eq!(first.moment, Moment::New);
    assert_eq!(first.flow.original.destination.to_string(), "127.0.0.9");
    assert_eq!(first.flow.reply.source.to_string(), "127.0.0.1");
    assert_ne!(first.flow.status & status::DNAT, 0, "a filter relies on it");
    let opened = |event: &FlowEvent| event.flow.tcp_state == Some(tcp_state::ESTABLISHED);
    assert!(events.iter().any(|event| event.moment == Moment::Changed && opened(event)), "{events:?}");
    let last = events.last().expect("events");
    assert_eq!(last.moment, Moment::Ended);
    let counted = last.carried.expect("accounting is on");
    // SYN and what follows, 52 bytes and more of headers each.
    assert!(counted.original.packets >= 3 && counted.original.bytes >= carried + 3 * 40, "{counted:?}");
    assert_eq!(counted.bytes(), counted.original.bytes + counted.reply.bytes);
}

#[test]
fn a_refusal_by_the_endpoint_is_an_end_without_an_answer_and_closed() {
    namespace();
    let mut monitor = FlowMonitor::open(Interest::default(), 1 << 20).expect("a monitor");
    TcpStream::connect("127.0.0.9:81").expect_err("nobody listens");
    let events = events(&mut monitor, 1);
    let last = events.last().expect("events");
    assert_eq!(last.flow.status & status::SEEN_REPLY, 0);
    assert_eq!(last.flow.tcp_state, Some(tcp_state::CLOSE));
}

#[test]
fn only_what_is_asked_for_is_queued() {
    namespace();
    let interest = Interest { changes: false, translated: true, one_in: 1 };
    let mut monitor = FlowMonitor::open(interest, 1 << 20).expect("a monitor");
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for _ in 0..5 {
        socket.send_to(b"x", "127.0.0.1:9").expect("sent");
    }
    exchange("127.0.0.1:80");
    exchange("127.0.0.9:80");
    run("conntrack", "-F");
    let events = events(&mut monitor, 1);
    let told: Vec<_> = events.iter().map(|event| event.moment).collect();
    assert_eq!(told, [Moment::New, Moment::Ended], "{events:?}");
    assert!(events.iter().all(|event| event.flow.original.destination.to_string() == "127.0.0.9"));
}

#[test]
fn a_sample_holds_all_events_of_a_flow_or_none() {
    namespace();
    let interest = Interest { changes: false, translated: false, one_in: 4 };
    let mut sample = FlowMonitor::open(interest, 8 << 20).expect("a monitor");
    let mut whole =
        FlowMonitor::open(Interest { changes: false, ..Interest::default() }, 8 << 20).expect("a monitor");
    for port in 10_000..10_400 {
        let socket = UdpSocket::bind(("127.0.0.1", port)).expect("a socket");
        socket.send_to(b"x", "127.0.0.1:9").expect("sent");
    }
    run("conntrack", "-F");
    let all = events(&mut whole, 400);
    assert_eq!(all.len(), 800);
    let mut events = Vec::new();
    let taken = sample.drain(10_000, |event| events.push(*event)).expect("readable");
    assert_eq!(taken.missed, 0);
    let ids = |moment: Moment| {
        let mut ids: Vec<_> =
            events.iter().filter(|event| event.moment == moment).map(|event| event.flow.id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(Moment::New), ids(Moment::Ended));
    let count = ids(Moment::New).len();
    // 400 draws of one in four: ten standard deviations.
    assert!((14..=187).contains(&count), "{count} of 400");
    let expected =
        all.iter().filter(|event| event.moment == Moment::New && event.flow.id.is_some_and(|id| id % 4 == 0));
    assert_eq!(expected.count(), count, "the kernel draws by the flow's id");
}

#[test]
fn what_finds_no_room_is_counted_exactly() {
    namespace();
    let interest = Interest { changes: false, ..Interest::default() };
    let mut small = FlowMonitor::open(interest, 1).expect("a monitor");
    for port in 10_000..10_200 {
        let socket = UdpSocket::bind(("127.0.0.1", port)).expect("a socket");
        socket.send_to(b"x", "127.0.0.1:9").expect("sent");
    }
    let taken = small.drain(u64::MAX, |_| {}).expect("readable");
    assert!(taken.missed > 0);
    assert_eq!(taken.events + taken.missed, 200);
}

#[test]
fn a_walk_tells_what_open_connections_carried() {
    namespace();
    let listener = TcpListener::bind("127.0.0.1:80").expect("a listener");
    let _client = TcpStream::connect("127.0.0.9:80").expect("connected");
    let _server = listener.accept().expect("accepted");
    let mut socket = netlink::Socket::open(netlink::Protocol::Netfilter).expect("a socket");
    let filter = Filter { status: Some((status::DNAT, status::DNAT)), ..Filter::default() };
    let mut found = Vec::new();
    let _ = walk_counted(&mut socket, &filter, |flow, carried| found.push((*flow, carried))).expect("walked");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].0.original.protocol, protocol::TCP);
    assert!(found[0].1.expect("accounting is on").original.packets >= 2);
}
