//! One rule as far as our own rules go; anything else is an error.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxy_core::model::Protocol;

use crate::model::packet::{Packet, State};

pub(super) struct Rule {
    conditions: Vec<(bool, Condition)>,
    pub(super) target: Option<Target>,
}

enum Condition {
    Source(IpNet),
    Destination(IpNet),
    /// A name, or the beginning of one with `+` at the end.
    Interface(String),
    Protocol(Protocol),
    Port(u16),
    SourceLocal,
    DestinationLocal,
    Mark {
        value: u32,
        mask: u32,
    },
    /// Of the connection; the packet is its first.
    States(String),
    /// True or not.
    Chance,
    Always,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Target {
    Return,
    Accept,
    Drop,
    Reject,
    Translate(SocketAddr),
    Masquerade,
    Mark { value: u32, mask: u32 },
    Chain(String),
}

/// The words of a rule: blanks inside double quotes do not part them.
fn words(rule: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut quoted = false;
    for c in rule.chars() {
        match c {
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().expect("never empty").push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

impl Rule {
    pub(super) fn parse(rule: &str) -> Result<Self, String> {
        let words = words(rule);
        let mut words = words.iter().map(String::as_str);
        let mut parsed = Self { conditions: Vec::new(), target: None };
        let mut negated = false;
        while let Some(word) = words.next() {
            if word == "!" {
                negated = true;
                continue;
            }
            let mut value = || words.next().ok_or_else(|| format!("{word} lacks a value"));
            let condition = match word {
                "-s" => Condition::Source(value()?.parse().map_err(|_| "not a network")?),
                "-d" => Condition::Destination(value()?.parse().map_err(|_| "not a network")?),
                "-i" => Condition::Interface(value()?.to_owned()),
                "-p" => Condition::Protocol(protocol(value()?)?),
                "--dport" => Condition::Port(value()?.parse().map_err(|_| "not a port")?),
                "--src-type" if value()? == "LOCAL" => Condition::SourceLocal,
                "--dst-type" if value()? == "LOCAL" => Condition::DestinationLocal,
                "--mark" => {
                    let (value, mask) = masked(value()?)?;
                    Condition::Mark { value, mask }
                }
                "--ctstate" => Condition::States(value()?.to_owned()),
                "--probability" | "--rcheck" => {
                    if word == "--probability" {
                        value()?;
                    }
                    Condition::Chance
                }
                "-m" | "--comment" | "--mode" | "--seconds" | "--name" | "--mask" | "--nfacct-name" => {
                    value()?;
                    Condition::Always
                }
                "--reap" | "--rsource" | "--set" => Condition::Always,
                "-j" => {
                    let name = value()?;
                    parsed.target = Some(target(name, &mut words)?);
                    continue;
                }
                _ => return Err(format!("{word} is not understood")),
            };
            parsed.conditions.push((std::mem::take(&mut negated), condition));
        }
        Ok(parsed)
    }

    /// Whether it may match, and whether it may fail to.
    pub(super) fn matches(
        &self,
        packet: &Packet<'_>,
        state: &State,
        local: &dyn Fn(IpAddr) -> bool,
    ) -> (bool, bool) {
        let mut chance = false;
        for (negated, condition) in &self.conditions {
            let holds = match condition {
                Condition::Source(network) => network.contains(&packet.source),
                Condition::Destination(network) => network.contains(&state.to.ip()),
                Condition::Interface(name) => packet.interface.is_some_and(|interface| {
                    name.strip_suffix('+').map_or(name == interface, |prefix| interface.starts_with(prefix))
                }),
                Condition::Protocol(protocol) => *protocol == packet.protocol,
                Condition::Port(port) => *port == state.to.port(),
                Condition::SourceLocal => local(packet.source),
                Condition::DestinationLocal => local(state.to.ip()),
                Condition::Mark { value, mask } => state.mark & mask == *value,
                Condition::States(states) => {
                    states.split(',').any(|one| one == "NEW" || (one == "DNAT" && state.translated))
                }
                Condition::Chance => {
                    chance = true;
                    continue;
                }
                Condition::Always => true,
            };
            if holds == *negated {
                return (false, true);
            }
        }
        (true, chance)
    }
}

fn target<'a>(name: &str, words: &mut impl Iterator<Item = &'a str>) -> Result<Target, String> {
    let mut option = |wanted: &str| match (words.next(), words.next()) {
        (Some(option), Some(value)) if option == wanted => Ok(value.to_owned()),
        _ => Err(format!("{name} lacks {wanted}")),
    };
    Ok(match name {
        "RETURN" => Target::Return,
        "ACCEPT" => Target::Accept,
        "DROP" => Target::Drop,
        "REJECT" => {
            option("--reject-with")?;
            Target::Reject
        }
        "DNAT" => Target::Translate(option("--to-destination")?.parse().map_err(|_| "not a socket address")?),
        "MASQUERADE" => {
            if words.next().is_some_and(|word| word != "--random-fully") {
                return Err("an unknown option of MASQUERADE".to_owned());
            }
            Target::Masquerade
        }
        "MARK" => {
            let (value, mask) = masked(&option("--set-xmark")?)?;
            Target::Mark { value, mask }
        }
        chain => Target::Chain(chain.to_owned()),
    })
}

fn protocol(name: &str) -> Result<Protocol, String> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| protocol.as_str() == name)
        .ok_or_else(|| format!("{name} is no protocol of Services"))
}

/// `0x4000/0x4000`.
fn masked(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| {
        text.strip_prefix("0x").and_then(|digits| u32::from_str_radix(digits, 16).ok()).ok_or("not a mark")
    };
    let (value, mask) = text.split_once('/').ok_or("no mask")?;
    Ok((number(value)?, number(mask)?))
}
