//! Metrics of single Services equal the connections that were made, and no more of them are shown than wanted.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use integration::lab::{Lab, Mode, Options, service, slices};
use integration::network::{Family, Outcome, Place, Protocol};

use crate::rig::{connect, run, tables, web_and_empty};

/// So many connections are made, and so many attempts at a Service without endpoints.
const MADE: u64 = 9;
const REFUSED: u64 = 4;

const EVERYTHING: [(&str, &str); 3] = [
    ("SWITCHYARD_SERVICE_METRICS", "*"),
    ("SWITCHYARD_SERVICE_METRICS_ENDPOINTS", "true"),
    ("SWITCHYARD_SERVICE_METRICS_BYTES", "true"),
];

fn options(variables: &[(&'static str, &'static str)]) -> Options {
    let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    Options { variables, ..Options::default() }
}

fn scrape(lab: &Lab) -> BTreeMap<String, f64> {
    let get = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", 10_249))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = lab.network.namespace(Place::Node).run(get).expect("a namespace").unwrap_or_default();
    let series = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    text.lines().filter(|line| line.starts_with("switchyard_")).filter_map(series).collect()
}

fn of(service: &str, metric: &str) -> String {
    format!(
        "switchyard_service_{metric}{{name=\"{service}\",namespace=\"lab\",port=\"http\",protocol=\"TCP\"}}"
    )
}

/// Scrapes until the numbers are these: some are looked at every ten seconds only.
fn until(lab: &Lab, expected: &[(String, u64)]) -> BTreeMap<String, f64> {
    let mut found = BTreeMap::new();
    for _ in 0..240 {
        found = scrape(lab);
        if expected.iter().all(|(series, value)| found.get(series) == Some(&(*value as f64))) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    found.retain(|name, _| name.contains("service") || name.contains("endpoint"));
    panic!("{expected:#?}\n{found:#?}");
}

fn equals_what_was_made(lab: &mut Lab) {
    web_and_empty(lab);
    // The counters of refusals are there.
    until(lab, &[(of("empty", "refused_total"), 0)]);
    for _ in 0..240 {
        if tables(lab).contains("switchyard-watch-metrics") {
            break;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    for _ in 0..MADE {
        assert!(matches!(connect(lab, Place::PodA, 1), Outcome::Answered { .. }));
    }
    for _ in 0..REFUSED {
        assert_eq!(connect(lab, Place::PodA, 2), Outcome::Refused);
    }
    let ipvs = lab.mode() == Mode::Ipvs;
    let mut expected = vec![
        (of("web", "connections_total"), MADE),
        (of("empty", "connections_total"), 0),
        (of("empty", "refused_total"), REFUSED),
        (of("web", "refused_total"), 0),
    ];
    if !ipvs {
        expected.push((of("web", "failed_handshakes_total"), 0));
    }
    let found = until(lab, &expected);
    assert_eq!(found["switchyard_service_metrics_missed_events_total"], 0.0);
    if !ipvs {
        let endpoints: f64 = found
            .iter()
            .filter(|(name, _)| {
                name.starts_with("switchyard_endpoint_connections_total{") && name.contains("\"web\"")
            })
            .map(|(_, value)| value)
            .sum();
        assert_eq!(endpoints, MADE as f64, "{found:#?}");
        // Bytes are told at the end.
        let mut flush = std::process::Command::new("conntrack");
        lab.network.namespace(Place::Node).output(flush.args(["-D", "-d", "172.30.0.1"])).expect("deleted");
    }
    let bytes = of("web", "bytes_total");
    for _ in 0..240 {
        if scrape(lab).get(&bytes).is_some_and(|bytes| *bytes > 100.0 * MADE as f64) {
            return;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    panic!("no bytes: {:#?}", scrape(lab));
}

#[test]
fn metrics_equal_what_was_made_in_nftables_mode() {
    run(Mode::Nftables, options(&EVERYTHING), equals_what_was_made);
}

#[test]
fn metrics_equal_what_was_made_in_iptables_mode_with_legacy_tables() {
    run(Mode::IptablesLegacy, options(&EVERYTHING), equals_what_was_made);
}

#[test]
fn metrics_equal_what_was_made_in_iptables_mode_with_nft() {
    run(Mode::IptablesNft, options(&EVERYTHING), equals_what_was_made);
}

#[test]
fn metrics_equal_what_was_made_in_ipvs_mode() {
    run(Mode::Ipvs, options(&EVERYTHING), equals_what_was_made);
}

#[test]
fn what_is_over_the_limit_is_counted_and_nothing_is_shown_unless_asked_for() {
    let few =
        [("SWITCHYARD_SERVICE_METRICS", "lab/web,lab/empty"), ("SWITCHYARD_SERVICE_METRICS_LIMIT", "1")];
    run(Mode::Nftables, options(&few), |lab| {
        web_and_empty(lab);
        until(lab, &[("switchyard_service_metrics_left_out_ports".to_owned(), 1)]);
        let shown = scrape(lab)
            .into_keys()
            .filter(|name| name.starts_with("switchyard_service_connections_total{"))
            .count();
        assert_eq!(shown, 1);
    });
}

/// The endpoints' zones, where the node is in zone `a`.
fn hints_are_told(lab: &mut Lab) {
    lab.apply(service("web", 1).port("http", 80, Protocol::Tcp));
    let hinted = |zones: [&str; 2]| {
        let slices =
            slices("web").port("http", 8080, Protocol::Tcp).ready(&[Place::PodB]).hinted(&zones[..1], &[]);
        slices.ready(&[Place::PodD]).hinted(if zones[1].is_empty() { &[] } else { &zones[1..] }, &[])
    };
    let ignored = |reason: &str, count| {
        (format!("switchyard_topology_hints_ignored{{ip_family=\"IPv4\",reason=\"{reason}\"}}"), count)
    };
    lab.apply(hinted(["a", "b"]));
    lab.settle();
    until(lab, &[ignored("none_here", 0), ignored("incomplete", 0), ignored("no_zone", 0)]);
    lab.apply(hinted(["b", "c"]));
    lab.settle();
    until(lab, &[ignored("none_here", 1), ignored("incomplete", 0), ignored("no_zone", 0)]);
    lab.apply(hinted(["a", ""]));
    lab.settle();
    until(lab, &[ignored("none_here", 0), ignored("incomplete", 1), ignored("no_zone", 0)]);
    for _ in 0..240 {
        let events = lab.api.objects("events.events.k8s.io");
        let told = events.iter().any(|event| {
            event["reason"] == "TopologyHintsIgnored"
                && event["note"].to_string().contains("is hinted for this node or its zone")
        });
        if told {
            return;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    panic!("no Event: {:#?}", lab.api.objects("events.events.k8s.io"));
}

#[test]
fn topology_hints_that_are_ignored_are_told() {
    run(Mode::Nftables, Options::default(), hints_are_told);
}

/// An endpoint that goes is kept for the connection it has.
#[test]
fn endpoints_that_drain_are_told_in_ipvs_mode() {
    run(Mode::Ipvs, Options::default(), |lab| {
        lab.apply(service("web", 1).port("http", 80, Protocol::Tcp));
        lab.apply(slices("web").port("http", 8080, Protocol::Tcp).ready(&[Place::PodB]));
        lab.settle();
        let draining = |count| [("switchyard_ipvs_draining_endpoints{ip_family=\"IPv4\"}".to_owned(), count)];
        until(lab, &draining(0));
        let to = (Family::V4.service(1), 80);
        let held = lab.network.namespace(Place::PodA).run(|| TcpStream::connect(to)).expect("a namespace");
        let held = held.expect("connected");
        lab.apply(slices("web").port("http", 8080, Protocol::Tcp).ready(&[Place::PodD]));
        lab.settle();
        until(lab, &draining(1));
        drop(held);
    });
}
