//! `diff`: what is intended against what is in the kernel, by Service.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    process::ExitCode,
    thread::sleep,
    time::Duration,
};

use clap::Args;
use insight::{
    state::{Filter, State},
    table::{Look, Style},
};
use proxy_core::{
    difference::{Comparison, Difference, DifferenceKind},
    model::Family,
};
use serde::Serialize;

use super::{
    common::Common,
    intended::{Intended, checked, only_live},
    wrap::wrapped,
};

/// Something differs.
const DIFFERENT: u8 = 1;
/// What is seen once may be a change that is being written: it counts when it is seen so often, this far apart.
const LOOKS: usize = 3;
const BETWEEN: Duration = Duration::from_millis(700);
/// Between two looks of `--watch`.
const PERIOD: Duration = Duration::from_secs(2);

/// Compare what is intended with what is in this node's kernel; exit code 1 if it differs
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this Service; all, where none is named
    #[arg(value_name = "[NAMESPACE/]SERVICE")]
    service: Option<String>,
    /// Go on, and print whenever something else differs
    #[arg(long)]
    watch: bool,
    /// With replay: the file is of this node, whose process need not run, and whose kernel is compared
    #[arg(long, conflicts_with = "watch")]
    here: bool,
    /// Print what would set it right as commands of the mode's own tools (nft, ipvsadm, iptables), where there is one
    #[arg(long)]
    commands: bool,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    /// `namespace/name`; absent: of all Services, or of nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<String>,
    pub(crate) family: String,
    /// `missing`, `extra` or `different`.
    pub(crate) difference: &'static str,
    pub(crate) what: String,
    /// What the engine knows about it: it waits, or was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) because: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) command: Option<String>,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) node: String,
    pub(crate) mode: &'static str,
    pub(crate) differences: Vec<Line>,
    /// What the running process does by itself.
    pub(crate) owed: Vec<Line>,
    /// What could not be compared.
    pub(crate) unseen: Vec<String>,
    /// Objects that were compared.
    pub(crate) compared: usize,
    pub(crate) services: usize,
    pub(crate) families: Vec<String>,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    only_live(common.is_live() || options.here, "diff")?;
    let mut last = None;
    loop {
        let answer = settled(options, common)?;
        if last.as_ref() != Some(&answer) {
            if options.commands {
                common.print(&commands(&answer))?;
            } else {
                common.answer(&answer, |look| text(&answer, look))?;
            }
        }
        if !options.watch {
            let same = answer.differences.is_empty();
            return Ok(if same { ExitCode::SUCCESS } else { ExitCode::from(DIFFERENT) });
        }
        last = Some(answer);
        sleep(PERIOD);
    }
}

/// What differs at each of several looks, so that a change that is under way does not count.
fn settled(options: &Options, common: &Common) -> anyhow::Result<Answer> {
    let mut answer = look(options, common)?;
    for _ in 1..LOOKS {
        if answer.differences.is_empty() {
            break;
        }
        sleep(BETWEEN);
        let seen: BTreeSet<Line> = answer.differences.into_iter().collect();
        answer = look(options, common)?;
        answer.differences.retain(|line| seen.contains(line));
    }
    Ok(answer)
}

fn look(options: &Options, common: &Common) -> anyhow::Result<Answer> {
    let state = common.state(Filter::default())?;
    let intended = checked(Intended::of(&state)?)?;
    let compared = intended.compare()?;
    let only = options.service.as_deref().map(|name| common.service(name).to_string());
    Ok(answer(&state, &intended, compared, only.as_deref()))
}

pub(crate) fn answer(
    state: &State,
    intended: &Intended,
    compared: BTreeMap<Family, Comparison>,
    only: Option<&str>,
) -> Answer {
    let mut answer = Answer {
        api_version: insight::state::API_VERSION,
        kind: "Diff",
        node: state.header.node.clone(),
        mode: state.header.mode.as_str(),
        differences: Vec::new(),
        owed: Vec::new(),
        unseen: Vec::new(),
        compared: 0,
        services: intended.services(),
        families: compared.keys().map(ToString::to_string).collect(),
    };
    let wanted = |line: &Line| only.is_none_or(|name| line.service.as_deref() == Some(name));
    for (family, comparison) in compared {
        let line = |difference: Difference| line(state, family, difference);
        answer.differences.extend(comparison.differences.into_iter().map(line).filter(wanted));
        answer.owed.extend(comparison.owed.into_iter().map(line).filter(wanted));
        answer.unseen.extend(comparison.unseen.into_iter().map(|what| format!("{family}: {what}")));
        answer.compared += comparison.compared;
    }
    answer.differences.sort();
    answer.owed.sort();
    answer
}

fn line(state: &State, family: Family, difference: Difference) -> Line {
    let Difference { owner, kind, what, native } = difference;
    let because = owner.as_ref().and_then(|owner| {
        let waits = state.installed(family, &owner.service).is_some_and(|installed| installed.waits);
        let aside = state.aside(family, &owner.service);
        let aside = aside.map(|aside| format!("set aside since {}: {}", aside.since, aside.reason));
        aside.or_else(|| waits.then(|| "it waits for the next sync".to_owned()))
    });
    Line {
        service: owner.as_ref().map(|owner| owner.service.to_string()),
        port: owner.as_ref().filter(|owner| !owner.port.is_empty()).map(|owner| owner.port.to_string()),
        family: family.to_string(),
        difference: kind.as_str(),
        what,
        because,
        command: native,
    }
}

fn commands(answer: &Answer) -> String {
    let mut text = String::new();
    let mut without = 0;
    for line in &answer.differences {
        match &line.command {
            Some(command) => {
                let service = line.service.as_deref().unwrap_or("of all Services");
                let _ = writeln!(text, "# {service}: {} {}\n{command}", line.difference, line.what);
            }
            None => without += 1,
        }
    }
    if without > 0 {
        let _ = writeln!(
            text,
            "# {without} more have no command of their own: a full sync of the process sets them right"
        );
    }
    text
}

pub(crate) fn text(answer: &Answer, look: Look) -> String {
    let mut text = String::new();
    let mut last = None;
    for line in &answer.differences {
        let head = (name(line), &line.family);
        if last.as_ref() != Some(&head) {
            let because = line.because.as_ref().map_or(String::new(), |because| format!("; {because}"));
            text += &wrapped("", &format!("{} ({}{because})", head.0, head.1), look.width);
            last = Some(head);
        }
        let style = if line.difference == DifferenceKind::Extra.as_str() { Style::Warn } else { Style::Bad };
        let written = wrapped(&format!("  {:<11}", line.difference), &line.what, look.width);
        text += "  ";
        text += &style.paint(line.difference, look.colour);
        text += &written[2 + line.difference.len()..];
        if let Some(command) = line.command.as_ref().filter(|_| look.wide) {
            let _ = writeln!(text, "{:13}{command}", "");
        }
    }
    if !answer.differences.is_empty() {
        text.push('\n');
    }
    if look.wide && !answer.owed.is_empty() {
        let _ = writeln!(text, "The process does by itself:");
        for line in &answer.owed {
            let _ = writeln!(
                text,
                "  {}{}",
                line.service.as_deref().map_or(String::new(), |name| format!("{name}: ")),
                line.what
            );
        }
        text.push('\n');
    }
    for unseen in &answer.unseen {
        let _ = writeln!(text, "Not compared: {unseen}");
    }
    let of = format!("{} mode, {}", answer.mode, answer.families.join(" and "));
    let services: BTreeSet<Option<&str>> =
        answer.differences.iter().map(|line| line.service.as_deref()).collect();
    let sentence = match answer.differences.len() {
        0 => format!(
            "Nothing differs: {} objects of {} Services compared ({of}).",
            answer.compared, answer.services
        ),
        differences => format!(
            "{differences} differences at {} of {} Services ({of}).{}",
            services.iter().flatten().count(),
            answer.services,
            if services.contains(&None) { " Some concern all Services, or nobody's objects." } else { "" },
        ),
    };
    text += &wrapped("", &sentence, look.width);
    text
}

fn name(line: &Line) -> String {
    match (&line.service, &line.port) {
        (Some(service), Some(port)) => format!("{service}:{port}"),
        (Some(service), None) => service.clone(),
        (None, _) => "all Services, or nobody's".to_owned(),
    }
}

#[cfg(test)]
#[path = "diff_tests.rs"]
mod tests;
