use std::{
    collections::HashSet,
    io::{BufReader, Write as _},
    net::IpAddr,
    os::unix::net::UnixStream as Blocking,
    sync::mpsc,
};

use insight::{
    engine::Nowhere,
    state::{Filter, ReadError, State},
};
use proxy_core::{
    environment::{EnvironmentSettings, LocalPods, NodePortSettings},
    instance::SyncReport,
    model::{Family, Input, Kind, Protocol, Service, ServiceName, ServicePort, TrafficPolicy},
    reconciler::{Pace, Reconciler},
};
use tokio::sync::watch;

use super::*;
use crate::{
    engine::{
        self, Observer,
        mailbox::{Ask, Mailbox, mailbox},
    },
    serve::insight::{PROTOCOL, Request},
    settings::{self, Command},
    telemetry::recent::Recent,
};

/// Nobody is told anything but that a sync ended.
struct Nobody(Recent);

impl Observer<Nowhere, Nowhere> for Nobody {
    fn queued(&mut self, _: &Reconciler<Nowhere, Nowhere>) {}
    fn synced(&mut self, report: SyncReport, _: &mut Reconciler<Nowhere, Nowhere>) {
        self.0.note(&report);
    }
    fn drifted(&mut self, _: Family) {}
    fn asked(&mut self, _: &HashSet<(Protocol, IpAddr, u16)>, _: &Reconciler<Nowhere, Nowhere>) {}
    fn round(&mut self, _: &mut Reconciler<Nowhere, Nowhere>) {}
}

fn service(number: u8, claims: &[IpAddr]) -> Input {
    Input::Service(Arc::new(Service {
        name: ServiceName::new("shop", &format!("svc-{number}")),
        created: i64::from(number),
        cluster_ips: [[10, 96, 0, number].into()].into(),
        external_ips: claims.into(),
        ignored_external_ips: Box::default(),
        load_balancer_ips: Box::default(),
        source_ranges: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }]
            .into(),
        options: Box::default(),
    }))
}

/// An engine on a thread, told of a few Services.
fn engine(services: u8, claims: &[IpAddr]) -> (Mailbox, Recent) {
    let (messages, mut inboxes) = mailbox(&[Family::V4]);
    let (_, inbox) = inboxes.remove(0);
    let recent = Recent::default();
    let mut observer = Nobody(recent.clone());
    std::thread::spawn(move || {
        let settings = EnvironmentSettings {
            masquerade_mark: 0x4000,
            masquerade_all: false,
            local_pods: LocalPods::Unknown,
            node_ports: NodePortSettings::Any,
            localhost_node_ports: false,
            refused_on_localhost: Box::default(),
        };
        let engine = Reconciler::new(settings, Pace::default(), vec![(Family::V4, Nowhere, Nowhere)]);
        engine::run(engine, &inbox, &mut observer, Duration::from_secs(1));
    });
    let send = |input: Input| messages.send(input.into()).expect("it runs");
    send(Input::ServiceCidrs(Box::default()));
    for kind in [Kind::Service, Kind::Slice] {
        send(Input::Listing(kind));
        if kind == Kind::Service {
            (0..services).for_each(|number| send(service(number, claims)));
        }
        send(Input::Listed(kind));
    }
    (messages, recent)
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("insight-{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&folder));
    fs::create_dir(&folder).expect("a folder");
    folder
}

fn sources(path: &Path, messages: &Mailbox, recent: Recent) -> Sources {
    let Command::Run(loaded) = settings::load(&["--proxy-mode=nftables"]).expect("good").command else {
        panic!("not to be run");
    };
    Sources {
        path: Some(path.to_owned()),
        engines: messages.beside(),
        families: vec![Family::V4],
        settings: watch::channel(Arc::new(*loaded)).1,
        recent,
        node: "worker".to_owned(),
        ipvs: None,
    }
}

/// Asks as a client does, however long the server takes to be there.
async fn ask(path: &Path, line: String) -> Result<State, ReadError> {
    let path = path.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = loop {
            match Blocking::connect(&path) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        writeln!(stream, "{line}").expect("it is taken");
        State::read(BufReader::new(stream))
    });
    timeout(Duration::from_secs(90), asked).await.expect("an answer").expect("no panic")
}

fn request(filter: Filter) -> String {
    serde_json::to_string(&Request { protocol: PROTOCOL, state: filter }).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_gets_the_state_or_the_part_that_it_wants_or_a_reason() {
    let path = folder("client").join("insight.sock");
    // The first asks for it first: the oldest has it.
    let shared: IpAddr = [192, 0, 2, 1].into();
    let (messages, recent) = engine(20, &[shared]);
    let server = tokio::spawn(serve(sources(&path, &messages, recent)));
    let all = loop {
        let all = ask(&path, request(Filter::default())).await.expect("a state");
        if all.installed.len() == 20 && !all.syncs.is_empty() {
            break all;
        }
    };
    assert_eq!((all.header.node.as_str(), all.services.len(), all.conflicts.len()), ("worker", 20, 19));
    assert!(all.conflicts.iter().all(|conflict| conflict.winner == "shop/svc-0"));
    let one = Filter { service: Some("shop/svc-7".to_owned()), ..Filter::default() };
    let one = ask(&path, request(one)).await.expect("a state");
    let names: Vec<&str> = one.services.iter().map(|service| service.name.name()).collect();
    assert_eq!(names, ["svc-0", "svc-7"], "it, and the one that has its address");
    let at = Filter { address: Some([10, 96, 0, 3].into()), ..Filter::default() };
    let at = ask(&path, request(at)).await.expect("a state");
    assert_eq!((at.services.len(), at.services[0].name.name()), (1, "svc-3"));
    for (line, reason) in [
        ("rubbish".to_owned(), "the question is not understood"),
        (r#"{"protocol":2,"state":{}}"#.to_owned(), "protocol 2 is not spoken here, only 1"),
        (r#"{"protocol":1,"state":{"pod":"a"}}"#.to_owned(), "unknown field `pod`"),
        ("x".repeat(100_000), "the question is not understood"),
    ] {
        // What is too long may be cut off before it was sent.
        let Err(error) = ask(&path, line).await else { panic!("an answer instead of: {reason}") };
        assert!(error.to_string().contains(reason) || matches!(error, ReadError::Io(_)), "{error}");
    }
    server.abort();
    drop(messages);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_say_nothing_or_go_away_hold_nobody_up() {
    let path = folder("idle").join("insight.sock");
    let (messages, recent) = engine(3, &[]);
    let server = tokio::spawn(serve(sources(&path, &messages, recent)));
    ask(&path, request(Filter::default())).await.expect("a state");
    for _ in 0..50 {
        let mut stream = Blocking::connect(&path).expect("it listens");
        let line = request(Filter::default());
        stream.write_all(line.as_bytes()).expect("it is taken");
        drop(stream);
    }
    let idle: Vec<Blocking> =
        (0..MOST_CLIENTS - 1).map(|_| Blocking::connect(&path).expect("it listens")).collect();
    let state = ask(&path, request(Filter::default())).await.expect("a state");
    assert_eq!(state.services.len(), 3);
    drop(idle);
    server.abort();
    drop(messages);
}

#[tokio::test]
async fn a_dead_predecessors_socket_is_replaced_and_nothing_else_is() {
    let folder = folder("bind");
    let path = folder.join("insight.sock");
    let first = bind(&path).await.expect("nothing is there");
    let mode = fs::metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let error = bind(&path).await.expect_err("the first lives").to_string();
    assert_eq!(error, "another process that lives answers there");
    drop(first);
    drop(bind(&path).await.expect("the first is dead"));
    fs::remove_file(&path).expect("it is there");
    fs::write(&path, "precious").expect("a file");
    let error = bind(&path).await.expect_err("a file").to_string();
    assert_eq!(error, "there is a file of that name that is no socket");
    assert_eq!(fs::read_to_string(&path).expect("untouched"), "precious");
    assert!(bind(Path::new("/proc/no/such/insight.sock")).await.is_err());
    let names: Vec<_> = fs::read_dir(&folder).expect("a folder").collect();
    assert_eq!(names.len(), 1, "nothing is left beside: {names:?}");
    let nested = folder.join("new/insight.sock");
    drop(bind(&nested).await.expect("a folder of ours is made"));
    let mode = fs::metadata(folder.join("new")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn the_socket_that_cannot_be_had_is_told_and_tried_again() {
    let path = folder("taken").join("insight.sock");
    let (messages, recent) = engine(1, &[]);
    let held = bind(&path).await.expect("nothing is there");
    let server = serve(sources(&path, &messages, recent));
    // It does not end, which would end the process.
    assert!(timeout(Duration::from_millis(200), server).await.is_err());
    drop(held);
    drop(messages);
}

/// A look that is followed by another until the Service is written.
fn until_written(messages: Mailbox, told: mpsc::Sender<(bool, bool)>) -> Ask {
    Ask::new(move |look| {
        let name = ServiceName::new("shop", "svc-9");
        let taken_in = look.store().entry(&name).is_some();
        let written = !look.installed(Family::V4, &name).is_empty();
        told.send((taken_in, written)).expect("somebody listens");
        if !written {
            let next = until_written(messages.clone(), told);
            messages.beside().look(Family::V4, next).expect("there is room");
        }
    })
}

/// Between two looks, what came meanwhile is taken in, and written when its time has come.
#[test]
fn messages_and_syncs_get_their_turn_between_two_looks() {
    let (messages, _) = engine(1, &[]);
    let (told, hear) = mpsc::channel();
    let inner = messages.clone();
    let first = Ask::new(move |_| {
        // While the engine looks, a change comes, and another look is asked for.
        inner.send(service(9, &[]).into()).expect("it runs");
        inner.beside().look(Family::V4, until_written(inner.clone(), told)).expect("there is room");
    });
    messages.beside().look(Family::V4, first).expect("there is room");
    let mut looks = hear.iter();
    assert!(looks.next().expect("a second look").0, "the change was taken in before the second look");
    assert!(looks.any(|(_, written)| written), "and was written between two of those that follow");
}

#[test]
fn no_more_than_a_few_looks_wait() {
    let (messages, mut inboxes) = mailbox(&[Family::V4]);
    let beside = messages.beside();
    let results: Vec<bool> = (0..10).map(|_| beside.look(Family::V4, Ask::new(|_| {})).is_ok()).collect();
    assert_eq!(results.iter().filter(|taken| **taken).count(), 4);
    assert!(beside.look(Family::V6, Ask::new(|_| {})).is_err(), "nobody is there");
    let (_, inbox) = inboxes.remove(0);
    // They are given one at a time, beside the messages.
    assert!(inbox.receive(Duration::ZERO, 10).expect("open").is_empty());
    assert_eq!(std::iter::from_fn(|| inbox.ask()).count(), 4);
    drop(inbox);
    assert!(beside.look(Family::V4, Ask::new(|_| {})).is_err(), "it has ended");
}
