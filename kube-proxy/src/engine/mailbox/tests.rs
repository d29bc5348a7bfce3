use proxy_core::model::{Service, Slice};

use super::*;

const NOW: Duration = Duration::ZERO;

fn name(text: &str) -> ServiceName {
    ServiceName::new("ns", text)
}

fn service(of: &str, created: i64, cluster_ips: &[&str]) -> Input {
    let service = Service {
        name: name(of),
        created,
        cluster_ips: cluster_ips.iter().map(|text| text.parse().expect("an address")).collect(),
        external_ips: [].into(),
        ignored_external_ips: [].into(),
        load_balancer_ips: [].into(),
        source_ranges: None,
        internal_policy: proxy_core::model::TrafficPolicy::Cluster,
        external_policy: proxy_core::model::TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: [].into(),
        options: [].into(),
    };
    Input::Service(service.into())
}

fn slice(of: &str, family: Family, trigger: i64) -> Input {
    let slice = Slice {
        name: name(of),
        service: name("svc"),
        family,
        ports: [].into(),
        endpoints: [].into(),
        trigger_time: Some(trigger),
    };
    Input::Slice(slice.into())
}

/// A message as a word.
fn word(message: &Message) -> String {
    let Message::Input(input) = message else { return "other".into() };
    match input {
        Input::Service(service) => format!("{}={}", service.name.name(), service.created),
        Input::ServiceGone(name) => format!("{}-", name.name()),
        Input::Slice(slice) => format!("{}={}", slice.name.name(), slice.trigger_time.unwrap_or_default()),
        Input::SliceGone(name) => format!("{}-", name.name()),
        Input::Listing(kind) => format!("listing {kind:?}"),
        Input::Listed(kind) => format!("listed {kind:?}"),
        _ => "about the node".into(),
    }
}

fn words(inbox: &Inbox) -> Vec<String> {
    inbox.receive(NOW, usize::MAX).expect("open").iter().map(word).collect()
}

fn one() -> (Mailbox, Inbox) {
    let (mailbox, mut inboxes) = mailbox(&[Family::V4]);
    (mailbox, inboxes.pop().expect("one").1)
}

fn send(mailbox: &Mailbox, inputs: impl IntoIterator<Item = Input>) {
    inputs.into_iter().for_each(|input| mailbox.send(input.into()).expect("open"));
}

const V4: &[&str] = &["10.0.0.1"];

#[test]
fn the_latest_of_each_object_waits_however_often_it_changes() {
    let (mailbox, inbox) = one();
    for version in 0..100_000 {
        send(&mailbox, [slice(&format!("s{}", version % 3), Family::V4, version)]);
    }
    assert_eq!(mailbox.queues[0].1.lock().waiting.len(), 3);
    assert_eq!(words(&inbox), ["s0=99999", "s1=99997", "s2=99998"]);
    send(&mailbox, [service("a", 1, V4), Input::ServiceGone(name("a"))]);
    assert_eq!(words(&inbox), ["a-"], "the engine may know it from before");
    assert_eq!(words(&inbox), [""; 0]);
}

#[test]
fn each_family_gets_what_concerns_it() {
    let (mailbox, inboxes) = mailbox(&Family::BOTH);
    let [v4, v6] = [&inboxes[0].1, &inboxes[1].1];
    send(&mailbox, [service("four", 1, V4), service("both", 2, &["10.0.0.1", "fd00::1"])]);
    send(&mailbox, [slice("s4", Family::V4, 1), slice("s6", Family::V6, 2), Input::Zone(None)]);
    assert_eq!(words(v4), ["four=1", "both=2", "s4=1", "about the node"]);
    assert_eq!(words(v6), ["four-", "both=2", "s6=2", "about the node"], "it may have been of both");
    // The end of a list says so anyway: tens of thousands of Services of the other family cost nothing.
    send(&mailbox, [Input::Listing(Kind::Service), service("four", 1, V4), Input::Listed(Kind::Service)]);
    assert_eq!(words(v4), ["listing Service", "four=1", "listed Service"]);
    assert_eq!(words(v6), ["listing Service", "listed Service"]);
}

#[test]
fn what_a_list_names_is_taken_out_within_it() {
    let (mailbox, inbox) = one();
    let listing = || Input::Listing(Kind::Service);
    let listed = || Input::Listed(Kind::Service);
    send(&mailbox, [service("a", 1, V4), service("b", 1, V4), listing(), service("a", 2, V4), listed()]);
    send(&mailbox, [service("a", 3, V4)]);
    assert_eq!(words(&inbox), ["b=1", "listing Service", "a=3", "listed Service"]);

    // Begun, given up, begun again: the first says nothing.
    send(&mailbox, [listing(), service("a", 1, V4), service("b", 1, V4), listing(), service("b", 2, V4)]);
    assert_eq!(words(&inbox), ["a=1", "listing Service", "b=2"]);
    send(&mailbox, [listed()]);
    assert_eq!(words(&inbox), ["listed Service"]);

    // Complete, then complete again: only the second counts.
    for version in 0..1000 {
        send(&mailbox, [listing(), service("a", version, V4), listed()]);
    }
    assert_eq!(words(&inbox), ["listing Service", "a=999", "listed Service"]);
}

#[test]
fn taken_out_in_portions_nothing_changes_its_place() {
    let (mailbox, inbox) = one();
    let kind = Kind::Slice;
    send(&mailbox, [Input::Listing(kind), slice("a", Family::V4, 1), slice("b", Family::V4, 1)]);
    let first = inbox.receive(NOW, 2).expect("open");
    assert_eq!(first.iter().map(word).collect::<Vec<_>>(), ["listing Slice", "a=1"]);
    send(&mailbox, [slice("a", Family::V4, 2), Input::Listed(kind), slice("b", Family::V4, 2)]);
    assert_eq!(words(&inbox), ["b=2", "a=2", "listed Slice"], "b was named before the end");
}

#[test]
fn a_sweep_that_nobody_answers_stays_small() {
    let (mailbox, inbox) = one();
    for at in 0..100_u16 {
        let of = |port| (Protocol::Udp, IpAddr::from([10, 0, 0, 1]), at * 500 + port);
        mailbox.send(Message::Untranslated(Family::V4, (0..500).map(of).collect())).expect("open");
    }
    let given = inbox.receive(NOW, usize::MAX).expect("open");
    let [Message::Untranslated(_, all)] = &given[..] else { panic!("{given:?}") };
    assert_eq!(all.len(), MOST_UNTRANSLATED);
}

#[test]
fn both_ends_learn_that_the_other_is_gone() {
    let (mailbox, inbox) = one();
    let clone = mailbox.clone();
    drop(mailbox);
    send(&clone, [Input::Zone(None)]);
    drop(clone);
    assert_eq!(words(&inbox), ["about the node"], "what was sent is taken out");
    assert!(inbox.receive(Duration::from_secs(3600), 1).is_err(), "at once");
    let (mailbox, inbox) = one();
    drop(inbox);
    assert!(mailbox.send(Input::Zone(None).into()).is_err());
}
