//! A private network namespace for each test, and the `nft` program as a second opinion.

use std::process::Command;

use netlink::{Protocol, Socket};
use nix::sched::{CloneFlags, unshare};

/// Moves this process (one per test) into a network namespace of its own.
pub(crate) fn namespace() -> Socket {
    unshare(CloneFlags::CLONE_NEWNET).expect("the tests run as root");
    Socket::open(Protocol::Netfilter).expect("a kernel with nfnetlink")
}

/// What `nft` prints. Fails the test when it fails, also when it crashes.
pub(crate) fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft is installed");
    assert!(
        output.status.success(),
        "nft {arguments:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("nft prints UTF-8")
}
