use std::{
    future::Future,
    sync::Mutex,
    task::{Context, Poll},
};

use http::Response;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use kube::client::Body;

use super::*;

/// An API server that remembers what it was asked, and answers with one code.
#[derive(Clone)]
struct Recorder {
    code: u16,
    asked: Asked,
}

impl tower_service::Service<Request<Body>> for Recorder {
    type Response = Response<Full<Bytes>>;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let this = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let body = serde_json::from_slice(&body).expect("JSON");
            this.asked.lock().expect("not poisoned").push((head.method, head.uri.path().to_owned(), body));
            let text = if this.code < 300 {
                "{}".to_owned()
            } else {
                json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "Forbidden", "code": this.code }).to_string()
            };
            Ok(Response::builder().status(this.code).body(Full::new(text.into())).expect("a response"))
        })
    }
}

type Asked = Arc<Mutex<Vec<(Method, String, Value)>>>;

fn start(code: u16) -> (Events, Asked) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let client = Client::new(Recorder { code, asked: Arc::clone(&asked) }, "default");
    let (events, outgoing) = channel("node-1");
    tokio::spawn(outgoing.run(client));
    (events, asked)
}

const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn events_have_the_form_of_kube_proxy() {
    let (events, asked) = start(201);
    events.send(Event::starting());
    let service = ServiceName::new("shop", "web");
    events.send(Event::address_conflict(&service, &ServiceName::new("shop", "old"), "192.0.2.1:80", 1));
    events.flush(LIMIT).await;
    let asked = asked.lock().expect("not poisoned");
    let (method, path, body) = &asked[0];
    assert_eq!((method, path.as_str()), (&Method::POST, "/apis/events.k8s.io/v1/namespaces/default/events"));
    assert_eq!(body["reason"], "Starting");
    assert_eq!(body["action"], "StartKubeProxy");
    assert_eq!(body["type"], "Normal");
    assert_eq!(body["regarding"], json!({ "apiVersion": "v1", "kind": "Node", "name": "node-1" }));
    assert_eq!(body["reportingController"], "kube-proxy");
    assert_eq!(body["reportingInstance"], "kube-proxy-node-1");
    assert!(body["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("node-1.")));
    let (_, path, body) = &asked[1];
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
    assert_eq!(body["type"], "Warning");
    assert_eq!(body["regarding"]["name"], "web");
    assert!(
        body["note"].as_str().is_some_and(|note| note.contains("192.0.2.1:80") && note.contains("shop/old"))
    );
}

#[tokio::test]
async fn all_nodes_give_what_they_all_see_one_name() {
    let service = ServiceName::new("shop", "web");
    let winner = ServiceName::new("shop", "old");
    let name = |event: &Event, node: &str| object_name(event, node, Timestamp::now());
    let conflict = Event::address_conflict(&service, &winner, "192.0.2.1 80/TCP", 1);
    assert_eq!(name(&conflict, "a"), name(&conflict, "b"));
    assert_ne!(
        name(&conflict, "a"),
        name(&Event::address_conflict(&service, &winner, "192.0.2.2 80/TCP", 1), "a")
    );
    let aside = |node: &str| name(&Event::set_aside(&service, node, "EINVAL"), node);
    assert_eq!(aside("a"), aside("b"));
    assert_ne!(aside("a"), name(&Event::restored(&service, "a"), "a"));
    assert_ne!(name(&Event::starting(), "a"), name(&Event::starting(), "b"));

    let (events, asked) = start(409);
    events.send(conflict);
    events.flush(LIMIT).await;
    assert_eq!(asked.lock().expect("not poisoned").len(), 1, "another node was faster");
}

#[test]
fn names_keep_within_the_limits_of_the_api() {
    let long = format!("{}-{}", "n".repeat(235), "x".repeat(17));
    let name = object_name(&Event::starting(), &long, Timestamp::now());
    assert!(name.len() <= LONGEST_NAME, "{}", name.len());
    assert!(!name.contains("-."), "{name}");
    let body = create(&Event::starting(), &long, &name, Timestamp::now()).body;
    assert_eq!(body["reportingInstance"].as_str().map(str::len), Some(LONGEST_INSTANCE));
}

#[tokio::test]
async fn a_repeat_extends_the_series_of_the_first() {
    let (events, asked) = start(200);
    for _ in 0..5 {
        events.send(Event::starting());
    }
    events.flush(LIMIT).await;
    let asked = asked.lock().expect("not poisoned");
    assert_eq!(asked.len(), 2);
    let name = asked[0].2["metadata"]["name"].as_str().expect("a name");
    assert_eq!(asked[1].0, Method::PATCH);
    assert_eq!(asked[1].1, format!("/apis/events.k8s.io/v1/namespaces/default/events/{name}"));
    assert_eq!(asked[1].2["series"]["count"], 2);
}

#[tokio::test]
async fn where_events_are_forbidden_nobody_asks_again_for_a_while() {
    let (events, asked) = start(403);
    events.send(Event::starting());
    events.send(Event::drifted("a".to_owned()));
    events.send(Event::drifted("b".to_owned()));
    events.flush(LIMIT).await;
    assert_eq!(asked.lock().expect("not poisoned").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_in_trouble_is_asked_three_times() {
    let (events, asked) = start(500);
    events.send(Event::starting());
    events.flush(LIMIT).await;
    assert_eq!(asked.lock().expect("not poisoned").len(), 3);
}

#[tokio::test]
async fn handing_over_never_waits_and_is_bounded() {
    let (events, _outgoing) = channel("node-1");
    for number in 0..10_000 {
        events.send(Event::drifted(number.to_string()));
    }
    assert!(events.take_waiting().len() < 100);
}

/// An API server that takes requests and never answers.
#[derive(Clone)]
struct Silent;

impl tower_service::Service<Request<Body>> for Silent {
    type Response = Response<Full<Bytes>>;
    type Error = std::io::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Body>) -> Self::Future {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_words_end_though_the_server_hangs_and_the_outbox_is_full() {
    let (events, outgoing) = channel("node-1");
    tokio::spawn(outgoing.run(Client::new(Silent, "default")));
    for number in 0..10_000 {
        events.send(Event::drifted(number.to_string()));
    }
    let begun = Instant::now();
    events.flush(Duration::from_secs(1)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
    // Nor where nobody sends at all.
    let (alone, _outgoing) = channel("node-1");
    alone.send(Event::starting());
    alone.flush(Duration::from_secs(1)).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
}

#[test]
fn long_notes_are_cut_at_a_character() {
    let note = "ä".repeat(600);
    assert_eq!(cut(&note, LONGEST_NOTE).len(), 1024);
    assert_eq!(cut("short", LONGEST_NOTE), "short");
    assert_eq!(cut(&format!("x{note}"), LONGEST_NOTE).len(), 1023);
}

#[test]
fn times_have_six_digits() {
    let at: Timestamp = "2026-11-21T01:26:13.5Z".parse().expect("a timestamp");
    assert_eq!(micro_time(at), "2026-11-21T01:26:13.500000Z");
}
