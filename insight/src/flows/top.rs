//! Connections counted by Service, endpoint or client.

use std::{collections::HashMap, net::IpAddr};

use netlink::{
    conntrack::{Carried, Flow, protocol},
    flow_events::FlowEvent,
};
use serde::Serialize;

use super::{What, belongs};
use crate::traffic::{View, socket};

/// Rows beyond that are added up in one.
pub const MOST_ROWS: usize = 10_000;

/// What a row stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A Service port.
    Services,
    /// An endpoint of a Service port.
    Endpoints,
    /// A client address of a Service port.
    Clients,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Key {
    Of(String, Option<(IpAddr, u16)>),
    Others,
}

/// What is counted of each row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    begun: u64,
    failed: u64,
    resets: u64,
    ended_bytes: u64,
    open: u64,
    open_bytes: u64,
}

/// A row, with what it came to since the last time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `namespace/name:port`.
    pub service: String,
    /// The endpoint or the client, with its name where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// The name of whoever it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Connections that began.
    pub new: u64,
    /// Connections there are.
    pub open: u64,
    /// Bytes of both directions, where they are counted.
    pub bytes: u64,
    /// Connections that nobody answered, or that were answered with a reset.
    pub failed_handshakes: u64,
    /// Open connections that ended by a reset.
    pub resets: u64,
}

/// Counts in bounded memory.
#[derive(Debug)]
pub struct Tally {
    by: By,
    counts: HashMap<Key, Count>,
    /// As they were when rows were made last.
    shown: HashMap<Key, Count>,
    most: usize,
}

impl Tally {
    /// For rows of this kind.
    pub fn new(by: By) -> Self {
        Self { by, counts: HashMap::new(), shown: HashMap::new(), most: MOST_ROWS }
    }

    /// The same with another bound on rows.
    #[must_use]
    pub const fn at_most(mut self, rows: usize) -> Self {
        self.most = rows;
        self
    }

    fn of(&mut self, flow: &Flow, view: &View<'_>) -> Option<&mut Count> {
        let (named, endpoint) = belongs(flow, view)?;
        let who = match self.by {
            By::Services => None,
            By::Endpoints => Some(endpoint?),
            By::Clients => Some((flow.original.source, 0)),
        };
        let key = Key::Of(named.port.to_string(), who);
        let key =
            if self.counts.len() >= self.most && !self.counts.contains_key(&key) { Key::Others } else { key };
        Some(self.counts.entry(key).or_default())
    }

    /// Takes an event in.
    pub fn event(&mut self, event: &FlowEvent, view: &View<'_>) {
        let Some(what) = What::of(event) else { return };
        let Some(count) = self.of(&event.flow, view) else { return };
        match what {
            What::New => count.begun += 1,
            // One-way datagrams expect no answer.
            What::Unanswered if event.flow.original.protocol != protocol::UDP => count.failed += 1,
            What::Refused => count.failed += 1,
            What::Reset => count.resets += 1,
            What::Open | What::Ended | What::Unanswered | What::Dropped => {}
        }
        if what != What::New {
            count.ended_bytes += event.carried.map_or(0, |carried| carried.bytes());
        }
    }

    /// Before a walk through the table of connections.
    pub fn begin_walk(&mut self) {
        for count in self.counts.values_mut() {
            (count.open, count.open_bytes) = (0, 0);
        }
    }

    /// A connection that there is.
    pub fn open(&mut self, flow: &Flow, carried: Option<Carried>, view: &View<'_>) {
        if let Some(count) = self.of(flow, view) {
            count.open += 1;
            count.open_bytes += carried.map_or(0, |carried| carried.bytes());
        }
    }

    /// All rows, those with most new connections first, then those with most open ones. Their numbers are those since the
    /// last call; the first call has what events told since the beginning, and the bytes of every open connection.
    pub fn rows(&mut self, view: &View<'_>) -> Vec<Row> {
        let mut rows = Vec::new();
        for (key, count) in &self.counts {
            let before = self.shown.get(key).copied().unwrap_or_default();
            let total = |count: &Count| count.open_bytes + count.ended_bytes;
            let row = Row {
                service: match key {
                    Key::Of(service, _) => service.clone(),
                    Key::Others => "(others)".to_owned(),
                },
                who: match key {
                    Key::Of(_, Some((at, port))) => Some(socket(*at, *port)),
                    Key::Of(_, None) | Key::Others => None,
                },
                name: match key {
                    Key::Of(_, Some((at, _))) => view.host(*at),
                    Key::Of(_, None) | Key::Others => None,
                },
                new: count.begun - before.begun,
                open: count.open,
                bytes: total(count).saturating_sub(total(&before)),
                failed_handshakes: count.failed - before.failed,
                resets: count.resets - before.resets,
            };
            rows.push(row);
        }
        self.shown.clone_from(&self.counts);
        // What has no connection any more makes room; what comes next begins anew.
        self.counts.retain(|_, count| count.open > 0);
        let counts = &self.counts;
        self.shown.retain(|key, _| counts.contains_key(key));
        rows.retain(|row| row.new + row.open + row.bytes + row.failed_handshakes + row.resets > 0);
        rows.sort_by(|a, b| {
            (b.new, b.open, b.bytes)
                .cmp(&(a.new, a.open, a.bytes))
                .then_with(|| (&a.service, &a.who).cmp(&(&b.service, &b.who)))
        });
        rows
    }
}
