//! The text format of Prometheus as its Go client prints it: metrics by name, series by the values of their labels,
//! labels by name (a histogram's `le` last), numbers as Go's `strconv` has them.

use std::{collections::BTreeMap, fmt::Write as _};

/// Everything under one name.
#[derive(Debug, Default)]
struct Metric<'a> {
    help: Option<&'a str>,
    kind: Option<&'a str>,
    series: BTreeMap<Labels<'a>, Vec<Sample<'a>>>,
}

/// Sorted by name; the values, which decide the order of series, as they are escaped in the text.
type Labels<'a> = Vec<(&'a str, &'a str)>;

#[derive(Debug)]
struct Sample<'a> {
    /// What follows the metric's name: `_bucket`, `_sum`, `_count`, or nothing.
    suffix: &'a str,
    /// The bound of a bucket.
    bound: Option<&'a str>,
    value: &'a str,
}

/// The same metrics in canonical form. What is not in the format is left out.
pub(super) fn canonical(text: &str) -> String {
    let mut metrics: BTreeMap<&str, Metric<'_>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            metrics.entry(name).or_default().help = Some(help);
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, ""));
            metrics.entry(name).or_default().kind = Some(kind);
        } else if let Some((name, mut labels, value)) = sample(line) {
            let (base, suffix) = base(name, &metrics);
            let bound = (suffix == "_bucket").then(|| labels.iter().position(|(label, _)| *label == "le"));
            let bound = bound.flatten().map(|at| labels.remove(at).1);
            labels.sort_unstable();
            let series = &mut metrics.entry(base).or_default().series;
            series.entry(labels).or_default().push(Sample { suffix, bound, value });
        }
    }
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for (name, metric) in &metrics {
        metric.write(name, &mut out);
    }
    out
}

/// A histogram's name without what tells its samples apart.
fn base<'a>(name: &'a str, metrics: &BTreeMap<&str, Metric<'_>>) -> (&'a str, &'a str) {
    let mut parts = ["_bucket", "_sum", "_count"].into_iter().filter_map(|suffix| {
        let base = name.strip_suffix(suffix)?;
        let kind = metrics.get(base)?.kind;
        matches!(kind, Some("histogram" | "summary")).then(|| name.split_at(base.len()))
    });
    parts.next().unwrap_or((name, ""))
}

/// Name, labels and value of a line such as `name{label="value"} 1`.
fn sample(line: &str) -> Option<(&str, Labels<'_>, &str)> {
    let end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(end);
    let mut labels = Vec::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches([',', ' ']);
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let close = closing_quote(after)?;
            labels.push((label, &after[..close]));
            rest = &after[close + 1..];
        }
    }
    let value = rest.trim();
    (!name.is_empty() && !value.is_empty()).then_some((name, labels, value))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let found = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        found
    })
}

impl Metric<'_> {
    fn write(&self, name: &str, out: &mut String) {
        if self.series.is_empty() {
            return;
        }
        if let Some(help) = self.help {
            let _ = writeln!(out, "# HELP {name} {help}");
        }
        if let Some(kind) = self.kind {
            let _ = writeln!(out, "# TYPE {name} {kind}");
        }
        for (labels, samples) in &self.series {
            for sample in samples {
                let _ = write!(out, "{name}{}", sample.suffix);
                let bound = sample.bound.map(|bound| ("le", number(bound)));
                let pairs = labels.iter().map(|(label, value)| (*label, (*value).to_owned()));
                let mut before = '{';
                for (label, value) in pairs.chain(bound) {
                    let _ = write!(out, "{before}{label}=\"{value}\"");
                    before = ',';
                }
                let close = if before == ',' { "}" } else { "" };
                let _ = writeln!(out, "{close} {}", number(sample.value));
            }
        }
    }
}

/// As Go's `strconv.FormatFloat(value, 'g', -1, 64)`; what is no number stays as it is.
fn number(text: &str) -> String {
    let Ok(value) = text.parse::<f64>() else { return text.to_owned() };
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    // The shortest digits that read back as the same number, and their exponent.
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..6).contains(&exponent) {
        return value.to_string();
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_go() {
        for (given, expected) in [
            ("0", "0"),
            ("1", "1"),
            ("-1.5", "-1.5"),
            ("999999", "999999"),
            ("1000000", "1e+06"),
            ("1048576", "1.048576e+06"),
            ("45678592", "4.5678592e+07"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("1780304401.25", "1.78030440125e+09"),
            ("1e21", "1e+21"),
            ("+Inf", "+Inf"),
            ("inf", "+Inf"),
            ("NaN", "NaN"),
            ("x", "x"),
        ] {
            assert_eq!(number(given), expected, "{given}");
        }
    }

    #[test]
    fn labels_series_and_metrics_are_sorted_and_bounds_come_last() {
        let text = "# HELP z_total Last\n# TYPE z_total counter\n\
                    z_total{method=\"GET\",code=\"500\"} 2\n\
                    z_total{method=\"PATCH\",code=\"200\"} 1\n\
                    z_total{method=\"GET\",code=\"200\"} 3\n\n\
                    # HELP h_seconds A histogram\n# TYPE h_seconds histogram\n\
                    h_seconds_bucket{verb=\"GET\",host=\"b\",le=\"0.00001\"} 1\n\
                    h_seconds_bucket{verb=\"GET\",host=\"b\",le=\"+Inf\"} 12345678\n\
                    h_seconds_sum{verb=\"GET\",host=\"b\"} 0.5\n\
                    h_seconds_count{verb=\"GET\",host=\"b\"} 12345678\n\
                    # HELP empty Nothing\n# TYPE empty gauge\n\
                    # HELP a_count Not of a histogram\n# TYPE a_count gauge\na_count 7\n";
        assert_eq!(
            canonical(text),
            "# HELP a_count Not of a histogram\n# TYPE a_count gauge\na_count 7\n\
             # HELP h_seconds A histogram\n# TYPE h_seconds histogram\n\
             h_seconds_bucket{host=\"b\",verb=\"GET\",le=\"1e-05\"} 1\n\
             h_seconds_bucket{host=\"b\",verb=\"GET\",le=\"+Inf\"} 1.2345678e+07\n\
             h_seconds_sum{host=\"b\",verb=\"GET\"} 0.5\n\
             h_seconds_count{host=\"b\",verb=\"GET\"} 1.2345678e+07\n\
             # HELP z_total Last\n# TYPE z_total counter\n\
             z_total{code=\"200\",method=\"GET\"} 3\n\
             z_total{code=\"200\",method=\"PATCH\"} 1\n\
             z_total{code=\"500\",method=\"GET\"} 2\n"
        );
    }

    #[test]
    fn quotes_and_braces_inside_values_are_no_ends() {
        let text = "# TYPE x gauge\nx{b=\"}, c=\\\"1\\\\\",a=\"\"} 1\n";
        assert_eq!(canonical(text), "# TYPE x gauge\nx{a=\"\",b=\"}, c=\\\"1\\\\\"} 1\n");
        assert_eq!(canonical("# TYPE x gauge\nx{a=\"1 1\nnothing\n"), "", "what is cut off is left out");
    }
}
