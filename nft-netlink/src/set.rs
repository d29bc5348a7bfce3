//! Sets and maps to be made.

use std::time::Duration;

use netlink::Writer;

use crate::{
    datatype::{Field, key_length, set_userdata, type_number},
    expression::{ANONYMOUS_SET, milliseconds},
    object::Table,
    uapi::{data as data_uapi, set},
};

/// What a map holds for each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Data<'a> {
    Value(&'a [Field]),
    Verdict,
}

/// A set, or with `data` a map. Making one that exists already with the same properties is no error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Set<'a> {
    pub name: &'a str,
    pub key: &'a [Field],
    pub data: Option<Data<'a>>,
    /// Keys are ranges. With a concatenated key each field may be one.
    pub interval: bool,
    /// The packet path adds elements.
    pub dynamic: bool,
    /// Elements may have a timeout.
    pub aging: bool,
    /// Timeout of elements that do not bring their own.
    pub timeout: Option<Duration>,
    pub gc_interval: Option<Duration>,
    /// Most elements there can be; selects a hash of fixed size (fast to load, `ENFILE` when full).
    pub size: Option<u32>,
    pub comment: Option<&'a str>,
}

impl<'a> Set<'a> {
    pub const fn new(name: &'a str, key: &'a [Field]) -> Self {
        Self {
            name,
            key,
            data: None,
            interval: false,
            dynamic: false,
            aging: false,
            timeout: None,
            gc_interval: None,
            size: None,
            comment: None,
        }
    }

    pub const fn map(name: &'a str, key: &'a [Field], data: &'a [Field]) -> Self {
        let mut set = Self::new(name, key);
        set.data = Some(Data::Value(data));
        set
    }

    pub const fn verdict_map(name: &'a str, key: &'a [Field]) -> Self {
        let mut set = Self::new(name, key);
        set.data = Some(Data::Verdict);
        set
    }

    /// `flags interval`.
    #[must_use]
    pub const fn interval(mut self) -> Self {
        self.interval = true;
        self
    }

    /// `flags dynamic`.
    #[must_use]
    pub const fn dynamic(mut self) -> Self {
        self.dynamic = true;
        self
    }

    /// `flags timeout`, without a default.
    #[must_use]
    pub const fn aging(mut self) -> Self {
        self.aging = true;
        self
    }

    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.aging = true;
        self.timeout = Some(timeout);
        self
    }

    #[must_use]
    pub const fn gc_interval(mut self, interval: Duration) -> Self {
        self.gc_interval = Some(interval);
        self
    }

    #[must_use]
    pub const fn size(mut self, size: u32) -> Self {
        self.size = Some(size);
        self
    }

    #[must_use]
    pub const fn comment(mut self, comment: &'a str) -> Self {
        self.comment = Some(comment);
        self
    }

    /// nft's number for the type of the key.
    pub fn key_type(&self) -> u32 {
        type_number(self.key)
    }

    /// nft's number for the type of the data, as a [`crate::list::FoundSet`] has it.
    pub fn data_type(&self) -> u32 {
        match self.data {
            Some(Data::Value(fields)) => type_number(fields),
            Some(Data::Verdict) => data_uapi::VERDICT_TYPE,
            None => 0,
        }
    }

    /// Bytes of a key.
    pub const fn key_length(&self) -> u32 {
        key_length(self.key)
    }

    /// Bytes of a datum; 0 for a plain set and for verdicts.
    pub const fn data_length(&self) -> u32 {
        match self.data {
            Some(Data::Value(fields)) => key_length(fields),
            Some(Data::Verdict) | None => 0,
        }
    }

    fn flags(&self) -> u32 {
        [
            (self.interval, set::INTERVAL),
            (self.interval && self.key.len() > 1, set::CONCAT),
            (self.data.is_some(), set::MAP),
            (self.aging, set::HAS_TIMEOUT),
            (self.dynamic, set::EVAL),
        ]
        .into_iter()
        .filter_map(|(on, flag)| on.then_some(flag))
        .sum()
    }

    /// Writes the attributes. `id` identifies the set within the batch, `anonymous` takes its name away.
    pub(crate) fn write(&self, table: Table<'_>, id: u32, anonymous: bool, writer: &mut Writer) {
        let flags = self.flags() | if anonymous { set::ANONYMOUS | set::CONSTANT } else { 0 };
        writer.str(set::TABLE, table.name);
        writer.str(set::NAME, if anonymous { ANONYMOUS_SET } else { self.name });
        writer.be32(set::FLAGS, flags);
        writer.be32(set::KEY_TYPE, type_number(self.key));
        writer.be32(set::KEY_LENGTH, key_length(self.key));
        match self.data {
            Some(Data::Value(fields)) => {
                writer.be32(set::DATA_TYPE, type_number(fields));
                writer.be32(set::DATA_LENGTH, key_length(fields));
            }
            Some(Data::Verdict) => {
                writer.be32(set::DATA_TYPE, data_uapi::VERDICT_TYPE);
                writer.be32(set::DATA_LENGTH, data_uapi::VERDICT_LENGTH);
            }
            None => {}
        }
        if self.size.is_some() || flags & set::CONCAT != 0 {
            writer.nest(set::DESCRIPTION, |description| {
                if let Some(size) = self.size {
                    description.be32(set::DESCRIPTION_SIZE, size);
                }
                if flags & set::CONCAT != 0 {
                    let fields = description.begin(set::DESCRIPTION_CONCAT);
                    for field in self.key {
                        description.nest(crate::uapi::LIST_ELEMENT, |part| {
                            part.be32(set::FIELD_LENGTH, field.length());
                        });
                    }
                    description.end(fields);
                }
            });
        }
        writer.be32(set::ID, id);
        if let Some(timeout) = self.timeout {
            writer.be64(set::TIMEOUT, milliseconds(timeout));
        }
        if let Some(interval) = self.gc_interval {
            writer.be32(set::GC_INTERVAL, u32::try_from(interval.as_millis()).unwrap_or(u32::MAX));
        }
        let data = self.data.map(|data| match data {
            Data::Value(fields) => fields,
            Data::Verdict => &[],
        });
        writer.bytes(set::USERDATA, &set_userdata(self.key, data, self.comment));
    }
}
