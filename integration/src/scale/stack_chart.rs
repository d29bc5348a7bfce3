//! The layers of a whole, as SVG: a bar of shares for each contender, and how large the whole is beside it.

use std::fmt::Write as _;

use super::axis::{COLOURS, escape, open_svg};
use super::quantity::show;
use super::question::Stack;
use super::results::Results;

const WIDTH: f64 = 860.0;
const LABELS: f64 = 210.0;
const FIGURES: f64 = 120.0;
const ROW: f64 = 24.0;
const HEADING: f64 = 24.0;
const LEGEND: f64 = 24.0;
const LEGEND_COLUMN: f64 = 130.0;
/// Narrower layers have no figure inside.
const ROOM_FOR_A_SHARE: f64 = 34.0;

/// One bar: for each layer its index and its size.
struct Bar<'a> {
    name: &'a str,
    layers: Vec<(usize, f64)>,
}

/// `None` where there is nothing to draw.
pub(crate) fn svg(results: &Results, stack: &Stack) -> Option<String> {
    let mut groups: Vec<(&str, Vec<Bar<'_>>)> = Vec::new();
    for workload in stack.workloads(results) {
        let bars = stack.contenders(results).into_iter().filter_map(|name| {
            let layers = stack.layers.iter().enumerate();
            let layers: Vec<(usize, f64)> = layers
                .filter_map(|(index, layer)| Some((index, results.summary(layer, workload, name)?.median)))
                .filter(|(_, size)| *size > 0.0)
                .collect();
            (!layers.is_empty()).then_some(Bar { name, layers })
        });
        groups.push((workload, bars.collect()));
    }
    let bars = || groups.iter().flat_map(|(_, bars)| bars);
    let rows = bars().count();
    if rows == 0 {
        return None;
    }
    let unit = stack.layers.first()?.unit;
    let used: Vec<usize> = (0..stack.layers.len())
        .filter(|index| bars().any(|bar| bar.layers.iter().any(|(layer, _)| layer == index)))
        .collect();
    let columns = (WIDTH / LEGEND_COLUMN) as usize;
    let legend = used.len().div_ceil(columns) as f64 * LEGEND;
    let mut out =
        open_svg(stack.title, WIDTH, legend + groups.len() as f64 * HEADING + rows as f64 * ROW + 8.0);
    for (place, index) in used.iter().enumerate() {
        let x = (place % columns) as f64 * LEGEND_COLUMN;
        let y = (place / columns) as f64 * LEGEND + 4.0;
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{}\"/>\n<text x=\"{}\" y=\"{}\">{}</text>",
            colour(*index),
            x + 18.0,
            y + 10.0,
            escape(&stack.layers[*index].title)
        );
    }
    let mut y = legend;
    for (workload, bars) in &groups {
        y += HEADING;
        let _ =
            writeln!(out, "<text x=\"0\" y=\"{}\" font-weight=\"600\">{}</text>", y - 7.0, escape(workload));
        for bar in bars {
            draw_bar(&mut out, bar, y);
            let whole: f64 = bar.layers.iter().map(|(_, size)| size).sum();
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                WIDTH - FIGURES + 14.0,
                y + ROW / 2.0 + 4.0,
                escape(&show(whole, unit))
            );
            y += ROW;
        }
    }
    out.push_str("</svg>");
    Some(out)
}

fn draw_bar(out: &mut String, bar: &Bar<'_>, y: f64) {
    let whole: f64 = bar.layers.iter().map(|(_, size)| size).sum();
    let base = y + ROW / 2.0 + 4.0;
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{base:.1}\" text-anchor=\"end\">{}</text>",
        LABELS - 10.0,
        escape(bar.name)
    );
    let mut x = LABELS;
    for (index, size) in &bar.layers {
        let width = size / whole * (WIDTH - LABELS - FIGURES);
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\" stroke=\"#fff\"/>",
            y + 3.0,
            ROW - 6.0,
            colour(*index)
        );
        if width >= ROOM_FOR_A_SHARE {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{base:.1}\" text-anchor=\"middle\" fill=\"#fff\" font-size=\"11\">{:.0} %</text>",
                x + width / 2.0,
                size / whole * 100.0
            );
        }
        x += width;
    }
}

/// More layers than colours: the last ones are greys.
fn colour(index: usize) -> &'static str {
    const GREYS: [&str; 2] = ["#888888", "#333333"];
    COLOURS.get(index).copied().unwrap_or(GREYS[index % GREYS.len()])
}
