//! Figures as people read them.

use super::question::Unit;
use super::statistics::Summary;

/// Three significant digits and a unit that fits.
pub(crate) fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value == 0.0 => "0 s".to_owned(),
        Unit::Seconds if value >= 1.0 => format!("{} s", digits(value)),
        Unit::Seconds if value >= 1e-3 => format!("{} ms", digits(value * 1e3)),
        Unit::Seconds => format!("{} µs", digits(value * 1e6)),
        Unit::Bytes if value.abs() >= 1e6 => format!("{} MB", digits(value / 1e6)),
        Unit::Bytes if value.abs() >= 1e3 => format!("{} kB", digits(value / 1e3)),
        Unit::Bytes => format!("{value:.0} B"),
        Unit::Count => grouped(value),
        Unit::PerSecond => format!("{}/s", grouped(value)),
        Unit::Cores => format!("{} % of a CPU", digits(value * 100.0)),
    }
}

/// `1.23 s (1.20–1.31)`; the number of runs where it is only one.
pub(crate) fn show_summary(summary: &Summary, unit: Unit) -> String {
    let median = show(summary.median, unit);
    if summary.runs == 1 {
        return format!("{median} (1 run)");
    }
    let (least, most) = (show(summary.least, unit), show(summary.most, unit));
    // A unit that both have is said once.
    let unit_of = |shown: &str| shown.split_once(' ').map(|(_, unit)| unit.to_owned());
    let least = match (unit_of(&least), unit_of(&most)) {
        (Some(one), Some(other)) if one == other => least.trim_end_matches(&*one).trim_end().to_owned(),
        _ => least,
    };
    format!("{median} ({least}–{most})")
}

fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => grouped(value),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ if value == 0.0 => "0".to_owned(),
        _ => format!("{value:.4}"),
    }
}

fn grouped(value: f64) -> String {
    let plain = format!("{value:.0}");
    let (sign, number) = plain.strip_prefix('-').map_or(("", &*plain), |number| ("-", number));
    let mut out = String::from(sign);
    for (index, digit) in number.chars().enumerate() {
        if index > 0 && (number.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Unit, show, show_summary};
    use crate::scale::statistics::Summary;

    #[test]
    fn figures_are_shown_with_a_unit_that_fits() {
        assert_eq!(show(0.000_084, Unit::Seconds), "84.0 µs");
        assert_eq!(show(0.0123, Unit::Seconds), "12.3 ms");
        assert_eq!(show(135.2, Unit::Seconds), "135 s");
        assert_eq!(show(600_000_000.0, Unit::Bytes), "600 MB");
        assert_eq!(show(1_234_567.0, Unit::Count), "1,234,567");
        assert_eq!(show(0.05, Unit::Cores), "5.00 % of a CPU");
    }

    #[test]
    fn a_figure_from_one_run_says_so() {
        let one = Summary::of(&[2.0]).expect("not empty");
        assert_eq!(show_summary(&one, Unit::Seconds), "2.00 s (1 run)");
        let three = Summary::of(&[2.0, 1.0, 3.0]).expect("not empty");
        assert_eq!(show_summary(&three, Unit::Seconds), "2.00 s (1.00–3.00 s)");
        let apart = Summary::of(&[2.0, 0.1, 3.0]).expect("not empty");
        assert_eq!(show_summary(&apart, Unit::Seconds), "2.00 s (100 ms–3.00 s)");
    }
}
