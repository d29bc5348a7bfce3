//! What the kernel tells of traced packets, and tables that go with who made them. In a network namespace of the test's own.

mod support;

use std::{
    net::UdpSocket,
    process::{Command, Stdio},
    time::Duration,
};

use nft_netlink::{
    Batch, Chain, ChainKind, CommitError, Family, Hook, Register, Rule, Table, Verdict,
    expression::{self, drop_packet, equal, l4proto, limit_per_second},
    list,
    temporary::{self, PREFIX, TemporaryTable},
    trace::{Step, TraceEvent, TraceMonitor, TraceVerdict},
};
use support::{namespace, nft};

const FAR: u64 = 1 << 40;

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip runs");
    assert!(status.success(), "ip {arguments}");
}

/// Marks all UDP that this node sends.
fn mark(batch: &mut Batch, table: Table<'_>) {
    batch.add_chain(table, &Chain::base("out", ChainKind::Filter, Hook::Output, -1000));
    let rule = Rule::new().with(l4proto(Register::R0)).with(equal(Register::R0, [17]));
    let rule = rule.with(limit_per_second(1_000_000)).with_all(expression::trace(Register::R0));
    batch.append_rule(table, "out", &rule);
}

fn send(count: u16, to: &str) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for _ in 0..count {
        // One that a rule drops is an error for its sender.
        let _ = socket.send_to(b"x", to);
    }
}

fn all(monitor: &mut TraceMonitor) -> (Vec<TraceEvent>, u64) {
    let mut events = Vec::new();
    let taken = monitor.drain(u64::MAX, |event| events.push(event)).expect("readable");
    assert_eq!(taken.events, events.len() as u64);
    (events, taken.missed)
}

#[test]
fn each_rule_that_a_packet_meets_in_any_table_is_told() {
    let mut socket = namespace();
    ip("link set lo up");
    let mut batch = Batch::new();
    let other = Table::new(Family::Ip, "other");
    batch.add_table(other, None);
    batch.add_chain(other, &Chain::regular("sub"));
    batch.add_chain(other, &Chain::base("in", ChainKind::Filter, Hook::Input, 0));
    batch.append_rule(other, "in", &Rule::new().with(expression::jump("sub")));
    let port = |port: u16| {
        let rule = Rule::new().with(l4proto(Register::R0)).with(equal(Register::R0, [17]));
        rule.with(expression::destination_port(Register::R0)).with(equal(Register::R0, port.to_be_bytes()))
    };
    batch.append_rule(other, "sub", &port(9).with(drop_packet()));
    batch.commit(&mut socket).expect("committed");
    let mut monitor = TraceMonitor::open(1 << 20).expect("a monitor");
    let table = TemporaryTable::make("trace", FAR, mark).expect("a table");
    assert!(table.is_owned());
    send(1, "127.0.0.1:9");
    let (events, missed) = all(&mut monitor);
    assert_eq!(missed, 0);
    let first = events.first().and_then(|event| event.packet).expect("the first event shows the packet");
    assert_eq!(
        (first.destination.to_string().as_str(), first.destination_port, first.protocol),
        ("127.0.0.1", 9, 17)
    );
    // Behind the loopback interface it has another number.
    let (sent, received): (Vec<_>, Vec<_>) = events.iter().partition(|event| event.table.starts_with(PREFIX));
    for half in [&sent, &received] {
        assert!(half.iter().all(|event| event.id == half[0].id), "{events:?}");
    }
    let drop = events.last().expect("events");
    assert_eq!((&*drop.table, &*drop.chain, drop.family), ("other", "sub", Some(Family::Ip)));
    let Step::Rule { handle, verdict: TraceVerdict::Plain(Verdict::Drop) } = drop.step else {
        panic!("{drop:?}")
    };
    let listed = nft(&["-a", "list", "chain", "ip", "other", "sub"]);
    let line = listed.lines().find(|line| line.ends_with(&format!("# handle {handle}"))).expect("its rule");
    assert!(line.contains("udp dport 9 drop"), "{line}");
    let jumped = events.iter().any(|event| {
        matches!(&event.step, Step::Rule { verdict: TraceVerdict::Plain(Verdict::Jump(to)), .. } if **to == *"sub")
    });
    assert!(jumped, "{events:?}");
    // Another port passes, and the policy is told.
    send(1, "127.0.0.1:10");
    let (events, _) = all(&mut monitor);
    let last = events.iter().rev().find(|event| &*event.table == "other").expect("told");
    assert_eq!((&last.step, &*last.chain), (&Step::Policy { accepts: true }, "in"));
}

#[test]
fn what_finds_no_room_is_counted() {
    let _socket = namespace();
    ip("link set lo up");
    // The smallest that the kernel gives.
    let mut monitor = TraceMonitor::open(1).expect("a monitor");
    let mut whole = TraceMonitor::open(64 << 20).expect("a monitor");
    let _table = TemporaryTable::make("trace", FAR, mark).expect("a table");
    send(500, "127.0.0.1:9");
    let (all_events, none_missed) = all(&mut whole);
    assert_eq!(none_missed, 0);
    let (events, missed) = all(&mut monitor);
    assert!(missed > 0);
    assert_eq!(events.len() as u64 + missed, all_events.len() as u64);
    // What came after is told again, and nothing is counted twice.
    send(1, "127.0.0.1:9");
    let (events, missed) = all(&mut monitor);
    assert!(!events.is_empty());
    assert_eq!(events.len() as u64 + missed, all_events.len() as u64 / 500);
}

#[test]
fn the_table_goes_with_its_owner_and_nobody_else_changes_it() {
    let mut socket = namespace();
    let table = TemporaryTable::make("trace", FAR, mark).expect("a table");
    let second = TemporaryTable::make("trace", FAR, mark).expect("another beside it");
    let name = table.table().name.to_owned();
    assert_ne!(name, second.table().name);
    let found = list::tables(&mut socket, Family::Inet).expect("listed");
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|table| table.owner.is_some()));
    let mut batch = Batch::new();
    batch.delete_table(Table::new(Family::Inet, &name));
    assert!(matches!(batch.commit(&mut socket), Err(CommitError::Refused(_))));
    nft(&["flush", "ruleset"]);
    assert_eq!(list::tables(&mut socket, Family::Inet).expect("listed").len(), 2);
    // An owned table is nobody's to sweep.
    assert_eq!(temporary::sweep(&mut socket, FAR + 1).expect("swept"), 0);
    drop((table, second));
    assert_eq!(list::tables(&mut socket, Family::Inet).expect("listed"), []);
}

#[test]
fn a_process_that_is_killed_leaves_no_table() {
    if std::env::var_os("MAKE_A_TABLE").is_some() {
        // Started by the same test below: a process that makes a table and waits.
        let _table = TemporaryTable::make("trace", FAR, mark).expect("a table");
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let mut socket = namespace();
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "a_process_that_is_killed_leaves_no_table", "--nocapture"])
        .env("MAKE_A_TABLE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("started");
    let there = |socket: &mut netlink::Socket| {
        list::tables(socket, Family::Inet).expect("listed").iter().any(|table| table.name.starts_with(PREFIX))
    };
    let mut tries = 0;
    while !there(&mut socket) {
        tries += 1;
        assert!(tries < 6000, "it made no table");
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert!(!there(&mut socket), "the kernel removed it with the process");
}

#[test]
fn what_an_old_kernel_kept_is_swept_when_its_time_is_over_or_its_maker_has_ended() {
    let mut socket = namespace();
    let namespace_number = std::fs::read_link("/proc/self/ns/pid").expect("a link").display().to_string();
    let number = namespace_number.trim_start_matches("pid:[").trim_end_matches(']').to_owned();
    let own = std::process::id();
    let mut batch = Batch::new();
    let mut ended = Command::new("true").spawn().expect("started");
    let gone = ended.id();
    ended.wait().expect("ended");
    for (name, comment) in [
        ("switchyard-watch-a", format!("process {own} of pid namespace {number}, until 1000")),
        ("switchyard-watch-b", format!("process {own} of pid namespace {number}, until 3000")),
        ("switchyard-watch-c", format!("process {gone} of pid namespace {number}, until 3000")),
        ("switchyard-watch-d", format!("process {gone} of pid namespace 1, until 3000")),
        ("switchyard-watch-e", "somebody's".to_owned()),
        ("another", format!("process {gone} of pid namespace {number}, until 1000")),
    ] {
        batch.add_table(Table::new(Family::Inet, name), Some(&comment));
    }
    batch.commit(&mut socket).expect("committed");
    assert_eq!(temporary::sweep(&mut socket, 2000).expect("swept"), 2);
    let left: Vec<_> = list::tables(&mut socket, Family::Inet)
        .expect("listed")
        .into_iter()
        .map(|table| table.name)
        .collect();
    let left: Vec<&str> = left.iter().map(|name| &**name).collect();
    assert_eq!(left, ["switchyard-watch-b", "switchyard-watch-d", "switchyard-watch-e", "another"]);
}
