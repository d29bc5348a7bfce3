//! The header of a netlink message: writing it, and walking the messages of a datagram.

use crate::attr::{Attributes, Writer};

/// Length of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// `nlmsg_flags`, from linux/netlink.h.
pub mod flags {
    pub const REQUEST: u16 = 0x001;
    pub const ACK: u16 = 0x004;
    pub const DUMP_INTERRUPTED: u16 = 0x010;
    pub const DUMP: u16 = 0x300;
    pub const REPLACE: u16 = 0x100;
    pub const EXCLUSIVE: u16 = 0x200;
    pub const CREATE: u16 = 0x400;
    pub const APPEND: u16 = 0x800;
    /// On an error: the request is not repeated in full.
    pub const CAPPED: u16 = 0x100;
    /// On an error: attributes with details follow.
    pub const ACK_ATTRIBUTES: u16 = 0x200;
}

/// `NLMSG_ERROR` and `NLMSG_DONE`: the types that belong to netlink itself.
pub const ERROR: u16 = 2;
pub const DONE: u16 = 3;

/// A message that is still being written: where its header stands.
#[derive(Debug)]
#[must_use = "a message has no length until `end_message` is called"]
pub struct Start(usize);

impl Start {
    pub const fn offset(&self) -> usize {
        self.0
    }
}

impl Writer {
    /// Writes a header; sequence numbers are filled in by what sends it.
    pub fn begin_message(&mut self, kind: u16, flags: u16) -> Start {
        let at = self.len();
        let mut header = [0; HEADER];
        header[4..6].copy_from_slice(&kind.to_ne_bytes());
        header[6..8].copy_from_slice(&(flags | flags::REQUEST).to_ne_bytes());
        self.raw(&header);
        Start(at)
    }

    /// Writes the length of the message into its header.
    pub fn end_message(&mut self, start: Start) {
        let length = (self.len() - start.0) as u32;
        self.patch(start.0, &length.to_ne_bytes());
    }

    /// Gives the message whose header stands at `offset` its sequence number.
    pub fn number_message(&mut self, offset: usize, sequence: u32) {
        self.patch(offset + 8, &sequence.to_ne_bytes());
    }

    /// Asks for an answer to the message whose header stands at `offset`, also when it succeeds.
    pub fn acknowledge_message(&mut self, offset: usize, wanted: bool) {
        let at = offset + 6;
        let flags = u16::from_ne_bytes([self.as_bytes()[at], self.as_bytes()[at + 1]]);
        let flags = if wanted { flags | flags::ACK } else { flags & !flags::ACK };
        self.patch(at, &flags.to_ne_bytes());
    }
}

/// The messages of one datagram. Ends early where a length makes no sense.
#[derive(Clone, Debug)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header: &[u8; HEADER] = self.0.first_chunk()?;
        let &[l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let payload = self.0.get(HEADER..length)?;
        self.0 = length.checked_next_multiple_of(4).and_then(|next| self.0.get(next..)).unwrap_or(&[]);
        Some(Message {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            sequence: u32::from_ne_bytes([s0, s1, s2, s3]),
            payload,
        })
    }
}

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub kind: u16,
    pub flags: u16,
    pub sequence: u32,
    /// Everything after the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The attributes after a family header of this length.
    pub fn attributes(&self, family_header: usize) -> Attributes<'a> {
        Attributes::new(self.payload.get(family_header..).unwrap_or(&[]))
    }

    /// The errno of an answer (0 for an ACK), if this is one.
    pub fn answer(&self) -> Option<i32> {
        let code = self.payload.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        // One without a code is no success.
        (self.kind == ERROR).then(|| code.map_or(nix::libc::EBADMSG, i32::wrapping_neg))
    }

    /// What the kernel adds to an answer: the offset of the offending attribute, and a sentence.
    pub(crate) fn details(&self) -> (Option<u32>, Option<&'a str>) {
        const MESSAGE: u16 = 1;
        const OFFSET: u16 = 2;
        if self.kind != ERROR || self.flags & flags::ACK_ATTRIBUTES == 0 {
            return (None, None);
        }
        let repeated = if self.flags & flags::CAPPED != 0 {
            HEADER
        } else {
            let length = self.payload.get(4..).and_then(<[u8]>::first_chunk);
            let length = length.map_or(0, |bytes| u32::from_ne_bytes(*bytes) as usize);
            length.checked_next_multiple_of(4).unwrap_or(usize::MAX)
        };
        let attributes = self.attributes(repeated.saturating_add(4));
        (
            attributes.get(OFFSET).and_then(|offset| offset.u32()),
            attributes.get(MESSAGE).and_then(|text| text.str()),
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_written_one_after_the_other_are_walked() {
        let mut writer = Writer::new();
        for kind in [20, 21] {
            let start = writer.begin_message(kind, flags::CREATE);
            let at = start.offset();
            writer.u32(1, u32::from(kind));
            writer.end_message(start);
            writer.number_message(at, 100 + u32::from(kind));
        }
        writer.acknowledge_message(24, true);
        let messages: Vec<_> = Messages::new(writer.as_bytes()).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].kind, messages[0].sequence, messages[0].flags), (20, 120, 0x401));
        assert_eq!((messages[1].kind, messages[1].sequence, messages[1].flags), (21, 121, 0x405));
        assert_eq!(messages[1].attributes(0).get(1).and_then(|a| a.u32()), Some(21));
    }

    #[test]
    fn an_error_without_a_code_is_no_acknowledgement() {
        let message = |payload| Message { kind: ERROR, flags: 0, sequence: 1, payload };
        assert_eq!(message(&[0; 4]).answer(), Some(0));
        assert_eq!(message(&[0xfe, 0xff, 0xff, 0xff]).answer(), Some(2));
        assert_ne!(message(&[]).answer(), Some(0));
    }

    proptest! {
        #[test]
        fn any_datagram_is_walked_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
            kind in 0u16..4,
        ) {
            for mut message in Messages::new(&bytes) {
                message.kind = kind;
                let _ = (message.answer(), message.details(), message.attributes(4).count());
            }
        }
    }
}
