//! The embedded API server behaves as `kube` clients and Kubernetes' documentation expect.
//!
//! What Kubernetes itself promises is checked against a real kube-apiserver too, where KUBEBUILDER_ASSETS names one.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use http_body_util::BodyExt as _;
use integration::apiserver::{ApiServer, SlowBody};
use integration::real_apiserver::RealApiServer;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, Config};
use serde_json::{Value, json};

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

fn embedded() -> ApiServer {
    ApiServer::start_with(LOCAL, Duration::from_millis(200)).expect("a free port on loopback")
}

fn client_of(server: &ApiServer) -> Client {
    Client::try_from(Config::new(server.url().parse().expect("a URL"))).expect("a plain HTTP client")
}

/// Runs a check against the embedded server, and against a real one where there is one.
async fn on_each<F: Future<Output = ()>>(check: impl Fn(Client) -> F) {
    let server = embedded();
    check(client_of(&server)).await;
    if let Some(real) = RealApiServer::start_if_installed().expect("the installed API server starts") {
        let config = Config::from_custom_kubeconfig(
            kube::config::Kubeconfig::from_yaml(&real.kubeconfig()).expect("our own kubeconfig"),
            &kube::config::KubeConfigOptions::default(),
        )
        .await
        .expect("our own kubeconfig");
        check(Client::try_from(config).expect("a TLS client")).await;
    }
}

fn service(name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {"ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    })
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("a valid object")
}

async fn create_services(client: &Client, names: &[&str]) -> Api<Service> {
    let api: Api<Service> = Api::default_namespaced(client.clone());
    for name in names {
        let labels = json!({"suite": "yes", "kind": name});
        api.create(&PostParams::default(), &typed(service(name, &labels))).await.expect("created");
    }
    api
}

/// The events of a raw watch until `enough` says so.
async fn watch_lines(client: &Client, path: &str, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    let request = http::Request::get(path).body(Vec::new()).expect("a request");
    let stream = client.request_stream(request).await.expect("the watch opens");
    let mut lines = stream.lines();
    let mut events = Vec::new();
    while !enough(&events) {
        let line = tokio::time::timeout(Duration::from_secs(60), lines.try_next()).await;
        match line.expect("the watch goes on").expect("the connection holds") {
            Some(line) => events.push(serde_json::from_str(&line).expect("one JSON event a line")),
            None => break,
        }
    }
    events
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["type"].as_str()).collect()
}

fn is_initial_end(event: &Value) -> bool {
    event["type"] == "BOOKMARK"
        && event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"] == "true"
}

#[tokio::test]
async fn objects_are_created_read_updated_and_deleted() {
    on_each(|client| async move {
        let api = create_services(&client, &["crud"]).await;
        let stored = api.get("crud").await.expect("it is there");
        assert!(stored.metadata.uid.is_some() && stored.metadata.creation_timestamp.is_some());
        let twice = api.create(&PostParams::default(), &typed(service("crud", &json!({})))).await;
        assert!(matches!(twice, Err(kube::Error::Api(status)) if status.code == 409));

        let patch = json!({"metadata": {"labels": {"extra": "1", "kind": null}}});
        let patched =
            api.patch("crud", &PatchParams::default(), &Patch::Merge(patch)).await.expect("patched");
        let labels = patched.metadata.labels.clone().expect("labels");
        assert_eq!(labels.get("extra").map(String::as_str), Some("1"));
        assert!(!labels.contains_key("kind"));
        assert_eq!(patched.metadata.uid, stored.metadata.uid);

        let stale = api.replace("crud", &PostParams::default(), &stored).await;
        assert!(matches!(stale, Err(kube::Error::Api(status)) if status.code == 409));
        api.replace("crud", &PostParams::default(), &patched).await.expect("the current version is replaced");

        api.delete("crud", &DeleteParams::default()).await.expect("deleted");
        let gone = api.get("crud").await;
        assert!(matches!(gone, Err(kube::Error::Api(status)) if status.code == 404));
    })
    .await;
}

#[tokio::test]
async fn the_status_is_written_through_its_subresource_only() {
    on_each(|client| async move {
        let api = create_services(&client, &["status"]).await;
        let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.7"}]}}});
        let ip = |service: &Service| {
            let status = service.status.as_ref()?.load_balancer.as_ref()?;
            status.ingress.as_ref()?.first()?.ip.clone()
        };
        let plain =
            api.patch("status", &PatchParams::default(), &Patch::Merge(&ingress)).await.expect("patched");
        assert_eq!(ip(&plain), None);
        let status_patch = json!({"spec": {"type": "LoadBalancer"}});
        api.patch("status", &PatchParams::default(), &Patch::Merge(&status_patch)).await.expect("patched");
        api.patch_status("status", &PatchParams::default(), &Patch::Merge(&ingress)).await.expect("patched");
        let read = api.get("status").await.expect("there");
        assert_eq!(ip(&read).as_deref(), Some("198.51.100.7"));
        assert_eq!(read.spec.and_then(|spec| spec.ports).map(|ports| ports.len()), Some(1));
    })
    .await;
}

#[tokio::test]
async fn selectors_choose_what_a_kube_proxy_asks_for() {
    on_each(|client| async move {
        let api = create_services(&client, &["plain", "other"]).await;
        let mut headless = service("headless", &json!({"suite": "yes"}));
        headless["spec"]["clusterIP"] = json!("None");
        api.create(&PostParams::default(), &typed(headless)).await.expect("created");
        let labels = json!({"suite": "yes", "service.kubernetes.io/service-proxy-name": "someone"});
        api.create(&PostParams::default(), &typed(service("foreign", &labels))).await.expect("created");
        let names = |labels: &'static str, fields: &'static str| {
            let api = api.clone();
            async move {
                let parameters = ListParams::default().labels(labels).fields(fields);
                let list = api.list(&parameters).await.expect("a list");
                list.items.into_iter().filter_map(|service| service.metadata.name).collect::<Vec<_>>()
            }
        };
        let ours = names("suite=yes,!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None").await;
        assert_eq!(ours, ["other", "plain"]);
        assert_eq!(names("kind in (plain,other),kind!=other", "").await, ["plain"]);
        assert_eq!(names("suite", "metadata.name=foreign").await, ["foreign"]);
        let bad = api.list(&ListParams::default().fields("spec.color=red")).await;
        assert!(matches!(bad, Err(kube::Error::Api(status)) if status.code == 400));
    })
    .await;
}

#[tokio::test]
async fn long_lists_are_paged_as_one_snapshot() {
    on_each(|client| async move {
        let api = create_services(&client, &["p1", "p2", "p3", "p4", "p5"]).await;
        let first = api.list(&ListParams::default().labels("suite=yes").limit(2)).await.expect("page 1");
        assert_eq!(first.items.len(), 2);
        api.delete("p5", &DeleteParams::default()).await.expect("deleted between the pages");
        let mut names = Vec::new();
        let mut token = first.metadata.continue_.clone();
        while let Some(next) = token.filter(|token| !token.is_empty()) {
            let parameters = ListParams::default().labels("suite=yes").limit(2).continue_token(&next);
            let page = api.list(&parameters).await.expect("the next page");
            assert_eq!(page.metadata.resource_version, first.metadata.resource_version);
            names.extend(page.items.into_iter().filter_map(|service| service.metadata.name));
            token = page.metadata.continue_;
        }
        assert_eq!(names, ["p3", "p4", "p5"]);
    })
    .await;
}

#[tokio::test]
async fn a_watch_sees_changes_in_order_and_through_its_selector() {
    on_each(|client| async move {
        let api = create_services(&client, &["seen"]).await;
        let version = api.list(&ListParams::default()).await.expect("a list").metadata.resource_version;
        let version = version.expect("a version");
        let move_out = json!({"metadata": {"labels": {"suite": "no"}}});
        api.patch("seen", &PatchParams::default(), &Patch::Merge(&move_out)).await.expect("patched");
        let move_in = json!({"metadata": {"labels": {"suite": "yes"}}});
        api.patch("seen", &PatchParams::default(), &Patch::Merge(&move_in)).await.expect("patched");
        let touch = json!({"metadata": {"labels": {"more": "yes"}}});
        api.patch("seen", &PatchParams::default(), &Patch::Merge(&touch)).await.expect("patched");
        api.delete("seen", &DeleteParams::default()).await.expect("deleted");
        let path = format!("/api/v1/services?watch=true&resourceVersion={version}&labelSelector=suite%3Dyes");
        let events = watch_lines(&client, &path, |events| events.len() == 4).await;
        assert_eq!(kinds(&events), ["DELETED", "ADDED", "MODIFIED", "DELETED"]);
        assert_eq!(events[0]["object"]["kind"], "Service");
        assert_eq!(events[0]["object"]["metadata"]["labels"]["suite"], "yes");
        let number =
            |event: &Value| event["object"]["metadata"]["resourceVersion"].as_str()?.parse::<u64>().ok();
        let versions: Vec<_> = events.iter().map(|event| number(event).expect("a number")).collect();
        assert!(versions.is_sorted(), "{versions:?}");
    })
    .await;
}

#[tokio::test]
async fn a_streaming_list_ends_with_the_annotated_bookmark_and_goes_on_as_a_watch() {
    on_each(|client| async move {
        let api = create_services(&client, &["w1", "w2"]).await;
        let path = "/api/v1/services?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
                    &allowWatchBookmarks=true&labelSelector=suite%3Dyes&timeoutSeconds=30";
        let later = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            create_services(&client, &["w3"]).await;
        };
        let added_last =
            |events: &[Value]| events.last().is_some_and(|e| e["object"]["metadata"]["name"] == "w3");
        let (events, ()) = tokio::join!(watch_lines(&client, path, added_last), later);
        assert_eq!(kinds(&events)[..2], ["ADDED", "ADDED"]);
        assert!(is_initial_end(&events[2]), "{}", events[2]);
        assert!(events[2]["object"]["metadata"]["resourceVersion"].as_str().is_some_and(|v| v != "0"));
        assert_eq!(events.last().map(|event| &event["type"]), Some(&json!("ADDED")));
        let bad = "/api/v1/services?watch=true&sendInitialEvents=true";
        let request = http::Request::get(bad).body(Vec::new()).expect("a request");
        let refused = client.request_text(request).await;
        assert!(matches!(refused, Err(kube::Error::Api(status)) if status.code == 422));
        drop(api);
    })
    .await;
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there() {
    on_each(|client| async move {
        create_services(&client, &["now"]).await;
        for version in ["", "&resourceVersion=0"] {
            let path =
                format!("/api/v1/services?watch=true{version}&labelSelector=suite%3Dyes&timeoutSeconds=20");
            let events = watch_lines(&client, &path, |events| !events.is_empty()).await;
            assert_eq!(kinds(&events), ["ADDED"]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_watch_ends_after_its_timeout() {
    on_each(|client| async move {
        let path = "/api/v1/nodes?watch=true&resourceVersion=0&timeoutSeconds=1";
        let never = |_: &[Value]| false;
        assert!(watch_lines(&client, path, never).await.iter().all(|event| event["type"] != "ERROR"));
    })
    .await;
}

#[test]
fn a_list_newer_than_the_server_is_told_to_try_again() {
    // By hand: `kube` retries such an answer by itself, for ever.
    let server = embedded();
    let mut stream = std::net::TcpStream::connect(server.address()).expect("it listens");
    let path = "/api/v1/services?resourceVersion=999999999&resourceVersionMatch=NotOlderThan";
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("ResourceVersionTooLarge"), "{answer}");
}

/// The bytes of an answer, and its type.
async fn bytes_of(client: &Client, path: &str, accept: &str) -> (String, Vec<u8>) {
    let request = http::Request::get(path).header("Accept", accept).body(kube::client::Body::empty());
    let response = client.send(request.expect("a request")).await.expect("an answer");
    let kind = response.headers()["content-type"].to_str().expect("a text").to_owned();
    let mut body = response.into_body().into_data_stream();
    let mut bytes = Vec::new();
    // A watch that is not asked for long ends by itself.
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.expect("the connection holds"));
    }
    (kind, bytes)
}

#[tokio::test]
async fn protobuf_is_spoken_where_it_is_asked_for() {
    on_each(|client| async move {
        create_services(&client, &["proto"]).await;
        let path = "/api/v1/services?labelSelector=suite%3Dyes";
        let both = "application/vnd.kubernetes.protobuf,application/json";
        let (kind, list) = bytes_of(&client, path, both).await;
        assert_eq!(kind, "application/vnd.kubernetes.protobuf");
        // `Unknown`: its first field is `TypeMeta` with the version and the kind.
        assert!(list.starts_with(b"k8s\0\x0a\x11\x0a\x02v1\x12\x0bServiceList\x12"), "{list:?}");
        let named = |bytes: &[u8]| bytes.windows(7).any(|some| some == b"\x0a\x05proto");
        assert!(named(&list));
        let watch = format!("{path}&watch=true&resourceVersion=0&timeoutSeconds=1");
        let (kind, frames) = bytes_of(&client, &watch, both).await;
        assert_eq!(kind, "application/vnd.kubernetes.protobuf;stream=watch");
        // Four bytes of length, then `WatchEvent`: its type, and the object in an envelope of its own.
        let length = u32::from_be_bytes(*frames.first_chunk().expect("an event")) as usize;
        let frame = &frames[4..4 + length];
        assert!(frame.starts_with(b"\x0a\x05ADDED\x12"), "{frame:?}");
        assert!(
            frame.windows(11).any(|some| some == b"k8s\0\x0a\x0d\x0a\x02v1\x12") && named(frame),
            "{frame:?}"
        );
        let (kind, refused) = bytes_of(&client, "/api/v1/namespaces/default/services/none", both).await;
        assert_eq!(kind, "application/vnd.kubernetes.protobuf");
        assert!(refused.starts_with(b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Status\x12"), "{refused:?}");
        let (kind, list) = bytes_of(&client, path, "application/json").await;
        assert_eq!((kind.as_str(), list.first()), ("application/json", Some(&b'{')));
    })
    .await;
}

#[tokio::test]
async fn forgotten_versions_are_gone() {
    let server = embedded();
    let client = client_of(&server);
    let api = create_services(&client, &["g1", "g2", "g3"]).await;
    let page = api.list(&ListParams::default().limit(1)).await.expect("page 1");
    let old = page.metadata.resource_version.clone().expect("a version");
    server.compact();

    let path = format!("/api/v1/services?watch=true&resourceVersion={old}");
    let events = watch_lines(&client, &path, |events| !events.is_empty()).await;
    assert_eq!(events[0]["type"], "ERROR");
    assert_eq!(events[0]["object"]["code"], 410);
    let is_gone = |result: Result<String, kube::Error>| matches!(result, Err(kube::Error::Api(status)) if status.code == 410);
    let get = |path: &str| client.request_text(http::Request::get(path).body(Vec::new()).expect("a request"));
    server.set_faults(|faults| faults.gone_as_http = true);
    assert!(is_gone(get(&path).await));
    assert!(is_gone(
        get(&format!("/api/v1/services?resourceVersion={old}&resourceVersionMatch=Exact")).await
    ));
    let token = page.metadata.continue_.expect("more pages");
    let next = api.list(&ListParams::default().limit(1).continue_token(&token)).await;
    assert!(matches!(next, Err(kube::Error::Api(status)) if status.code == 410));
    assert_eq!(api.list(&ListParams::default()).await.expect("the present is known").items.len(), 3);
}

#[tokio::test]
async fn idle_watches_get_bookmarks_and_a_client_resumes_from_them() {
    let server = embedded();
    let client = client_of(&server);
    create_services(&client, &["idle"]).await;
    let path = format!(
        "/apis/discovery.k8s.io/v1/endpointslices?watch=true&allowWatchBookmarks=true&resourceVersion={}",
        server.version()
    );
    let events = watch_lines(&client, &path, |events| !events.is_empty()).await;
    assert_eq!(kinds(&events), ["BOOKMARK"]);
    assert_eq!(events[0]["object"]["metadata"]["resourceVersion"], json!(server.version().to_string()));
}

/// Follows all Services through `kube`'s watcher and reports the names that it holds after each step.
async fn follow(
    server: &ApiServer,
    config: watcher::Config,
    mut disturb: impl AsyncFnMut(&ApiServer, usize),
) {
    let api: Api<Service> = Api::all(client_of(server));
    let mut events = Box::pin(watcher(api, config));
    let mut known = std::collections::BTreeSet::new();
    for round in 0..3 {
        let name = format!("follow-{round}");
        disturb(server, round).await;
        server.apply(service(&name, &json!({}))).expect("applied");
        let mut fresh = std::collections::BTreeSet::new();
        while !known.contains(&name) {
            let next = tokio::time::timeout(Duration::from_secs(90), events.next()).await;
            match next.expect("the watcher recovers").expect("watchers do not end") {
                Ok(watcher::Event::Init) => fresh.clear(),
                Ok(watcher::Event::InitApply(object)) => fresh.extend(object.metadata.name),
                Ok(watcher::Event::InitDone) => known = std::mem::take(&mut fresh),
                Ok(watcher::Event::Apply(object)) => known.extend(object.metadata.name),
                Ok(watcher::Event::Delete(object)) => {
                    known.retain(|name| object.metadata.name.as_ref() != Some(name))
                }
                Err(_) => {}
            }
        }
        assert_eq!(known.len(), round + 1);
    }
}

#[tokio::test]
async fn a_streaming_client_recovers_from_every_kind_of_break() {
    let server = embedded();
    let config = || watcher::Config::default().streaming_lists();
    follow(&server, config(), async |server, round| match round {
        0 => {}
        1 => server.close_watches(),
        _ => server.cut_watches(),
    })
    .await;
    for name in ["follow-0", "follow-1", "follow-2"] {
        server.delete("Service", "default", name).expect("there");
    }
    follow(&server, config(), async |server, round| match round {
        0 => server.expire_watches(),
        1 => {
            server.close_watches();
            server.compact();
        }
        _ => {
            server.go_down();
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.come_back();
        }
    })
    .await;
}

#[tokio::test]
async fn a_listing_client_recovers_from_every_kind_of_break() {
    let server = embedded();
    follow(&server, watcher::Config::default(), async |server, round| match round {
        0 => server.set_faults(|faults| {
            faults.slow_body = Some(SlowBody { piece: 100, pause: Duration::from_millis(2) })
        }),
        1 => server.cut_watches(),
        _ => {
            server.compact();
            server.expire_watches();
        }
    })
    .await;
}

#[tokio::test]
async fn refused_features_are_refused_as_by_an_older_server() {
    let server = embedded();
    let client = client_of(&server);
    server.set_faults(|faults| {
        faults.refuse_watch_list = true;
        faults.refuse.insert("servicecidrs".to_owned(), 404);
        faults.refuse.insert("nodes".to_owned(), 403);
    });
    let services: Api<Service> = Api::all(client.clone());
    let mut events = Box::pin(watcher(services.clone(), watcher::Config::default().streaming_lists()));
    let first = loop {
        match events.next().await.expect("watchers do not end") {
            Ok(watcher::Event::Init) => {}
            other => break other,
        }
    };
    assert!(
        matches!(first, Err(watcher::Error::WatchStartFailed(kube::Error::Api(status))) if status.code == 422)
    );
    let cidrs = Api::<ServiceCIDR>::all(client.clone()).list(&ListParams::default()).await;
    assert!(matches!(cidrs, Err(kube::Error::Api(status)) if status.code == 404));
    let nodes = Api::<Node>::all(client).list(&ListParams::default()).await;
    assert!(matches!(nodes, Err(kube::Error::Api(status)) if status.code == 403));
    assert!(services.list(&ListParams::default()).await.is_ok());
}

#[tokio::test]
async fn a_hanging_server_says_nothing_until_it_is_released() {
    let server = embedded();
    let api: Api<Service> = Api::all(client_of(&server));
    server.set_faults(|faults| faults.hang = true);
    let list =
        tokio::spawn(async move { api.list(&ListParams::default()).await.map(|list| list.items.len()) });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!list.is_finished());
    server.set_faults(|faults| faults.hang = false);
    assert_eq!(list.await.expect("no panic").expect("a list"), 0);
}

#[tokio::test]
async fn ten_thousand_services_and_slices_are_listed_in_one_answer_each() {
    let server = embedded();
    let endpoints = |service: usize| -> Vec<Value> {
        let address = |endpoint: usize| format!("10.{}.{}.{}", service / 250, service % 250, endpoint + 1);
        (0..10)
            .map(|endpoint| {
                json!({
                    "addresses": [address(endpoint)], "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": format!("node-{}", endpoint % 5), "zone": "a",
                    "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("pod-{service}-{endpoint}")},
                })
            })
            .collect()
    };
    let slice = |index: usize| {
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": format!("s{index}-x"), "namespace": "default", "labels": {"kubernetes.io/service-name": format!("s{index}")}},
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints(index),
        })
    };
    server.load((0..10_000).map(slice)).expect("loaded");
    server.load((0..10_000).map(|index| service(&format!("s{index}"), &json!({})))).expect("loaded");
    let client = client_of(&server);
    for path in
        ["/apis/discovery.k8s.io/v1/endpointslices?resourceVersion=0", "/api/v1/services?resourceVersion=0"]
    {
        let request = http::Request::get(path).body(Vec::new()).expect("a request");
        let list: Value = client.request(request).await.expect("a list");
        assert_eq!(list["items"].as_array().map(Vec::len), Some(10_000), "{path}");
        assert_eq!(list["metadata"]["continue"], Value::Null, "{path}: all in one answer");
    }
    let slices: Api<EndpointSlice> = Api::all(client);
    assert_eq!(slices.get_opt("nothing").await.ok().flatten().map(|_: EndpointSlice| ()), None);
}
