//! One question at several rates, as SVG: a curve for each contender and a picture for each workload, both axes logarithmic.

use std::fmt::Write as _;

use super::axis::{Axis, COLOURS, escape, marker, open_svg};
use super::question::{Question, Rate, Unit};
use super::results::Results;
use super::statistics::Summary;

const WIDTH: f64 = 860.0;
const PICTURE: f64 = 430.0;
/// Room for the labels of values.
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const HEADING: f64 = 22.0;
const HEIGHT: f64 = 170.0;
/// Below a picture: rates, and what they are.
const BOTTOM: f64 = 40.0;
const LEGEND: f64 = 22.0;
const LEGEND_COLUMNS: usize = 4;

struct Curve {
    colour: &'static str,
    shape: usize,
    points: Vec<(u32, Summary)>,
}

/// `None` where there is nothing to draw.
pub(crate) fn svg(results: &Results, rate: &Rate, points: &[(u32, Question)]) -> Option<String> {
    let (_, any) = points.first()?;
    let names = results.all_names();
    let present: Vec<usize> = (0..names.len())
        .filter(|index| {
            points.iter().any(|(_, one)| results.contenders_of(&one.measure).contains(&names[*index]))
        })
        .collect();
    let mut pictures: Vec<(&str, Vec<Curve>)> = Vec::new();
    for workload in results.all_workloads() {
        let curves: Vec<Curve> =
            present.iter().map(|index| curve(results, points, workload, names[*index], *index)).collect();
        if curves.iter().any(|curve| !curve.points.is_empty()) {
            pictures.push((workload, curves));
        }
    }
    if pictures.is_empty() {
        return None;
    }
    let legend_rows = present.len().div_ceil(LEGEND_COLUMNS);
    let legend = legend_rows as f64 * LEGEND;
    let each = HEADING + HEIGHT + BOTTOM;
    let mut out = open_svg(rate.title, WIDTH, legend + pictures.len().div_ceil(2) as f64 * each);
    for (place, index) in present.iter().enumerate() {
        let (column, row) = (place % LEGEND_COLUMNS, place / LEGEND_COLUMNS);
        let x = column as f64 * WIDTH / LEGEND_COLUMNS as f64 + 10.0;
        let y = row as f64 * LEGEND + 12.0;
        out.push_str(&marker(*index, x, y, COLOURS[index % COLOURS.len()]));
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            x + 12.0,
            y + 4.0,
            escape(names[*index])
        );
    }
    // All pictures have the same axes, so that they can be compared.
    let all = || pictures.iter().flat_map(|(_, curves)| curves).flat_map(|curve| &curve.points);
    let values = all().flat_map(|(_, summary)| [summary.least, summary.median, summary.most]);
    let values = Axis::around(values, HEIGHT, 0.0);
    let rates = Axis::around(all().map(|(rate, _)| f64::from(*rate)), LEFT, PICTURE - RIGHT);
    for (place, (workload, curves)) in pictures.iter().enumerate() {
        let (x, y) = ((place % 2) as f64 * PICTURE, legend + (place / 2) as f64 * each);
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" font-weight=\"600\">{}</text>\n<g transform=\"translate({x:.1} {:.1})\">",
            x + LEFT,
            y + 16.0,
            escape(workload),
            y + HEADING
        );
        draw_axes(&mut out, &rates, &values, any.unit);
        curves.iter().for_each(|curve| draw_curve(&mut out, curve, &rates, &values));
        out.push_str("</g>\n");
    }
    out.push_str("</svg>");
    Some(out)
}

fn curve(results: &Results, points: &[(u32, Question)], workload: &str, name: &str, index: usize) -> Curve {
    let points = points.iter().filter_map(|(rate, one)| Some((*rate, results.summary(one, workload, name)?)));
    Curve { colour: COLOURS[index % COLOURS.len()], shape: index, points: points.collect() }
}

fn draw_axes(out: &mut String, rates: &Axis, values: &Axis, unit: Unit) {
    for tick in rates.ticks(Unit::Count) {
        let (x, stroke) = (tick.at, tick.stroke());
        let _ =
            writeln!(out, "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{HEIGHT}\" stroke=\"{stroke}\"/>");
        if let Some(label) = tick.label {
            let y = HEIGHT + 15.0;
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
                escape(&label)
            );
        }
    }
    for tick in values.ticks(unit) {
        let (y, stroke) = (tick.at, tick.stroke());
        let right = PICTURE - RIGHT;
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{stroke}\"/>"
        );
        if let Some(label) = tick.label {
            // No longer than there is room for.
            let label = label.replace(" of a CPU", "");
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#444\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                escape(&label)
            );
        }
    }
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">changes a second</text>",
        (LEFT + PICTURE - RIGHT) / 2.0,
        HEIGHT + 31.0
    );
}

fn draw_curve(out: &mut String, curve: &Curve, rates: &Axis, values: &Axis) {
    let colour = curve.colour;
    let places: Vec<(f64, &Summary)> =
        curve.points.iter().map(|(rate, summary)| (rates.at(f64::from(*rate)), summary)).collect();
    let line: Vec<String> =
        places.iter().map(|(x, summary)| format!("{x:.1},{:.1}", values.at(summary.median))).collect();
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" stroke=\"{colour}\" stroke-width=\"1.5\" fill=\"none\"/>",
        line.join(" ")
    );
    for (x, summary) in places {
        let (least, most) = (values.at(summary.least), values.at(summary.most));
        let left = x - 4.0;
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {least:.1}V{most:.1}M{left:.1} {least:.1}h8M{left:.1} {most:.1}h8\" stroke=\"{colour}\" fill=\"none\"/>"
        );
        out.push_str(&marker(curve.shape, x, values.at(summary.median), colour));
    }
}
