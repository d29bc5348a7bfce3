//! The chart of one measure, as SVG: a row for each contender, a logarithmic axis, bars from the least to the most. Of
//! several quantiles the first is a full mark, and the others are hollow ones.

use std::fmt::Write as _;

use super::axis::{Axis, COLOURS, escape, marker, open_svg};
use super::quantity::show;
use super::question::{Question, Unit};
use super::results::Results;
use super::statistics::Summary;

const WIDTH: f64 = 860.0;
const LABELS: f64 = 210.0;
const FIGURES: f64 = 120.0;
const ROW: f64 = 20.0;
const HEADING: f64 = 24.0;
const AXIS: f64 = 26.0;

enum Mark {
    /// For each question that has an answer its index.
    Figures(Vec<(usize, Summary)>),
    /// There is no figure, and this is why.
    Missing(String),
}

struct Row {
    name: String,
    colour: &'static str,
    shape: usize,
    mark: Mark,
}

/// `None` where there is nothing to draw.
pub(crate) fn svg(results: &Results, same: &[Question]) -> Option<String> {
    let question = same.first()?;
    let (names, present) = (results.all_names(), results.contenders_of(&question.measure));
    let mut groups: Vec<(&str, Vec<Row>)> = Vec::new();
    for workload in results.workloads_of(&question.measure) {
        let rows = names.iter().enumerate().filter(|(_, name)| present.contains(name));
        let rows = rows.filter_map(|(index, name)| {
            let figures = same.iter().enumerate();
            let figures: Vec<(usize, Summary)> = figures
                .filter_map(|(index, one)| Some((index, results.summary(one, workload, name)?)))
                .collect();
            let mark = if figures.is_empty() {
                Mark::Missing((*results.unfinished(question, workload, name).first()?).to_owned())
            } else {
                Mark::Figures(figures)
            };
            Some(Row { name: (*name).to_owned(), colour: COLOURS[index % COLOURS.len()], shape: index, mark })
        });
        groups.push((workload, rows.collect()));
    }
    let rows: usize = groups.iter().map(|(_, rows)| rows.len()).sum();
    if rows == 0 {
        return None;
    }
    let values = groups.iter().flat_map(|(_, rows)| rows).flat_map(|row| match &row.mark {
        Mark::Figures(figures) => {
            figures.iter().flat_map(|(_, summary)| [summary.least, summary.median, summary.most]).collect()
        }
        Mark::Missing(_) => Vec::new(),
    });
    let axis = Axis::around(values, LABELS, WIDTH - FIGURES);
    let bottom = groups.len() as f64 * HEADING + rows as f64 * ROW + 6.0;
    let mut out = open_svg(&question.title, WIDTH, bottom + AXIS);
    draw_axis(&mut out, &axis, question.unit, bottom);
    let mut y = 0.0;
    for (workload, rows) in &groups {
        y += HEADING;
        // Writing to a string does not fail.
        let _ =
            writeln!(out, "<text x=\"0\" y=\"{}\" font-weight=\"600\">{}</text>", y - 7.0, escape(workload));
        for row in rows {
            draw_row(&mut out, row, &axis, same, y + ROW / 2.0);
            y += ROW;
        }
    }
    out.push_str("</svg>");
    Some(out)
}

fn draw_axis(out: &mut String, axis: &Axis, unit: Unit, bottom: f64) {
    for tick in axis.ticks(unit) {
        let (x, stroke) = (tick.at, tick.stroke());
        let _ = writeln!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"8\" y2=\"{bottom:.1}\" stroke=\"{stroke}\"/>"
        );
        if let Some(label) = tick.label {
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
                bottom + 16.0,
                escape(&label)
            );
        }
    }
}

fn draw_row(out: &mut String, row: &Row, axis: &Axis, same: &[Question], y: f64) {
    let base = y + 4.0;
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>",
        LABELS - 10.0,
        escape(&row.name)
    );
    match &row.mark {
        Mark::Missing(why) => {
            let short: String = why.chars().take(90).collect();
            let _ = writeln!(
                out,
                "<text x=\"{}\" y=\"{base:.1}\" fill=\"#a00\" font-style=\"italic\">unfinished: {}</text>",
                LABELS + 6.0,
                escape(&short)
            );
        }
        Mark::Figures(figures) => {
            // The first one last, above all others.
            for (index, summary) in figures.iter().rev() {
                draw_figure(out, row, axis, &same[*index], *index, summary, y);
            }
            if let Some((0, summary)) = figures.first() {
                let _ = writeln!(
                    out,
                    "<text x=\"{:.1}\" y=\"{base:.1}\">{}</text>",
                    WIDTH - FIGURES + 14.0,
                    escape(&show(summary.median, same[0].unit))
                );
            }
        }
    }
}

fn draw_figure(
    out: &mut String,
    row: &Row,
    axis: &Axis,
    question: &Question,
    index: usize,
    summary: &Summary,
    y: f64,
) {
    let colour = row.colour;
    let (least, median, most) = (axis.at(summary.least), axis.at(summary.median), axis.at(summary.most));
    let _ = writeln!(
        out,
        "<g><title>{}: {}</title>\n<path d=\"M{least:.1} {y:.1}H{most:.1}M{least:.1} {2:.1}v8M{most:.1} {2:.1}v8\" stroke=\"{colour}\" stroke-width=\"{3}\" fill=\"none\"/>",
        escape(&question.title),
        escape(&show(summary.median, question.unit)),
        y - 4.0,
        if index == 0 { 1.5 } else { 0.7 }
    );
    if index == 0 {
        out.push_str(&marker(row.shape, median, y, colour));
    } else {
        let _ = writeln!(
            out,
            "<circle cx=\"{median:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"#fff\" stroke=\"{colour}\" stroke-width=\"1.5\"/>"
        );
    }
    out.push_str("</g>\n");
}
