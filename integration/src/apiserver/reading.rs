//! get, list and watch: which state a request means, and its answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::stream;
use serde_json::json;

use super::faults::FromTheFuture;
use super::journal::Entry;
use super::protobuf;
use super::resource::RESOURCES;
use super::selector::Selector;
use super::shared::Shared;
use super::status::{Encoding, Refusal, encoded_response, json_response};
use super::stored::{Key, Stored};
use super::watching::{Start, Watch};

/// The query of a list or watch.
pub(crate) struct Options {
    pub(crate) selector: Selector,
    version: Option<u64>,
    version_match: Option<String>,
    limit: usize,
    after: Option<Position>,
    watch: bool,
    bookmarks: bool,
    initial_events: Option<bool>,
    timeout: Option<Duration>,
}

/// Where a paged list goes on: the version all its pages belong to, and the last object sent.
struct Position {
    version: u64,
    last: Key,
}

impl Options {
    pub(crate) fn parse(
        resource: usize,
        namespace: Option<&str>,
        query: &HashMap<String, String>,
    ) -> Result<Self, Refusal> {
        let text = |name: &str| query.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let flag = |name: &str| text(name).map(|value| value != "false" && value != "0");
        let number = |name: &str| {
            text(name)
                .map(|value| {
                    value.parse::<u64>().map_err(|_| {
                        Refusal::bad_request(format!("invalid value for {name}: {value:?} is not a number"))
                    })
                })
                .transpose()
        };
        let selector =
            Selector::parse(&RESOURCES[resource], namespace, text("labelSelector"), text("fieldSelector"))
                .map_err(Refusal::bad_request)?;
        Ok(Self {
            selector,
            version: number("resourceVersion")?,
            version_match: text("resourceVersionMatch").map(str::to_owned),
            limit: usize::try_from(number("limit")?.unwrap_or(0)).unwrap_or(0),
            after: text("continue").map(Position::decode).transpose()?,
            watch: flag("watch").unwrap_or(false),
            bookmarks: flag("allowWatchBookmarks").unwrap_or(false),
            initial_events: flag("sendInitialEvents"),
            timeout: number("timeoutSeconds")?.map(Duration::from_secs),
        })
    }

    pub(crate) fn is_watch(&self) -> bool {
        self.watch
    }
}

impl Position {
    fn encode(&self) -> String {
        format!("{}:{}/{}", self.version, self.last.namespace, self.last.name)
    }

    fn decode(text: &str) -> Result<Self, Refusal> {
        let parse = || {
            let (version, key) = text.split_once(':')?;
            let (namespace, name) = key.split_once('/')?;
            let last = Key { namespace: namespace.to_owned(), name: name.to_owned() };
            Some(Self { version: version.parse().ok()?, last })
        };
        parse().ok_or_else(|| Refusal::bad_request("continue key is not valid".to_owned()))
    }
}

pub(crate) fn get(
    shared: &Shared,
    resource: usize,
    key: &Key,
    encoding: Encoding,
) -> Result<Response, Refusal> {
    let object = shared.store().find(resource, key).cloned();
    let object = object.ok_or_else(|| Refusal::not_found(&RESOURCES[resource], &key.name))?;
    if encoding == Encoding::Protobuf {
        let kind = &RESOURCES[resource];
        let body = protobuf::envelope(&kind.api_version(), kind.kind, object.protobuf(kind));
        return Ok(encoded_response(StatusCode::OK, encoding, body));
    }
    Ok(object_response(StatusCode::OK, resource, &object))
}

pub(crate) fn object_response(code: StatusCode, resource: usize, object: &Stored) -> Response {
    let mut body = Vec::with_capacity(object.item.len() + 64);
    object.write(&RESOURCES[resource], &mut body);
    json_response(code, body)
}

pub(crate) fn list(
    shared: &Shared,
    resource: usize,
    options: &Options,
    encoding: Encoding,
) -> Result<Response, Refusal> {
    if options.initial_events.is_some() {
        return Err(Refusal::invalid_list_options(
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list",
        ));
    }
    let exact = options.version_match.as_deref() == Some("Exact");
    if exact && options.version.unwrap_or(0) == 0 {
        return Err(Refusal::invalid_list_options(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
        ));
    }
    let lag = shared.control.borrow().faults.lag;
    let store = shared.store();
    let mut current = store.version();
    let mut lagging = None;
    // The newest is asked of the storage.
    if let (Some(lag), Some(version)) = (lag, options.version.filter(|_| options.after.is_none() && !exact)) {
        if lag.lies || version <= lag.version {
            lagging = store.at(resource, lag.version, &options.selector).map(|state| (lag.version, state));
        }
        current = current.min(lag.version);
    }
    // `resourceVersion=0` is served from a cache that does not page, whatever the limit says.
    let limit = if options.version == Some(0) { 0 } else { options.limit };
    let (version, mut objects) = match (&options.after, options.version) {
        (Some(position), _) => {
            let state = store
                .at(resource, position.version, &options.selector)
                .ok_or_else(Refusal::continue_expired)?;
            let rest = state.into_iter().filter(|(key, _)| *key > position.last);
            (position.version, rest.map(|(_, object)| object).collect())
        }
        _ if lagging.is_some() => {
            let (version, state) = lagging.take().expect("just seen");
            (version, state.into_values().collect())
        }
        (None, Some(version)) if version > current => return Err(Refusal::too_large(version, current)),
        (None, Some(version)) if exact => {
            let state = store
                .at(resource, version, &options.selector)
                .ok_or_else(|| Refusal::gone(version, current))?;
            (version, state.into_values().collect())
        }
        _ => (current, store.matching(resource, &options.selector)),
    };
    drop(store);
    let remaining = if limit == 0 { 0 } else { objects.len().saturating_sub(limit) };
    let token = (remaining > 0).then(|| {
        objects.truncate(limit);
        let last = objects.last().expect("a limit above zero keeps one").key.clone();
        Position { version, last }.encode()
    });
    let known_remaining = options.selector.is_plain().then_some(remaining);
    let body = match encoding {
        Encoding::Json => list_body(resource, version, token.as_deref(), known_remaining, &objects),
        Encoding::Protobuf => {
            let kind = &RESOURCES[resource];
            let metadata = json!({
                "resourceVersion": version.to_string(), "continue": token,
                "remainingItemCount": known_remaining.filter(|_| token.is_some()),
            });
            let items = objects.iter().map(|object| &object.protobuf(kind)[..]);
            protobuf::list(&kind.api_version(), kind.kind, &metadata, items)
        }
    };
    Ok(shared.maybe_slow(encoded_response(StatusCode::OK, encoding, body)))
}

fn list_body(
    resource: usize,
    version: u64,
    token: Option<&str>,
    remaining: Option<usize>,
    objects: &[Arc<Stored>],
) -> Vec<u8> {
    let kind = &RESOURCES[resource];
    let size: usize = objects.iter().map(|object| object.item.len() + 1).sum();
    let mut body = Vec::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{{\"resourceVersion\":\"{version}\"",
        kind.kind,
        kind.api_version()
    );
    body.extend_from_slice(head.as_bytes());
    if let Some(token) = token {
        body.extend_from_slice(format!(",\"continue\":\"{token}\"").as_bytes());
        if let Some(remaining) = remaining {
            body.extend_from_slice(format!(",\"remainingItemCount\":{remaining}").as_bytes());
        }
    }
    body.extend_from_slice(b"},\"items\":[");
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&object.item);
    }
    body.extend_from_slice(b"]}");
    body
}

pub(crate) fn watch(
    shared: &Arc<Shared>,
    resource: usize,
    options: Options,
    encoding: Encoding,
    entry: Entry,
) -> Result<Response, Refusal> {
    let store = shared.store();
    let faults = shared.control.borrow().faults.clone();
    let streaming = options.initial_events == Some(true);
    if options.initial_events.is_some() {
        if faults.refuse_watch_list {
            return Err(Refusal::invalid_list_options(
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ));
        }
        if options.version_match.as_deref() != Some("NotOlderThan") {
            return Err(Refusal::invalid_list_options(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
    } else if options.version_match.is_some() {
        return Err(Refusal::invalid_list_options(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ));
    }
    let from_now = options.version.unwrap_or(0) == 0;
    let wants_state = streaming || (from_now && options.initial_events.is_none());
    // The newest is asked of the storage.
    let lag = faults.lag.filter(|_| options.version.is_some());
    let current = store.version();
    let newest_version = lag.map_or(current, |lag| lag.version.min(current));
    if streaming
        && let Some(version) = options.version.filter(|version| *version > newest_version)
        && !lag.is_some_and(|lag| lag.lies)
    {
        return Err(Refusal::too_large(version, newest_version));
    }
    let start = Start {
        version: match options.version {
            Some(version) if !from_now && !streaming => version,
            _ => newest_version,
        },
        initial: match lag.and_then(|_| store.at(resource, newest_version, &options.selector)) {
            _ if !wants_state => Vec::new(),
            Some(state) => state.into_values().collect(),
            None => store.matching(resource, &options.selector),
        },
        mark_end: streaming && options.bookmarks,
        bookmarks: options.bookmarks,
        timeout: options.timeout.unwrap_or(Duration::from_secs(1_800)),
        encoding,
        entry,
    };
    if faults.gone_as_http && store.steps_after(resource, start.version, 0).is_none() {
        return Err(Refusal::gone(start.version, store.version()));
    }
    if start.version > newest_version && faults.from_the_future == FromTheFuture::Status {
        return Err(Refusal::too_large(start.version, newest_version));
    }
    let newest = store.subscribe(resource);
    drop(store);
    let watch = Watch::new(shared.clone(), resource, options.selector, start, newest);
    let mut response = Response::new(watch.body());
    let media_type = HeaderValue::from_static(encoding.watch_media_type());
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

impl Shared {
    /// Sends a body in small pieces when the test asks for it.
    fn maybe_slow(&self, response: Response) -> Response {
        let Some(slow) = self.control.borrow().faults.slow_body else { return response };
        let (parts, body) = response.into_parts();
        let pieces = stream::unfold(Some(body), move |body| async move {
            let whole = axum::body::to_bytes(body?, usize::MAX).await.ok()?;
            if whole.is_empty() {
                return None;
            }
            tokio::time::sleep(slow.pause).await;
            let piece = whole.slice(..slow.piece.clamp(1, whole.len()));
            let rest = whole.slice(piece.len()..);
            Some((Ok::<Bytes, std::io::Error>(piece), Some(Body::from(rest))))
        });
        Response::from_parts(parts, Body::from_stream(pieces))
    }
}
