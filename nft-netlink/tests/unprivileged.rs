//! A process that may not change nf_tables. The only test of its binary, since the user is the whole process's.

use netlink::{Error, Protocol, Socket};
use nft_netlink::{Batch, CommitError, Element, Family, Table};
use nix::{
    libc::EPERM,
    sched::{CloneFlags, unshare},
    unistd::{Uid, seteuid},
};

const TABLE: Table<'_> = Table::new(Family::Ip, "t");

#[test]
fn without_permission_the_batch_is_refused_as_a_whole_or_not_even_sent() {
    unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests run as root");
    seteuid(Uid::from_raw(65534)).expect("root may become anyone");
    let mut socket = Socket::open(Protocol::Netfilter).expect("anyone may");
    let mut batch = Batch::new();
    batch.add_table(TABLE, None);
    match batch.commit(&mut socket) {
        Err(CommitError::Refused(refusals)) => {
            assert_eq!(
                refusals.iter().map(|refusal| (refusal.position, refusal.errno)).collect::<Vec<_>>(),
                [(None, EPERM)]
            );
        }
        other => panic!("{other:?}"),
    }

    // Longer than the largest send buffer, which only the privileged may go beyond.
    let longest = socket.longest_datagram(1 << 30);
    assert!(longest < 1 << 30, "{longest}");
    for number in 0_u32.. {
        batch.add_elements(TABLE, "s").push(&Element::key(&number.to_be_bytes()));
        if batch.len_bytes() > longest + 8192 {
            break;
        }
    }
    let error = batch.commit(&mut socket).expect_err("too long");
    assert!(matches!(&error, CommitError::Invalid(Error::Unsent(_))), "{error}");
    assert_eq!(
        error.to_string(),
        "nothing of the batch was applied: the request could not be sent: Message too long (os error 90)"
    );
    seteuid(Uid::from_raw(0)).expect("the saved user is root");
}
