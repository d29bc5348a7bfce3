//! `migrate check`: the plan of a change of mode, or of a take-over from kube-proxy, and what will behave differently for the
//! objects and the configuration that there are.

mod rules;

use std::{fmt::Write as _, process::ExitCode};

use clap::{Args, Subcommand};
use insight::{
    state::Filter,
    table::{Look, Style},
};
use serde::Serialize;

use super::{
    common::Common,
    intended::{Intended, checked},
    plan::{self, ModeName, changed::Changed},
    wrap::wrapped,
};
use rules::{Concern, Move, RULES};

/// Something behaves differently.
const DIFFERENT: u8 = 1;

/// Before a change of mode, or before kube-proxy is replaced
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Show what would be done, and what would behave differently; exit code 1 if anything would
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {
    /// The mode to change to [default: the present one]
    #[arg(long = "to", value_enum)]
    to: Option<ModeName>,
    /// Until now a kube-proxy serves this cluster's nodes
    #[arg(long)]
    from_kube_proxy: bool,
    /// The mode of that kube-proxy [default: the present one]
    #[arg(long, value_enum, requires = "from_kube_proxy")]
    from: Option<ModeName>,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    name: &'static str,
    what: &'static str,
    mend: &'static str,
    see: &'static str,
    /// `namespace/name`; empty: it concerns the node, or all Services.
    services: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    api_version: &'static str,
    kind: &'static str,
    node: String,
    from: String,
    to: &'static str,
    findings: Vec<Finding>,
    plan: plan::Answer,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    let Question::Check(check) = &options.question;
    let state = common.state(Filter::default())?;
    let mut before = Changed::new(state.clone());
    if let Some(mode) = check.from {
        before.mode(mode.mode())?;
    }
    let mut after = Changed::new(state.clone());
    if let Some(mode) = check.to {
        after.mode(mode.mode())?;
    }
    let way = Move { state: &before.state, after: &after.state, from_kube_proxy: check.from_kube_proxy };
    let intended = checked(Intended::of(&state)?)?;
    let plan = plan::answer(&intended, &after, check.from_kube_proxy, common.is_live(), false)?;
    let of = if check.from_kube_proxy { "kube-proxy, " } else { "" };
    let answer = Answer {
        api_version: insight::state::API_VERSION,
        kind: "Migration",
        node: state.header.node,
        from: format!("{of}{} mode", before.state.header.mode.as_str()),
        to: after.state.header.mode.as_str(),
        findings: findings(&way),
        plan,
    };
    common.answer(&answer, |look| text(&answer, look))?;
    Ok(if answer.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) })
}

fn findings(way: &Move<'_>) -> Vec<Finding> {
    RULES
        .iter()
        .filter_map(|rule| {
            let services = match (rule.concerns)(way) {
                Concern::Nothing => return None,
                Concern::Node => Vec::new(),
                Concern::Services(names) => names,
            };
            let (see, _) = rule.see;
            Some(Finding { name: rule.name, what: rule.what, mend: rule.mend, see, services })
        })
        .collect()
}

/// So many Services are named on a line.
const NAMED: usize = 3;

fn text(answer: &Answer, look: Look) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "From {} to {} mode.\n", answer.from, answer.to);
    if answer.findings.is_empty() {
        text.push_str("Nothing behaves differently for the Services and the configuration of this node.\n");
    } else {
        for finding in &answer.findings {
            let concerns = match finding.services.len() {
                0 => "node".to_owned(),
                1 => "1 Service".to_owned(),
                count => format!("{count} Services"),
            };
            let line = wrapped(&format!("{concerns:<12}"), finding.what, look.width);
            text += &Style::Warn.paint(&concerns, look.colour);
            text += line.strip_prefix(&concerns).unwrap_or(&line);
            if !finding.services.is_empty() {
                let most = if look.wide { usize::MAX } else { NAMED };
                let mut names: Vec<&str> = finding.services.iter().take(most).map(String::as_str).collect();
                let more = format!("and {} more", finding.services.len() - names.len());
                if finding.services.len() > names.len() {
                    names.push(&more);
                }
                text += &wrapped(&format!("{:12}", ""), &names.join(", "), look.width);
            }
            text += &wrapped(&format!("{:12}-> ", ""), finding.mend, look.width);
            if look.wide {
                let _ = writeln!(text, "{:12}see {} ({})", "", finding.see, finding.name);
            }
        }
    }
    text.push('\n');
    text += &plan::text(&answer.plan, look);
    text
}

#[cfg(test)]
mod tests;
