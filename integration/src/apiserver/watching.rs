//! One running watch: what it sends next, and when it ends.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures::stream;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::faults::{Control, FromTheFuture};
use super::journal::Entry;
use super::protobuf;
use super::resource::{RESOURCES, Resource};
use super::selector::Selector;
use super::shared::Shared;
use super::status::{Encoding, Refusal};
use super::store::Step;
use super::stored::Stored;

/// Events of an initial list are sent in pieces of about this size.
const PIECE: usize = 64 * 1024;
/// How many steps of the history are put into one piece.
const STEPS: usize = 512;

/// Where a watch begins.
pub(crate) struct Start {
    pub(crate) version: u64,
    /// Objects to announce as ADDED before anything else.
    pub(crate) initial: Vec<Arc<Stored>>,
    /// Whether a bookmark tells that the initial objects are complete.
    pub(crate) mark_end: bool,
    pub(crate) bookmarks: bool,
    pub(crate) timeout: Duration,
    pub(crate) encoding: Encoding,
    pub(crate) entry: Entry,
}

pub(crate) struct Watch {
    shared: Arc<Shared>,
    resource: usize,
    selector: Selector,
    initial: VecDeque<Arc<Stored>>,
    mark_end: bool,
    /// Everything up to this version has been sent.
    position: u64,
    bookmarks: bool,
    deadline: Instant,
    next_bookmark: Instant,
    newest: watch::Receiver<u64>,
    control: watch::Receiver<Control>,
    begun_under: Control,
    end: End,
    encoding: Encoding,
    entry: Entry,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.entry.ended();
    }
}

#[derive(PartialEq, Eq)]
enum End {
    No,
    Clean,
    Broken,
}

impl Watch {
    pub(crate) fn new(
        shared: Arc<Shared>,
        resource: usize,
        selector: Selector,
        start: Start,
        newest: watch::Receiver<u64>,
    ) -> Self {
        let control = shared.control.subscribe();
        let begun_under = control.borrow().clone();
        let now = Instant::now();
        Self {
            resource,
            selector,
            initial: start.initial.into(),
            mark_end: start.mark_end,
            position: start.version,
            bookmarks: start.bookmarks,
            deadline: now + start.timeout,
            next_bookmark: now + shared.bookmark_interval,
            newest,
            control,
            begun_under,
            end: End::No,
            encoding: start.encoding,
            entry: start.entry,
            shared,
        }
    }

    pub(crate) fn body(self) -> Body {
        Body::from_stream(stream::unfold(self, |mut watch| async move {
            let piece = watch.next_piece().await?;
            Some((piece, watch))
        }))
    }

    async fn next_piece(&mut self) -> Option<io::Result<Bytes>> {
        match self.end {
            End::Clean => return None,
            End::Broken => return Some(Err(io::Error::other("cut by the test"))),
            End::No => {}
        }
        loop {
            let control = self.control.borrow_and_update().clone();
            if control.close != self.begun_under.close {
                return None;
            }
            if control.expire != self.begun_under.expire {
                self.end = End::Clean;
                return Some(Ok(self.gone()));
            }
            if control.cut != self.begun_under.cut {
                self.end = End::Broken;
                return Some(Ok(self.half_an_event()));
            }
            if control.faults.hang {
                self.control.changed().await.ok()?;
                continue;
            }
            self.newest.borrow_and_update();
            if let Some(piece) = self.ready_piece() {
                if let Some(slow) = control.faults.slow_body {
                    tokio::time::sleep(slow.pause).await;
                }
                return Some(Ok(piece));
            }
            if Instant::now() >= self.deadline {
                return None;
            }
            let wake = if self.bookmarks { self.deadline.min(self.next_bookmark) } else { self.deadline };
            tokio::select! {
                _ = self.newest.changed() => {}
                _ = self.control.changed() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    fn ready_piece(&mut self) -> Option<Bytes> {
        let kind = &RESOURCES[self.resource];
        let mut out = Vec::new();
        let known = self.shared.store().version();
        let (lag, future) = {
            let faults = &self.control.borrow().faults;
            (faults.lag, faults.from_the_future)
        };
        let newest = lag.map_or(known, |lag| lag.version.min(known));
        if self.position > known && future == FromTheFuture::Event {
            self.end = End::Clean;
            return Some(self.error(&Refusal::too_large(self.position, known)));
        }
        while let Some(object) = self.initial.pop_front() {
            write_event(self.encoding, "ADDED", kind, &object, &mut out);
            if out.len() >= PIECE {
                return Some(out.into());
            }
        }
        if std::mem::take(&mut self.mark_end) {
            self.write_bookmark(true, &mut out);
        }
        // Bound first: a guard inside the `match` would still hold the lock in its arms.
        let steps = self.shared.store().steps_after(self.resource, self.position, STEPS);
        match steps {
            Some(steps) => {
                for step in steps.into_iter().take_while(|step| step.version <= newest) {
                    self.position = step.version;
                    let before = out.len();
                    write_step(self.encoding, kind, &self.selector, &step, &mut out);
                    if out.len() > before {
                        self.entry.told_of_change();
                    }
                }
            }
            None => {
                self.end = End::Clean;
                return Some(self.gone());
            }
        }
        if out.is_empty() && self.bookmarks && Instant::now() >= self.next_bookmark.min(self.deadline) {
            self.next_bookmark = Instant::now() + self.shared.bookmark_interval;
            // Of a version that is yet to come nothing can be said.
            if self.position <= newest {
                self.position = newest;
                self.write_bookmark(false, &mut out);
            }
            if Instant::now() >= self.deadline {
                self.end = End::Clean;
            }
        }
        (!out.is_empty()).then(|| out.into())
    }

    fn write_bookmark(&self, initial_events_end: bool, out: &mut Vec<u8>) {
        let kind = &RESOURCES[self.resource];
        let mut metadata = json!({"resourceVersion": self.position.to_string(), "creationTimestamp": null});
        if initial_events_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata});
        match self.encoding {
            Encoding::Json => {
                out.extend_from_slice(json!({"type": "BOOKMARK", "object": object}).to_string().as_bytes());
                out.push(b'\n');
            }
            Encoding::Protobuf => {
                let message = protobuf::message(kind.kind, &object);
                let object = protobuf::envelope(&kind.api_version(), kind.kind, &message);
                protobuf::event("BOOKMARK", &object, out);
            }
        }
    }

    fn gone(&self) -> Bytes {
        self.error(&Refusal::gone(self.position, self.shared.store().version()))
    }

    fn error(&self, refusal: &Refusal) -> Bytes {
        let status = refusal.value();
        match self.encoding {
            Encoding::Json => format!("{}\n", json!({"type": "ERROR", "object": status})).into(),
            Encoding::Protobuf => {
                let mut out = Vec::new();
                protobuf::event("ERROR", &protobuf::status(&status), &mut out);
                out.into()
            }
        }
    }

    fn half_an_event(&self) -> Bytes {
        let kind = &RESOURCES[self.resource];
        let mut out = Vec::new();
        let objects = self.shared.store().matching(self.resource, &self.selector);
        match objects.first() {
            Some(object) => write_event(self.encoding, "MODIFIED", kind, object, &mut out),
            None => self.write_bookmark(false, &mut out),
        }
        out.truncate(out.len() / 2);
        out.into()
    }
}

fn write_event(encoding: Encoding, name: &str, kind: &Resource, object: &Stored, out: &mut Vec<u8>) {
    if encoding == Encoding::Protobuf {
        let object = protobuf::envelope(&kind.api_version(), kind.kind, object.protobuf(kind));
        return protobuf::event(name, &object, out);
    }
    out.extend_from_slice(b"{\"type\":\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\",\"object\":");
    object.write(kind, out);
    out.extend_from_slice(b"}\n");
}

/// An object that a change moves in or out of the selection is announced as added or deleted.
fn write_step(encoding: Encoding, kind: &Resource, selector: &Selector, step: &Step, out: &mut Vec<u8>) {
    let was = step.before.as_ref().filter(|before| selector.matches(before));
    let is = !step.deleted && selector.matches(&step.after);
    match (was, is) {
        (None, false) => {}
        (None, true) => write_event(encoding, "ADDED", kind, &step.after, out),
        (Some(_), true) => write_event(encoding, "MODIFIED", kind, &step.after, out),
        (Some(_), false) if step.deleted => write_event(encoding, "DELETED", kind, &step.after, out),
        (Some(before), false) => {
            // As in Kubernetes: the last state that was selected, with the version of the change.
            let mut last = before.value(kind);
            last["metadata"]["resourceVersion"] = json!(step.version.to_string());
            write_event(encoding, "DELETED", kind, &Stored::new(kind, last, step.version), out);
        }
    }
}
