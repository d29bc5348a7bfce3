//! Watches the API server and turns what it says into inputs for the engine.
//!
//! Streams the initial list where the server can (WatchList), lists and watches where it refuses; a re-list names
//! everything anew, so that the engine can tell what vanished in between. Nothing is cached here.

use std::{
    collections::HashMap,
    fmt::Debug,
    hash::{BuildHasher, RandomState},
    pin::pin,
    sync::mpsc,
    time::Duration,
};

use futures::StreamExt;
use ipnet::IpNet;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event, InitialListStrategy},
};
use proxy_core::model::{Input, Kind};
use serde::de::DeserializeOwned;

use crate::{
    api::slim,
    engine::Message,
    telemetry::first_sync::{FirstLists, Timed},
};

/// Label of Services that another proxy serves.
const NOT_OURS: &str = "!service.kubernetes.io/service-proxy-name";
const NOT_HEADLESS: &str = "!service.kubernetes.io/headless";
/// How long a streamed list may stay silent before it is taken for a server that does not know streamed lists (it
/// ignores the parameter and never says that the list is complete).
const STREAMED_LIST_SILENCE: Duration = Duration::from_secs(20);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What to ask for, and what this process has learnt about how the server wants to be asked.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) labels: Option<&'static str>,
    pub(crate) fields: Option<String>,
    streaming: bool,
}

impl Query {
    pub(crate) fn new(labels: Option<&'static str>, fields: Option<String>) -> Self {
        Self { labels, fields, streaming: true }
    }

    fn config(&self) -> watcher::Config {
        watcher::Config {
            label_selector: self.labels.map(str::to_owned),
            field_selector: self.fields.clone(),
            timeout: Some(watch_seconds()),
            // A paged list would be a quorum read: the resource version 0 is dropped where a limit is sent.
            list_semantic: watcher::ListSemantic::Any,
            page_size: None,
            initial_list_strategy: if self.streaming {
                InitialListStrategy::StreamingList
            } else {
                InitialListStrategy::ListWatch
            },
            bookmarks: true,
        }
    }

    /// Whether asking differently may help where the server answered with this status.
    fn adapt(&mut self, kind: &str, code: u16, message: &str) -> bool {
        if self.streaming && (code == 422 || (code == 400 && message.contains("sendInitialEvents"))) {
            tracing::info!(
                kind,
                message,
                "The API server does not stream lists; listing and watching instead"
            );
            self.streaming = false;
            return true;
        }
        if code == 400 && self.fields.as_deref().is_some_and(|fields| fields.starts_with("spec.")) {
            tracing::info!(
                kind,
                message,
                "The API server does not know the field selector; filtering here instead"
            );
            self.fields = None;
            return true;
        }
        false
    }
}

/// 5 to 10 minutes, at random, so that the nodes of a cluster do not come back all at once.
fn watch_seconds() -> u32 {
    let random = RandomState::new().hash_one(0_u8);
    300 + u32::try_from(random % 300).expect("below 300")
}

/// Watches for ever; every event goes to `handle`. Returns only when `handle` says that nobody listens any more, or,
/// for an `optional` kind, never (a server that lacks it or forbids it is asked again from time to time).
pub(crate) async fn watch<K>(
    api: Api<K>,
    mut query: Query,
    optional: bool,
    mut handle: impl FnMut(Event<K>) -> bool,
) where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let kind = K::kind(&()).into_owned();
    let mut failures = 0_u32;
    loop {
        let mut events = pin!(watcher::watcher(api.clone(), query.config()));
        let mut listing = true;
        loop {
            let next = if listing && query.streaming {
                match tokio::time::timeout(STREAMED_LIST_SILENCE, events.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        tracing::warn!(
                            kind,
                            "The API server never completed a streamed list; listing and watching instead"
                        );
                        query.streaming = false;
                        break;
                    }
                }
            } else {
                events.next().await
            };
            match next {
                None => break,
                Some(Ok(event)) => {
                    failures = 0;
                    match event {
                        Event::Init => listing = true,
                        Event::InitDone => listing = false,
                        _ => {}
                    }
                    if !handle(event) {
                        return;
                    }
                }
                Some(Err(error)) => {
                    if let Some(status) = refusal(&error)
                        && query.adapt(&kind, status.code, &status.message)
                    {
                        break;
                    }
                    let wait = if optional
                        && refusal(&error).is_some_and(|status| matches!(status.code, 403 | 404))
                    {
                        tracing::debug!(kind, %error, "The API server does not offer this kind");
                        Duration::from_secs(300)
                    } else {
                        let gone = matches!(&error, watcher::Error::WatchError(status) if status.code == 410);
                        if !gone {
                            tracing::warn!(kind, error = %chain(&error), "Watch failed; trying again");
                        }
                        jittered(FIRST_RETRY.saturating_mul(1 << failures.min(10)).min(LAST_RETRY))
                    };
                    failures += 1;
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }
}

/// The server's own answer, if it is what went wrong.
fn refusal(error: &watcher::Error) -> Option<&kube::core::Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// An error with its sources, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// Half of it at least, all of it at most.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().hash_one(1_u8) % 512;
    wait.mul_f64(0.5 + f64::from(u32::try_from(random).expect("below 512")) / 1024.0)
}

/// Services with a cluster IP that are not served by another proxy.
pub(crate) async fn services(
    client: Client,
    external_ips: bool,
    first_lists: FirstLists,
    inputs: mpsc::Sender<Message>,
) {
    let mut listing = first_lists.begin();
    let query = Query::new(Some(NOT_OURS), Some("spec.clusterIP!=None".to_owned()));
    let translate = move |service: slim::Service| {
        let name = slim::name(&service.metadata);
        let translated = service.translate(external_ips);
        for complaint in translated.complaints {
            tracing::error!(service = %name, complaint, "Part of a Service is ignored");
        }
        translated.object.map_or(Input::ServiceGone(name), Input::Service)
    };
    watch(Api::<Timed<slim::Service>>::all(client), query, false, |event| {
        let input = match event {
            Event::Init => Input::Listing(Kind::Service),
            Event::InitDone => {
                listing.complete();
                Input::Listed(Kind::Service)
            }
            Event::InitApply(service) => listing.decode(service, translate),
            Event::Apply(service) => translate(service.object),
            Event::Delete(service) => Input::ServiceGone(slim::name(&service.object.metadata)),
        };
        inputs.send(input.into()).is_ok()
    })
    .await;
}

/// EndpointSlices of Services that are not headless.
pub(crate) async fn slices(
    client: Client,
    node: String,
    first_lists: FirstLists,
    inputs: mpsc::Sender<Message>,
) {
    let mut listing = first_lists.begin();
    let query = Query::new(Some(NOT_HEADLESS), None);
    let translate = |slice: slim::EndpointSlice| {
        let name = slim::name(&slice.metadata);
        let translated = slice.translate(&node);
        for complaint in translated.complaints {
            tracing::error!(endpointSlice = %name, complaint, "Part of an EndpointSlice is ignored");
        }
        translated.object.map_or(Input::SliceGone(name), Input::Slice)
    };
    watch(Api::<Timed<slim::EndpointSlice>>::all(client), query, false, |event| {
        let input = match event {
            Event::Init => Input::Listing(Kind::Slice),
            Event::InitDone => {
                listing.complete();
                Input::Listed(Kind::Slice)
            }
            Event::InitApply(slice) => listing.decode(slice, translate),
            Event::Apply(slice) => translate(slice.object),
            Event::Delete(slice) => Input::SliceGone(slim::name(&slice.object.metadata)),
        };
        inputs.send(input.into()).is_ok()
    })
    .await;
}

/// ServiceCIDRs; an older API server or an older role may not offer them.
pub(crate) async fn service_cidrs(client: Client, inputs: mpsc::Sender<Message>) {
    let mut known: HashMap<String, Vec<IpNet>> = HashMap::new();
    let mut listing: Option<HashMap<String, Vec<IpNet>>> = None;
    let parsed = |cidr: &slim::ServiceCidr| {
        (cidr.metadata.name.clone().unwrap_or_default(), cidr.networks().collect::<Vec<IpNet>>())
    };
    watch(Api::<slim::ServiceCidr>::all(client), Query::new(None, None), true, |event| {
        match event {
            Event::Init => listing = Some(HashMap::new()),
            Event::InitApply(cidr) => {
                listing.get_or_insert_default().extend([parsed(&cidr)]);
                return true;
            }
            Event::InitDone => known = listing.take().unwrap_or_default(),
            Event::Apply(cidr) => known.extend([parsed(&cidr)]),
            Event::Delete(cidr) => {
                known.remove(&cidr.metadata.name.unwrap_or_default());
            }
        }
        if listing.is_some() {
            return true;
        }
        let mut all: Vec<IpNet> = known.values().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        inputs.send(Input::ServiceCidrs(all.into()).into()).is_ok()
    })
    .await;
}
