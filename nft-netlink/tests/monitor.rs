//! Watching nf_tables of a network namespace of the test's own. Needs root; run under nextest (a process each).

use std::process::Command;

use netlink::{Dump, Protocol, Socket};
use nft_netlink::{generation::generation, monitor::NftMonitor};
use nix::sched::{CloneFlags, unshare};

fn nft(rules: &str) -> u32 {
    let mut child = Command::new("nft").arg(rules).spawn().expect("nft is installed");
    let id = child.id();
    assert!(child.wait().expect("it ends").success(), "nft {rules}");
    id
}

#[test]
fn every_transaction_raises_the_generation_and_says_who_touched_what() {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
    let mut socket = Socket::open(Protocol::Netfilter).expect("a socket");
    let mut monitor = NftMonitor::open().expect("a monitor");
    let before = generation(&mut socket).expect("asked");
    assert_eq!(monitor.drain().expect("read").transactions, []);

    let first = nft("add table ip one; add table ip6 two; add chain ip one c; add rule ip one c accept");
    let second =
        nft("add set ip one s { type ipv4_addr; }; add element ip one s { 192.0.2.1 }; delete table ip6 two");

    assert_eq!(generation(&mut socket).expect("asked"), before + 2);
    let changes = monitor.drain().expect("read");
    assert!(!changes.overrun);
    let [one, two] = &changes.transactions[..] else { panic!("{changes:?}") };
    assert_eq!((one.generation, one.process, &*one.process_name), (before + 1, first, "nft"));
    assert_eq!((two.generation, two.process), (before + 2, second));
    assert_eq!(
        one.touched.iter().map(|touched| (touched.family, &*touched.table)).collect::<Vec<_>>(),
        [(2, "one"), (10, "two")]
    );
    assert!(one.touched[0].chains && one.touched[0].rules && !one.touched[0].elements);
    assert!(two.touched[0].sets && two.touched[0].elements && !two.touched[0].table_deleted);
    assert!(two.touched[1].table_deleted);

    assert!(changes.others_touched(first, 2, "one"), "the second process did");
    assert!(!changes.others_touched(second, 10, "one"), "no such table");
    assert_eq!(monitor.drain().expect("read").transactions, [], "each is told once");
}

#[test]
fn a_deleted_table_is_noticed_though_its_contents_are_announced_too() {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
    nft(
        "add table ip one; add chain ip one c; add set ip one s { type ipv4_addr; elements = { 192.0.2.1 }; }",
    );
    let mut monitor = NftMonitor::open().expect("a monitor");
    let process = nft("delete table ip one");
    let mut changes = monitor.drain().expect("read");
    let [deletion] = &changes.transactions[..] else { panic!("{changes:?}") };
    assert!(deletion.touched.len() == 1 && deletion.touched[0].table_deleted, "{deletion:?}");
    assert!(!changes.others_touched(process, 2, "one"), "it was we");
    assert!(changes.others_touched(process + 1, 2, "one"), "it was another");
    changes.overrun = true;
    assert!(changes.others_touched(process, 2, "one"), "it may have been another");
}

#[test]
fn a_dump_that_something_changed_under_is_called_interrupted() {
    const GET_CHAIN: u16 = 10 << 8 | 4;
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
    let chains: String = (0..2000).map(|number| format!("add chain ip one chain-{number}; ")).collect();
    nft(&format!("add table ip one; {chains}"));
    let mut socket = Socket::open(Protocol::Netfilter).expect("a socket");
    let mut listed = 0;
    let quiet = socket.dump(GET_CHAIN, |writer| writer.raw(&[2, 0, 0, 0]), |_| listed += 1);
    assert_eq!((quiet.expect("listed"), listed), (Dump::Complete, 2000));

    let mut changed = false;
    let outcome = socket.dump(
        GET_CHAIN,
        |writer| writer.raw(&[2, 0, 0, 0]),
        |_| {
            if !std::mem::replace(&mut changed, true) {
                nft("delete chain ip one chain-1");
            }
        },
    );
    assert_eq!(outcome.expect("listed"), Dump::Interrupted);
}
