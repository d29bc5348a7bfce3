//! A packet's story by the names that the engine knows: for people a sentence, for programs its parts.

use nft_netlink::{
    Family as TableFamily, Verdict,
    trace::{Packet, Step, TraceVerdict},
};
use proxy_core::model::Family;
use serde::Serialize;

use super::story::{End, RuleAt, Sight, Story};
use crate::traffic::{View, endpoints_in_words, protocol_name, socket, why_masqueraded};

/// What is known of rules and interfaces beside the events.
pub trait Surroundings {
    /// The rule in its own language.
    fn rule(&self, at: &RuleAt) -> Option<String>;
    /// The name of the interface with this index.
    fn interface(&self, index: u32) -> Option<String>;
}

/// One packet that was traced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Traced {
    /// `TCP`, `UDP` and so on.
    pub protocol: String,
    /// Who sent it.
    pub client: String,
    /// The client by name, where it is known.
    pub client_name: Option<String>,
    /// To whom, as it came in.
    pub destination: String,
    /// `namespace/name:port`.
    pub service: Option<String>,
    /// What kind of address of the Service it is.
    pub address_kind: Option<&'static str>,
    /// To whom it was sent, where its destination was translated.
    pub endpoint: Option<String>,
    /// Whether that is on this node.
    pub endpoint_is_here: Option<bool>,
    /// Its source afterwards, where that was translated.
    pub masqueraded_as: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// The rule or policy that decided, where one did.
    pub by: Option<By>,
    /// All of that in words.
    pub sentence: String,
    /// Every rule that matched, and every policy.
    pub steps: Vec<Passed>,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// To a socket of this node.
    Delivered,
    /// Out of an interface.
    Left,
    /// Its sender was told no.
    Refused,
    /// Without a word.
    Dropped,
    /// To a program in user space.
    Queued,
    /// Nothing more was seen of it.
    Unseen,
}

/// A rule, or the policy of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct By {
    /// nft's word for the family.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// `None`: the chain's policy.
    pub handle: Option<u64>,
    /// The rule in its own language.
    pub rule: Option<String>,
}

/// A step of the packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Passed {
    /// The hook.
    pub hook: &'static str,
    /// Where.
    #[serde(flatten)]
    pub by: By,
    /// What was decided: `accept`, `jump lb-3` and so on.
    pub verdict: String,
}

/// Tells a story. `None`: nothing was seen of the packet itself.
pub fn tell(story: &Story, view: View<'_>, surroundings: &dyn Surroundings) -> Option<Traced> {
    let (first, last) = story.first_and_last()?;
    let from = first.packet;
    let (by, outcome) = decided(story, surroundings);
    let named = view.frontend(from.protocol, from.destination, from.destination_port);
    let translated = last_destination(story, from);
    let masqueraded = (last.packet.source != from.source).then_some(last.packet);
    let mut parts = Vec::new();
    if let Some(named) = named {
        let kind = crate::digest::kind(named.kind);
        parts.push(format!("{kind} {}", named.port));
        if let Some(route) = view.route(named, Family::of(from.destination)) {
            let at = (named.kind != proxy_core::route::FrontendKind::NodePort).then_some(from.destination);
            parts.push(endpoints_in_words(route, named.kind, at, from.destination_port));
        }
    } else if let Some(name) = view.host(from.destination) {
        parts.push(format!("to {name}"));
    }
    if let Some(to) = translated {
        let place = match view.is_here(to.destination) {
            Some(true) => " on this node",
            Some(false) => " on another node",
            None => "",
        };
        parts.push(format!("chose {}{place}", socket(to.destination, to.destination_port)));
    }
    if let Some(packet) = masqueraded {
        let endpoint = translated.map_or(from.destination, |to| to.destination);
        let because = named.map(|named| why_masqueraded(view, named, from.source, endpoint));
        let because = because.map(|why| format!(" because {why}")).unwrap_or_default();
        parts.push(format!("masqueraded as {}{because}", packet.source));
    }
    let sentence =
        format!("{}{}", parts.join(", "), ending(story, &by, outcome, !parts.is_empty(), surroundings));
    Some(Traced {
        protocol: protocol_name(from.protocol),
        client: socket(from.source, from.source_port),
        client_name: view.host(from.source),
        destination: socket(from.destination, from.destination_port),
        service: named.map(|named| named.port.to_string()),
        address_kind: named.map(|named| crate::digest::kind(named.kind)),
        endpoint: translated.map(|to| socket(to.destination, to.destination_port)),
        endpoint_is_here: translated.and_then(|to| view.is_here(to.destination)),
        masqueraded_as: masqueraded.map(|packet| socket(packet.source, packet.source_port)),
        outcome,
        by,
        sentence,
        steps: steps(story, surroundings),
    })
}

/// Where its destination was translated to, if it was.
fn last_destination(story: &Story, first: Packet) -> Option<Packet> {
    let differs = |sight: &&Sight| {
        let packet = sight.packet;
        (packet.destination, packet.destination_port) != (first.destination, first.destination_port)
    };
    story.sights.iter().rev().find(differs).map(|sight| sight.packet)
}

fn decided(story: &Story, surroundings: &dyn Surroundings) -> (Option<By>, Outcome) {
    let rule = |at: &RuleAt| By {
        family: at.family.name(),
        table: at.table.to_string(),
        chain: at.chain.to_string(),
        handle: Some(at.handle),
        rule: surroundings.rule(at),
    };
    match &story.end {
        End::Delivered => (None, Outcome::Delivered),
        End::Left(_) => (None, Outcome::Left),
        End::Unseen => (None, Outcome::Unseen),
        End::Queued(at) => (Some(rule(at)), Outcome::Queued),
        End::Dropped(at) => {
            let by = rule(at);
            let answers = by.rule.as_deref().is_some_and(|text| text.to_ascii_lowercase().contains("reject"));
            (Some(by), if answers { Outcome::Refused } else { Outcome::Dropped })
        }
        End::DroppedByPolicy { family, table, chain } => {
            let by = By {
                family: family.map_or("?", TableFamily::name),
                table: table.to_string(),
                chain: chain.to_string(),
                handle: None,
                rule: None,
            };
            (Some(by), Outcome::Dropped)
        }
    }
}

fn ending(
    story: &Story,
    by: &Option<By>,
    outcome: Outcome,
    after_something: bool,
    surroundings: &dyn Surroundings,
) -> String {
    let separator = if after_something { "; " } else { "" };
    let text = match (&story.end, by) {
        (End::Delivered, _) => "delivered to this node".to_owned(),
        (End::Left(output), _) => {
            let interface = output
                .map(|index| surroundings.interface(index).unwrap_or_else(|| format!("interface {index}")));
            format!("left by {}", interface.as_deref().unwrap_or("an interface"))
        }
        (End::Unseen, _) => {
            let last = story.sights.last().map_or("prerouting", |sight| sight.at.name());
            format!(
                "not seen again after {last}: the route (no route, rp_filter), IPVS, a rule of legacy iptables or a program \
                 outside nf_tables took it"
            )
        }
        (_, Some(by)) => {
            let verb = match outcome {
                Outcome::Refused => "refused",
                Outcome::Queued => "given to a program in user space",
                _ => "dropped",
            };
            format!("{verb} by {by}")
        }
        (_, None) => String::new(),
    };
    format!("{separator}{text}")
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(handle) = self.handle else {
            return write!(f, "the policy of table {} {}, chain {}", self.family, self.table, self.chain);
        };
        write!(f, "table {} {}, chain {}, rule {handle}", self.family, self.table, self.chain)?;
        self.rule.as_ref().map_or(Ok(()), |rule| write!(f, ": {rule}"))
    }
}

fn steps(story: &Story, surroundings: &dyn Surroundings) -> Vec<Passed> {
    let mut steps = Vec::new();
    for visit in &story.visits {
        for (chain, step) in &visit.steps {
            let (handle, verdict) = match step {
                Step::Rule { handle, verdict } => (Some(*handle), verdict_in_words(verdict)),
                // The end of a chain decides nothing.
                Step::Return => continue,
                Step::Policy { accepts } => (None, if *accepts { "accept" } else { "drop" }.to_owned()),
            };
            let at = visit.family.zip(handle).map(|(family, handle)| RuleAt {
                family,
                table: visit.table.clone(),
                chain: chain.clone(),
                handle,
            });
            let by = By {
                family: visit.family.map_or("?", TableFamily::name),
                table: visit.table.to_string(),
                chain: chain.to_string(),
                handle,
                rule: at.and_then(|at| surroundings.rule(&at)),
            };
            steps.push(Passed { hook: visit.at.name(), by, verdict });
        }
    }
    steps
}

fn verdict_in_words(verdict: &TraceVerdict) -> String {
    match verdict {
        TraceVerdict::Plain(Verdict::Continue) => "continue".to_owned(),
        TraceVerdict::Plain(plain) => plain.to_string(),
        TraceVerdict::Queue => "queue".to_owned(),
        TraceVerdict::Stolen => "stolen".to_owned(),
        TraceVerdict::Other(code) => format!("verdict {code}"),
    }
}
