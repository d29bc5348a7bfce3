//! A state as lines of JSON: the header first, an object on each line, and an end that says how many there were.

use std::{
    io::{self, BufRead, Read as _, Write},
    sync::Arc,
};

use proxy_core::model::{Service, Slice};
use serde::{Deserialize, Serialize};

use super::{
    API_VERSION, Aside, Conflict, Header, Installed, State, Sync,
    objects::{EndpointSliceObject, Reading, ServiceObject},
};

/// No object of an API server is longer: its store takes 1.5 MB.
const LONGEST_LINE: u64 = 64 << 20;

/// One line of a file. `kind` says which.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Line {
    NodeState(Box<Header>),
    Service(Box<ServiceObject>),
    EndpointSlice(Box<EndpointSliceObject>),
    Installed(Installed),
    Aside(Aside),
    Conflict(Conflict),
    Sync(Sync),
    End(Counts),
    /// The node gave up half way.
    Failed(Failure),
    /// What a later version may add.
    #[serde(other)]
    Unknown,
}

/// The last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Counts {
    services: usize,
    slices: usize,
    installed: usize,
    asides: usize,
    conflicts: usize,
    syncs: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    error: String,
}

/// Why a state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file, or the connection.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A line that is not what it should be.
    #[error("line {line}: {reason}")]
    Line {
        /// From 1 on.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// It does not begin as a state does.
    #[error("this is no state of a node: its first line has no kind NodeState")]
    NoState,
    /// Another schema.
    #[error("it is of schema {0:?}, and this program reads {API_VERSION}: use the version that wrote it")]
    Version(String),
    /// There is no end.
    #[error("it was cut: line {0} is the last, and no line of kind End says that all is there")]
    Cut(usize),
    /// The end says something else.
    #[error("it is incomplete: the end names {0}")]
    Incomplete(String),
    /// The node gave up half way.
    #[error("the node gave up: {0}")]
    Failed(String),
}

/// Writes a state line by line. It holds one object at a time.
#[derive(Debug)]
pub struct Writer<W> {
    to: W,
    node: String,
    counts: Counts,
}

impl<W: Write> Writer<W> {
    /// Begins with the header.
    pub fn begin(to: W, header: &Header) -> io::Result<Self> {
        let mut writer = Self { to, node: header.node.clone(), counts: Counts::default() };
        writer.line(&Line::NodeState(Box::new(header.clone())))?;
        Ok(writer)
    }

    /// Where it writes, to be emptied between two objects.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.to
    }

    /// A Service.
    pub fn service(&mut self, service: &Service) -> io::Result<()> {
        self.counts.services += 1;
        self.line(&Line::Service(Box::new(ServiceObject::of(service))))
    }

    /// An EndpointSlice.
    pub fn slice(&mut self, slice: &Slice) -> io::Result<()> {
        self.counts.slices += 1;
        let object = EndpointSliceObject::of(slice, &self.node);
        self.line(&Line::EndpointSlice(Box::new(object)))
    }

    /// What is in the kernel for a Service.
    pub fn installed(&mut self, installed: Installed) -> io::Result<()> {
        self.counts.installed += 1;
        self.line(&Line::Installed(installed))
    }

    /// A Service that is not in the kernel as it asks to be.
    pub fn aside(&mut self, aside: Aside) -> io::Result<()> {
        self.counts.asides += 1;
        self.line(&Line::Aside(aside))
    }

    /// Addresses that a Service asks for in vain.
    pub fn conflict(&mut self, conflict: Conflict) -> io::Result<()> {
        self.counts.conflicts += 1;
        self.line(&Line::Conflict(conflict))
    }

    /// A sync.
    pub fn sync(&mut self, sync: Sync) -> io::Result<()> {
        self.counts.syncs += 1;
        self.line(&Line::Sync(sync))
    }

    /// All was written.
    pub fn end(mut self) -> io::Result<W> {
        self.line(&Line::End(self.counts))?;
        self.to.flush()?;
        Ok(self.to)
    }

    /// It goes no further; who reads is told why.
    pub fn fail(mut self, error: &str) -> io::Result<W> {
        self.line(&Line::Failed(Failure { error: error.to_owned() }))?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn line(&mut self, line: &Line) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, line)?;
        self.to.write_all(b"\n")
    }
}

impl State {
    /// Writes all of it.
    pub fn write<W: Write>(&self, to: W) -> io::Result<W> {
        let mut writer = Writer::begin(to, &self.header)?;
        self.services.iter().try_for_each(|service| writer.service(service))?;
        self.slices.iter().try_for_each(|slice| writer.slice(slice))?;
        self.installed.iter().try_for_each(|installed| writer.installed(installed.clone()))?;
        self.asides.iter().try_for_each(|aside| writer.aside(aside.clone()))?;
        self.conflicts.iter().try_for_each(|conflict| writer.conflict(conflict.clone()))?;
        self.syncs.iter().try_for_each(|sync| writer.sync(sync.clone()))?;
        writer.end()
    }

    /// Reads all of it. What a later version of this schema has added is passed over.
    pub fn read(mut from: impl BufRead) -> Result<Self, ReadError> {
        let mut state: Option<Self> = None;
        let mut reading = Reading::default();
        let mut text = Vec::new();
        let mut number = 0;
        loop {
            text.clear();
            let length = (&mut from).take(LONGEST_LINE).read_until(b'\n', &mut text)?;
            if length == 0 {
                return Err(if number == 0 { ReadError::NoState } else { ReadError::Cut(number) });
            }
            number += 1;
            if text.last() != Some(&b'\n') {
                return Err(ReadError::Cut(number));
            }
            let wrong = |reason: String| ReadError::Line { line: number, reason };
            let Some(state) = &mut state else {
                state = Some(Self::new(header(&text)?));
                continue;
            };
            let line = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
            match line {
                Line::Service(object) => {
                    state.services.push(Arc::new(object.parse(&state.header).map_err(wrong)?))
                }
                Line::EndpointSlice(object) => {
                    let slice = object.parse(&state.header.node, &mut reading).map_err(wrong)?;
                    state.slices.push(Arc::new(slice));
                }
                Line::Installed(installed) => state.installed.push(installed),
                Line::Aside(aside) => state.asides.push(aside),
                Line::Conflict(conflict) => state.conflicts.push(conflict),
                Line::Sync(sync) => state.syncs.push(sync),
                Line::Failed(failure) => return Err(ReadError::Failed(failure.error)),
                Line::End(counts) => {
                    state.check(counts)?;
                    state.sort();
                    return Ok(state.take());
                }
                Line::NodeState(_) => return Err(wrong("a second header".to_owned())),
                Line::Unknown => {}
            }
        }
    }

    fn take(&mut self) -> Self {
        let empty = Self::new(self.header.clone());
        std::mem::replace(self, empty)
    }

    fn check(&self, said: Counts) -> Result<(), ReadError> {
        let there = [
            ("services", said.services, self.services.len()),
            ("slices", said.slices, self.slices.len()),
            ("installed", said.installed, self.installed.len()),
            ("asides", said.asides, self.asides.len()),
            ("conflicts", said.conflicts, self.conflicts.len()),
            ("syncs", said.syncs, self.syncs.len()),
        ];
        match there.into_iter().find(|(_, said, there)| said != there) {
            Some((what, said, there)) => {
                Err(ReadError::Incomplete(format!("{said} {what}, and there are {there}")))
            }
            None => Ok(()),
        }
    }

    /// Into the order that the fields promise.
    pub(crate) fn sort(&mut self) {
        self.services.sort_by(|a, b| a.name.cmp(&b.name));
        self.slices.sort_by(|a, b| (&a.service, &a.name).cmp(&(&b.service, &b.name)));
        self.installed.sort_by(|a, b| (&a.service, a.family).cmp(&(&b.service, b.family)));
    }
}

fn header(text: &[u8]) -> Result<Header, ReadError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Which {
        kind: String,
        api_version: Option<String>,
        error: Option<String>,
    }
    let which: Which = serde_json::from_slice(text).map_err(|_| ReadError::NoState)?;
    match (&*which.kind, which.api_version, which.error) {
        ("NodeState", Some(version), _) if version == API_VERSION => {}
        ("NodeState", version, _) => return Err(ReadError::Version(version.unwrap_or_default())),
        ("Failed", _, Some(error)) => return Err(ReadError::Failed(error)),
        _ => return Err(ReadError::NoState),
    }
    match serde_json::from_slice(text) {
        Ok(Line::NodeState(header)) => Ok(*header),
        Ok(_) => Err(ReadError::NoState),
        Err(error) => Err(ReadError::Line { line: 1, reason: error.to_string() }),
    }
}
