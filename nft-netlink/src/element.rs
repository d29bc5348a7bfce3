//! Elements of sets: lists of them in as few messages as the length field of a list allows.

use std::time::Duration;

use netlink::{Writer, attr::NESTED};

use crate::{
    datatype::put_comment,
    expression::{Verdict, milliseconds},
    uapi::{LIST_ELEMENT, data, element},
};

/// An element with everything it can have. For many of one shape, [`Template`] is faster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Element<'a> {
    /// As it stands in the registers: see [`crate::concat`].
    pub key: &'a [u8],
    /// The last key of a range, in an interval set with a concatenated key.
    pub key_end: Option<&'a [u8]>,
    pub data: ElementData<'a>,
    /// The key is the first that no longer belongs to the range, in an interval set with a single key.
    pub interval_end: bool,
    pub timeout: Option<Duration>,
    pub comment: Option<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementData<'a> {
    None,
    Value(&'a [u8]),
    Verdict(&'a Verdict),
}

impl<'a> Element<'a> {
    pub const fn key(key: &'a [u8]) -> Self {
        Self {
            key,
            key_end: None,
            data: ElementData::None,
            interval_end: false,
            timeout: None,
            comment: None,
        }
    }

    pub const fn value(key: &'a [u8], value: &'a [u8]) -> Self {
        let mut element = Self::key(key);
        element.data = ElementData::Value(value);
        element
    }

    pub const fn verdict(key: &'a [u8], verdict: &'a Verdict) -> Self {
        let mut element = Self::key(key);
        element.data = ElementData::Verdict(verdict);
        element
    }

    #[must_use]
    pub const fn to(mut self, key_end: &'a [u8]) -> Self {
        self.key_end = Some(key_end);
        self
    }

    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    #[must_use]
    pub const fn comment(mut self, comment: &'a str) -> Self {
        self.comment = Some(comment);
        self
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        let outer = writer.begin(LIST_ELEMENT);
        write_value(writer, element::KEY, self.key);
        if let Some(key_end) = self.key_end {
            write_value(writer, element::KEY_END, key_end);
        }
        match self.data {
            ElementData::None => {}
            ElementData::Value(value) => write_value(writer, element::DATA, value),
            ElementData::Verdict(verdict) => verdict.write(writer, element::DATA),
        }
        if self.interval_end {
            writer.be32(element::FLAGS, element::INTERVAL_END);
        }
        if let Some(timeout) = self.timeout {
            writer.be64(element::TIMEOUT, milliseconds(timeout));
        }
        if let Some(comment) = self.comment {
            put_comment(writer, element::USERDATA, comment);
        }
        writer.end(outer);
    }
}

fn write_value(writer: &mut Writer, kind: u16, value: &[u8]) {
    let outer = writer.begin(kind);
    writer.bytes(data::VALUE, value);
    writer.end(outer);
}

/// The bytes of an element of fixed shape, made once; an element is then a copy and one or two patches.
#[derive(Clone, Debug)]
pub struct Template {
    pub(crate) bytes: [u8; Self::LONGEST],
    pub(crate) length: usize,
    /// Where the data begins.
    pub(crate) data: usize,
}

impl Template {
    /// Key and data of 64 bytes each (`NFT_DATA_VALUE_MAXLEN`) and their headers.
    const LONGEST: usize = 148;
    /// Where the key begins: after the headers of the element, the key and the value.
    pub(crate) const KEY: usize = 12;

    /// For elements of keys of this length, and data of this length unless it is 0. Lengths are at most 64.
    pub const fn new(key: usize, data: usize) -> Self {
        assert!(key <= 64 && data <= 64, "nf_tables knows values up to 64 bytes");
        let mut bytes = [0; Self::LONGEST];
        let key_end = Self::KEY + key.next_multiple_of(4);
        header(&mut bytes, 4, 8 + key, element::KEY | NESTED);
        header(&mut bytes, 8, 4 + key, data::VALUE);
        let (length, data_at) = if data == 0 {
            (key_end, key_end)
        } else {
            header(&mut bytes, key_end, 8 + data, element::DATA | NESTED);
            header(&mut bytes, key_end + 4, 4 + data, data::VALUE);
            (key_end + 8 + data.next_multiple_of(4), key_end + 8)
        };
        // The kernel accepts a nest whose last attribute is not padded as well as one where it is.
        header(&mut bytes, 0, length, LIST_ELEMENT | NESTED);
        Self { bytes, length, data: data_at }
    }

    /// Bytes of one element.
    pub const fn length(&self) -> usize {
        self.length
    }
}

const fn header(bytes: &mut [u8], at: usize, length: usize, kind: u16) {
    let [a, b] = (length as u16).to_ne_bytes();
    let [c, d] = kind.to_ne_bytes();
    bytes[at] = a;
    bytes[at + 1] = b;
    bytes[at + 2] = c;
    bytes[at + 3] = d;
}

/// The next larger number, read as big endian; none after the largest.
pub(crate) fn successor(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut next = bytes.to_vec();
    for byte in next.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(next);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_successor_carries_and_ends_at_the_top() {
        assert_eq!(successor(&[10, 0, 255, 255]), Some(vec![10, 1, 0, 0]));
        assert_eq!(successor(&[255; 4]), None);
    }
}
