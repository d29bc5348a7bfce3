//! One chart for one question, as SVG: a row for each contender, a logarithmic axis, bars from the least to the most.

use std::fmt::Write as _;

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
/// Okabe and Ito's palette: told apart by the colour-blind, and in grey.
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000"];

/// Where values are drawn.
struct Scale {
    least: f64,
    most: f64,
}

enum Mark {
    Figure(Summary),
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
pub(crate) fn svg(results: &Results, question: &Question) -> Option<String> {
    let (names, present) = (results.all_names(), results.contenders_of(question.measure));
    let mut groups: Vec<(&str, Vec<Row>)> = Vec::new();
    for workload in results.workloads_of(question.measure) {
        let rows = names.iter().enumerate().filter(|(_, name)| present.contains(name));
        let rows = rows.filter_map(|(index, name)| {
            let mark = match results.summary(question, workload, name) {
                Some(summary) => Mark::Figure(summary),
                None => Mark::Missing((*results.unfinished(question, workload, name).first()?).to_owned()),
            };
            Some(Row { name: (*name).to_owned(), colour: COLOURS[index % COLOURS.len()], shape: index, mark })
        });
        groups.push((workload, rows.collect()));
    }
    let scale = Scale::of(groups.iter().flat_map(|(_, rows)| rows));
    let rows: usize = groups.iter().map(|(_, rows)| rows.len()).sum();
    if rows == 0 {
        return None;
    }
    let bottom = groups.len() as f64 * HEADING + rows as f64 * ROW + 6.0;
    let height = bottom + AXIS;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" style=\"background:#fff\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<title>{}</title>\n",
        escape(question.title)
    );
    scale.draw(&mut out, question.unit, bottom);
    let mut y = 0.0;
    for (workload, rows) in &groups {
        y += HEADING;
        // Writing to a string does not fail.
        let _ =
            writeln!(out, "<text x=\"0\" y=\"{}\" font-weight=\"600\">{}</text>", y - 7.0, escape(workload));
        for row in rows {
            draw_row(&mut out, row, &scale, question.unit, y + ROW / 2.0);
            y += ROW;
        }
    }
    out.push_str("</svg>");
    Some(out)
}

/// Text as it may stand in HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

impl Scale {
    /// Whole powers of ten around all positive values; zeros are drawn at the left edge.
    fn of<'a>(rows: impl Iterator<Item = &'a Row>) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for row in rows {
            let Mark::Figure(summary) = &row.mark else { continue };
            for value in [summary.least, summary.median, summary.most] {
                if value > 0.0 {
                    least = least.min(value);
                    most = most.max(value);
                }
            }
        }
        if !least.is_finite() {
            return Self { least: 0.0, most: 1.0 };
        }
        let (low, high) = (least.log10().floor(), most.log10().ceil());
        Self { least: low, most: if high > low { high } else { low + 1.0 } }
    }

    fn x(&self, value: f64) -> f64 {
        if value <= 0.0 {
            return LABELS;
        }
        let share = (value.log10() - self.least) / (self.most - self.least);
        LABELS + share.clamp(0.0, 1.0) * (WIDTH - LABELS - FIGURES)
    }

    /// A line at each power of ten, fainter ones at 2 and 5 where there is room.
    fn draw(&self, out: &mut String, unit: Unit, bottom: f64) {
        let decades = (self.most - self.least) as i32;
        let step = (decades / 7 + 1).max(1);
        for decade in 0..=decades {
            let power = 10_f64.powi(self.least as i32 + decade);
            for factor in if decades <= 3 { &[1.0, 2.0, 5.0][..] } else { &[1.0][..] } {
                let value = power * factor;
                if value > 10_f64.powf(self.most) * 1.0001 {
                    continue;
                }
                let x = self.x(value);
                let stroke = if *factor == 1.0 { "#c8c8c8" } else { "#ececec" };
                let _ = writeln!(
                    out,
                    "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"8\" y2=\"{bottom:.1}\" stroke=\"{stroke}\"/>"
                );
                if *factor == 1.0 && decade % step == 0 {
                    let label = show(value, unit).replace(".00", "").replace(".0", "");
                    let _ = writeln!(
                        out,
                        "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
                        bottom + 16.0,
                        escape(&label)
                    );
                }
            }
        }
    }
}

fn draw_row(out: &mut String, row: &Row, scale: &Scale, unit: Unit, y: f64) {
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
        Mark::Figure(summary) => {
            let colour = row.colour;
            let (least, median, most) =
                (scale.x(summary.least), scale.x(summary.median), scale.x(summary.most));
            let _ = writeln!(
                out,
                "<path d=\"M{least:.1} {y:.1}H{most:.1}M{least:.1} {0:.1}v8M{most:.1} {0:.1}v8\" stroke=\"{colour}\" stroke-width=\"1.5\" fill=\"none\"/>",
                y - 4.0
            );
            draw_marker(out, row.shape, median, y, colour);
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{base:.1}\">{}</text>",
                WIDTH - FIGURES + 14.0,
                escape(&show(summary.median, unit))
            );
        }
    }
}

/// Shapes differ too, for prints in grey.
fn draw_marker(out: &mut String, shape: usize, x: f64, y: f64, colour: &str) {
    let path = match shape % 4 {
        0 => {
            let _ = writeln!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>");
            return;
        }
        1 => format!("M{:.1} {:.1}h9v9h-9z", x - 4.5, y - 4.5),
        2 => format!("M{x:.1} {:.1}l5.5 10h-11z", y - 6.0),
        _ => format!("M{x:.1} {:.1}l6 6l-6 6l-6 -6z", y - 6.0),
    };
    let _ = writeln!(out, "<path d=\"{path}\" fill=\"{colour}\"/>");
}

#[cfg(test)]
mod tests {
    use super::{LABELS, Scale, WIDTH, escape};

    #[test]
    fn equal_factors_are_equally_far_apart() {
        let scale = Scale { least: -3.0, most: 1.0 };
        let far = scale.x(10.0) - scale.x(1.0);
        assert!((far - (scale.x(0.01) - scale.x(0.001))).abs() < 1e-6);
        assert!(scale.x(10.0) < WIDTH && scale.x(0.001) >= LABELS);
    }

    #[test]
    fn zero_is_at_the_edge_and_not_at_infinity() {
        let scale = Scale { least: 0.0, most: 1.0 };
        assert_eq!(scale.x(0.0), LABELS);
    }

    #[test]
    fn names_cannot_break_out_of_their_text() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
