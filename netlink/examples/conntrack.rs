//! What a large conntrack table costs to walk and to delete from. Needs root; the table is in a namespace of its own,
//! but its limit (`nf_conntrack_max`) is the host's.
//!
//!     cargo run --release -p switchyard-netlink --example conntrack [entries]

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use netlink::{
    Dump, Pipeline, Protocol, Socket,
    conntrack::{Filter, Flow, Tuple, count, protocol, walk},
    route::AddressFamily,
};
use nix::sched::{CloneFlags, unshare};

/// Of the entries, one in so many is UDP; the others are TCP.
const UDP_SHARE: u32 = 10;

fn main() {
    let entries: u32 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(250_000);
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
    let mut socket = Socket::open(Protocol::Netfilter).expect("a kernel with nfnetlink");

    let mut pipeline = Pipeline::new();
    let inserted = time(|| {
        for number in 0..entries {
            flow(number).push_insert(&mut pipeline);
            if pipeline.len() == 4096 || number + 1 == entries {
                assert_eq!(
                    pipeline.run(&mut socket).expect("answered"),
                    [],
                    "is nf_conntrack_max large enough?"
                );
                pipeline.clear();
            }
        }
    });
    println!("{entries} entries inserted in {:.0} ms", milliseconds(inserted));
    println!("count: {:?}, {:.0} us", count(&mut socket), time_of(|| drop(count(&mut socket))) * 1e3);

    let udp = Filter { family: Some(AddressFamily::V4), protocol: Some(protocol::UDP), ..Filter::default() };
    let vip = Filter { destination: Some(vip(7).into()), ..udp };
    let before = resident();
    for (name, filter) in [("all", Filter::default()), ("udp", udp), ("udp to one address", vip)] {
        let mut found = 0;
        let taken = time_of(|| {
            assert_eq!(walk(&mut socket, &filter, |_| found += 1).expect("walked"), Dump::Complete);
        });
        println!("walk {name}: {found} entries in {taken:.1} ms");
    }
    println!("resident memory grew by {} KiB during the walks", resident().saturating_sub(before));

    let mut stale = Vec::new();
    assert_eq!(walk(&mut socket, &vip, |flow| stale.push(*flow)).expect("walked"), Dump::Complete);
    pipeline.clear();
    for flow in &stale {
        flow.push_delete(&mut pipeline);
    }
    let taken = time(|| assert_eq!(pipeline.run(&mut socket).expect("answered"), []));
    println!("{} entries deleted in {:.1} ms", stale.len(), milliseconds(taken));
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0xac1e_0000 + number)
}

fn flow(number: u32) -> Flow {
    let client = Ipv4Addr::from(0x0a00_0000 + number / 50_000);
    let source_port = (number % 50_000 + 1024) as u16;
    let protocol = if number.is_multiple_of(UDP_SHARE) { protocol::UDP } else { protocol::TCP };
    let tuple = |source: Ipv4Addr, source_port, destination: Ipv4Addr, destination_port| Tuple {
        source: source.into(),
        destination: destination.into(),
        protocol,
        source_port,
        destination_port,
        icmp: None,
    };
    Flow {
        original: tuple(client, source_port, vip(number / UDP_SHARE % 100), 53),
        reply: tuple(Ipv4Addr::from(0x0a80_0000 + number % 1000), 5353, client, source_port),
        zone: 0,
        status: 0,
        id: None,
        timeout: 3600,
        mark: 0,
        tcp_state: (protocol == protocol::TCP).then_some(3),
    }
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn time(work: impl FnOnce()) -> Duration {
    #[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
    let start = Instant::now();
    work();
    start.elapsed()
}

fn time_of(work: impl FnOnce()) -> f64 {
    milliseconds(time(work))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
