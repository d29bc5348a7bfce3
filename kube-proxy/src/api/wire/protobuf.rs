//! Kubernetes' protobuf: an object is the bytes `k8s\0` and a message `Unknown` around the object's own message
//! (`k8s.io/apimachinery/pkg/runtime/generated.proto`). A watch is one frame after another, each with its length in four
//! bytes before it, and a message `WatchEvent` in it.

use super::{Broken, Buffer, Cause, Details, LARGEST, ListPart, Status, Unreadable, WatchPart};
use crate::api::{
    message::{Fields, Head, HeadKind, Malformed},
    reflector::{Refusal, Version},
    slim::{Metadata, Names, Object},
};

const MAGIC: &[u8] = b"k8s\0";

impl From<Malformed> for Broken {
    fn from(malformed: Malformed) -> Self {
        Self::new(malformed)
    }
}

#[derive(Debug)]
pub(crate) struct List {
    buffer: Buffer,
    place: Place,
    head: bool,
    whole: bool,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Start,
    Envelope,
    /// In the list's own message, so many bytes before its end.
    Inside(u64),
    Over,
}

impl List {
    pub(super) fn new() -> Self {
        Self { buffer: Buffer::default(), place: Place::Start, head: false, whole: false }
    }

    pub(super) fn feed(&mut self, piece: Option<&[u8]>) {
        match piece {
            Some(piece) => self.buffer.feed(piece),
            None => self.whole = true,
        }
    }

    pub(super) fn next<K: Object>(&mut self) -> Result<Option<ListPart<K>>, Broken> {
        loop {
            match self.place {
                Place::Start => match self.buffer.rest().first_chunk::<4>() {
                    None => return self.wait(),
                    Some(magic) if magic == MAGIC => {
                        self.buffer.take(MAGIC.len());
                        self.place = Place::Envelope;
                    }
                    Some(_) => return Err(Broken::new("it is no protobuf of Kubernetes")),
                },
                Place::Envelope => {
                    let Some(head) = Head::read(self.buffer.rest())? else { return self.wait() };
                    if let (2, HeadKind::Bytes(length)) = (head.field, head.kind) {
                        self.buffer.take(head.size);
                        self.place = Place::Inside(length);
                        continue;
                    }
                    let Some(kind) = self.field(head, u64::MAX)? else { return self.wait() };
                    if head.field == 1 {
                        is_list(&self.buffer.rest()[head.size..kind])?;
                    }
                    self.buffer.take(kind);
                }
                Place::Inside(0) if self.head => {
                    self.place = Place::Over;
                    return Ok(Some(ListPart::End));
                }
                Place::Inside(0) => return Err(Broken::new("it is a list without metadata")),
                Place::Inside(left) => {
                    let Some(head) = Head::read(self.buffer.rest())? else { return self.wait() };
                    let Some(size) = self.field(head, left)? else { return self.wait() };
                    let body = &self.buffer.rest()[head.size..size];
                    let part = match head.field {
                        1 => Some(list_head(body)?),
                        2 if self.head => Some(ListPart::Item(decode(body)?)),
                        2 => return Err(Broken::new("it is a list without metadata")),
                        _ => None,
                    };
                    self.head |= head.field == 1;
                    self.buffer.take(size);
                    self.place = Place::Inside(left - size as u64);
                    if part.is_some() {
                        return Ok(part);
                    }
                }
                Place::Over => return Ok(None),
            }
        }
    }

    /// The size of a field with its head, once all of it is there.
    fn field(&self, head: Head, left: u64) -> Result<Option<usize>, Broken> {
        let body = match head.kind {
            HeadKind::Number(_) => 0,
            HeadKind::Bytes(length) => length,
            HeadKind::Fixed(size) => size as u64,
        };
        if body > LARGEST as u64 {
            return Err(Broken::new("a part of it is too large"));
        }
        let size = body + head.size as u64;
        if size > left {
            return Err(Broken::new("a part of it is longer than the whole"));
        }
        Ok((self.buffer.rest().len() as u64 >= size).then_some(size as usize))
    }

    fn wait<K>(&self) -> Result<Option<ListPart<K>>, Broken> {
        if self.whole { Err(Broken::new("it ends in the middle")) } else { Ok(None) }
    }
}

/// `TypeMeta`.
fn is_list(type_meta: &[u8]) -> Result<(), Broken> {
    for field in Fields(type_meta) {
        if let (2, kind) = field?
            && !kind.text()?.ends_with("List")
        {
            return Err(Broken::new(format!("it is of kind {}, which is no list", kind.text()?)));
        }
    }
    Ok(())
}

/// `ListMeta`.
fn list_head<K>(bytes: &[u8]) -> Result<ListPart<K>, Broken> {
    let (mut version, mut token) = (Version::new(""), None);
    for field in Fields(bytes) {
        match field? {
            (2, value) => version = Version::new(value.text()?),
            (3, value) => token = value.present()?,
            _ => {}
        }
    }
    Ok(ListPart::Head { version, token })
}

/// An object's own message; where it does not fit, its name and the field at fault.
fn decode<K: Object>(bytes: &[u8]) -> Result<Result<K, Unreadable>, Broken> {
    let error = match K::from_protobuf(bytes) {
        Ok(object) => return Ok(Ok(object)),
        Err(error) => error,
    };
    let names = Metadata::from(names(bytes));
    match names.name.clone() {
        Some(name) => Ok(Err(Unreadable { name, version: names.version(), why: error.to_string() })),
        None => Err(error.into()),
    }
}

/// What names an object, as much as can be read.
fn names(object: &[u8]) -> Names {
    let mut names = Names::default();
    let metadata = Fields(object).flatten().find(|(field, _)| *field == 1);
    let Some(fields) = metadata.and_then(|(_, value)| value.fields().ok()) else { return names };
    for (field, value) in fields.flatten() {
        let place = match field {
            1 => &mut names.name,
            3 => &mut names.namespace,
            6 => &mut names.resource_version,
            _ => continue,
        };
        *place = value.string().unwrap_or_default();
    }
    names
}

/// The message in an envelope, and its kind.
fn open(bytes: &[u8]) -> Result<(&str, &[u8]), Malformed> {
    let Some(envelope) = bytes.strip_prefix(MAGIC) else { return Ok(("", bytes)) };
    let (mut kind, mut raw): (&str, &[u8]) = ("", &[]);
    for field in Fields(envelope) {
        match field? {
            (1, type_meta) => {
                for field in type_meta.fields()? {
                    if let (2, value) = field? {
                        kind = value.text()?;
                    }
                }
            }
            (2, value) => raw = value.bytes()?,
            _ => {}
        }
    }
    Ok((kind, raw))
}

#[derive(Debug)]
pub(crate) struct Watch {
    buffer: Buffer,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { buffer: Buffer::default() }
    }

    pub(super) fn feed(&mut self, piece: &[u8]) {
        self.buffer.feed(piece);
    }

    pub(super) fn next<K: Object>(&mut self) -> Result<Option<WatchPart<K>>, Broken> {
        let rest = self.buffer.rest();
        let Some(length) = rest.first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > LARGEST {
            return Err(Broken::new("an event is too large"));
        }
        let Some(frame) = rest.get(4..4 + length) else { return Ok(None) };
        let part = event(frame)?;
        self.buffer.take(4 + length);
        Ok(Some(part))
    }
}

/// `WatchEvent`.
fn event<K: Object>(frame: &[u8]) -> Result<WatchPart<K>, Broken> {
    let (kind, frame) = open(frame)?;
    if kind == "Status" {
        // A server may answer so where it cannot even begin.
        return Ok(WatchPart::Error(read_status(frame)?.into()));
    }
    let (mut kind, mut object): (&str, &[u8]) = ("", &[]);
    for field in Fields(frame) {
        match field? {
            (1, value) => kind = value.text()?,
            (2, extension) => {
                for field in extension.fields()? {
                    if let (1, value) = field? {
                        object = value.bytes()?;
                    }
                }
            }
            _ => {}
        }
    }
    let (_, object) = open(object)?;
    match kind {
        "ADDED" | "MODIFIED" => decode(object).map(WatchPart::Applied),
        "DELETED" => {
            let metadata = Metadata::from(names(object));
            let named = metadata.name.is_some();
            named
                .then_some(WatchPart::Deleted(metadata))
                .ok_or_else(|| Broken::new("a deletion of what has no name"))
        }
        "BOOKMARK" => {
            let metadata = metadata(object)?;
            Ok(WatchPart::Bookmark { version: metadata.version(), ends_list: metadata.ends_list })
        }
        "ERROR" => Ok(WatchPart::Error(read_status(object)?.into())),
        other => Err(Broken::new(format!("an event of type {other:?}"))),
    }
}

fn metadata(object: &[u8]) -> Result<Metadata, Malformed> {
    let mut metadata = Metadata::default();
    for field in Fields(object) {
        if let (1, value) = field? {
            metadata = Metadata::from_protobuf(value)?;
        }
    }
    Ok(metadata)
}

/// A Status object in its envelope.
pub(super) fn status(bytes: &[u8]) -> Option<Refusal> {
    let (kind, raw) = open(bytes).ok()?;
    (kind == "Status").then(|| read_status(raw).ok().map(Refusal::from))?
}

fn read_status(bytes: &[u8]) -> Result<Status, Malformed> {
    let mut status = Status::default();
    for field in Fields(bytes) {
        match field? {
            (3, value) => status.message = value.string()?,
            (4, value) => status.reason = value.string()?,
            (5, value) => status.details = details(value.fields()?)?,
            (6, value) => status.code = u16::try_from(value.number()?).unwrap_or_default(),
            _ => {}
        }
    }
    Ok(status)
}

fn details(fields: Fields<'_>) -> Result<Details, Malformed> {
    let mut details = Details::default();
    for field in fields {
        match field? {
            (4, value) => {
                let mut cause = Cause::default();
                for field in value.fields()? {
                    match field? {
                        (1, value) => cause.reason = value.string()?,
                        (2, value) => cause.message = value.string()?,
                        _ => {}
                    }
                }
                details.causes.get_or_insert_default().push(cause);
            }
            (5, value) => details.retry_after_seconds = u32::try_from(value.number()?).ok(),
            _ => {}
        }
    }
    Ok(details)
}
