//! Annotations by which a Service chooses its own scheduler and weights.

use ipvs_netlink::Scheduler;

/// The scheduler of the Service.
pub const SCHEDULER: &str = "ipvs-scheduler";
/// The weight of its endpoints.
pub const WEIGHT: &str = "ipvs-weight";
/// The weight of its endpoints on this node.
pub const LOCAL_WEIGHT: &str = "ipvs-local-weight";

/// The largest weight the kernel's schedulers are sure to handle: `wrr` and `wlc` multiply it by connection counts.
const MAX_WEIGHT: u32 = 65535;

/// What a Service chose, defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How connections are spread.
    pub scheduler: Scheduler,
    /// Of endpoints elsewhere.
    pub weight: u32,
    /// Of endpoints on this node.
    pub local_weight: u32,
}

impl Options {
    /// Reads the annotations. A value that cannot be used counts as absent; [`Options::problems`] names it.
    pub fn read(annotations: &[(Box<str>, Box<str>)], default: Scheduler) -> Self {
        let find = |name: &str| annotations.iter().find(|(key, _)| **key == *name).map(|(_, value)| &**value);
        let weight = find(WEIGHT).and_then(weight);
        Self {
            scheduler: find(SCHEDULER).and_then(scheduler).unwrap_or(default),
            weight: weight.unwrap_or(1),
            local_weight: find(LOCAL_WEIGHT).and_then(self::weight).or(weight).unwrap_or(1),
        }
    }

    /// Values that cannot be used, in words.
    pub fn problems(annotations: &[(Box<str>, Box<str>)]) -> Vec<String> {
        let mut problems = Vec::new();
        for (key, value) in annotations {
            if **key == *SCHEDULER && scheduler(value).is_none() {
                let known = Scheduler::ALL.map(|scheduler| scheduler.to_string()).join(" ");
                problems.push(format!("{key}: {value:?} is no scheduler; there are {known}"));
            } else if (**key == *WEIGHT || **key == *LOCAL_WEIGHT) && weight(value).is_none() {
                problems.push(format!("{key}: {value:?} is no weight from 1 to {MAX_WEIGHT}"));
            }
        }
        problems
    }
}

fn scheduler(name: &str) -> Option<Scheduler> {
    Scheduler::ALL.into_iter().find(|scheduler| scheduler.as_str() == name)
}

/// Weight 0 would take an endpoint out of service; that is what readiness is for.
fn weight(text: &str) -> Option<u32> {
    text.parse().ok().filter(|weight| (1..=MAX_WEIGHT).contains(weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(of: &[(&str, &str)]) -> Vec<(Box<str>, Box<str>)> {
        of.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    #[test]
    fn a_service_without_annotations_gets_the_default_scheduler_and_weight_one() {
        let options = Options::read(&[], Scheduler::WLC);
        assert_eq!(options, Options { scheduler: Scheduler::WLC, weight: 1, local_weight: 1 });
    }

    #[test]
    fn endpoints_of_this_node_weigh_as_the_others_unless_stated() {
        let options = Options::read(&annotations(&[(WEIGHT, "10")]), Scheduler::RR);
        assert_eq!((options.weight, options.local_weight), (10, 10));
        let options = Options::read(&annotations(&[(LOCAL_WEIGHT, "5"), (SCHEDULER, "wrr")]), Scheduler::RR);
        assert_eq!(options, Options { scheduler: Scheduler::WRR, weight: 1, local_weight: 5 });
    }

    #[test]
    fn a_value_that_cannot_be_used_is_named_and_changes_nothing() {
        let odd = annotations(&[(SCHEDULER, "fastest"), (WEIGHT, "0"), (LOCAL_WEIGHT, "-3"), ("other", "x")]);
        assert_eq!(Options::read(&odd, Scheduler::RR), Options::read(&[], Scheduler::RR));
        let problems = Options::problems(&odd);
        assert_eq!(problems.len(), 3);
        assert!(problems[0].starts_with("ipvs-scheduler: \"fastest\" is no scheduler; there are rr wrr "));
    }
}
