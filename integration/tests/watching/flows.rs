//! `flows` and `top` count exactly the connections that were made.

use std::collections::BTreeMap;

use integration::lab::{Lab, Mode, Options, service, slices};
use integration::network::{Outcome, Place, Protocol};
use serde_json::Value;

use crate::rig::{Verb, connect, in_every_mode, web_and_empty};

in_every_mode!(connections_are_counted, what_fails_is_told);

/// So many connections are made.
const MADE: usize = 12;

fn count(lines: &[Value], what: &str, service: &str) -> usize {
    lines.iter().filter(|line| line["what"] == what && line["service"] == service).count()
}

fn connections_are_counted(lab: &mut Lab) {
    web_and_empty(lab);
    let follow = Verb::start(lab, "flows -f --for 12s -o json", &[]).listens(lab);
    let top = Verb::start(lab, "top --once --interval 10s -o json", &[]).listens(lab);
    let endpoints = Verb::start(lab, "top endpoints --once --interval 10s -o json", &[]).listens(lab);
    for _ in 0..MADE {
        assert!(matches!(connect(lab, Place::PodA, 1), Outcome::Answered { .. }));
    }
    let (_, top) = top.json();
    let rows = top["rows"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["service"] == "lab/web:http").expect("a row");
    assert_eq!(
        (row["new"].as_u64(), row["failed_handshakes"].as_u64()),
        (Some(MADE as u64), Some(0)),
        "{top:#}"
    );
    assert_eq!(top["missedEvents"], 0);
    let (_, by_endpoint) = endpoints.json();
    let rows = by_endpoint["rows"].as_array().expect("rows");
    let per_endpoint = rows.iter().filter(|row| row["service"] == "lab/web:http");
    let total: u64 = per_endpoint.map(|row| row["new"].as_u64().expect("a number")).sum();
    assert_eq!(total, MADE as u64, "{by_endpoint:#}");
    let snapshot = Verb::start(lab, "flows --service lab/web -o json", &[]);
    let (_, open) = snapshot.json();
    let open = open.as_array().expect("lines");
    assert_eq!(open.len(), MADE, "each is remembered for two minutes after its end: {open:#?}");
    assert!(open.iter().all(|line| line["service"] == "lab/web:http" && line["endpoint"] != Value::Null));
    let lines = follow.lines();
    assert_eq!(count(&lines, "new", "lab/web:http"), MADE, "{lines:#?}");
    let summary = &lines.last().expect("a summary")["summary"];
    assert_eq!(summary["missedEvents"], 0);
    let mut endpoints: BTreeMap<String, usize> = BTreeMap::new();
    for line in lines.iter().filter(|line| line["service"] == "lab/web:http") {
        *endpoints.entry(line["endpoint"].to_string()).or_default() += 1;
    }
    assert!(endpoints.keys().all(|endpoint| endpoint.ends_with(":8080\"")), "{endpoints:?}");
}

fn what_fails_is_told(lab: &mut Lab) {
    web_and_empty(lab);
    // Nobody listens there.
    lab.apply(service("deaf", 3).port("http", 80, Protocol::Tcp));
    lab.apply(slices("deaf").port("http", 7777, Protocol::Tcp).ready(&[Place::PodD]));
    lab.settle();
    let follow = Verb::start(lab, "flows --refused --for 10s -o json", &[]).watches(lab);
    connect(lab, Place::PodA, 1);
    connect(lab, Place::PodA, 2);
    connect(lab, Place::PodA, 3);
    let lines = follow.lines();
    assert_eq!(count(&lines, "new", "lab/web:http"), 0);
    let of = |service: &str| lines.iter().find(|line| line["service"] == service);
    let deaf = of("lab/deaf:http").unwrap_or_else(|| panic!("{lines:#?}"));
    assert_eq!(deaf["what"], "refused");
    assert_eq!(deaf["because"], "the endpoint answered with a reset");
    if lab.mode() != Mode::IptablesLegacy {
        assert_eq!(count(&lines, "refused", "lab/empty:http"), 1, "{lines:#?}");
        let because = of("lab/empty:http").expect("counted")["because"].to_string();
        assert!(because.contains("no usable endpoint; refused by "), "{because}");
    }
}

#[test]
fn events_that_find_no_room_are_counted_and_a_sample_is_one() {
    crate::rig::run(Mode::Nftables, Options::default(), |lab| {
        web_and_empty(lab);
        let tiny = [("SWITCHYARD_WATCH_BUFFER", "1")];
        let follow = Verb::start(lab, "flows -f --for 8s -o json", &tiny).listens(lab);
        // All at once, so that nobody reads in between.
        let probes: Vec<_> = (0..60)
            .map(|_| {
                let to = (integration::network::Family::V4.service(1), 80).into();
                integration::network::Probe::new(Protocol::Tcp, to)
            })
            .collect();
        let outcomes = lab.network.probe(Place::PodA, &probes).expect("probed");
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Answered { .. })));
        let lines = follow.lines();
        let told = count(&lines, "new", "lab/web:http") as u64;
        let missed = lines.last().expect("a summary")["summary"]["missedEvents"].as_u64().expect("a number");
        assert!(missed > 0, "{told}");
        assert_eq!(told + missed, 60);
    });
}
