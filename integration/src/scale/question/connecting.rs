//! What a client notices while nothing changes.

use super::{MEDIAN, P1, P10, P90, P99, Question, Statistic, Unit, question};

pub(crate) const QUESTIONS: &[Question] = &[
    first_packet("first-packet-first", "How long does a new connection to the first Service take?"),
    later_packets("first-packet-first", "90 % within", P90),
    later_packets("first-packet-first", "99 % within", P99),
    first_packet("first-packet-middle", "How long does a new connection to the middle Service take?"),
    later_packets("first-packet-middle", "90 % within", P90),
    later_packets("first-packet-middle", "99 % within", P99),
    first_packet("first-packet-last", "How long does a new connection to the last Service take?"),
    later_packets("first-packet-last", "90 % within", P90),
    later_packets("first-packet-last", "99 % within", P99),
    first_packet("first-packet-random", "How long does a new connection to a random Service take?"),
    later_packets("first-packet-random", "90 % within", P90),
    later_packets("first-packet-random", "99 % within", P99),
    question(
        "connections",
        "How many new connections a second does one client get?",
        "One after the other, to random Services; counted every 10 ms. Floors, measured before the contender starts: through one plain DNAT rule, and straight to an endpoint.",
        Unit::PerSecond,
        MEDIAN,
    ),
    question("connections", "90 % of the time at least", "", Unit::PerSecond, P10),
    question("connections", "99 % of the time at least", "", Unit::PerSecond, P1),
];

const fn first_packet(measure: &'static str, title: &'static str) -> Question {
    question(
        measure,
        title,
        "TCP connect through the node to an endpoint behind it. First, middle and last as the kernel looks at them (by name where it has no order). Floors, measured before the contender starts: one plain DNAT rule, and a connection straight to the endpoint.",
        Unit::Seconds,
        MEDIAN,
    )
}

const fn later_packets(measure: &'static str, title: &'static str, statistic: Statistic) -> Question {
    question(measure, title, "", Unit::Seconds, statistic)
}
