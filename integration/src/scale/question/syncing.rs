//! Beginning, ending and everything that disturbs: first syncs, restarts, changes of the mode, endpoints that go.

use super::{LARGEST, MEDIAN, Question, Unit, question};

pub(crate) const FIRST_SYNC: &[Question] = &[
    question(
        "first-sync",
        "How long from the start of the process until every Service works?",
        "From starting the process on a node without rules until a connection to each Service succeeds.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "first-sync-user",
        "First sync: how much CPU time in programs?",
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
];

pub(crate) const DISTURBANCES: &[Question] = &[
    question(
        "removal",
        "Endpoints end: how long until new connections go elsewhere?",
        "16 Services get a new endpoint each and their old one is marked as terminating: from the write until all lead to the new one.",
        Unit::Seconds,
        MEDIAN,
    ),
    question(
        "removal-broken",
        "How many of 64 open connections does the removal of their endpoints break?",
        "Connections that exchange a few bytes every 50 ms. Their endpoints are first marked as terminating, then taken out of their EndpointSlices; the pods behind them go on answering.",
        Unit::Count,
        LARGEST,
    ),
    question(
        "removal-failed",
        "How many new connections fail while endpoints are removed, of a million?",
        "Connections to the same Services, one after the other; there is a ready endpoint all the time.",
        Unit::Count,
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
];
