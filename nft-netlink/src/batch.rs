//! One nf_tables transaction: messages gathered in one buffer, sent as one datagram, all of it applied or nothing.
//!
//! The ACK is asked of the last message inside the batch, never of its end marker: Linux 6.1 does not answer there.
//! Messages that fail are answered whether they asked or not, each with its sequence number, so several errors come back
//! from one attempt.

use netlink::{Attributes, Nest, Socket, Writer, flags, message::Start};

use crate::{
    element::{Element, Template, successor},
    expression::{SetName, write_name},
    object::{Chain, Table},
    rule::Rule,
    set::Set,
    uapi::{
        BATCH_BEGIN, BATCH_END, BATCH_GENERATION, FAMILY_HEADER, SUBSYSTEM, chain, element, message,
        message_kind, rule, set, table as table_uapi,
    },
};

/// The longest list of elements, a multiple of four.
const LONGEST_LIST: usize = netlink::attr::MAX_ATTRIBUTE & !3;

/// Where in a batch something stands. Ordered as it was added, so that a caller who remembers where each of its
/// operations began finds the one at fault by binary search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub message: u32,
    /// Within a list of elements; otherwise 0.
    pub element: u32,
}

/// Something in the batch that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// `None`: the batch as a whole (no permission, generation moved on, no nf_tables, failed validation at the end).
    pub position: Option<Position>,
    /// A positive errno.
    pub errno: i32,
    /// What the kernel says about it.
    pub message: Option<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.position {
            Some(Position { message, element }) => write!(f, "message {message}, element {element}: ")?,
            None => f.write_str("the batch as a whole: ")?,
        }
        std::io::Error::from_raw_os_error(self.errno).fmt(f)?;
        self.message.as_ref().map_or(Ok(()), |message| write!(f, ": {message}"))
    }
}

/// Why a batch is not known to have been applied.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Nothing was applied. There is at least one refusal.
    #[error("nf_tables refused {} of the batch, first {}", .0.len(), .0[0])]
    Refused(Vec<Refusal>),
    /// Whether it was applied is unknown.
    #[error("nf_tables did not answer: {0}")]
    Lost(#[source] netlink::Error),
    /// Nothing was sent.
    #[error("nothing of the batch was applied: {0}")]
    Invalid(#[source] netlink::Error),
}

/// Messages for one transaction. Pure data until [`Batch::commit`]; may be committed again, or cleared and reused.
#[derive(Debug, Default)]
pub struct Batch {
    writer: Writer,
    /// Where each message begins.
    starts: Vec<usize>,
    open: Option<OpenList>,
    expected_generation: Option<u32>,
    sets: u32,
    elements: u64,
}

/// The element list at the end of the buffer, not closed yet.
#[derive(Debug)]
struct OpenList {
    kind: u16,
    flags: u16,
    family: crate::Family,
    table: Box<str>,
    set: SetName,
    started: Option<(Start, Nest)>,
    elements: u32,
}

impl Batch {
    pub const fn new() -> Self {
        Self {
            writer: Writer::new(),
            starts: Vec::new(),
            open: None,
            expected_generation: None,
            sets: 0,
            elements: 0,
        }
    }

    /// Forgets all messages, keeps the memory.
    pub fn clear(&mut self) {
        self.writer.clear();
        self.starts.clear();
        self.open = None;
        self.expected_generation = None;
        self.sets = 0;
        self.elements = 0;
    }

    /// Has the kernel refuse the batch (`ERESTART`) unless the rule set still has this generation.
    pub const fn expect_generation(&mut self, generation: u32) {
        self.expected_generation = Some(generation);
    }

    pub const fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Number of messages.
    pub const fn messages(&self) -> usize {
        self.starts.len()
    }

    /// Number of elements in all lists.
    pub const fn elements(&self) -> u64 {
        self.elements
    }

    /// Bytes that would be sent, without the batch's own begin and end.
    pub fn len_bytes(&self) -> usize {
        self.writer.len()
    }

    /// The messages as they would be sent, without the batch's own begin and end, and not numbered.
    pub fn bytes(&mut self) -> Vec<u8> {
        self.close();
        self.writer.as_bytes().to_vec()
    }

    // === tables ===

    /// Makes a table unless it exists; one that was put to sleep (`flags dormant`) is woken.
    pub fn add_table(&mut self, table: Table<'_>, comment: Option<&str>) -> Position {
        self.message(message::NEW_TABLE, flags::CREATE, table, |writer| {
            writer.str(table_uapi::NAME, table.name);
            writer.be32(table_uapi::FLAGS, 0);
            if let Some(comment) = comment {
                crate::datatype::put_comment(writer, table_uapi::USERDATA, comment);
            }
        })
    }

    /// Makes a table that must not be there yet (`EEXIST`). An owned one (Linux 5.12, `EOPNOTSUPP` or `EINVAL` before) goes
    /// when the socket that commits this is closed, and nobody else may change it.
    pub fn create_table(&mut self, table: Table<'_>, owned: bool, comment: Option<&str>) -> Position {
        self.message(message::NEW_TABLE, flags::CREATE | flags::EXCLUSIVE, table, |writer| {
            writer.str(table_uapi::NAME, table.name);
            writer.be32(table_uapi::FLAGS, if owned { table_uapi::OWNED } else { 0 });
            if let Some(comment) = comment {
                crate::datatype::put_comment(writer, table_uapi::USERDATA, comment);
            }
        })
    }

    /// Deletes a table and all in it; `ENOENT` if there is none.
    pub fn delete_table(&mut self, table: Table<'_>) -> Position {
        self.message(message::DELETE_TABLE, 0, table, |writer| writer.str(table_uapi::NAME, table.name))
    }

    /// Deletes a table and all in it, if there is one (Linux 6.3).
    pub fn destroy_table(&mut self, table: Table<'_>) -> Position {
        self.message(message::DESTROY_TABLE, 0, table, |writer| writer.str(table_uapi::NAME, table.name))
    }

    // === chains ===

    pub fn add_chain(&mut self, table: Table<'_>, chain: &Chain<'_>) -> Position {
        self.message(message::NEW_CHAIN, flags::CREATE, table, |writer| chain.write(table, writer))
    }

    /// Deletes a chain with its rules; `EBUSY` while something jumps to it, `ENOENT` if there is none.
    pub fn delete_chain(&mut self, table: Table<'_>, name: &str) -> Position {
        self.named(message::DELETE_CHAIN, table, chain::TABLE, chain::NAME, name)
    }

    /// Deletes a chain with its rules if there is one (Linux 6.3).
    pub fn destroy_chain(&mut self, table: Table<'_>, name: &str) -> Position {
        self.named(message::DESTROY_CHAIN, table, chain::TABLE, chain::NAME, name)
    }

    /// Deletes all rules of a chain.
    pub fn flush_chain(&mut self, table: Table<'_>, name: &str) -> Position {
        self.named(message::DELETE_RULE, table, rule::TABLE, rule::CHAIN, name)
    }

    /// Deletes all rules of all chains of a table.
    pub fn flush_rules(&mut self, table: Table<'_>) -> Position {
        self.message(message::DELETE_RULE, 0, table, |writer| writer.str(rule::TABLE, table.name))
    }

    // === rules ===

    pub fn append_rule(&mut self, table: Table<'_>, chain: &str, rule: &Rule) -> Position {
        self.rule(flags::CREATE | flags::APPEND, table, chain, rule)
    }

    /// Puts a rule before all others of its chain.
    pub fn prepend_rule(&mut self, table: Table<'_>, chain: &str, rule: &Rule) -> Position {
        self.rule(flags::CREATE, table, chain, rule)
    }

    pub fn delete_rule(&mut self, table: Table<'_>, chain: &str, handle: u64) -> Position {
        self.message(message::DELETE_RULE, 0, table, |writer| {
            writer.str(rule::TABLE, table.name);
            writer.str(rule::CHAIN, chain);
            writer.be64(rule::HANDLE, handle);
        })
    }

    fn rule(&mut self, flags: u16, table: Table<'_>, chain: &str, rule: &Rule) -> Position {
        self.message(message::NEW_RULE, flags, table, |writer| {
            writer.str(rule::TABLE, table.name);
            writer.str(rule::CHAIN, chain);
            rule.write(writer);
        })
    }

    // === sets ===

    pub fn add_set(&mut self, table: Table<'_>, set: &Set<'_>) -> Position {
        self.sets += 1;
        let id = self.sets;
        self.message(message::NEW_SET, flags::CREATE, table, |writer| set.write(table, id, false, writer))
    }

    /// Makes a constant set that lives and dies with the one rule that uses it. The set's own name is not used.
    pub fn add_anonymous_set(&mut self, table: Table<'_>, set: &Set<'_>, keys: &[&[u8]]) -> SetName {
        self.sets += 1;
        let id = self.sets;
        let set = set.size(keys.len() as u32);
        self.message(message::NEW_SET, flags::CREATE, table, |writer| set.write(table, id, true, writer));
        let name = SetName::Anonymous(id);
        let mut elements = self.add_elements(table, name.clone());
        for key in keys {
            elements.push(&Element::key(key));
        }
        name
    }

    /// Deletes a set with its elements; `EBUSY` while a rule uses it, `ENOENT` if there is none.
    pub fn delete_set(&mut self, table: Table<'_>, name: &str) -> Position {
        self.named(message::DELETE_SET, table, set::TABLE, set::NAME, name)
    }

    /// Deletes a set if there is one (Linux 6.3).
    pub fn destroy_set(&mut self, table: Table<'_>, name: &str) -> Position {
        self.named(message::DESTROY_SET, table, set::TABLE, set::NAME, name)
    }

    /// Deletes all elements of a set.
    pub fn flush_set(&mut self, table: Table<'_>, name: &str) -> Position {
        self.named(message::DELETE_ELEMENT, table, element::LIST_TABLE, element::LIST_SET, name)
    }

    // === elements ===

    /// Adds elements. One that is there already is no error, unless its data differs (`EEXIST`).
    pub fn add_elements(&mut self, table: Table<'_>, set: impl Into<SetName>) -> Elements<'_> {
        self.list(message::NEW_ELEMENT, flags::CREATE, table, set.into())
    }

    /// Adds elements that must not be there yet (`EEXIST`).
    pub fn create_elements(&mut self, table: Table<'_>, set: impl Into<SetName>) -> Elements<'_> {
        self.list(message::NEW_ELEMENT, flags::CREATE | flags::EXCLUSIVE, table, set.into())
    }

    /// Deletes elements; one that is not there fails the batch (`ENOENT`).
    pub fn delete_elements(&mut self, table: Table<'_>, set: impl Into<SetName>) -> Elements<'_> {
        self.list(message::DELETE_ELEMENT, 0, table, set.into())
    }

    /// Deletes elements that may be there or not (Linux 6.3).
    pub fn destroy_elements(&mut self, table: Table<'_>, set: impl Into<SetName>) -> Elements<'_> {
        self.list(message::DESTROY_ELEMENT, 0, table, set.into())
    }

    fn list(&mut self, kind: u16, flags: u16, table: Table<'_>, set: SetName) -> Elements<'_> {
        let same = self.open.as_ref().is_some_and(|open| {
            open.kind == kind
                && open.flags == flags
                && open.family == table.family
                && open.set == set
                && *open.table == *table.name
        });
        if !same {
            self.close();
            self.open = Some(OpenList {
                kind,
                flags,
                family: table.family,
                table: table.name.into(),
                set,
                started: None,
                elements: 0,
            });
        }
        Elements { batch: self }
    }

    pub(crate) const fn writer(&self) -> &Writer {
        &self.writer
    }

    /// The buffer, with a list open at its end.
    pub(crate) fn writer_mut(&mut self) -> &mut Writer {
        if self.open.as_ref().is_some_and(|open| open.started.is_none()) {
            self.next_list();
        }
        &mut self.writer
    }

    /// The buffer, with a list open at its end that has been begun already.
    #[inline]
    pub(crate) const fn started_writer_mut(&mut self) -> &mut Writer {
        &mut self.writer
    }

    /// Closes the open list's message and begins another for the same set.
    pub(crate) fn next_list(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        if let Some((start, nest)) = open.started.take() {
            self.writer.end(nest);
            self.writer.end_message(start);
        }
        let start = self.begin(open.kind, open.flags, open.family);
        self.writer.str(element::LIST_TABLE, &open.table);
        write_name(&open.set, element::LIST_SET, element::LIST_SET_ID, &mut self.writer);
        let nest = self.writer.begin(element::LIST_ELEMENTS);
        open.started = Some((start, nest));
        open.elements = 0;
        self.open = Some(open);
    }

    pub(crate) fn list_is_too_long(&self) -> bool {
        self.list_has_no_room_for(0)
    }

    #[inline]
    pub(crate) fn list_has_no_room_for(&self, bytes: usize) -> bool {
        match &self.open {
            Some(OpenList { started: Some((_, nest)), .. }) => {
                self.writer.len() - nest.offset() + bytes > LONGEST_LIST
            }
            _ => bytes != 0,
        }
    }

    #[inline]
    pub(crate) fn count_element(&mut self) -> Position {
        self.elements += 1;
        let element = match &mut self.open {
            Some(open) => {
                open.elements += 1;
                open.elements - 1
            }
            None => 0,
        };
        Position { message: (self.starts.len() - 1) as u32, element }
    }

    pub(crate) fn close(&mut self) {
        if let Some((start, nest)) = self.open.take().and_then(|open| open.started) {
            self.writer.end(nest);
            self.writer.end_message(start);
        }
    }

    fn begin(&mut self, kind: u16, flags: u16, family: crate::Family) -> Start {
        let start = self.writer.begin_message(message_kind(kind), flags);
        self.starts.push(start.offset());
        self.writer.raw(&[family as u8, 0, 0, 0]);
        start
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        table: Table<'_>,
        fill: impl FnOnce(&mut Writer),
    ) -> Position {
        self.close();
        let start = self.begin(kind, flags, table.family);
        fill(&mut self.writer);
        self.writer.end_message(start);
        Position { message: (self.starts.len() - 1) as u32, element: 0 }
    }

    fn named(
        &mut self,
        kind: u16,
        table: Table<'_>,
        table_attr: u16,
        name_attr: u16,
        name: &str,
    ) -> Position {
        self.message(kind, 0, table, |writer| {
            writer.str(table_attr, table.name);
            writer.str(name_attr, name);
        })
    }

    // === transaction ===

    /// Has the kernel apply all of it, or nothing. An empty batch is not sent.
    pub fn commit(&mut self, socket: &mut Socket) -> Result<(), CommitError> {
        self.close();
        let Some(last) = self.starts.last().copied() else { return Ok(()) };
        if self.writer.overflowed() {
            return Err(CommitError::Invalid(netlink::Error::TooLong));
        }
        let count = self.starts.len() as u32;
        // One number for the begin marker, one for each message, one for the end marker.
        let first = socket.reserve(count + 2);
        for (index, start) in self.starts.iter().enumerate() {
            self.writer.number_message(*start, first.wrapping_add(index as u32 + 1));
        }
        self.writer.acknowledge_message(last, true);
        let begin = marker(BATCH_BEGIN, first, self.expected_generation);
        let end = marker(BATCH_END, first.wrapping_add(count + 1), None);
        let parts = [begin.as_bytes(), self.writer.as_bytes(), end.as_bytes()];
        let failures =
            socket.exchange(&parts, first, first.wrapping_add(count)).map_err(|error| match error {
                netlink::Error::Unsent(_) => CommitError::Invalid(error),
                error => CommitError::Lost(error),
            })?;
        if failures.is_empty() {
            return Ok(());
        }
        Err(CommitError::Refused(
            failures
                .into_iter()
                .map(|failure| Refusal {
                    position: failure
                        .index
                        .checked_sub(1)
                        .map(|message| self.position(message, failure.offset)),
                    errno: failure.errno,
                    message: failure.message,
                })
                .collect(),
        ))
    }

    /// The element of a message that the attribute at this offset belongs to.
    fn position(&self, index: usize, offset: Option<u32>) -> Position {
        let element = offset.and_then(|offset| self.element_at(index, offset as usize)).unwrap_or(0);
        Position { message: index as u32, element }
    }

    fn element_at(&self, index: usize, offset: usize) -> Option<u32> {
        let start = *self.starts.get(index)?;
        let end = self.starts.get(index + 1).copied().unwrap_or(self.writer.len());
        let message = netlink::Messages::new(&self.writer.as_bytes()[start..end]).next()?;
        let lists = [message::NEW_ELEMENT, message::DELETE_ELEMENT, message::DESTROY_ELEMENT];
        if !lists.into_iter().any(|kind| message_kind(kind) == message.kind) {
            return None;
        }
        let list = message.attributes(FAMILY_HEADER).get(element::LIST_ELEMENTS)?;
        // The list ends where the message ends.
        let mut at = message.payload.len() + netlink::message::HEADER - list.value.len().next_multiple_of(4);
        let mut found = None;
        for (number, element) in Attributes::new(list.value).enumerate() {
            if at > offset {
                break;
            }
            found = Some(number as u32);
            at += 4 + element.value.len().next_multiple_of(4);
        }
        found
    }
}

/// Appends elements to one set (or takes them from it). Asking the batch for the same list again goes on in the same
/// message, so there is no need to keep this.
#[derive(Debug)]
pub struct Elements<'b> {
    batch: &'b mut Batch,
}

impl Elements<'_> {
    /// Adds an element to the list.
    pub fn push(&mut self, element: &Element<'_>) -> Position {
        let writer = self.batch.writer_mut();
        let before = writer.len();
        element.write(writer);
        if self.batch.list_is_too_long() {
            let bytes = self.batch.writer().as_bytes()[before..].to_vec();
            self.batch.writer_mut().truncate(before);
            self.batch.next_list();
            self.batch.writer_mut().raw(&bytes);
        }
        self.batch.count_element()
    }

    /// Adds an element made from a template. Key and data have the lengths the template was made for.
    #[inline]
    pub fn push_fixed(&mut self, template: &Template, key: &[u8], data: &[u8]) -> Position {
        if self.batch.list_has_no_room_for(template.length) {
            self.batch.next_list();
        }
        let writer = self.batch.started_writer_mut();
        let start = writer.len();
        writer.raw(&template.bytes[..template.length]);
        writer.patch(start + Template::KEY, key);
        writer.patch(start + template.data, data);
        self.batch.count_element()
    }

    /// Adds a range of an interval set with a single key: the keys from `first` up to and including `last`.
    pub fn push_interval(&mut self, first: &[u8], last: &[u8]) -> Position {
        let position = self.push(&Element::key(first));
        if let Some(beyond) = successor(last) {
            self.push(&Element { interval_end: true, ..Element::key(&beyond) });
        }
        position
    }
}

fn marker(kind: u16, sequence: u32, generation: Option<u32>) -> Writer {
    let mut writer = Writer::with_capacity(28);
    let start = writer.begin_message(kind, 0);
    let [high, low] = SUBSYSTEM.to_be_bytes();
    writer.raw(&[0, 0, high, low]);
    if let Some(generation) = generation {
        writer.be32(BATCH_GENERATION, generation);
    }
    writer.end_message(start);
    writer.number_message(0, sequence);
    writer
}

#[cfg(test)]
mod tests;
