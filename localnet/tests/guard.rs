//! Each test in a network namespace of its own; a process each, as nextest runs them, since what was found is remembered.

use std::fs;

use netlink::{Protocol, Socket};
use nft_netlink::{Batch, Family, Table, list};
use nix::sched::{CloneFlags, unshare};

const SETTING: &str = "/proc/sys/net/ipv4/conf/all/route_localnet";
const TABLE: Table<'_> = Table::new(Family::Ip, "switchyard-localnet");

fn namespace() -> Socket {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
    Socket::open(Protocol::Netfilter).expect("a socket")
}

fn is_open() -> bool {
    fs::read_to_string(SETTING).expect("a setting").trim() == "1"
}

fn guarded(socket: &mut Socket) -> bool {
    list::chain(socket, TABLE, "guard").expect("a list").is_some_and(|chain| chain.uses == 2)
}

fn delete_guard(socket: &mut Socket) {
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    batch.commit(socket).expect("it was there");
}

#[test]
fn b3_what_was_opened_is_closed_with_the_guard() {
    let mut socket = namespace();
    localnet::open().expect("opened");
    assert!(is_open() && guarded(&mut socket) && localnet::is_safe(&mut socket).expect("told"));
    localnet::open().expect("again");
    assert!(is_open() && guarded(&mut socket));
    localnet::close().expect("closed");
    assert!(!is_open() && !guarded(&mut socket));
}

#[test]
fn b3_what_was_open_before_stays_so_behind_the_guard() {
    let mut socket = namespace();
    fs::write(SETTING, "1").expect("written");
    localnet::open().expect("opened");
    localnet::close().expect("not ours to close");
    assert!(is_open() && guarded(&mut socket));
    localnet::leave().expect("nor for good");
    assert!(is_open() && guarded(&mut socket));
}

#[test]
fn b3_a_predecessors_open_setting_is_guarded_and_after_its_end_all_goes() {
    let mut socket = namespace();
    fs::write(SETTING, "1").expect("written");
    localnet::leave().expect("nothing to do");
    assert!(!guarded(&mut socket), "for good means that nothing new comes");
    localnet::close().expect("guarded");
    assert!(is_open() && guarded(&mut socket));
    fs::write(SETTING, "0").expect("whoever opened it closes it");
    localnet::close().expect("no reason for a guard");
    assert!(!is_open() && !guarded(&mut socket));
}

#[test]
fn b3_a_guard_that_others_deleted_is_missed_and_comes_back_with_what_it_knew() {
    let mut socket = namespace();
    localnet::open().expect("opened");
    delete_guard(&mut socket);
    assert!(!localnet::is_safe(&mut socket).expect("told"));
    localnet::open().expect("again");
    assert!(localnet::is_safe(&mut socket).expect("told"));
    localnet::leave().expect("closed");
    assert!(!is_open() && !guarded(&mut socket));
}

#[test]
fn b3_where_the_setting_cannot_be_written_the_guard_stands_and_the_error_says_so() {
    let mut socket = namespace();
    unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
    use nix::mount::{MsFlags, mount};
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
    mount(Some("/proc/sys"), "/proc/sys", none, MsFlags::MS_BIND | MsFlags::MS_REC, none).expect("bound");
    mount(none, "/proc/sys", none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY, none)
        .expect("read-only");
    let error = localnet::open().expect_err("read-only");
    assert!(error.to_string().contains("route_localnet"), "{error}");
    assert!(guarded(&mut socket) && !is_open());
}
