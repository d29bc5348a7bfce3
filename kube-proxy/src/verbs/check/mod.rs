//! `check`: is this node fit for the proxy? Read only, but for what is tried in a network namespace of its own.

mod api;
pub(crate) mod kernel;
mod neighbours;
mod node;
mod report;

use std::{path::Path, path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};
use insight::state::{Filter, Mode, State};
use proxy_core::model::Family;

use super::{
    common::{Common, Output},
    plan::ModeName,
};
use crate::settings::{self, effective::ClientSettings};
use report::{Finding, Report};

/// Check whether this node is fit for the proxy; exit code 1 with warnings, 2 with failures
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to check; all, where nothing is named
    #[arg(value_enum)]
    only: Option<Subject>,
    /// The mode [default: that of the running process, or else nftables]
    #[arg(long, value_enum)]
    mode: Option<ModeName>,
    /// The kubeconfig [default: that of the running process, or else the pod's service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The URL of the API server, over whatever the kubeconfig says
    #[arg(long, value_name = "URL")]
    master: Option<String>,
    /// Print a report of JUnit's form, for continuous integration
    #[arg(long)]
    junit: bool,
}

/// What to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Before the proxy runs here: the kernel, rights, the API server
    Preflight,
    /// While it runs: settings, connection tracking, the clock, who else is at its hooks
    Node,
    /// Before or after it took kube-proxy's place: what is left of others
    Takeover,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    super::intended::only_live(common.is_live(), "check")?;
    let wants = |subject| options.only.is_none_or(|only| only == subject);
    // Before the proxy runs there is nobody to ask.
    let state = common.state(Filter::default());
    let mut findings = Vec::new();
    if wants(Subject::Node) {
        findings.push(match &state {
            Ok(state) => {
                Finding::ok("node.process", format!("the process answers ({})", state.header.mode.as_str()))
            }
            Err(error) => Finding::warn(
                "node.process",
                format!("{error:#}"),
                "nothing, if it does not run yet; what only it knows is left out",
            ),
        });
    }
    let state = state.ok();
    let mode = options.mode.map(ModeName::mode).or_else(|| state.as_ref().map(|state| state.header.mode));
    let mode = mode.unwrap_or(Mode::Nftables);
    let families = families(state.as_ref());
    if wants(Subject::Preflight) {
        preflight(options, state.as_ref(), mode, &families, &mut findings);
    }
    let processes = neighbours::processes(Path::new("/proc"));
    if wants(Subject::Node) {
        let proc = Path::new("/proc/sys");
        findings.extend(node::settings(proc, &families));
        findings.push(node::writable(proc, mode));
        findings.push(node::conntrack(proc));
        if let Some(state) = &state {
            findings.push(node::clock(state, seconds()));
        }
        findings.extend(neighbours::hooks(mode));
        findings.extend(neighbours::proxies(&processes, std::process::id()));
        findings.extend(neighbours::firewalls(&neighbours::host_root(), &processes));
    }
    if wants(Subject::Takeover) {
        findings.extend(neighbours::leftovers(mode, &families));
    }
    let report = Report::of(findings);
    if options.junit {
        common.print(&report.junit())?;
    } else if matches!(common.output(), Output::Table | Output::Wide) {
        common.print(&report.text(common.look()))?;
    } else {
        common.answer(&report, |look| report.text(look))?;
    }
    Ok(ExitCode::from(report.status as u8))
}

fn preflight(
    options: &Options,
    state: Option<&State>,
    mode: Mode,
    families: &[Family],
    findings: &mut Vec<Finding>,
) {
    findings.push(kernel::rights());
    let ipvs = state
        .and_then(|state| state.header.ipvs.as_ref())
        .and_then(|settings| crate::sync::ipvs::of_insight(settings).ok())
        .unwrap_or_default();
    findings.extend(families.iter().map(|family| kernel::mode(mode, *family, &ipvs)));
    findings.extend(api::check(&client(options, state)));
}

/// Those that the process serves, or that the kernel has.
fn families(state: Option<&State>) -> Vec<Family> {
    match state {
        Some(state) => state.families().collect(),
        None if kernel::has_ipv6() => Family::BOTH.into(),
        None => vec![Family::V4],
    }
}

/// How the process reaches the API server.
fn client(options: &Options, state: Option<&State>) -> ClientSettings {
    let document = state.map(|state| &state.header.configuration).filter(|document| !document.is_null());
    let known =
        document.and_then(|document| settings::of_document(document).ok()).map(|settings| settings.client);
    let mut client = known.unwrap_or_else(|| ClientSettings {
        kubeconfig: None,
        master: None,
        accept_content_types: String::new(),
        content_type: String::new(),
        qps: 0.0,
        burst: 0,
    });
    if let Some(kubeconfig) = &options.kubeconfig {
        client.kubeconfig = Some(kubeconfig.clone());
    }
    if let Some(master) = &options.master {
        client.master = Some(master.clone());
    }
    client
}

fn seconds() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[cfg(test)]
mod tests;
