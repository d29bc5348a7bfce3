//! `explain`: what becomes of a connection, why, and what says so: the decision, the kernel, flows that are like it, and what
//! others have on its way.

mod flow;
mod legacy;
mod others;
mod question;
mod rules;

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
};

use clap::Args;
use insight::{
    decision::{Chosen, Decider, Decision, Verdict},
    endpoints,
    engine::Engine,
    names::{Names, Who},
    state::{API_VERSION, Filter, State},
    table::{Look, Style},
    text,
};
use proxy_core::{
    environment::LocalPods,
    model::{Family, ServicePortName, TrafficPolicy},
};
use serde::Serialize;

use super::{
    common::Common,
    intended::{Intended, checked},
};
use others::{Effect, Obstacle};
use question::Question;

/// Explain what becomes of a connection from this node's point of view, and why
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 it reaches an endpoint (or goes its way untouched), 1 it is refused, 2 it is dropped, \
    3 the kernel is not as intended, 4 it cannot be told; 64 wrong usage, 70 no answer"
)]
pub(crate) struct Options {
    /// `node`, `outside`, or an address: of a pod, a node, a client
    from: String,
    /// [NAMESPACE/]SERVICE[:PORT], ADDRESS:PORT, or node:PORT
    to: String,
    /// tcp, udp or sctp [default: the port's, or tcp]
    #[arg(short, long)]
    protocol: Option<String>,
    /// An endpoint (its address): why does this one get nothing?
    #[arg(long, value_name = "ADDRESS")]
    why_not: Option<IpAddr>,
}

/// How it ends. The number is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum End {
    Reaches = 0,
    Refused = 1,
    Dropped = 2,
    KernelDiffers = 3,
    Unknown = 4,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: &'static str,
    kind: &'static str,
    node: String,
    mode: &'static str,
    from: String,
    to: String,
    address: SocketAddr,
    protocol: &'static str,
    decision: DecisionShown,
    /// Absent: it was not looked at (a replay).
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel: Option<Kernel>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flows: Option<flow::Flows>,
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<Vec<Obstacle>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    why_not: Vec<String>,
    end: End,
    sentence: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DecisionShown {
    #[serde(skip_serializing_if = "Option::is_none")]
    service_port: Option<String>,
    /// `endpoints`, `refused`, `dropped` or `passed`.
    verdict: &'static str,
    because: Vec<String>,
    endpoints: Vec<EndpointShown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<u32>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointShown {
    endpoint: SocketAddr,
    on_this_node: bool,
    masqueraded: bool,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Kernel {
    /// `None`: it could not be told.
    equal: Option<bool>,
    compared: usize,
    differences: Vec<String>,
    unseen: Vec<String>,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    let answer = answer(options, common)?;
    common.answer(&answer, |look| print(&answer, look))?;
    Ok(ExitCode::from(answer.end as u8))
}

fn answer(options: &Options, common: &Common) -> anyhow::Result<Answer> {
    let state = common.state(Filter::default())?;
    let engine = common.engine(&state);
    let names = Names::of(&engine);
    let is_pod = |address| if common.is_live() { is_pod(&engine, address) } else { None };
    let asked = (&*options.from, &*options.to, options.protocol.as_deref());
    let question = question::read(asked, (&state, &engine, &names), common, &is_pod)?;
    let decider = Decider::new(&engine, state.header.mode, state.header.localhost_v6_node_ports);
    let mut decision = decider.decide(question.source, question.protocol, question.to);
    for loser in decider.in_vain(question.protocol, question.to) {
        decision.because.push(format!("{loser} asks for {} as well, in vain", question.to));
    }
    let why_not = options.why_not.map(|address| why_not(&engine, &decision, address)).unwrap_or_default();
    let (kernel, flows, others) = if common.is_live() {
        let endpoint = match &decision.verdict {
            Verdict::To(chosen) => chosen.first().map(|first| (at(first), first.masqueraded)),
            Verdict::Refused | Verdict::Dropped | Verdict::Passed => None,
        };
        let is_own = |address| matches!(names.who(address), Who::Node);
        let others = match decision.verdict {
            Verdict::To(_) | Verdict::Passed => {
                others::on_the_way(&question, state.header.mode, endpoint, &is_own)
            }
            Verdict::Refused | Verdict::Dropped => Vec::new(),
        };
        (Some(kernel(&state, &decision)), Some(flow::read(&question)), Some(others))
    } else {
        (None, None, None)
    };
    let aside = decision.port.as_ref().and_then(|(port, _)| {
        state.aside(Family::of(question.to.ip()), &port.service).map(|aside| aside.reason.clone())
    });
    let (end, sentence) =
        conclude(&question, &decision, aside.as_deref(), (kernel.as_ref(), others.as_deref().unwrap_or(&[])));
    Ok(Answer {
        api_version: API_VERSION,
        kind: "Explanation",
        node: state.header.node.clone(),
        mode: state.header.mode.as_str(),
        from: question.from_name.clone(),
        to: question.to_name.clone(),
        address: question.to,
        protocol: text::protocol(question.protocol),
        decision: shown(&decision),
        kernel,
        flows,
        others,
        why_not,
        end,
        sentence,
    })
}

/// What people read, for a test.
#[cfg(test)]
pub(super) fn rendered(options: &Options, common: &Common, look: Look) -> anyhow::Result<String> {
    Ok(print(&answer(options, common)?, look))
}

/// Whether an address is that of a pod of this node, where its interface tells.
fn is_pod(engine: &Engine, address: IpAddr) -> Option<bool> {
    let device = others::route(address)?.ok()?;
    Some(match &engine.settings().local_pods {
        LocalPods::Bridge(name) => *device == **name,
        LocalPods::InterfacePrefix(prefix) => device.starts_with(&**prefix),
        LocalPods::Cidrs(_) | LocalPods::Unknown => return None,
    })
}

fn at(chosen: &Chosen) -> SocketAddr {
    SocketAddr::new(chosen.target.addr, chosen.target.port)
}

fn shown(decision: &Decision) -> DecisionShown {
    let endpoints = match &decision.verdict {
        Verdict::To(chosen) => chosen.as_slice(),
        Verdict::Refused | Verdict::Dropped | Verdict::Passed => &[],
    };
    DecisionShown {
        service_port: decision.port.as_ref().map(|(port, _)| port.to_string()),
        verdict: match decision.verdict {
            Verdict::To(_) => "endpoints",
            Verdict::Refused => "refused",
            Verdict::Dropped => "dropped",
            Verdict::Passed => "passed",
        },
        because: decision.because.clone(),
        endpoints: endpoints
            .iter()
            .map(|chosen| EndpointShown {
                endpoint: at(chosen),
                on_this_node: chosen.target.local,
                masqueraded: chosen.masqueraded,
            })
            .collect(),
        affinity_seconds: decision.route.as_ref().and_then(|route| route.policy.affinity),
    }
}

/// Why an endpoint gets nothing of what the decision is about.
fn why_not(engine: &Engine, decision: &Decision, address: IpAddr) -> Vec<String> {
    let Some((port, _)) = &decision.port else {
        return vec![format!("{address} gets nothing: no Service is concerned")];
    };
    let used = match &decision.verdict {
        Verdict::To(chosen) => chosen.iter().any(|chosen| chosen.target.addr == address),
        Verdict::Refused | Verdict::Dropped | Verdict::Passed => false,
    };
    if used {
        return vec![format!("{address} is one of the endpoints that it may go to")];
    }
    let accounts = endpoints::of_service(engine, &port.service);
    let of = |account: &&endpoints::Account| account.port == *port && account.family == Family::of(address);
    let listed = accounts.iter().find(of).map_or(&[][..], |account| &account.endpoints);
    let mut reasons: Vec<String> = Vec::new();
    for one in listed.iter().filter(|listed| listed.address == address) {
        let slice = one.slice.name();
        // By the policy that decides here.
        let why = match decision.policy {
            Some(TrafficPolicy::Local) => one.local.map(|why| (why, "Local")),
            Some(TrafficPolicy::Cluster) => one.cluster.map(|why| (why, "Cluster")),
            None => None,
        };
        reasons.push(match why {
            Some((why, policy)) => format!("{address} ({slice}): {} (policy {policy})", why.as_str()),
            None => {
                format!("{address} ({slice}): it did not come to a choice of endpoints, see the decision")
            }
        });
    }
    if reasons.is_empty() {
        reasons.push(format!(
            "no EndpointSlice of {} names {address} for this port: its pod may not be ready yet, have other labels than the \
             selector asks for, or no port of the name {:?}",
            port.service, &*port.port
        ));
    }
    reasons
}

fn kernel(state: &State, decision: &Decision) -> Kernel {
    let compared = Intended::of(state).and_then(checked).and_then(|intended| Ok(intended.compare()?));
    let compared = match compared {
        Ok(compared) => compared,
        Err(error) => {
            return Kernel { unseen: vec![format!("{error:#}")], ..Kernel::default() };
        }
    };
    let mut kernel = Kernel { equal: Some(true), ..Kernel::default() };
    let port = decision.port.as_ref().map(|(port, _)| port);
    let concerns = |owner: Option<&ServicePortName>| match (owner, port) {
        (Some(owner), Some(port)) => owner == port,
        // Of all Services, or of nobody: it may stand in the way.
        (None, _) => true,
        (Some(_), None) => false,
    };
    for comparison in compared.into_values() {
        kernel.compared += comparison.compared;
        kernel.unseen.extend(comparison.unseen);
        let differences = comparison.differences.into_iter();
        kernel.differences.extend(
            differences
                .filter(|difference| concerns(difference.owner.as_ref()))
                .map(|difference| format!("{}: {}", difference.kind, difference.what)),
        );
    }
    kernel.equal = Some(kernel.differences.is_empty());
    kernel
}

/// The last sentence.
fn conclude(
    question: &Question,
    decision: &Decision,
    aside: Option<&str>,
    (kernel, others): (Option<&Kernel>, &[Obstacle]),
) -> (End, String) {
    let Question { from_name, to_name, .. } = question;
    let of = |effect: Effect| others.iter().find(|obstacle| obstacle.effect == effect);
    if let Some(first) = kernel.and_then(|kernel| kernel.differences.first()) {
        return (
            End::KernelDiffers,
            format!(
                "The kernel is not as intended ({first}): what becomes of it is not what was decided. See kube-proxy diff."
            ),
        );
    }
    if let Some(reason) = aside {
        return (
            End::KernelDiffers,
            format!("The Service is set aside ({reason}): the kernel has its last good state, if any."),
        );
    }
    let why = decision.because.last().map_or("", String::as_str);
    let sources = decision.port.as_ref().zip(decision.route.as_ref());
    if let Some(sources) = sources.and_then(|((_, frontend), route)| route.sources(frontend))
        && question.anybody
    {
        let ranges: Vec<String> = sources.ranges.iter().map(ToString::to_string).collect();
        return (
            End::Unknown,
            format!(
                "It depends on who that is outside: loadBalancerSourceRanges lets only {} in. Give an address instead of \
                 `outside`.",
                ranges.join(", ")
            ),
        );
    }
    match &decision.verdict {
        Verdict::Refused => {
            (End::Refused, format!("A connection from {from_name} to {to_name} is refused: {why}."))
        }
        Verdict::Dropped => {
            (End::Dropped, format!("A connection from {from_name} to {to_name} is dropped: {why}."))
        }
        Verdict::To(_) | Verdict::Passed => {
            if let Some(obstacle) = of(Effect::Drops) {
                return (
                    End::Dropped,
                    format!(
                        "A connection from {from_name} to {to_name} is dropped at {}: {}.",
                        obstacle.at, obstacle.what
                    ),
                );
            }
            if let Some(obstacle) = of(Effect::Refuses) {
                return (
                    End::Refused,
                    format!(
                        "A connection from {from_name} to {to_name} is refused at {}: {}.",
                        obstacle.at, obstacle.what
                    ),
                );
            }
            let reaches = match &decision.verdict {
                Verdict::To(chosen) => {
                    let first = at(&chosen[0]);
                    let masqueraded = chosen.iter().all(|chosen| chosen.masqueraded);
                    let whom = match chosen.len() {
                        1 => format!("the endpoint {first}"),
                        count => format!("one of {count} endpoints"),
                    };
                    let as_whom = if masqueraded { "masqueraded" } else { "with its source as it is" };
                    format!("A connection from {from_name} to {to_name} reaches {whom}, {as_whom}")
                }
                _ => format!(
                    "A connection from {from_name} to {to_name} goes its way: no rule of the proxy concerns it"
                ),
            };
            match of(Effect::MayStop) {
                Some(obstacle) => (
                    End::Unknown,
                    format!("{reaches}, unless it is stopped at {}: {}.", obstacle.at, obstacle.what),
                ),
                None => (End::Reaches, format!("{reaches}.")),
            }
        }
    }
}

fn print(answer: &Answer, look: Look) -> String {
    let mut text = format!("{} {} from {} to {}\n", answer.protocol, answer.address, answer.from, answer.to);
    let mut block = |title: &str, lines: &mut dyn Iterator<Item = String>| {
        text += &format!("\n{title}\n");
        for line in lines {
            text += &format!("  {line}\n");
        }
    };
    let decision = &answer.decision;
    let endpoints = decision.endpoints.iter().map(|endpoint| {
        let here = if endpoint.on_this_node { ", on this node" } else { "" };
        let masqueraded = if endpoint.masqueraded { ", masqueraded" } else { "" };
        format!("-> {}{here}{masqueraded}", endpoint.endpoint)
    });
    let affinity = decision
        .affinity_seconds
        .map(|seconds| format!("a client stays with its endpoint until it was silent for {seconds} s"));
    block("Decision", &mut decision.because.iter().cloned().chain(affinity).chain(endpoints));
    if !answer.why_not.is_empty() {
        block("Why not", &mut answer.why_not.iter().cloned());
    }
    if let Some(kernel) = &answer.kernel {
        let said = match kernel.equal {
            Some(true) => Style::Good.paint("as intended", look.colour),
            Some(false) => Style::Bad.paint("not as intended", look.colour),
            None => "not known".to_owned(),
        };
        let first = format!("{said} ({} objects read back)", kernel.compared);
        let unseen = kernel.unseen.iter().map(|what| format!("not compared: {what}"));
        block("Kernel", &mut std::iter::once(first).chain(kernel.differences.iter().cloned()).chain(unseen));
    }
    if let Some(flows) = &answer.flows {
        block("Flows", &mut flows.lines().into_iter());
    }
    if let Some(others) = &answer.others {
        let nothing = others.is_empty().then(|| "nothing of others stops it".to_owned());
        let lines = others.iter().map(|obstacle| {
            let word = match obstacle.effect {
                Effect::Drops => "drops",
                Effect::Refuses => "refuses",
                Effect::MayStop => "may stop",
                Effect::Note => "note",
            };
            format!("{word}: {}: {}", obstacle.at, obstacle.what)
        });
        block("Others", &mut nothing.into_iter().chain(lines));
    }
    let style = match answer.end {
        End::Reaches => Style::Good,
        End::Unknown => Style::Warn,
        End::Refused | End::Dropped | End::KernelDiffers => Style::Bad,
    };
    text += &format!("\n{}\n", style.paint(&answer.sentence, look.colour));
    text
}
