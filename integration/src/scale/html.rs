//! The report for people: one HTML file that needs nothing else, reads on a laptop and prints.

use std::fmt::Write as _;

use super::axis::escape;
use super::both_guests;
use super::comparison::cell;
use super::panel::{Panel, Topic, topics};
use super::results::Results;
use super::table::{part, parts, preface};

/// What a reader in a hurry wants to know, of the largest workload.
const KEY_MEASURES: [&str; 7] = [
    "first-sync-50",
    "restart-50",
    "one-change-50",
    "one-change-99",
    "churn-100-cpu-50",
    "memory-50",
    "first-packet-last-50",
];

const STYLE: &str = "
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 900px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1.05rem; margin: 2.2rem 0 .2rem; }
.how { color: #555; margin: 0 0 .6rem; } .facts p { margin: .3rem 0; } .facts { background: #f5f6f8; padding: .6rem 1rem; border-radius: 6px; font-size: .9rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .85rem; margin: .6rem 0; } th, td { border: 1px solid #d8d8d8; padding: .25rem .5rem; text-align: left; vertical-align: top; }
th { background: #f5f6f8; } small { color: #555; } .wide { overflow-x: auto; } ul.ratios { margin: .3rem 0; padding-left: 1.2rem; font-size: .9rem; }
nav { columns: 2; column-gap: 2.5rem; font-size: .9rem; } nav h2 { column-span: all; } nav h4 { margin: .6rem 0 0; } nav ul { margin: .2rem 0; padding-left: 1.2rem; break-inside: avoid; } svg { width: 100%; height: auto; }
@media print { body { max-width: none; margin: 0; font-size: 11px; } section { break-inside: avoid; } nav { display: none; } a { color: inherit; text-decoration: none; } }
";

/// Several results in one page.
pub fn page(all: &[Results]) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<link rel=\"icon\" href=\"data:,\">\n\
         <title>Service proxies at scale</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Service proxies at scale</h1>\n"
    );
    if all.len() > 1 {
        // Writing to a string does not fail.
        let _ = writeln!(out, "<p><strong>{}</strong></p>", escape(&parts(all)));
    }
    for (index, results) in all.iter().enumerate() {
        if all.len() > 1 {
            let _ = writeln!(out, "<h2>{}</h2>", escape(&part(index, results)));
        }
        write_results(&mut out, results, all, index);
    }
    write_both_guests(&mut out, all);
    out.push_str("</body>\n</html>\n");
    out
}

fn write_both_guests(out: &mut String, all: &[Results]) {
    let rows = both_guests::rows(all);
    if rows.is_empty() {
        return;
    }
    let (title, how) = (both_guests::TITLE, both_guests::EXPLANATION);
    let _ = writeln!(
        out,
        "<h2>{title}</h2>\n<p class=\"how\">{how}</p>\n<table>\n<tr><th></th><th>uml</th><th>qemu</th></tr>"
    );
    for row in rows {
        let label = escape(&row.label);
        let _ = writeln!(out, "<tr><th>{label}</th><td>{}</td><td>{}</td></tr>", row.uml, row.qemu);
    }
    out.push_str("</table>\n");
}

fn write_results(out: &mut String, results: &Results, all: &[Results], index: usize) {
    out.push_str("<div class=\"facts\">\n");
    for line in preface(results, all) {
        // Writing to a string does not fail.
        let _ = writeln!(out, "<p>{}</p>", inline(&line));
    }
    out.push_str("</div>\n");
    let topics = topics(results);
    write_key_table(out, results, &topics);
    out.push_str("<nav><h2>Questions</h2>\n");
    for topic in &topics {
        let _ = writeln!(out, "<h4>{}</h4>\n<ul>", escape(topic.title));
        for panel in &topic.panels {
            let (slug, title) = (panel.slug(), escape(panel.title()));
            let _ = writeln!(out, "<li><a href=\"#{slug}-{index}\">{title}</a></li>");
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</nav>\n");
    for topic in &topics {
        let _ = writeln!(out, "<h2>{}</h2>", escape(topic.title));
        for panel in &topic.panels {
            write_panel(out, results, all, panel, index);
        }
    }
}

fn write_key_table(out: &mut String, results: &Results, topics: &[Topic]) {
    let Some(largest) =
        results.workloads.iter().max_by_key(|workload| workload.services + workload.endpoints)
    else {
        return;
    };
    let names: Vec<&str> = results.contenders.iter().map(|contender| &*contender.name).collect();
    let _ = write!(
        out,
        "<h2>In short: {} ({} Services, {} endpoints)</h2>\n<div class=\"wide\"><table id=\"key-figures\">\n<tr><th></th>",
        escape(&largest.name),
        largest.services,
        largest.endpoints
    );
    for name in &names {
        let _ = write!(out, "<th>{}</th>", escape(name));
    }
    out.push_str("</tr>\n");
    let asked = topics.iter().flat_map(|topic| &topic.panels).flat_map(Panel::questions);
    for asked in asked.filter(|asked| KEY_MEASURES.contains(&&*asked.question.slug())) {
        let question = asked.question;
        let _ = write!(out, "<tr><th>{}</th>", escape(&asked.title));
        for name in &names {
            let _ = write!(out, "<td>{}</td>", figure(&cell(results, question, &largest.name, name)));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
}

fn write_panel(out: &mut String, results: &Results, all: &[Results], panel: &Panel, index: usize) {
    let _ = write!(
        out,
        "<section class=\"question\">\n<h3 id=\"{}-{index}\">{}</h3>\n<p class=\"how\">{}</p>\n",
        panel.slug(),
        escape(panel.title()),
        inline(&panel.how())
    );
    if let Some(chart) = panel.chart(results) {
        out.push_str(&chart);
    }
    let grid = panel.grid(results);
    out.push_str("\n<div class=\"wide\"><table>\n<tr><th></th>");
    for name in &grid.head {
        let _ = write!(out, "<th>{}</th>", escape(name));
    }
    out.push_str("</tr>\n");
    for (label, cells) in &grid.rows {
        let _ = write!(out, "<tr><th>{}</th>", escape(label));
        for cell in cells {
            let _ = write!(out, "<td>{}</td>", figure(cell));
        }
        out.push_str("</tr>\n");
    }
    let ratios = panel.comparisons(results, all);
    out.push_str("</table></div>\n");
    if !ratios.is_empty() {
        out.push_str("<ul class=\"ratios\">\n");
        for line in ratios {
            let _ = writeln!(out, "<li>{}</li>", escape(&line));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</section>\n");
}

/// A cell of a table: its spread stands below the median.
fn figure(cell: &str) -> String {
    match escape(cell).split_once(" (") {
        Some((median, spread)) => format!("{median}<br><small>({spread}</small>"),
        None => escape(cell),
    }
}

/// The little Markdown that our own lines use: `**bold**` and `code`.
fn inline(text: &str) -> String {
    let mut out = String::new();
    for (index, part) in escape(text).split("**").enumerate() {
        let (open, close) = if index % 2 == 1 { ("<strong>", "</strong>") } else { ("", "") };
        out.push_str(open);
        for (index, part) in part.split('`').enumerate() {
            let (open, close) = if index % 2 == 1 { ("<code>", "</code>") } else { ("", "") };
            out.push_str(open);
            out.push_str(part);
            out.push_str(close);
        }
        out.push_str(close);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::inline;

    #[test]
    fn our_markdown_becomes_html_and_nothing_else_does() {
        assert_eq!(inline("**a** `b` <i>"), "<strong>a</strong> <code>b</code> &lt;i&gt;");
    }
}
