//! The table of connections of a network namespace of the test's own. Needs root; run under nextest (a process each).

use std::net::{IpAddr, SocketAddr};

use netlink::{
    Dump, Pipeline, Protocol, Socket,
    conntrack::{Filter, Flow, Icmp, Tuple, count, protocol, status, walk},
    route::AddressFamily,
};
use nix::{
    libc::ENOENT,
    sched::{CloneFlags, unshare},
};

fn socket() -> Socket {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
    Socket::open(Protocol::Netfilter).expect("a socket")
}

/// A flow to a VIP that was translated to an endpoint.
fn flow(protocol: u8, client: &str, vip: &str, endpoint: &str) -> Flow {
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address and a port");
    let tuple = |source: SocketAddr, destination: SocketAddr| Tuple {
        source: source.ip(),
        destination: destination.ip(),
        protocol,
        source_port: source.port(),
        destination_port: destination.port(),
        icmp: None,
    };
    Flow {
        original: tuple(at(client), at(vip)),
        reply: tuple(at(endpoint), at(client)),
        zone: 0,
        status: 0,
        id: None,
        timeout: 600,
        mark: 0,
        tcp_state: (protocol == protocol::TCP).then_some(3),
    }
}

fn udp(port: u16) -> Flow {
    flow(protocol::UDP, &format!("192.0.2.1:{port}"), "172.30.0.1:53", "10.0.0.1:5353")
}

fn insert(socket: &mut Socket, flows: &[Flow]) {
    let mut pipeline = Pipeline::new();
    for flow in flows {
        flow.push_insert(&mut pipeline);
    }
    assert_eq!(pipeline.run(socket).expect("answered"), []);
}

fn listed(socket: &mut Socket, filter: &Filter) -> Vec<Flow> {
    let mut flows = Vec::new();
    assert_eq!(walk(socket, filter, |flow| flows.push(*flow)).expect("read"), Dump::Complete);
    flows.sort_by_key(|flow| (flow.zone, flow.original.protocol, flow.original.source_port));
    flows
}

fn delete(socket: &mut Socket, flows: &[Flow]) -> Vec<i32> {
    let mut pipeline = Pipeline::new();
    for flow in flows {
        flow.push_delete(&mut pipeline);
    }
    pipeline.run(socket).expect("answered").iter().map(|failure| failure.errno).collect()
}

#[test]
fn an_entry_is_read_back_as_inserted() {
    let mut socket = socket();
    let mut tcp = flow(protocol::TCP, "192.0.2.1:1000", "172.30.0.1:80", "10.0.0.1:8080");
    tcp.mark = 0x4000;
    let six = flow(protocol::UDP, "[2001:db8::1]:1001", "[fd00::1]:53", "[fd01::1]:5353");
    insert(&mut socket, &[tcp, six]);

    let found = listed(&mut socket, &Filter::default());
    assert_eq!(found.len(), 2);
    for (found, inserted) in found.iter().zip([tcp, six]) {
        assert_eq!((found.original, found.reply), (inserted.original, inserted.reply));
        assert_eq!((found.zone, found.mark, found.tcp_state), (0, inserted.mark, inserted.tcp_state));
        assert!(found.id.is_some() && (590..=600).contains(&found.timeout), "{found:?}");
    }
    let count = count(&mut socket).expect("asked");
    assert_eq!(count.entries, 2);
    assert!(count.limit.is_some_and(|limit| limit > 2));
}

#[test]
fn an_icmp_entry_is_read_back_and_deleted() {
    let mut socket = socket();
    let mut ping = flow(protocol::ICMP, "192.0.2.1:0", "172.30.0.1:0", "172.30.0.1:0");
    ping.original.icmp = Some(Icmp { id: 7, kind: 8, code: 0 });
    ping.reply.icmp = Some(Icmp { id: 7, kind: 0, code: 0 });
    insert(&mut socket, &[ping]);
    let found = listed(&mut socket, &Filter { protocol: Some(protocol::ICMP), ..Filter::default() });
    assert_eq!(found.iter().map(|flow| flow.original).collect::<Vec<_>>(), [ping.original]);
    assert_eq!(delete(&mut socket, &found), []);
    assert_eq!(listed(&mut socket, &Filter::default()), []);
}

#[test]
fn each_filter_lets_exactly_its_own_through() {
    let mut socket = socket();
    let mut marked = udp(1002);
    marked.mark = 0x10;
    marked.status = status::SEEN_REPLY | status::ASSURED;
    let mut zoned = udp(1001);
    zoned.zone = 7;
    let elsewhere = flow(protocol::UDP, "192.0.2.1:1003", "172.30.0.2:5000", "10.0.0.1:5353");
    let tcp = flow(protocol::TCP, "192.0.2.1:1004", "172.30.0.1:53", "10.0.0.1:5353");
    let six = flow(protocol::UDP, "[2001:db8::1]:1005", "[fd00::1]:53", "[fd01::1]:5353");
    insert(&mut socket, &[udp(1001), zoned, marked, elsewhere, tcp, six]);

    let vip: IpAddr = "172.30.0.1".parse().expect("an address");
    let of =
        |protocol| Filter { family: Some(AddressFamily::V4), protocol: Some(protocol), ..Filter::default() };
    let cases: [(Filter, &[u16]); 10] = [
        (Filter::default(), &[1001, 1001, 1002, 1003, 1004, 1005]),
        (of(protocol::UDP), &[1001, 1001, 1002, 1003]),
        (of(protocol::TCP), &[1004]),
        (Filter { family: Some(AddressFamily::V6), ..of(protocol::UDP) }, &[1005]),
        (Filter { zone: Some(7), ..of(protocol::UDP) }, &[1001]),
        (Filter { mark: Some((0x10, 0x30)), ..Filter::default() }, &[1002]),
        (Filter { status: Some((status::ASSURED, status::ASSURED)), ..of(protocol::UDP) }, &[1002]),
        (Filter { status: Some((0, status::ASSURED)), ..of(protocol::UDP) }, &[1001, 1001, 1003]),
        (Filter { destination: Some(vip), ..of(protocol::UDP) }, &[1001, 1001, 1002]),
        (Filter { destination_port: Some(5000), ..of(protocol::UDP) }, &[1003]),
    ];
    for (filter, expected) in cases {
        let mut found: Vec<_> =
            listed(&mut socket, &filter).iter().map(|flow| flow.original.source_port).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{filter:?}");
    }
}

#[test]
fn exactly_the_named_entry_is_deleted_also_in_a_zone() {
    let mut socket = socket();
    let mut zoned = udp(1000);
    zoned.zone = 7;
    insert(&mut socket, &[udp(1000), udp(1001), zoned]);
    let in_zone = listed(&mut socket, &Filter { zone: Some(7), ..Filter::default() });
    assert_eq!(in_zone.len(), 1);
    assert_eq!(delete(&mut socket, &in_zone), []);
    let left: Vec<_> = listed(&mut socket, &Filter::default())
        .iter()
        .map(|flow| (flow.zone, flow.original.source_port))
        .collect();
    assert_eq!(left, [(0, 1000), (0, 1001)]);
    assert_eq!(delete(&mut socket, &in_zone), [ENOENT], "gone already");
}

#[test]
fn a_later_entry_of_the_same_tuple_is_not_deleted_in_place_of_an_earlier() {
    let mut socket = socket();
    insert(&mut socket, &[udp(1000)]);
    let old = listed(&mut socket, &Filter::default());
    assert_eq!(delete(&mut socket, &old), []);
    // The kernel makes the id from the entry's place in memory and its addresses: others take that place first.
    let others: Vec<_> = (2000..2200).map(udp).collect();
    insert(&mut socket, &others);
    insert(&mut socket, &[udp(1000)]);
    assert_ne!(listed(&mut socket, &Filter::default())[0].id, old[0].id, "another id");
    assert_eq!(delete(&mut socket, &old), [ENOENT]);
    assert_eq!(count(&mut socket).expect("asked").entries, 201);
}

#[test]
fn many_are_walked_and_deleted_in_few_datagrams() {
    let mut socket = socket();
    insert(&mut socket, &(1..=20_000).map(udp).collect::<Vec<_>>());
    let all = listed(&mut socket, &Filter { protocol: Some(protocol::UDP), ..Filter::default() });
    assert_eq!(all.len(), 20_000);
    assert_eq!(delete(&mut socket, &all), []);
    assert_eq!(count(&mut socket).expect("asked").entries, 0);
}
