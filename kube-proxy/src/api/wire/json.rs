//! JSON: a list is one object, a watch is one object after another.

use serde::Deserialize;

use super::{
    Broken, Buffer, LARGEST, ListPart, Status, Unreadable, WatchPart,
    scanner::{Scanner, blank, members, path_at},
};
use crate::api::{
    reflector::{Refusal, Version},
    slim::{Metadata, Names, Object},
};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    token: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WithMetadata<M> {
    metadata: M,
}

#[derive(Debug)]
pub(crate) struct List {
    buffer: Buffer,
    scanner: Scanner,
    place: Place,
    /// The response is complete.
    whole: bool,
    /// The metadata was handed out.
    head: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Start,
    Member,
    Item,
    End,
    Over,
}

impl List {
    pub(super) fn new() -> Self {
        Self {
            buffer: Buffer::default(),
            scanner: Scanner::default(),
            place: Place::Start,
            whole: false,
            head: false,
        }
    }

    pub(super) fn feed(&mut self, piece: Option<&[u8]>) {
        match piece {
            Some(piece) => self.buffer.feed(piece),
            None => self.whole = true,
        }
    }

    pub(super) fn next<K: Object>(&mut self) -> Result<Option<ListPart<K>>, Broken> {
        loop {
            let part = match self.place {
                Place::Start => {
                    self.skip(b' ');
                    match self.buffer.rest().first() {
                        None => return self.wait(),
                        Some(b'{') => {
                            self.buffer.take(1);
                            self.place = Place::Member;
                            continue;
                        }
                        Some(_) => return Err(Broken::new("it is no JSON object")),
                    }
                }
                Place::Member => self.member()?,
                Place::Item => self.item()?,
                Place::End if self.head => {
                    self.place = Place::Over;
                    return Ok(Some(ListPart::End));
                }
                Place::End => return Err(Broken::new("it is a list without metadata")),
                Place::Over => return Ok(None),
            };
            match part {
                Step::Part(part) => return Ok(Some(part)),
                Step::On => {}
                Step::Wait => return self.wait(),
            }
        }
    }

    fn wait<K>(&self) -> Result<Option<ListPart<K>>, Broken> {
        if self.whole { Err(Broken::new("it ends in the middle")) } else { Ok(None) }
    }

    /// A member of the list itself.
    fn member<K>(&mut self) -> Result<Step<K>, Broken> {
        self.skip(b',');
        let rest = self.buffer.rest();
        match rest.first() {
            None => return Ok(Step::Wait),
            Some(b'}') => {
                self.place = Place::End;
                return Ok(Step::On);
            }
            Some(b'"') => {}
            Some(_) => return Err(Broken::new("it is no JSON object")),
        }
        let Some(name_end) = Scanner::default().end(rest) else { return self.room() };
        let colon = name_end + blank(&rest[name_end..]);
        match rest.get(colon) {
            None => return self.room(),
            Some(b':') => {}
            Some(_) => return Err(Broken::new("it is no JSON object")),
        }
        let value = colon + 1 + blank(&rest[colon + 1..]);
        let name = &rest[1..name_end - 1];
        if name == b"items" && rest.get(value) == Some(&b'[') {
            if self.head {
                self.buffer.take(value + 1);
                self.scanner = Scanner::default();
                self.place = Place::Item;
                return Ok(Step::On);
            }
            // The metadata comes later: it is needed first, so all of it is waited for.
            if !self.whole {
                return Ok(Step::Wait);
            }
            let metadata = later(rest, value).ok_or_else(|| Broken::new("it is a list without metadata"))?;
            let head = head(metadata)?;
            self.head = true;
            return Ok(Step::Part(head));
        }
        let Some(end) = Scanner::default().end(&rest[value..]) else { return self.room() };
        let text = &rest[value..value + end];
        if name == b"metadata" && !self.head {
            let head = head(text)?;
            self.head = true;
            self.buffer.take(value + end);
            return Ok(Step::Part(head));
        }
        if name == b"kind" && !text.ends_with(b"List\"") {
            return Err(Broken::new(format!(
                "it is of kind {}, which is no list",
                String::from_utf8_lossy(text)
            )));
        }
        self.buffer.take(value + end);
        Ok(Step::On)
    }

    fn item<K: Object>(&mut self) -> Result<Step<K>, Broken> {
        if self.scanner.is_fresh() {
            self.skip(b',');
            match self.buffer.rest().first() {
                None => return Ok(Step::Wait),
                Some(b']') => {
                    self.buffer.take(1);
                    self.place = Place::Member;
                    return Ok(Step::On);
                }
                Some(_) => {}
            }
        }
        let Some(end) = self.scanner.end(self.buffer.rest()) else { return self.room() };
        self.scanner = Scanner::default();
        let item = decode(&self.buffer.rest()[..end])?;
        self.buffer.take(end);
        Ok(Step::Part(ListPart::Item(item)))
    }

    fn skip(&mut self, mark: u8) {
        let rest = self.buffer.rest();
        let count = rest.iter().take_while(|byte| byte.is_ascii_whitespace() || **byte == mark).count();
        self.buffer.take(count);
    }

    /// Waits for more, if that is not too much already.
    fn room<K>(&self) -> Result<Step<K>, Broken> {
        if self.buffer.rest().len() > LARGEST {
            Err(Broken::new("a part of it is too large"))
        } else {
            Ok(Step::Wait)
        }
    }
}

enum Step<K> {
    Part(ListPart<K>),
    On,
    Wait,
}

/// The metadata behind the items that begin at `value`.
fn later(rest: &[u8], value: usize) -> Option<&[u8]> {
    let end = value + Scanner::default().end(&rest[value..])?;
    // What follows reads as an object of its own once a bracket stands before it; the items' last one will do.
    members(&rest[end - 1..]).find(|(name, _)| *name == b"metadata").map(|(_, value)| value)
}

fn head<K>(metadata: &[u8]) -> Result<ListPart<K>, Broken> {
    let meta: ListMeta = serde_json::from_slice(metadata).map_err(Broken::new)?;
    Ok(ListPart::Head { version: Version::new(&meta.resource_version), token: meta.token })
}

/// An object; where it does not fit, its name and the field at fault.
fn decode<K: Object>(text: &[u8]) -> Result<Result<K, Unreadable>, Broken> {
    let error = match serde_json::from_slice::<K>(text) {
        Ok(object) => return Ok(Ok(object)),
        Err(error) => error,
    };
    let metadata = metadata(text).map_err(|_| Broken::new(&error))?;
    let Some(name) = metadata.name.clone() else { return Err(Broken::new(error)) };
    let before: usize = text
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let field = path_at(text, (before + error.column()).saturating_sub(1));
    let what = error.to_string();
    let what = what.split(" at line ").next().unwrap_or_default();
    Ok(Err(Unreadable { name, version: metadata.version(), why: format!("{field}: {what}") }))
}

/// As much of it as can be read: the names at least.
fn metadata(object: &[u8]) -> serde_json::Result<Metadata> {
    serde_json::from_slice::<WithMetadata<Metadata>>(object).map(|object| object.metadata).or_else(|_| {
        serde_json::from_slice::<WithMetadata<Names>>(object).map(|object| object.metadata.into())
    })
}

#[derive(Debug)]
pub(crate) struct Watch {
    buffer: Buffer,
    scanner: Scanner,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self { buffer: Buffer::default(), scanner: Scanner::default() }
    }

    pub(super) fn feed(&mut self, piece: &[u8]) {
        self.buffer.feed(piece);
    }

    pub(super) fn next<K: Object>(&mut self) -> Result<Option<WatchPart<K>>, Broken> {
        if self.scanner.is_fresh() {
            let blank = blank(self.buffer.rest());
            self.buffer.take(blank);
            match self.buffer.rest().first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(_) => return Err(Broken::new("an event is no JSON object")),
            }
        }
        let Some(end) = self.scanner.end(self.buffer.rest()) else {
            return if self.buffer.rest().len() > LARGEST {
                Err(Broken::new("an event is too large"))
            } else {
                Ok(None)
            };
        };
        self.scanner = Scanner::default();
        let part = event(&self.buffer.rest()[..end])?;
        self.buffer.take(end);
        Ok(Some(part))
    }
}

fn event<K: Object>(text: &[u8]) -> Result<WatchPart<K>, Broken> {
    let member = |wanted: &[u8]| members(text).find(|(name, _)| *name == wanted).map(|(_, value)| value);
    let (Some(kind), Some(object)) = (member(b"type"), member(b"object")) else {
        // A server may answer so where it cannot even begin.
        let refusal = status(text).filter(|_| member(b"kind") == Some(b"\"Status\""));
        return refusal.map(WatchPart::Error).ok_or_else(|| Broken::new("it is no event of a watch"));
    };
    match kind {
        b"\"ADDED\"" | b"\"MODIFIED\"" => decode(object).map(WatchPart::Applied),
        b"\"DELETED\"" => metadata(object).map(WatchPart::Deleted).map_err(Broken::new),
        b"\"BOOKMARK\"" => {
            let metadata = metadata(object).map_err(Broken::new)?;
            Ok(WatchPart::Bookmark { version: metadata.version(), ends_list: metadata.ends_list })
        }
        b"\"ERROR\"" => {
            Ok(WatchPart::Error(status(object).ok_or_else(|| Broken::new("an error without a status"))?))
        }
        other => Err(Broken::new(format!("an event of type {}", String::from_utf8_lossy(other)))),
    }
}

/// A Status object.
pub(super) fn status(text: &[u8]) -> Option<Refusal> {
    serde_json::from_slice::<Status>(text).ok().map(Refusal::from)
}
