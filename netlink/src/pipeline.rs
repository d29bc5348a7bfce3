//! Many independent requests in few datagrams: the kernel works off every message of a datagram and answers those that
//! failed; only the last of each datagram asks for an ACK.

use crate::{
    attr::Writer,
    error::{Error, Failure},
    socket::Socket,
};

/// Messages per datagram, and bytes per datagram where they are long (the default send buffer takes about 200 KB).
const MOST_MESSAGES: usize = 256;
const MOST_BYTES: usize = 64 << 10;

/// Requests waiting to be sent. Unlike an nft batch they stand alone: one that fails does not undo the others.
#[derive(Clone, Debug, Default)]
pub struct Pipeline {
    writer: Writer,
    starts: Vec<usize>,
}

impl Pipeline {
    pub const fn new() -> Self {
        Self { writer: Writer::new(), starts: Vec::new() }
    }

    /// Adds a request: `fill` writes what follows the netlink header. Answers its index.
    pub fn push(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) -> usize {
        let start = self.writer.begin_message(kind, flags);
        self.starts.push(start.offset());
        fill(&mut self.writer);
        self.writer.pad();
        self.writer.end_message(start);
        self.starts.len() - 1
    }

    /// Number of requests.
    pub const fn len(&self) -> usize {
        self.starts.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Forgets all requests, keeps the memory.
    pub fn clear(&mut self) {
        self.writer.clear();
        self.starts.clear();
    }

    /// The requests as they would be sent, not numbered.
    pub fn bytes(&self) -> &[u8] {
        self.writer.as_bytes()
    }

    /// Sends everything; answers the requests that were refused, by index. On an error, how far it came is unknown.
    pub fn run(&mut self, socket: &mut Socket) -> Result<Vec<Failure>, Error> {
        if self.writer.overflowed() {
            return Err(Error::TooLong);
        }
        let mut failures = Vec::new();
        let mut next = 0;
        while next < self.starts.len() {
            let end = self.datagram_end(next);
            let first = socket.reserve((end - next) as u32);
            for (sequence, index) in (next..end).enumerate() {
                self.writer.number_message(self.starts[index], first.wrapping_add(sequence as u32));
                self.writer.acknowledge_message(self.starts[index], index + 1 == end);
            }
            let bytes = &self.writer.as_bytes()[self.starts[next]..self.offset(end)];
            let last = first.wrapping_add((end - next - 1) as u32);
            let refused = socket.exchange(&[bytes], first, last)?;
            failures.extend(
                refused.into_iter().map(|failure| Failure { index: failure.index + next, ..failure }),
            );
            next = end;
        }
        Ok(failures)
    }

    fn datagram_end(&self, next: usize) -> usize {
        let most = (next + MOST_MESSAGES).min(self.starts.len());
        let limit = self.starts[next] + MOST_BYTES;
        (next + 1..=most).rev().find(|end| self.offset(*end) <= limit).unwrap_or(next + 1)
    }

    /// Where request `index` begins, or everything ends.
    fn offset(&self, index: usize) -> usize {
        self.starts.get(index).copied().unwrap_or(self.writer.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where datagrams end when requests of this length are sent.
    fn ends(requests: usize, length: usize) -> Vec<usize> {
        let mut pipeline = Pipeline::new();
        for index in 0..requests {
            assert_eq!(pipeline.push(20, 0, |writer| writer.raw(&vec![0; length - 16])), index);
        }
        let mut ends = vec![pipeline.datagram_end(0)];
        while *ends.last().expect("one at least") < requests {
            ends.push(pipeline.datagram_end(*ends.last().expect("one at least")));
        }
        ends
    }

    #[test]
    fn a_datagram_is_bounded_by_messages_and_by_bytes() {
        assert_eq!(ends(600, 20), [256, 512, 600]);
        assert_eq!(ends(5, 30 << 10), [2, 4, 5]);
        assert_eq!(ends(2, 100 << 10), [1, 2], "one that is longer goes alone");
    }
}
