//! The rule set's generation: one number for a network namespace, which every transaction raises by one, whoever makes
//! it. With a count of our own transactions it tells, at a cost that does not depend on the rule set, whether anybody
//! else made one.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use netlink::{Error, Socket};

use crate::uapi::{FAMILY_HEADER, generation, message, message_kind};

/// The number of the rule set's current generation.
pub fn generation(socket: &mut Socket) -> Result<u32, Error> {
    socket.ask(
        message_kind(message::GET_GENERATION),
        0,
        |writer| writer.raw(&[0; FAMILY_HEADER]),
        |message| message.attributes(FAMILY_HEADER).get(generation::ID)?.be32(),
    )
}

/// The transactions that this process made in one network namespace. Clones count together: everything that writes
/// there from one thread shares one.
#[derive(Clone, Debug, Default)]
pub struct OwnCommits(Arc<AtomicU32>);

impl OwnCommits {
    /// Notes a transaction that changed something: the kernel does not count one that did not.
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where the rule set stood, and how many transactions had been ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    generation: u32,
    own: u32,
}

/// Tells whether anybody else made a transaction since things were last seen to be in order.
#[derive(Debug)]
pub struct Watch {
    own: OwnCommits,
    accepted: Option<Sight>,
}

impl Watch {
    pub const fn new(own: OwnCommits) -> Self {
        Self { own, accepted: None }
    }

    /// The count of our own transactions that this one goes by.
    pub fn own(&self) -> OwnCommits {
        self.own.clone()
    }

    /// Notes a transaction of ours that changed something.
    pub fn committed(&self) {
        self.own.note();
    }

    /// Where the rule set stands now.
    pub fn look(&self, socket: &mut Socket) -> Result<Sight, Error> {
        Ok(Sight { generation: generation(socket)?, own: self.own.0.load(Ordering::Relaxed) })
    }

    /// Whether all transactions from what was accepted up to `now` were ours.
    pub fn undisturbed(&self, now: Sight) -> bool {
        self.accepted.is_some_and(|then| {
            now.generation.wrapping_sub(then.generation) == now.own.wrapping_sub(then.own)
        })
    }

    /// Takes it that all was in order as of then. To be sure, look first, then see that all is in order.
    pub const fn accept(&mut self, sight: Sight) {
        self.accepted = Some(sight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_transactions_do_not_disturb_and_one_of_somebody_else_does() {
        let own = OwnCommits::default();
        let mut watch = Watch::new(own.clone());
        let sight = |generation| Sight { generation, own: own.0.load(Ordering::Relaxed) };
        assert!(!watch.undisturbed(sight(7)), "nothing is known yet");
        watch.accept(sight(7));
        assert!(watch.undisturbed(sight(7)));
        watch.committed();
        own.note();
        assert!(watch.undisturbed(sight(9)));
        assert!(!watch.undisturbed(sight(10)));
        watch.accept(sight(10));
        assert!(watch.undisturbed(sight(10)));
    }
}
