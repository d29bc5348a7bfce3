//! A logarithmic axis, in either direction, and what all charts have in common.

use super::quantity::show;
use super::question::Unit;

/// Okabe and Ito's palette: told apart by the colour-blind, and in grey.
pub(super) const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666", "#000000"];

/// Values between two places of a picture. Zeros are drawn at the beginning.
#[derive(Debug, Clone, Copy)]
pub(super) struct Axis {
    /// Powers of ten.
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

/// A line across the picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    pub(super) at: f64,
    /// `None` for the fainter ones in between.
    pub(super) label: Option<String>,
}

impl Axis {
    /// Whole powers of ten around all positive values.
    pub(super) fn around(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|value| *value > 0.0) {
            least = least.min(value);
            most = most.max(value);
        }
        if !least.is_finite() {
            return Self { least: 0.0, most: 1.0, from, to };
        }
        let (low, high) = (least.log10().floor(), most.log10().ceil());
        Self { least: low, most: if high > low { high } else { low + 1.0 }, from, to }
    }

    pub(super) fn at(&self, value: f64) -> f64 {
        if value <= 0.0 {
            return self.from;
        }
        let share = (value.log10() - self.least) / (self.most - self.least);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// A line at each power of ten, labelled where there is room; fainter ones at 2 and 5 where there are few.
    pub(super) fn ticks(&self, unit: Unit) -> Vec<Tick> {
        let decades = (self.most - self.least) as i32;
        let step = decades / 7 + 1;
        let factors: &[f64] = if decades <= 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let mut ticks = Vec::new();
        for decade in 0..=decades {
            let power = 10_f64.powi(self.least as i32 + decade);
            for factor in factors {
                let value = power * factor;
                if value > 10_f64.powf(self.most) * 1.0001 {
                    continue;
                }
                let labelled = *factor == 1.0 && decade % step == 0;
                let label = labelled.then(|| show(value, unit).replace(".00", "").replace(".0", ""));
                ticks.push(Tick { at: self.at(value), label });
            }
        }
        ticks
    }
}

impl Tick {
    pub(super) fn stroke(&self) -> &'static str {
        if self.label.is_some() { "#c8c8c8" } else { "#ececec" }
    }
}

/// A mark for a median. Shapes differ too, for prints in grey.
pub(super) fn marker(shape: usize, x: f64, y: f64, colour: &str) -> String {
    let path = match shape % 4 {
        0 => return format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" fill=\"{colour}\"/>\n"),
        1 => format!("M{:.1} {:.1}h9v9h-9z", x - 4.5, y - 4.5),
        2 => format!("M{x:.1} {:.1}l5.5 10h-11z", y - 6.0),
        _ => format!("M{x:.1} {:.1}l6 6l-6 6l-6 -6z", y - 6.0),
    };
    format!("<path d=\"{path}\" fill=\"{colour}\"/>\n")
}

/// The beginning of a picture.
pub(super) fn open_svg(title: &str, width: f64, height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\" style=\"background:#fff\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n<title>{}</title>\n",
        escape(title)
    )
}

/// Text as it may stand in HTML and SVG.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{Axis, Unit, escape};

    fn axis() -> Axis {
        Axis::around([0.002, 7.0, 0.0].into_iter(), 200.0, 700.0)
    }

    #[test]
    fn equal_factors_are_equally_far_apart() {
        let far = axis().at(10.0) - axis().at(1.0);
        assert!((far - (axis().at(0.01) - axis().at(0.001))).abs() < 1e-6);
        assert_eq!((axis().at(0.001), axis().at(10.0)), (200.0, 700.0));
    }

    #[test]
    fn zero_is_at_the_edge_and_not_at_infinity() {
        assert_eq!(axis().at(0.0), 200.0);
        let nothing = Axis::around(std::iter::empty(), 200.0, 700.0);
        assert_eq!(nothing.at(0.0), 200.0);
    }

    #[test]
    fn every_power_of_ten_has_a_line_and_a_label() {
        let labels: Vec<String> =
            axis().ticks(Unit::Seconds).into_iter().filter_map(|tick| tick.label).collect();
        assert_eq!(labels, ["1 ms", "10 ms", "100 ms", "1 s", "10 s"]);
    }

    #[test]
    fn names_cannot_break_out_of_their_text() {
        assert_eq!(escape("<a href=\"x\">&"), "&lt;a href=&quot;x&quot;&gt;&amp;");
    }
}
