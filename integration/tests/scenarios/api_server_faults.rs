//! An API server that refuses, breaks, falls silent, lags, forgets or is put back: the rules stay, follow again as soon as
//! they can, and the server is asked no more often than by Kubernetes' own clients.
//!
//! What is asked and believed does not depend on the mode, so these run in one.

use std::thread::sleep;
use std::time::Duration;

use integration::apiserver::{Asked, Faults, FromTheFuture, Lag};
use integration::lab::{
    Lab, Mode, NAMESPACE, Objects as _, Options, Secure, cluster_ip, seen_as_sent, service, slices,
};
use integration::network::Place::{self, PodA, PodB, PodC, PodD};
use integration::network::Protocol::Tcp;
use integration::network::{Family, Outcome, Probe};
use integration::pace;
use serde_json::json;

const SERVICES: &str = "/api/v1/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

/// Each in the clear, and over TLS and HTTP/2.
macro_rules! rows {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            let options = Options { embedded_server: true, ..Options::default() };
            crate::run(Mode::Nftables, options, of::$name);
        })+

        mod over_tls {
            use super::*;

            $(#[test]
            fn $name() {
                // What cannot be read in JSON cannot be written in protobuf.
                let json = ("/clientConnection/contentType", json!("application/json"));
                let config = if stringify!($name).starts_with("row_9") { vec![json] } else { vec![] };
                let options = Options { secure: Some(Secure::HTTP2), config, ..Options::default() };
                crate::run(Mode::Nftables, options, |lab| {
                    of::$name(lab);
                    let journal = lab.api.journal();
                    assert!(journal.iter().all(|asked| asked.peer.encrypted && asked.is_http2));
                });
            })+
        }
    };
}

rows! {
    row_1_lists_that_are_refused_are_asked_for_ever_more_rarely,
    row_2_watches_that_end_at_once_are_started_ever_more_rarely,
    row_3_a_watch_that_cannot_be_started_leads_to_a_new_list,
    row_4_a_storage_that_was_put_back_is_followed_at_once,
    row_5_a_replica_that_lags_is_not_believed,
    row_9_an_object_that_cannot_be_read_keeps_its_last_state,
    row_10_streaming_is_tried_again_after_a_silent_start,
    every_fault_in_turn_is_survived,
}

pub(crate) fn web(lab: &mut Lab, places: &[Place]) {
    lab.apply(service("web", 1).port("t", 80, Tcp));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(places));
}

/// Without waiting for anything to be in force.
fn answers(lab: &Lab, number: u8) -> [bool; 2] {
    Family::BOTH.map(|family| {
        let to = cluster_ip(number, Tcp, 80).address(family);
        let probe = Probe::new(Tcp, to).patience(Duration::from_millis(500));
        let outcome = lab.network.probe_one(PodC, probe).expect("a socket");
        matches!(outcome, Outcome::Answered { .. })
    })
}

/// What was asked of one path while a fault lasted.
fn asked_during(lab: &mut Lab, path: &str, time: Duration, fault: impl FnOnce(&mut Faults)) -> Vec<Asked> {
    lab.api.set_faults(fault);
    let begun = lab.api.clock();
    sleep(time);
    let ended = lab.api.clock();
    let journal = lab.api.journal().into_iter();
    journal.filter(|asked| asked.path == path && (begun..ended).contains(&asked.at)).collect()
}

/// The faults end, and what changed meanwhile comes into force.
///
/// `since`: when the proxy began.
fn recover(lab: &mut Lab, since: Duration) {
    lab.api.set_faults(|faults| *faults = Faults::default());
    let ended = lab.api.clock();
    web(lab, &[PodD]);
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodD]));
    println!("in force {:?} after the fault's end", lab.api.clock() - ended);
    keeps_the_pace(lab, since);
}

pub(crate) fn keeps_the_pace(lab: &Lab, since: Duration) {
    let mut journal = lab.api.journal();
    journal.retain(|asked| asked.at >= since);
    for path in [SERVICES, SLICES] {
        if let Err(wrong) = pace::check(&journal, path) {
            panic!("{wrong}\n{}", lab.log());
        }
    }
}

mod of {
    use super::*;

    pub(super) fn row_1_lists_that_are_refused_are_asked_for_ever_more_rarely(lab: &mut Lab) {
        const FAULT: Duration = Duration::from_secs(10);
        web(lab, &[PodA]);
        lab.settle();
        let refuse = |faults: &mut Faults| {
            faults.refuse.extend([("services".to_owned(), 500), ("endpointslices".to_owned(), 503)]);
        };
        // Of a proxy that runs, then of one that starts.
        lab.api.set_faults(refuse);
        lab.api.expire_watches();
        let asked = asked_during(lab, SERVICES, FAULT, refuse);
        assert!((2..=pace::most_attempts(FAULT)).contains(&asked.len()), "{asked:#?}");
        assert_eq!(answers(lab, 1), [true; 2], "the rules stay");
        recover(lab, Duration::ZERO);
        lab.stop_proxy().expect("it runs");
        lab.api.set_faults(refuse);
        let since = lab.api.clock();
        lab.start_proxy().expect("it starts");
        for path in [SERVICES, SLICES] {
            let asked = asked_during(lab, path, FAULT / 2, refuse);
            assert!((1..=pace::most_attempts(FAULT / 2)).contains(&asked.len()), "{asked:#?}");
        }
        recover(lab, since);
    }

    pub(super) fn row_2_watches_that_end_at_once_are_started_ever_more_rarely(lab: &mut Lab) {
        const FAULT: Duration = Duration::from_secs(10);
        web(lab, &[PodA]);
        lab.settle();
        let end_at_once = |faults: &mut Faults| {
            faults.end_at_once.extend(["services".to_owned(), "endpointslices".to_owned()]);
        };
        lab.api.set_faults(end_at_once);
        lab.api.close_watches();
        let asked = asked_during(lab, SERVICES, FAULT, end_at_once);
        // The first watch follows the one that had lived.
        assert!((2..=1 + pace::most_attempts(FAULT)).contains(&asked.len()), "{asked:#?}");
        assert_eq!(answers(lab, 1), [true; 2], "the rules stay");
        recover(lab, Duration::ZERO);
    }

    pub(super) fn row_3_a_watch_that_cannot_be_started_leads_to_a_new_list(lab: &mut Lab) {
        for code in [410, 504, 500] {
            web(lab, &[PodA]);
            lab.settle();
            lab.api.set_faults(|faults| {
                faults
                    .refuse_watches
                    .extend([("services".to_owned(), code), ("endpointslices".to_owned(), code)]);
            });
            lab.api.close_watches();
            // By lists alone.
            web(lab, &[PodB]);
            lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodB]));
            recover(lab, Duration::ZERO);
        }
    }

    pub(super) fn row_4_a_storage_that_was_put_back_is_followed_at_once(lab: &mut Lab) {
        for future in [FromTheFuture::Status, FromTheFuture::Event, FromTheFuture::Silence] {
            web(lab, &[PodA]);
            lab.settle();
            let copy = lab.api.version();
            web(lab, &[PodB]);
            lab.apply(service("late", 2).port("t", 80, Tcp));
            lab.apply(slices("late").port("t", 8080, Tcp).ready(&[PodA]));
            lab.settle();
            assert_eq!(answers(lab, 2), [true; 2]);
            lab.api.set_faults(|faults| faults.from_the_future = future);
            if future == FromTheFuture::Silence {
                // All that the proxy notices is a server that is away for a moment.
                lab.api.go_down();
                sleep(Duration::from_millis(300));
                lab.api.come_back();
            }
            assert!(lab.api.restore(copy));
            let restored = lab.api.clock();
            crate::eventually(|| answers(lab, 2) == [false; 2]);
            println!("{future:?}: followed {:?} later", lab.api.clock() - restored);
            lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
            lab.sweep();
            keeps_the_pace(lab, Duration::ZERO);
        }
    }

    pub(super) fn row_5_a_replica_that_lags_is_not_believed(lab: &mut Lab) {
        for lies in [true, false] {
            web(lab, &[PodA]);
            lab.settle();
            let version = lab.api.version();
            lab.apply(service("late", 2).port("t", 80, Tcp));
            lab.apply(slices("late").port("t", 8080, Tcp).ready(&[PodA]));
            lab.settle();
            lab.api.set_faults(|faults| faults.lag = Some(Lag { version, lies }));
            lab.api.expire_watches();
            let end = lab.api.clock() + Duration::from_secs(5);
            while lab.api.clock() < end {
                assert_eq!(answers(lab, 2), [true; 2], "lies: {lies}\n{}", lab.log());
            }
            recover(lab, Duration::ZERO);
            lab.sweep();
            lab.delete("Service", "late");
            lab.delete_slices("late", "1");
        }
    }

    pub(super) fn row_9_an_object_that_cannot_be_read_keeps_its_last_state(lab: &mut Lab) {
        web(lab, &[PodA]);
        lab.settle();
        let mut objects = slices("web").port("t", 8080, Tcp).ready(&[PodB]).objects();
        for object in &mut objects {
            object["ports"][0]["port"] = json!("eighty");
            lab.apply(object.clone());
        }
        lab.settle();
        assert_eq!(answers(lab, 1), [true; 2], "{}", lab.log());
        let name = objects[0]["metadata"]["name"].as_str().expect("a name").to_owned();
        let log = lab.log();
        let told: Vec<&str> =
            log.lines().filter(|line| line.contains("cannot be read") && line.contains(&name)).collect();
        assert!(told.len() == 1 && told[0].contains("ports[0].port"), "{told:?}\n{log}");
        crate::eventually(|| {
            let events = lab.api.objects("events.events.k8s.io");
            events.iter().any(|event| event["note"].as_str().is_some_and(|note| note.contains(&name)))
        });
        // It is asked for again by its name.
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices");
        crate::eventually(|| {
            lab.api.journal().iter().any(|asked| asked.path == path && asked.query.contains(&name))
        });
        // A new list does not take it for gone, nor does a restart of the watch.
        lab.api.expire_watches();
        lab.settle();
        sleep(Duration::from_secs(2));
        assert_eq!(answers(lab, 1), [true; 2], "{}", lab.log());
        web(lab, &[PodD]);
        lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodD]));
        keeps_the_pace(lab, Duration::ZERO);
    }

    pub(super) fn row_10_streaming_is_tried_again_after_a_silent_start(lab: &mut Lab) {
        web(lab, &[PodA]);
        lab.settle();
        lab.stop_proxy().expect("it runs");
        let since = lab.api.clock();
        lab.api.set_faults(|faults| faults.hang = true);
        lab.start_proxy().expect("it starts");
        // Longer than a streamed list may be silent.
        sleep(Duration::from_secs(22));
        recover(lab, since);
        let begun = lab.api.clock();
        lab.api.expire_watches();
        crate::eventually(|| {
            let journal = lab.api.journal().into_iter();
            journal
                .filter(|asked| asked.at > begun && asked.path == SERVICES)
                .any(|asked| asked.is_streamed_list())
        });
    }

    pub(super) fn every_fault_in_turn_is_survived(lab: &mut Lab) {
        type Fault = fn(&mut Faults);
        let faults: [(&str, Fault); 5] = [
            ("connections are reset", |faults| faults.reset = true),
            ("answers are mute", |faults| faults.mute = true),
            ("watches are refused with 429", |faults| {
                faults.refuse_watches = [("services".to_owned(), 429)].into()
            }),
            ("lists are refused", |faults| faults.refuse_lists = [("endpointslices".to_owned(), 500)].into()),
            ("there are no streamed lists", |faults| faults.refuse_watch_list = true),
        ];
        for (what, fault) in faults {
            println!("{what}");
            web(lab, &[PodA, PodB]);
            lab.settle();
            lab.api.set_faults(fault);
            lab.api.cut_watches();
            sleep(Duration::from_secs(2));
            assert_eq!(answers(lab, 1), [true; 2], "{what}: the rules stay");
            lab.api.compact();
            if what.contains("mute") {
                // What was begun is not answered any more.
                lab.api.go_down();
                sleep(Duration::from_millis(300));
                lab.api.come_back();
            }
            recover(lab, Duration::ZERO);
        }
        lab.api.go_down();
        sleep(Duration::from_secs(3));
        assert_eq!(answers(lab, 1), [true; 2], "the rules stay");
        lab.api.come_back();
        recover(lab, Duration::ZERO);
    }
}
