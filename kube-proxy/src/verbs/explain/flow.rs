//! What the kernel remembers of flows that are like the one asked about.

use std::net::IpAddr;

use netlink::{
    conntrack::{self, Filter, Flow, status},
    route::AddressFamily,
};
use serde::Serialize;

use super::question::Question;

/// So many are shown; all are counted.
const SHOWN: usize = 5;

/// Flows to the same frontend.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Flows {
    /// From this source.
    pub(super) from_here: usize,
    /// From anybody.
    pub(super) all: usize,
    /// Some of those from this source.
    pub(super) some: Vec<Entry>,
    /// Why they could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) unread: Option<String>,
}

/// One entry of conntrack.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    source: IpAddr,
    source_port: u16,
    /// To whom it is translated; absent: it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<std::net::SocketAddr>,
    masqueraded: bool,
    answered: bool,
    expires_in_seconds: u32,
}

/// Reads conntrack, filtered by the kernel where it can.
pub(super) fn read(question: &Question) -> Flows {
    let mut flows = Flows::default();
    let result = netlink::Socket::open(netlink::Protocol::Netfilter).and_then(|mut socket| {
        let filter = Filter {
            family: Some(if question.to.is_ipv4() { AddressFamily::V4 } else { AddressFamily::V6 }),
            protocol: Some(question.protocol.number()),
            destination: Some(question.to.ip()),
            destination_port: Some(question.to.port()),
            ..Filter::default()
        };
        conntrack::walk(&mut socket, &filter, |flow| flows.note(question, flow))
    });
    if let Err(error) = result {
        flows.unread = Some(error.to_string());
    }
    flows
}

impl Flows {
    fn note(&mut self, question: &Question, flow: &Flow) {
        self.all += 1;
        if !question.anybody && flow.original.source != question.source.address {
            return;
        }
        self.from_here += 1;
        if self.some.len() < SHOWN {
            let translated = flow.status & status::DNAT != 0;
            self.some.push(Entry {
                source: flow.original.source,
                source_port: flow.original.source_port,
                endpoint: translated
                    .then(|| std::net::SocketAddr::new(flow.reply.source, flow.reply.source_port)),
                masqueraded: flow.status & status::SNAT != 0,
                answered: flow.status & status::SEEN_REPLY != 0,
                expires_in_seconds: flow.timeout,
            });
        }
    }

    /// For people.
    pub(super) fn lines(&self) -> Vec<String> {
        if let Some(error) = &self.unread {
            return vec![format!("conntrack could not be read: {error}")];
        }
        if self.all == 0 {
            return vec!["no connection to it is known to conntrack".to_owned()];
        }
        let mut lines = vec![format!(
            "{} connections to it are known to conntrack, {} of them from there",
            self.all, self.from_here
        )];
        lines.extend(self.some.iter().map(|entry| {
            let to = entry
                .endpoint
                .map_or_else(|| "not translated".to_owned(), |endpoint| format!("to {endpoint}"));
            let masqueraded = if entry.masqueraded { ", masqueraded" } else { "" };
            let answered = if entry.answered { "answered" } else { "not answered" };
            format!(
                "{} port {} {to}{masqueraded}, {answered}, forgotten in {} s",
                entry.source, entry.source_port, entry.expires_in_seconds
            )
        }));
        lines
    }
}
