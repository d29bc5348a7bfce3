//! Connections of Services as conntrack tells of them, by name; and what they come to ([`top`]).

pub mod top;

use std::net::IpAddr;

use netlink::{
    conntrack::{Carried, Flow, protocol, status, tcp_state},
    flow_events::{FlowEvent, Moment},
};
use serde::Serialize;

use crate::{
    names::Named,
    traffic::{View, protocol_name, socket},
};

/// What a line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// It is there, in a snapshot.
    Open,
    /// It began.
    New,
    /// It ended, one way or another, after somebody had answered.
    Ended,
    /// It was answered by a reset before it was open: nobody listens at the endpoint. Or a rule refused it.
    Refused,
    /// Nobody ever answered, until it was forgotten.
    Unanswered,
    /// It was open and ended by a reset.
    Reset,
    /// A rule dropped its first packet.
    Dropped,
}

impl What {
    /// As in a line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::New => "new",
            Self::Ended => "ended",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Reset => "reset",
            Self::Dropped => "dropped",
        }
    }

    /// What an event tells; `None`: only a state changed.
    pub fn of(event: &FlowEvent) -> Option<Self> {
        match event.moment {
            Moment::New => Some(Self::New),
            Moment::Changed => None,
            Moment::Ended => Some(how_it_ended(&event.flow)),
        }
    }
}

/// By the state in which conntrack forgot it. (A kernel before 5.8 does not tell TCP's state at the end: then a reset is an
/// ordinary end, and a refused connection an unanswered one.)
fn how_it_ended(flow: &Flow) -> What {
    let answered = flow.status & status::SEEN_REPLY != 0;
    let reset = flow.tcp_state == Some(tcp_state::CLOSE);
    match (answered, reset) {
        (false, true) => What::Refused,
        // One-way datagrams are nothing unusual, but nobody answered all the same.
        (false, false) => What::Unanswered,
        // A reset that answers a SYN makes the kernel forget at once; so this one was answered before.
        (true, true) => What::Reset,
        (true, false) => What::Ended,
    }
}

/// A connection by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// What happened.
    pub what: What,
    /// `TCP`, `UDP`, `SCTP`.
    pub protocol: String,
    /// Who began it.
    pub client: String,
    /// The client by name, where it is known.
    pub client_name: Option<String>,
    /// The address of the Service.
    pub destination: String,
    /// `namespace/name:port`.
    pub service: String,
    /// Who answers; `None` where nobody was chosen.
    pub endpoint: Option<String>,
    /// Whether that is on this node.
    pub endpoint_is_here: Option<bool>,
    /// Bytes of both directions, with the headers from IP on, where they are counted.
    pub bytes: Option<u64>,
    /// Why, where there is more to say.
    pub because: Option<String>,
}

/// Whose connection this is, and which endpoint has it; `None`: no Service's.
pub fn belongs<'a>(flow: &Flow, view: &'a View<'_>) -> Option<(&'a Named, Option<(IpAddr, u16)>)> {
    let to = &flow.original;
    let named = view.frontend(to.protocol, to.destination, to.destination_port)?;
    let answers = (flow.reply.source, flow.reply.source_port);
    // Where a virtual IP is the node's own and nobody was chosen, the node itself would answer.
    Some((named, (answers != (to.destination, to.destination_port)).then_some(answers)))
}

/// A line for a connection of a Service; `None` for every other.
pub fn line(what: What, flow: &Flow, carried: Option<Carried>, view: &View<'_>) -> Option<Line> {
    let (named, endpoint) = belongs(flow, view)?;
    let to = &flow.original;
    let because = match what {
        What::Refused => Some("the endpoint answered with a reset".to_owned()),
        What::Unanswered if to.protocol == protocol::TCP => Some("nobody answered the SYN".to_owned()),
        _ => None,
    };
    Some(Line {
        what,
        protocol: protocol_name(to.protocol),
        client: socket(to.source, to.source_port),
        client_name: view.host(to.source),
        destination: socket(to.destination, to.destination_port),
        service: named.port.to_string(),
        endpoint: endpoint.map(|(at, port)| socket(at, port)),
        endpoint_is_here: endpoint.and_then(|(at, _)| view.is_here(at)),
        bytes: carried.map(|carried| carried.bytes()),
        because,
    })
}

#[cfg(test)]
mod tests {
    use netlink::conntrack::Tuple;

    use super::*;

    #[test]
    fn an_end_is_told_by_the_state_it_came_in() {
        let tuple = Tuple {
            source: [10, 0, 0, 1].into(),
            destination: [10, 0, 0, 2].into(),
            protocol: protocol::TCP,
            source_port: 1,
            destination_port: 80,
            icmp: None,
        };
        let ended = |status, tcp_state| {
            let flow = Flow {
                original: tuple,
                reply: tuple.reversed(),
                zone: 0,
                status,
                id: Some(1),
                timeout: 0,
                mark: 0,
                tcp_state,
            };
            What::of(&FlowEvent { moment: Moment::Ended, flow, carried: None })
        };
        let answered = status::SEEN_REPLY | status::ASSURED;
        assert_eq!(ended(0, Some(tcp_state::CLOSE)), Some(What::Refused));
        assert_eq!(ended(0, Some(tcp_state::SYN_SENT)), Some(What::Unanswered));
        assert_eq!(ended(answered, Some(tcp_state::CLOSE)), Some(What::Reset));
        assert_eq!(ended(answered, Some(tcp_state::TIME_WAIT)), Some(What::Ended));
        assert_eq!(ended(0, None), Some(What::Unanswered));
        assert_eq!(ended(answered, None), Some(What::Ended));
    }
}
