//! What `scale cluster` asks of nodes' metrics.

use super::{MEDIAN, Question, Unit, question};

pub(crate) const QUESTIONS: &[Question] = &[
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
