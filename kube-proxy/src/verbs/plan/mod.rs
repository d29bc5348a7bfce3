//! `plan`: what a change would do on this node and how much of it, unapplied.

pub(crate) mod changed;
mod estimate;
pub(crate) mod left;
pub(crate) mod operations;

use std::{collections::BTreeMap, fmt::Write as _, path::PathBuf, process::ExitCode};

use anyhow::bail;
use clap::{Args, ValueEnum};
use insight::{
    state::{Filter, Mode, State},
    table::{Cell, Look, Table},
};
use proxy_core::model::Family;
use serde::Serialize;

use super::{
    common::Common,
    intended::{Intended, checked, only_live},
    wrap::wrapped,
};
use changed::Changed;
use estimate::{Estimate, estimate};
use left::{Left, left};
use operations::{From, Operations, plan};

/// Show what a change would do on this node, and how much of it, without doing it
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Services and EndpointSlices (YAML or JSON) that would be applied; `-`: standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A KubeProxyConfiguration that would take the place of the one in force
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Another mode
    #[arg(long, value_enum, conflicts_with = "config")]
    mode: Option<ModeName>,
    /// A first start over what is in the kernel now, kube-proxy's for example, in the mode of the configuration
    #[arg(long, conflicts_with_all = ["rollback"])]
    takeover: bool,
    /// Everything of every mode taken out of the kernel (kube-proxy --cleanup)
    #[arg(long, conflicts_with_all = ["files", "config", "mode"])]
    rollback: bool,
    /// Print each operation
    #[arg(long)]
    operations: bool,
}

/// A mode by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeName {
    Nftables,
    Iptables,
    Ipvs,
}

impl ModeName {
    pub(crate) const fn mode(self) -> Mode {
        match self {
            Self::Nftables => Mode::Nftables,
            Self::Iptables => Mode::Iptables,
            Self::Ipvs => Mode::Ipvs,
        }
    }
}

/// One Service port's part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Part {
    /// `namespace/name`; absent: shared by all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<String>,
    pub(crate) family: String,
    pub(crate) what: String,
    pub(crate) operations: usize,
    pub(crate) objects: usize,
}

/// The whole answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Answer {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) node: String,
    pub(crate) mode: &'static str,
    /// The mode until now, where it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mode_before: Option<&'static str>,
    /// Families that would be written anew, and why.
    pub(crate) full: BTreeMap<String, String>,
    pub(crate) parts: Vec<Part>,
    pub(crate) operations: usize,
    pub(crate) objects: usize,
    /// Objects in the kernel afterwards.
    pub(crate) total: usize,
    /// What would be removed of other modes and of kube-proxy.
    pub(crate) removed: Vec<Left>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) estimate: Option<Estimate>,
    pub(crate) notes: Vec<String>,
    /// Each operation, by family, where they were asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) texts: BTreeMap<String, Vec<String>>,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    let answer = make(options, common)?;
    if options.operations && matches!(common.output(), super::common::Output::Table) {
        let texts = answer.texts.iter().flat_map(|(family, texts)| {
            std::iter::once(format!("# {family}\n")).chain(texts.iter().map(|text| format!("{text}\n")))
        });
        common.print(&texts.collect::<String>())?;
    } else {
        common.answer(&answer, |look| text(&answer, look))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn make(options: &Options, common: &Common) -> anyhow::Result<Answer> {
    let state = common.state(Filter::default())?;
    if options.rollback {
        only_live(common.is_live(), "plan --rollback")?;
        let removed = left(None, state.families());
        let mut answer = empty(&state, state.header.mode);
        answer.objects = removed.iter().map(|left| left.objects).sum();
        answer.removed = removed;
        return Ok(answer);
    }
    let something =
        !options.files.is_empty() || options.config.is_some() || options.mode.is_some() || options.takeover;
    if !something {
        bail!("name what would change: -f FILE, --config FILE, --mode MODE, --takeover or --rollback");
    }
    if options.takeover {
        only_live(common.is_live(), "plan --takeover")?;
    }
    let before = checked(Intended::of(&state)?)?;
    let mut changed = Changed::new(state);
    if let Some(path) = &options.config {
        changed.configuration(path)?;
    }
    if let Some(mode) = options.mode {
        changed.mode(mode.mode())?;
    }
    let namespace = common.namespace().unwrap_or("default").to_owned();
    for path in &options.files {
        changed.apply_file(path, &namespace)?;
    }
    answer(&before, &changed, options.takeover, common.is_live(), options.operations)
}

fn empty(state: &State, before: Mode) -> Answer {
    let mode = state.header.mode;
    Answer {
        api_version: insight::state::API_VERSION,
        kind: "Plan",
        node: state.header.node.clone(),
        mode: mode.as_str(),
        mode_before: (mode != before).then(|| before.as_str()),
        full: BTreeMap::new(),
        parts: Vec::new(),
        operations: 0,
        objects: 0,
        total: 0,
        removed: Vec::new(),
        estimate: None,
        notes: Vec::new(),
        texts: BTreeMap::new(),
    }
}

/// `live`: the kernel of the node that the state is of may be read.
pub(crate) fn answer(
    before: &Intended,
    changed: &Changed,
    takeover: bool,
    live: bool,
    texts: bool,
) -> anyhow::Result<Answer> {
    let after = checked(Intended::of(&changed.state)?)?;
    let other_mode = before.mode != after.mode;
    let from = if other_mode || takeover { From::Start } else { From::Intended(before) };
    let plans = plan(from, &after, live)?;
    let mut answer = empty(&changed.state, before.mode);
    answer.notes.clone_from(&changed.notes);
    if !live {
        answer.notes.push("as on a node whose kernel holds nothing beside: this state is a file".to_owned());
    }
    if other_mode {
        answer.notes.push(
            "the process ends and starts in the new mode; connections go on (docs/migrate.md)".to_owned(),
        );
    }
    if (other_mode || takeover) && live {
        answer.removed = left(Some(after.mode), after.halves.keys().copied());
    }
    for (family, operations) in &plans {
        if let Some(reason) = &operations.full {
            answer.full.insert(family.to_string(), reason.clone());
        }
        answer.operations += operations.all.len();
        answer.objects += operations.objects();
        answer.total += operations.total;
        answer.parts.extend(parts(*family, operations));
        if texts {
            let all = operations.all.iter().map(|operation| operation.text.clone()).collect();
            answer.texts.insert(family.to_string(), all);
        }
    }
    answer.estimate = estimate(from, &after, &plans);
    Ok(answer)
}

fn parts(family: Family, plan: &Operations) -> Vec<Part> {
    let mut counts: BTreeMap<Option<&proxy_core::model::ServicePortName>, (usize, usize)> = BTreeMap::new();
    for operation in &plan.all {
        let (operations, objects) = counts.entry(operation.owner.as_ref()).or_default();
        *operations += 1;
        *objects += operation.objects;
    }
    for change in &plan.changes {
        counts.entry(Some(&change.name)).or_default();
    }
    let words = |name: &proxy_core::model::ServicePortName| {
        plan.changes.iter().find(|change| change.name == *name).map(|change| change.what.clone())
    };
    counts
        .into_iter()
        .map(|(name, (operations, objects))| Part {
            service: name.map(|name| name.service.to_string()),
            port: name.filter(|name| !name.port.is_empty()).map(|name| name.port.to_string()),
            family: family.to_string(),
            what: match name {
                None => "shared by all Services".to_owned(),
                Some(name) => words(name).unwrap_or_else(|| "written again".to_owned()),
            },
            operations,
            objects,
        })
        .collect()
}

/// At most so many Services are listed without `-o wide`.
const LISTED: usize = 40;

pub(crate) fn text(answer: &Answer, look: Look) -> String {
    let mut text = String::new();
    if !answer.parts.is_empty() {
        let mut table = Table::new()
            .text("SERVICE", 12)
            .column("FAMILY")
            .text("CHANGE", 16)
            .number("OPERATIONS")
            .number("OBJECTS");
        let most = if look.wide { usize::MAX } else { LISTED };
        let mut parts: Vec<&Part> = answer.parts.iter().collect();
        // What changes goes before what is only written again.
        parts.sort_by_key(|part| (part.what == "written again", part.service.is_some()));
        for part in parts.iter().take(most) {
            let name = match (&part.service, &part.port) {
                (Some(service), Some(port)) => format!("{service}:{port}"),
                (Some(service), None) => service.clone(),
                (None, _) => "-".to_owned(),
            };
            table.row([
                Cell::from(name),
                Cell::from(part.family.clone()),
                Cell::from(part.what.clone()),
                Cell::from(part.operations.to_string()),
                Cell::from(part.objects.to_string()),
            ]);
        }
        text += &table.print(look);
        if parts.len() > most {
            let _ = writeln!(text, "… and {} more (-o wide lists them)", parts.len() - most);
        }
        text.push('\n');
    }
    for left in &answer.removed {
        let by = left.by.map_or(String::new(), |by| format!(", of {by}"));
        let _ = match &left.unread {
            Some(error) => writeln!(text, "Not read: {} of {}: {error}", left.what, left.family),
            None => writeln!(text, "Removed: {} ({}{by}): {} objects", left.what, left.family, left.objects),
        };
    }
    for note in &answer.notes {
        text += &wrapped("Note: ", note, look.width);
    }
    for (family, reason) in &answer.full {
        let _ = writeln!(text, "{family} is written whole: {reason}.");
    }
    let mode = match answer.mode_before {
        Some(before) => format!("from {before} to {} mode", answer.mode),
        None => format!("{} mode", answer.mode),
    };
    if answer.operations == 0 && answer.removed.is_empty() {
        let _ = writeln!(text, "Nothing would change ({mode}).");
        return text;
    }
    let sentence = format!(
        "{} operations on {} objects ({mode}); {} objects afterwards.",
        answer.operations, answer.objects, answer.total
    );
    text += &wrapped("", &sentence, look.width);
    if let Some(Estimate { seconds, kernel_bytes, source }) = &answer.estimate {
        let memory = kernel_bytes
            .as_ref()
            .map_or(String::new(), |bytes| format!(", {} of the kernel's memory afterwards", memory(*bytes)));
        text += &wrapped("", &format!("About {}{memory} ({source}).", duration(*seconds)), look.width);
    } else if answer.operations > 0 {
        let _ = writeln!(text, "No estimate of time and memory: nothing was measured for it.");
    }
    text
}

fn memory(bytes: u64) -> String {
    match bytes {
        1_000_000.. => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.0} kB", (bytes as f64 / 1e3).ceil()),
    }
}

fn duration(seconds: f64) -> String {
    match seconds {
        seconds if seconds >= 1.0 => format!("{seconds:.1} s"),
        seconds => format!("{:.1} ms", seconds * 1e3),
    }
}

#[cfg(test)]
mod tests;
