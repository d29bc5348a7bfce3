//! One step, one transaction, one answer: what is to be deleted and is gone counts as done, and nothing else does.
//!
//! Where the socket may not send a whole step at once (in a user namespace `net.core.wmem_max` is the limit), it is cut up.

use std::{collections::HashSet, io};

use nft_netlink::{CommitError, Refusal, list};
use proxy_core::backend::{ApplyError, Owned, Step};

use crate::{
    kernel::{
        encode::{Absent, table},
        encode_set::key_bytes,
        executor::{Executor, lost},
    },
    schema::{
        element::Key,
        name::Set,
        operation::{Op, Operation},
    },
};

// asm-generic/errno.h
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;

/// Refusals that no single object can be blamed for.
const NOBODYS_FAULT: [i32; 10] = [
    1,   // EPERM
    4,   // EINTR
    11,  // EAGAIN
    12,  // ENOMEM
    16,  // EBUSY
    23,  // ENFILE: a set is full
    85,  // ERESTART
    105, // ENOBUFS
    110, // ETIMEDOUT
    90,  // EMSGSIZE
];

/// How often a transaction is tried again without what somebody else deleted meanwhile.
const TRIES: usize = 4;
/// Bytes of a batch's begin and end.
const MARKERS: usize = 64;

impl Executor {
    /// Commits a step, as one transaction wherever the socket takes that much; `anew`: of a plan for everything, so that it does
    /// not matter how much of it was done before a refusal.
    pub(crate) fn commit(&mut self, step: &Step<Op>, anew: bool) -> Result<(), ApplyError> {
        self.encode(&step.ops, &Absent::default());
        let bytes = self.batch.len_bytes() + MARKERS;
        let longest = self.socket.longest_datagram(bytes);
        if bytes <= longest {
            self.transaction(&step.ops)
        } else {
            self.in_pieces(&step.ops, bytes, longest, anew)
        }
    }

    /// Commits operations in as many transactions as it takes, in their order.
    fn in_pieces(
        &mut self,
        ops: &[Owned<Op>],
        bytes: usize,
        longest: usize,
        anew: bool,
    ) -> Result<(), ApplyError> {
        let ops = single(ops);
        // As they would be cut if all were as long; halved where one is longer.
        let most = (ops.len() * longest / bytes).max(1);
        let mut rest = &ops[..];
        let mut changed = false;
        while !rest.is_empty() {
            let mut length = most.min(rest.len());
            loop {
                self.encode(&rest[..length], &Absent::default());
                if length == 1 || self.batch.len_bytes() + MARKERS <= longest {
                    break;
                }
                length = length.div_ceil(2);
            }
            let (piece, after) = rest.split_at(length);
            match self.transaction(piece) {
                Err(ApplyError::Refused { reason, .. }) if changed && !anew => {
                    return Err(ApplyError::Lost(io::Error::other(reason)));
                }
                outcome => outcome?,
            }
            changed = true;
            rest = after;
        }
        Ok(())
    }

    fn encode(&mut self, ops: &[Owned<Op>], absent: &Absent) {
        self.batch.clear();
        self.encoder.encode(ops, absent, &mut self.batch);
    }

    /// Commits what is in the batch, these operations.
    fn transaction(&mut self, ops: &[Owned<Op>]) -> Result<(), ApplyError> {
        let mut absent = Absent::default();
        for _ in 0..TRIES {
            let refusals = match self.batch.commit(&mut self.socket) {
                Ok(()) => {
                    let operations = ops.iter().map(|owned| &owned.op.0);
                    self.drift.done(operations, !self.batch.is_empty());
                    return Ok(());
                }
                Err(CommitError::Refused(refusals)) => refusals,
                Err(CommitError::Lost(error)) => return Err(lost(error)),
                Err(CommitError::Invalid(error)) => {
                    return Err(ApplyError::Refused { reason: error.to_string(), culprit: None });
                }
            };
            let Some(missing) = self.missing(ops, &refusals) else {
                return Err(self.judge(ops, &refusals));
            };
            // The kernel tells of one element of each message, and there may be any number.
            if missing.iter().any(|at| deletes_elements(&ops[*at].op.0)) {
                absent.elements = self.absent_elements(ops)?;
            }
            absent.operations.extend(missing.into_iter().filter(|at| !deletes_elements(&ops[*at].op.0)));
            self.encode(ops, &absent);
        }
        Err(ApplyError::Lost(io::Error::other("somebody else goes on deleting what is being deleted")))
    }

    /// The operations that were refused, if all of them were to delete what is not there.
    fn missing(&self, ops: &[Owned<Op>], refusals: &[Refusal]) -> Option<Vec<usize>> {
        let missing = |refusal: &Refusal| {
            let at = self.encoder.operation_at(refusal.position?)?;
            (refusal.errno == ENOENT && deletes(&ops[at].op.0)).then_some(at)
        };
        refusals.iter().map(missing).collect()
    }

    /// Which of the elements that are to be deleted are not there.
    fn absent_elements(&mut self, ops: &[Owned<Op>]) -> Result<HashSet<(Set, Key)>, ApplyError> {
        let mut wanted = Vec::new();
        for owned in ops {
            let (Operation::Delete { generation, .. } | Operation::DeleteGroup { generation, .. }) =
                owned.op.0
            else {
                continue;
            };
            owned.op.0.elements(|element| {
                let set = element.set_name(generation).to_string();
                wanted.push((set, key_bytes(&element.key).0, (element.set, element.key)));
            });
        }
        let asked: Vec<(&str, &[u8])> =
            wanted.iter().map(|(set, key, _)| (set.as_str(), key.as_slice())).collect();
        let present = list::elements_present(&mut self.socket, table(self.family), &asked).map_err(lost)?;
        Ok(wanted
            .into_iter()
            .zip(present)
            .filter(|(_, present)| !present)
            .map(|((.., key), _)| key)
            .collect())
    }

    /// What a refusal means to the engine.
    fn judge(&self, ops: &[Owned<Op>], refusals: &[Refusal]) -> ApplyError {
        let at = |refusal: &Refusal| self.encoder.operation_at(refusal.position?);
        let state_differs = |refusal: &&Refusal| [ENOENT, EEXIST].contains(&refusal.errno);
        if let Some(refusal) = refusals.iter().find(state_differs) {
            // Somebody else changed the table.
            return ApplyError::Lost(self.described(ops, refusal));
        }
        let blamable = refusals.iter().find(|refusal| !NOBODYS_FAULT.contains(&refusal.errno));
        let culprit = blamable.and_then(at).and_then(|at| ops[at].owner);
        let first = blamable.or_else(|| refusals.first());
        let reason = first.map_or_else(String::new, |refusal| self.described(ops, refusal).to_string());
        ApplyError::Refused { reason, culprit }
    }

    fn described(&self, ops: &[Owned<Op>], refusal: &Refusal) -> io::Error {
        let errno = io::Error::from_raw_os_error(refusal.errno);
        let what = refusal
            .position
            .and_then(|position| self.encoder.operation_at(position))
            .map_or_else(|| "the transaction".to_owned(), |at| first_line(&ops[at].op));
        let detail = refusal.message.as_deref().map_or(String::new(), |text| format!(" ({text})"));
        io::Error::new(errno.kind(), format!("{what}: {errno}{detail}"))
    }
}

fn first_line(op: &Op) -> String {
    op.to_string().lines().next().unwrap_or_default().to_owned()
}

fn deletes(operation: &Operation) -> bool {
    deletes_elements(operation)
        || matches!(
            operation,
            Operation::FlushChain { .. } | Operation::DeleteChain { .. } | Operation::DeleteSet { .. }
        )
}

fn deletes_elements(operation: &Operation) -> bool {
    matches!(operation, Operation::Delete { .. } | Operation::DeleteGroup { .. })
}

/// The same operations, none with more than one element.
fn single(ops: &[Owned<Op>]) -> Vec<Owned<Op>> {
    let mut singles = Vec::with_capacity(ops.len());
    for Owned { op, owner } in ops {
        let mut push = |operation| singles.push(Owned { op: Op(operation), owner: *owner });
        match &op.0 {
            Operation::AddGroup { generation, .. } | Operation::AddEndpoints { generation, .. } => {
                op.0.elements(|element| push(Operation::Add { generation: *generation, element }));
            }
            Operation::DeleteGroup { generation, .. } => {
                op.0.elements(|element| push(Operation::Delete { generation: *generation, element }));
            }
            other => push(other.clone()),
        }
    }
    singles
}
