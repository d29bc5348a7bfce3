//! What a contender costs the node, and whom else it slows down.

use super::{LARGEST, MEDIAN, P99, Question, Unit, question};

pub(crate) const QUESTIONS: &[Question] = &[
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
        "What the kernel has charged to the control group of the contender and its children for itself, less what is left of that once the rules are gone. Not everything is charged: hash tables of sets are not, nor is anything of IPVS.",
        Unit::Bytes,
        MEDIAN,
    ),
    question(
        "kernel-memory-machine",
        "How much less memory does the whole kernel use once the rules are gone?",
        "What Slab, vmalloc and per-CPU memory of the machine shrink by when the rules are removed: disturbed by everything else that runs. For IPVS, and where there are no control groups.",
        Unit::Bytes,
        MEDIAN,
    ),
    question(
        "objects",
        "How many objects are in the kernel?",
        "All of the table below together.",
        Unit::Count,
        MEDIAN,
    ),
    question(
        "listing-bytes",
        "How long is the listing?",
        "Bytes that the same tool prints.",
        Unit::Bytes,
        MEDIAN,
    ),
    question(
        "listing",
        "How long does the administrator's tool take to list the rules?",
        "`nft list ruleset`, `iptables-save`, `ipvsadm -Ln`.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "neighbour",
        "How long does somebody else's nf_tables transaction take?",
        "One element added to or taken from a set in another table, contender idle.",
        Unit::Seconds,
        MEDIAN,
    ),
    question("neighbour", "99 % within", "", Unit::Seconds, P99),
];
