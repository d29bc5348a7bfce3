//! What the checks found, and how it is printed.

use std::fmt::Write as _;

use insight::table::{Look, Style};
use serde::Serialize;

use crate::verbs::wrap::wrapped;

/// How a check ended. The numbers are exit codes, those of monitoring plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Status {
    Ok = 0,
    Warn = 1,
    Fail = 2,
}

impl Status {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    /// `kernel.nftables`, say.
    pub(crate) check: String,
    pub(crate) status: Status,
    pub(crate) what: String,
    /// What to do; empty where nothing is to be done.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) mend: String,
}

impl Finding {
    pub(crate) fn ok(check: impl Into<String>, what: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Ok, what: what.into(), mend: String::new() }
    }

    pub(crate) fn warn(check: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Warn, what: what.into(), mend: mend.into() }
    }

    pub(crate) fn fail(check: impl Into<String>, what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check: check.into(), status: Status::Fail, what: what.into(), mend: mend.into() }
    }
}

/// All of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) status: Status,
    pub(crate) findings: Vec<Finding>,
}

impl Report {
    pub(crate) fn of(findings: Vec<Finding>) -> Self {
        let status = findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok);
        Self { api_version: insight::state::API_VERSION, kind: "Checks", status, findings }
    }

    pub(crate) fn text(&self, look: Look) -> String {
        let longest = self.findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
        let mut text = String::new();
        for Finding { check, status, what, mend } in &self.findings {
            let style = match status {
                Status::Ok => Style::Good,
                Status::Warn => Style::Warn,
                Status::Fail => Style::Bad,
            };
            let head = format!("{:<4}  {check:<longest$}  ", status.as_str());
            let line = wrapped(&head, what, look.width);
            // Only the first word has a colour, which takes no room.
            text += &style.paint(status.as_str(), look.colour);
            text += line.strip_prefix(status.as_str()).unwrap_or(&line);
            if !mend.is_empty() {
                text += &wrapped(&format!("{:>6}{:longest$}  -> ", "", ""), mend, look.width);
            }
        }
        let count = |status| self.findings.iter().filter(|finding| finding.status == status).count();
        let (fail, warn, ok) = (count(Status::Fail), count(Status::Warn), count(Status::Ok));
        let _ = writeln!(text, "\n{}: {fail} failed, {warn} warnings, {ok} well.", self.status.as_str());
        text
    }

    /// As JUnit's XML, which continuous integration reads. Warnings are well there, with what they say as output.
    pub(crate) fn junit(&self) -> String {
        let failures = self.findings.iter().filter(|finding| finding.status == Status::Fail).count();
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        let _ = writeln!(
            text,
            "<testsuite name=\"kube-proxy check\" tests=\"{}\" failures=\"{failures}\">",
            self.findings.len()
        );
        for Finding { check, status, what, mend } in &self.findings {
            let (group, name) = check.split_once('.').unwrap_or(("check", check));
            let _ = write!(text, "  <testcase classname=\"{}\" name=\"{}\">", escaped(group), escaped(name));
            let said = if mend.is_empty() { what.clone() } else { format!("{what}. {mend}") };
            let _ = match status {
                Status::Fail => write!(text, "<failure message=\"{}\"/>", escaped(&said)),
                Status::Warn | Status::Ok => {
                    write!(text, "<system-out>{}: {}</system-out>", status.as_str(), escaped(&said))
                }
            };
            text.push_str("</testcase>\n");
        }
        text.push_str("</testsuite>\n");
        text
    }
}

/// As XML takes it: what it cannot hold at all becomes `?`.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('?'),
            c => out.push(c),
        }
    }
    out
}
