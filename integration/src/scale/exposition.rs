//! Metrics in the text format of Prometheus, and what they gained between two looks.

use std::collections::BTreeMap;

/// All samples of a page, by name, labels summed away except a histogram's `le`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Snapshot {
    values: BTreeMap<String, f64>,
    /// For each histogram its cumulative counts by upper bound.
    buckets: BTreeMap<String, Vec<(f64, f64)>>,
}

impl Snapshot {
    pub(crate) fn parse(text: &str) -> Self {
        let mut snapshot = Self::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            match (name.strip_suffix("_bucket"), bound(labels)) {
                (Some(histogram), Some(bound)) => {
                    let buckets = snapshot.buckets.entry(histogram.to_owned()).or_default();
                    match buckets.iter_mut().find(|(known, _)| *known == bound) {
                        Some((_, count)) => *count += value,
                        None => buckets.push((bound, value)),
                    }
                }
                _ => *snapshot.values.entry(name.to_owned()).or_default() += value,
            }
        }
        for buckets in snapshot.buckets.values_mut() {
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        }
        snapshot
    }

    /// The values of a metric by one of its labels, without those of IPv6.
    pub(crate) fn of_ipv4(text: &str, name: &str, label: &str) -> Vec<(String, f64)> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        let lines = lines.filter(|line| !line.contains("ip_family=\"IPv6\""));
        let key = format!("{label}=\"");
        lines
            .filter_map(|line| {
                let (labels, value) = line.rsplit_once("} ")?;
                let (_, rest) = labels.split_once(&*key)?;
                Some((rest.split('"').next()?.to_owned(), value.parse().ok()?))
            })
            .collect()
    }

    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }

    /// Histograms with what they held before taken off.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let mut gained = self.clone();
        for (name, buckets) in &mut gained.buckets {
            let Some(old) = before.buckets.get(name) else { continue };
            for (bound, count) in buckets {
                let same = old.iter().find(|(known, _)| known == bound);
                *count -= same.map_or(0.0, |(_, count)| *count);
            }
        }
        gained
    }

    /// As Prometheus estimates it: by proportion inside the bucket; the last finite bound where it is beyond.
    pub(crate) fn quantile(&self, histogram: &str, share: f64) -> Option<f64> {
        let buckets = self.buckets.get(histogram)?;
        let total = buckets.last()?.1;
        if total <= 0.0 {
            return None;
        }
        let wanted = share * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (bound, count) in buckets {
            if *count >= wanted && *count > below {
                if bound.is_infinite() {
                    return Some(low);
                }
                return Some(low + (bound - low) * (wanted - below) / (count - below));
            }
            (low, below) = (*bound, *count);
        }
        None
    }
}

/// The value of `le`.
fn bound(labels: &str) -> Option<f64> {
    let value = labels.split("le=\"").nth(1)?.split('"').next()?;
    if value == "+Inf" { Some(f64::INFINITY) } else { value.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::Snapshot;

    const BEFORE: &str = "# TYPE h histogram\nh_bucket{ip_family=\"IPv4\",le=\"0.1\"} 5\nh_bucket{ip_family=\"IPv4\",le=\"1\"} 5\n\
                          h_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 5\nh_sum 1\ncpu 1.5\n";
    const AFTER: &str = "h_bucket{ip_family=\"IPv4\",le=\"0.1\"} 10\nh_bucket{ip_family=\"IPv4\",le=\"1\"} 15\n\
                         h_bucket{ip_family=\"IPv4\",le=\"+Inf\"} 15\nh_bucket{ip_family=\"IPv6\",le=\"+Inf\"} 0\nh_sum 9\ncpu 2.5\n";

    #[test]
    fn only_what_was_gained_counts() {
        let gained = Snapshot::parse(AFTER).since(&Snapshot::parse(BEFORE));
        // Five up to 0.1 and five up to 1.
        assert_eq!(gained.quantile("h", 0.5), Some(0.1));
        assert_eq!(gained.quantile("h", 1.0), Some(1.0));
        assert_eq!(gained.value("cpu"), Some(2.5));
    }

    #[test]
    fn values_are_told_apart_by_their_label_and_those_of_ipv6_left_out() {
        let text = "# TYPE m gauge\nm{phase=\"list\"} 0.5\nm{phase=\"plan\",ip_family=\"IPv4\"} 2e-3\n\
                    m{phase=\"plan\",ip_family=\"IPv6\"} 9\nm_other{phase=\"x\"} 1\nm 7\n";
        let found = Snapshot::of_ipv4(text, "m", "phase");
        assert_eq!(found, [("list".to_owned(), 0.5), ("plan".to_owned(), 0.002)]);
    }

    #[test]
    fn a_histogram_that_gained_nothing_has_no_quantile() {
        let same = Snapshot::parse(BEFORE).since(&Snapshot::parse(BEFORE));
        assert_eq!(same.quantile("h", 0.5), None);
        assert_eq!(same.quantile("other", 0.5), None);
    }
}
