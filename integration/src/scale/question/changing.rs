//! Changes, one at a time or at the workload's own rate.

use super::{LARGEST, MEDIAN, P90, P99, Question, Unit, question};

pub(crate) const QUESTIONS: &[Question] = &[
    question(
        "one-change",
        "How long until one endpoint change reaches packets?",
        "From the write to the API server until the first connection attempt that reaches the new endpoint begins; the contender was idle.",
        Unit::Seconds,
        MEDIAN,
    ),
    question("one-change", "90 % within", "", Unit::Seconds, P90),
    question("one-change", "99 % within", "", Unit::Seconds, P99),
    question("one-change", "the slowest", "", Unit::Seconds, LARGEST),
    question(
        "one-change-commit",
        "How long until the kernel has committed one endpoint change?",
        "From the write to the API server until the kernel announces the nf_tables transaction (nftables, and iptables over nf_tables).",
        Unit::Seconds,
        MEDIAN,
    ),
    question("one-change-commit", "99 % within", "", Unit::Seconds, P99),
    question(
        "churn-own",
        "The workload's own churn: how late does a change arrive?",
        "One endpoint of a random Service is replaced at the workload's rate; a change of another Service is followed until a packet shows it.",
        Unit::Seconds,
        MEDIAN,
    ),
    question("churn-own", "99 % within", "", Unit::Seconds, P99),
    question(
        "churn-own-cpu",
        "The workload's own churn: how much CPU?",
        "CPU time of the process and of its children that ended, user and system, for each second.",
        Unit::Cores,
        MEDIAN,
    ),
    question(
        "churn-own-backlog",
        "The workload's own churn: how far behind is it at the end?",
        "From the last change of the churn until one more change, made after it, is in effect.",
        Unit::Seconds,
        MEDIAN,
    ),
];
