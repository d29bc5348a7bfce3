//! The questions that a report answers: what was measured for each, and which figure stands for a run.

/// One question, one table, one chart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Question {
    /// The measure whose samples answer it.
    pub measure: &'static str,
    pub title: &'static str,
    /// How it was measured, in a sentence.
    pub how: &'static str,
    pub unit: Unit,
    pub statistic: Statistic,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Seconds,
    Bytes,
    Count,
    PerSecond,
    /// CPU seconds for each second.
    Cores,
}

/// Which figure of one run's values is meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Statistic {
    /// 0.5 is the median, 1 the largest. Of a single value, that value.
    Quantile(f64),
}

const MEDIAN: Statistic = Statistic::Quantile(0.5);
const P90: Statistic = Statistic::Quantile(0.9);
const P99: Statistic = Statistic::Quantile(0.99);
const LARGEST: Statistic = Statistic::Quantile(1.0);

/// All questions, in the order of a report.
pub const QUESTIONS: &[Question] = &[
    question(
        "first-sync",
        "How long from the start of the process until every Service works?",
        "From starting the process on a node without rules until a connection to each Service succeeds.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "first-sync-user",
        "First sync: how much CPU time in programs (list, decode, plan, encode)?",
        "User time of the process and its children until then; the kernel counts in steps of 10 ms, and a child once it has ended.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "first-sync-system",
        "First sync: how much CPU time in the kernel?",
        "System time of the process and its children until then; the kernel counts in steps of 10 ms, and a child once it has ended.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "first-sync-in-syncs",
        "First sync: how long did it plan, encode and write rules, by its own account?",
        "Sum of kubeproxy_sync_proxy_rules_duration_seconds once it is idle; the rest is starting, listing and decoding.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "restart",
        "How long does a restart over its own rules take?",
        "From starting the process until endpoint changes made while none ran are in effect.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "one-change",
        "How long until one endpoint change reaches packets? (median)",
        "From the write to the API server until the first connection attempt that reaches the new endpoint begins; the contender was idle.",
        Unit::Seconds,
        MEDIAN,
    ),
    question("one-change", "One endpoint change, 90 % arrive within", "As above.", Unit::Seconds, P90),
    question("one-change", "One endpoint change, 99 % arrive within", "As above.", Unit::Seconds, P99),
    question("one-change", "One endpoint change, the slowest", "As above.", Unit::Seconds, LARGEST),
    question(
        "one-change-commit",
        "How long until the kernel has committed one endpoint change? (median)",
        "From the write to the API server until the kernel announces the nf_tables transaction (nftables, and iptables over nf_tables).",
        Unit::Seconds,
        MEDIAN,
    ),
    question("one-change-commit", "Committed in the kernel, 99 % within", "As above.", Unit::Seconds, P99),
    churn_latency("churn-1", "1 change a second: how late does a change arrive? (median)"),
    churn_latency("churn-10", "10 changes a second: how late does a change arrive? (median)"),
    churn_latency("churn-100", "100 changes a second: how late does a change arrive? (median)"),
    churn_latency("churn-1000", "1,000 changes a second: how late does a change arrive? (median)"),
    churn_latency("churn-own", "The workload's own churn: how late does a change arrive? (median)"),
    churn_late("churn-100", "100 changes a second: 99 % arrive within"),
    churn_late("churn-1000", "1,000 changes a second: 99 % arrive within"),
    churn_cpu("churn-1-cpu", "1 change a second: how much CPU?"),
    churn_cpu("churn-10-cpu", "10 changes a second: how much CPU?"),
    churn_cpu("churn-100-cpu", "100 changes a second: how much CPU?"),
    churn_cpu("churn-1000-cpu", "1,000 changes a second: how much CPU?"),
    churn_cpu("churn-own-cpu", "The workload's own churn: how much CPU?"),
    churn_backlog("churn-100-backlog", "100 changes a second: how far behind is it at the end?"),
    churn_backlog("churn-1000-backlog", "1,000 changes a second: how far behind is it at the end?"),
    churn_failed("churn-100-failed", "100 changes a second: new connections that failed, of a million"),
    churn_failed("churn-1000-failed", "1,000 changes a second: new connections that failed, of a million"),
    question(
        "memory",
        "How much memory does the process hold after its first sync?",
        "Resident memory of the process.",
        Unit::Bytes,
        MEDIAN,
    ),
    question(
        "memory-after-churn",
        "How much memory does the process hold after all changes?",
        "Resident memory of the process.",
        Unit::Bytes,
        MEDIAN,
    ),
    question(
        "memory-peak",
        "How much memory do the process and its children hold at most?",
        "Resident memory, looked at every 25 ms from start to end; a child that was just forked counts twice for an instant.",
        Unit::Bytes,
        LARGEST,
    ),
    question(
        "kernel-memory",
        "How much memory does the kernel use for the rules?",
        "What Slab, vmalloc and per-CPU memory of the whole machine shrink by when the rules are removed at the end: disturbed by everything else that runs.",
        Unit::Bytes,
        MEDIAN,
    ),
    question(
        "objects",
        "How many objects are in the kernel?",
        "Counted in the listing: chains, rules, sets and elements; rules and chains; virtual and real servers.",
        Unit::Count,
        MEDIAN,
    ),
    question(
        "listing-bytes",
        "How long is the listing?",
        "Bytes that the administrator's tool prints.",
        Unit::Bytes,
        MEDIAN,
    ),
    question(
        "listing",
        "How long does the administrator's tool take to list the rules?",
        "`nft list table ip kube-proxy`, `iptables-save`, `ipvsadm --save`.",
        Unit::Seconds,
        MEDIAN,
    ),
    first_packet(
        "first-packet-first",
        "How long does a new connection to the first Service take? (median)",
        MEDIAN,
    ),
    first_packet(
        "first-packet-middle",
        "How long does a new connection to the middle Service take? (median)",
        MEDIAN,
    ),
    first_packet(
        "first-packet-last",
        "How long does a new connection to the last Service take? (median)",
        MEDIAN,
    ),
    first_packet("first-packet-last", "New connection to the last Service, 90 % within", P90),
    first_packet("first-packet-last", "New connection to the last Service, 99 % within", P99),
    first_packet(
        "first-packet-random",
        "How long does a new connection to a random Service take? (median)",
        MEDIAN,
    ),
    first_packet("first-packet-random", "New connection to a random Service, 90 % within", P90),
    first_packet("first-packet-random", "New connection to a random Service, 99 % within", P99),
    question(
        "connections",
        "How many new connections a second does one client get?",
        "One after the other, to random Services.",
        Unit::PerSecond,
        MEDIAN,
    ),
    question(
        "neighbour",
        "How long does somebody else's nf_tables transaction take? (median)",
        "One element added to or taken from a set in another table, contender idle.",
        Unit::Seconds,
        MEDIAN,
    ),
    question("neighbour", "Somebody else's transaction, 99 % within", "As above.", Unit::Seconds, P99),
    question(
        "restart-broken",
        "How many of 50 open connections does a restart break?",
        "Connections that exchange a few bytes every 50 ms.",
        Unit::Count,
        LARGEST,
    ),
    question(
        "restart-failed",
        "How many new connections fail during a restart, of a million?",
        "Connections to the same Services, one after the other, from the end of the old process until 0.7 s after the new one is complete.",
        Unit::Count,
        MEDIAN,
    ),
    question(
        "mode-change",
        "How long does a change to this mode take?",
        "The process of another mode ends, this one starts: until endpoint changes made meanwhile are in effect.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "mode-change-broken",
        "How many of 50 open connections does a change to this mode break?",
        "As for a restart.",
        Unit::Count,
        LARGEST,
    ),
    question(
        "mode-change-failed",
        "How many new connections fail during a change to this mode, of a million?",
        "As for a restart.",
        Unit::Count,
        MEDIAN,
    ),
    question(
        "cluster-propagation-50",
        "Live cluster: how long from a change until it is in effect? (median)",
        "kubeproxy_network_programming_duration_seconds of each node, gained during the churn.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "cluster-propagation-99",
        "Live cluster: 99 % of changes are in effect within",
        "As above.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "cluster-sync-50",
        "Live cluster: how long does a sync take? (median)",
        "kubeproxy_sync_proxy_rules_duration_seconds of each node, gained during the churn.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "cluster-sync-99",
        "Live cluster: 99 % of syncs take at most",
        "As above.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "cluster-cpu",
        "Live cluster: how much CPU during the churn?",
        "process_cpu_seconds_total of each node; children are not in it.",
        Unit::Cores,
        MEDIAN,
    ),
    question(
        "cluster-memory",
        "Live cluster: how much memory does the process hold?",
        "process_resident_memory_bytes of each node.",
        Unit::Bytes,
        MEDIAN,
    ),
];

impl Question {
    /// A name for anchors and files.
    pub fn slug(&self) -> String {
        let Statistic::Quantile(share) = self.statistic;
        format!("{}-{:.0}", self.measure, share * 100.0)
    }
}

const fn question(
    measure: &'static str,
    title: &'static str,
    how: &'static str,
    unit: Unit,
    statistic: Statistic,
) -> Question {
    Question { measure, title, how, unit, statistic }
}

const fn churn_latency(measure: &'static str, title: &'static str) -> Question {
    question(
        measure,
        title,
        "One endpoint of a random Service is replaced at that rate; a change of another Service is followed until a packet shows it.",
        Unit::Seconds,
        MEDIAN,
    )
}

const fn churn_late(measure: &'static str, title: &'static str) -> Question {
    question(measure, title, "As above.", Unit::Seconds, P99)
}

const fn churn_cpu(measure: &'static str, title: &'static str) -> Question {
    question(
        measure,
        title,
        "CPU time of the process and of its children that ended, user and system, for each second.",
        Unit::Cores,
        MEDIAN,
    )
}

const fn churn_backlog(measure: &'static str, title: &'static str) -> Question {
    question(
        measure,
        title,
        "From the last change of the churn until one more change, made after it, is in effect.",
        Unit::Seconds,
        MEDIAN,
    )
}

const fn churn_failed(measure: &'static str, title: &'static str) -> Question {
    question(
        measure,
        title,
        "Connections to the Services under change, one a millisecond at most; all endpoints are up all the time.",
        Unit::Count,
        MEDIAN,
    )
}

const fn first_packet(measure: &'static str, title: &'static str, statistic: Statistic) -> Question {
    question(
        measure,
        title,
        "TCP connect through the node to an endpoint behind it. First, middle and last as the kernel looks at them (by name where it has no order). Floors, measured before the contender starts: one plain DNAT rule, and a connection straight to the endpoint.",
        Unit::Seconds,
        statistic,
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::QUESTIONS;

    #[test]
    fn no_two_questions_share_a_name_or_a_title() {
        let slugs: HashSet<String> = QUESTIONS.iter().map(super::Question::slug).collect();
        let titles: HashSet<&str> = QUESTIONS.iter().map(|question| question.title).collect();
        assert_eq!((slugs.len(), titles.len()), (QUESTIONS.len(), QUESTIONS.len()));
    }
}
