//! The process itself: starts, stops, restarts, and an API server that misbehaves.

use std::thread::sleep;
use std::time::Duration;

use integration::lab::{
    Lab, Options, cluster_ip, load_balancer, seen_as_node, seen_as_sent, service, slices,
};
use integration::network::Place::{Client, PodA, PodB, PodC, PodD};
use integration::network::Protocol::Tcp;
use integration::network::{Family, Outcome};

crate::scenarios! {
    Options::default() =>
        rules_outlive_the_process_and_a_restart_catches_up,
        stickiness_outlives_the_process;
    Options { embedded_server: true, ..Options::default() } =>
        a_server_that_breaks_and_forgets_is_survived,
        an_older_server_without_streaming_lists_will_do,
        nothing_is_written_before_the_lists_are_complete;
}

fn web(lab: &mut Lab, places: &[integration::network::Place]) {
    lab.apply(service("web", 1).port("t", 80, Tcp).load_balancer(1));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(places));
}

fn still_answers(lab: &Lab) {
    for family in Family::BOTH {
        let to = cluster_ip(1, Tcp, 80).address(family);
        let outcome =
            lab.network.probe_one(PodC, integration::network::Probe::new(Tcp, to)).expect("a socket");
        assert!(matches!(outcome, Outcome::Answered { .. }), "{family:?}: {outcome}");
    }
}

fn rules_outlive_the_process_and_a_restart_catches_up(lab: &mut Lab) {
    web(lab, &[PodA, PodB]);
    lab.apply(service("old", 2).port("t", 80, Tcp));
    lab.apply(slices("old").port("t", 8080, Tcp).ready(&[PodA]));
    lab.sweep();
    lab.stop_proxy().expect("it runs");
    still_answers(lab);
    web(lab, &[PodD]);
    lab.delete("Service", "old");
    lab.apply(service("new", 3).port("t", 80, Tcp).node_port(30080).external_local());
    lab.apply(slices("new").port("t", 9090, Tcp).ready(&[PodA]));
    lab.start_proxy().expect("it starts again");
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodD]));
    lab.expect(PodC, cluster_ip(3, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.sweep();
}

fn a_server_that_breaks_and_forgets_is_survived(lab: &mut Lab) {
    web(lab, &[PodA]);
    lab.settle();
    lab.api.cut_watches();
    web(lab, &[PodB]);
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodB]));
    lab.api.go_down();
    web(lab, &[PodD]);
    lab.delete("Service", "web");
    lab.api.compact();
    still_answers(lab);
    lab.api.come_back();
    web(lab, &[PodA]);
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
    lab.api.expire_watches();
    lab.api.compact();
    web(lab, &[PodA, PodD]);
    lab.expect(Client, load_balancer(1, Tcp, 80), &seen_as_node(&[PodA, PodD]));
}

fn an_older_server_without_streaming_lists_will_do(lab: &mut Lab) {
    lab.stop_proxy().expect("it runs");
    lab.api.set_faults(|faults| faults.refuse_watch_list = true);
    lab.start_proxy().expect("it starts");
    web(lab, &[PodA, PodD]);
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA, PodD]));
    assert!(
        lab.api
            .requests()
            .iter()
            .any(|request| request.contains("/services?") && !request.contains("watch=true"))
    );
}

fn nothing_is_written_before_the_lists_are_complete(lab: &mut Lab) {
    web(lab, &[PodA]);
    lab.sweep();
    lab.stop_proxy().expect("it runs");
    // Services arrive, slices do not: a half list must not turn into refusals.
    lab.api.set_faults(|faults| {
        faults.refuse.insert("endpointslices".to_owned(), 403);
    });
    lab.start_proxy().expect("it starts");
    for _ in 0..10 {
        sleep(Duration::from_millis(100));
        still_answers(lab);
    }
    lab.api.set_faults(|faults| faults.refuse.clear());
    lab.expect(PodC, cluster_ip(1, Tcp, 80), &seen_as_sent(&[PodA]));
}

fn stickiness_outlives_the_process(lab: &mut Lab) {
    lab.apply(service("web", 1).port("t", 80, Tcp).affinity(600));
    lab.apply(slices("web").port("t", 8080, Tcp).ready(&[
        PodA,
        PodB,
        PodD,
        integration::network::Place::PodE,
    ]));
    let to = cluster_ip(1, Tcp, 80);
    let ask = |lab: &mut Lab| {
        Family::BOTH.map(|family| match lab.ask(Client, to, family) {
            Outcome::Answered { answer, .. } => answer.by,
            other => panic!("{family:?}: {other}"),
        })
    };
    let first = ask(lab);
    for _ in 0..3 {
        lab.stop_proxy().expect("it runs");
        assert_eq!(ask_now(lab, to), first);
        lab.start_proxy().expect("it starts again");
        assert_eq!(ask(lab), first);
    }
}

/// Without waiting for a proxy that is not there.
fn ask_now(lab: &Lab, to: integration::lab::To) -> [String; 2] {
    Family::BOTH.map(|family| {
        let probe =
            integration::network::Probe::new(Tcp, to.address(family)).from_address(Client.address(family));
        match lab.network.probe_one(Client, probe).expect("a socket") {
            Outcome::Answered { answer, .. } => answer.by,
            other => panic!("{family:?}: {other}"),
        }
    })
}
