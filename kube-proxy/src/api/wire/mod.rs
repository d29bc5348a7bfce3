//! Lists and watches as bytes: taken in piece by piece, handed out object by object, so that never more than one object
//! and the piece that it came in are held.
//!
//! An object that does not decode spoils nothing but itself: its name and the field at fault are handed out instead.

use std::time::Duration;

use proxy_core::model::ObjectName;
use serde::Deserialize;

use super::{
    reflector::{Refusal, Version},
    slim::{Metadata, Object},
};

mod json;
mod protobuf;
mod scanner;

#[cfg(test)]
mod tests;

/// The largest object that is taken: etcd takes 1.5 MiB, which JSON may double.
const LARGEST: usize = 16 * 1024 * 1024;

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What to accept, by the fields `contentType` and `acceptContentTypes` of the configuration. JSON is always taken: a
/// server may have nothing else.
pub(crate) fn accept(content_type: &str, accept_content_types: &str) -> &'static str {
    let wanted = if accept_content_types.trim().is_empty() { content_type } else { accept_content_types };
    let known = wanted.split(',').filter_map(Encoding::of).next();
    match known {
        Some(Encoding::Protobuf) => "application/vnd.kubernetes.protobuf,application/json",
        Some(Encoding::Json) | None => "application/json",
    }
}

/// How a response is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    pub(crate) fn of(content_type: &str) -> Option<Self> {
        let media_type = content_type.split(';').next().unwrap_or_default().trim();
        match media_type {
            "application/json" => Some(Self::Json),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// A response that makes no sense as a whole.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the answer cannot be read: {0}")]
pub(crate) struct Broken(pub(crate) String);

impl Broken {
    fn new(what: impl std::fmt::Display) -> Self {
        Self(what.to_string())
    }
}

/// An object that could not be decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) name: ObjectName,
    pub(crate) version: Version,
    /// The field, and what is wrong with it.
    pub(crate) why: String,
}

#[derive(Debug)]
pub(crate) enum ListPart<K> {
    /// The list's own version, and where the next page begins.
    Head {
        version: Version,
        token: Option<String>,
    },
    Item(Result<K, Unreadable>),
    End,
}

#[derive(Debug)]
pub(crate) enum WatchPart<K> {
    Applied(Result<K, Unreadable>),
    Deleted(Metadata),
    Bookmark { version: Version, ends_list: bool },
    Error(Refusal),
}

/// Takes in a list.
#[derive(Debug)]
pub(crate) enum ListDecoder {
    Json(json::List),
    Protobuf(protobuf::List),
}

impl ListDecoder {
    pub(crate) fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Json => Self::Json(json::List::new()),
            Encoding::Protobuf => Self::Protobuf(protobuf::List::new()),
        }
    }

    /// `None`: the response is complete.
    pub(crate) fn feed(&mut self, piece: Option<&[u8]>) {
        match self {
            Self::Json(list) => list.feed(piece),
            Self::Protobuf(list) => list.feed(piece),
        }
    }

    /// The next part, if it is there.
    pub(crate) fn next<K: Object>(&mut self) -> Result<Option<ListPart<K>>, Broken> {
        match self {
            Self::Json(list) => list.next(),
            Self::Protobuf(list) => list.next(),
        }
    }
}

/// Takes in a watch.
#[derive(Debug)]
pub(crate) enum WatchDecoder {
    Json(json::Watch),
    Protobuf(protobuf::Watch),
}

impl WatchDecoder {
    pub(crate) fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Json => Self::Json(json::Watch::new()),
            Encoding::Protobuf => Self::Protobuf(protobuf::Watch::new()),
        }
    }

    pub(crate) fn feed(&mut self, piece: &[u8]) {
        match self {
            Self::Json(watch) => watch.feed(piece),
            Self::Protobuf(watch) => watch.feed(piece),
        }
    }

    /// The next part, if it is there.
    pub(crate) fn next<K: Object>(&mut self) -> Result<Option<WatchPart<K>>, Broken> {
        match self {
            Self::Json(watch) => watch.next(),
            Self::Protobuf(watch) => watch.next(),
        }
    }
}

/// A Status object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    reason: String,
    message: String,
    details: Details,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    causes: Option<Vec<Cause>>,
    retry_after_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
    message: String,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        // Older servers say it in the message only.
        const TOO_LARGE: &str = "Too large resource version";
        let says_so = status
            .details
            .causes
            .iter()
            .flatten()
            .any(|cause| cause.reason == "ResourceVersionTooLarge" || cause.message == TOO_LARGE);
        let after = status.details.retry_after_seconds.filter(|seconds| *seconds > 0);
        Self {
            code: status.code,
            too_large: says_so || (status.reason == "Timeout" && status.message.contains(TOO_LARGE)),
            reason: status.reason,
            message: status.message,
            retry_after: after.map(|seconds| Duration::from_secs(seconds.into())),
        }
    }
}

/// The body of a refusal.
pub(crate) fn refusal(encoding: Option<Encoding>, code: u16, body: &[u8]) -> Refusal {
    let status = match encoding {
        Some(Encoding::Json) => json::status(body),
        Some(Encoding::Protobuf) => protobuf::status(body),
        None => None,
    };
    let text = || String::from_utf8_lossy(&body[..body.len().min(200)]).trim().to_owned();
    Refusal { code, ..status.unwrap_or_else(|| Refusal { message: text(), ..Refusal::default() }) }
}

/// Bytes that came and were not taken yet.
#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    taken: usize,
}

impl Buffer {
    fn feed(&mut self, piece: &[u8]) {
        if self.taken > 0 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        if self.bytes.is_empty() && self.bytes.capacity() > LARGEST {
            self.bytes = Vec::new();
        }
        self.bytes.extend_from_slice(piece);
    }

    fn rest(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    fn take(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.bytes.len());
    }
}
