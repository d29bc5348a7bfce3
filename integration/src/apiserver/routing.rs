//! From a request's path and method to what serves it.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Query, Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::journal::Entry;
use super::protobuf;
use super::reading::{self, Options};
use super::resource::{self, RESOURCES, Resource};
use super::shared::{KUBERNETES_VERSION, Shared};
use super::status::{Encoding, Refusal, json_response};
use super::stored::Key;
use super::writing::{self, Target};

/// The largest object a client may send.
const LARGEST_BODY: usize = 3 * 1024 * 1024;

/// A path below `/api` or `/apis` taken apart.
struct Address {
    resource: usize,
    namespace: Option<String>,
    name: Option<String>,
    status: bool,
}

pub(crate) async fn serve(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let entry = shared.note_request(&request);
    shared.wait_while_hanging().await;
    let accept = accepted(&request).to_owned();
    let (response, is_watch) = match answer(&shared, request, &entry).await {
        Ok(response) => (response, entry.is_watch()),
        Err(refusal) => (refusal.response(Encoding::accepted(&accept, true)), false),
    };
    entry.answered(response.status().as_u16(), is_watch);
    response
}

fn accepted(request: &Request) -> &str {
    request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn answer(shared: &Arc<Shared>, request: Request, entry: &Entry) -> Result<Response, Refusal> {
    if let Some(response) = fixed(request.uri().path()) {
        return Ok(response);
    }
    let address = Address::parse(request.uri().path()).ok_or_else(Refusal::no_such_path)?;
    let kind = &RESOURCES[address.resource];
    let encoding = Encoding::accepted(accepted(&request), protobuf::speaks(kind.kind));
    let (parts, body) = request.into_parts();
    let known = shared.control.borrow().faults.tokens.clone();
    if known.is_some_and(|known| entry.token().is_none_or(|token| !known.contains(&token))) {
        return Err(Refusal::injected(kind, parts.method.as_str(), 401));
    }
    if let Some(code) = shared.control.borrow().faults.refuse.get(kind.plural) {
        return Err(Refusal::injected(kind, parts.method.as_str(), *code));
    }
    let Query(query) = Query::<HashMap<String, String>>::try_from_uri(&parts.uri)
        .map_err(|error| Refusal::bad_request(error.to_string()))?;
    let body: Bytes = axum::body::to_bytes(body, LARGEST_BODY)
        .await
        .map_err(|error| Refusal::bad_request(format!("reading the body: {error}")))?;
    let resource = address.resource;
    let namespace = address.namespace.clone().unwrap_or_default();
    match (parts.method, address.name) {
        (Method::GET, None) => {
            let options = Options::parse(resource, address.namespace.as_deref(), &query)?;
            let faults = shared.control.borrow().faults.clone();
            let refuse = if options.is_watch() { &faults.refuse_watches } else { &faults.refuse_lists };
            if let Some(code) = refuse.get(kind.plural) {
                return Err(Refusal::injected(
                    kind,
                    if options.is_watch() { "watch" } else { "list" },
                    *code,
                ));
            }
            if faults.mute || faults.end_at_once.contains(kind.plural) {
                return Ok(nothing(faults.mute, encoding));
            }
            if options.is_watch() {
                reading::watch(shared, resource, options, encoding, entry.clone())
            } else {
                reading::list(shared, resource, &options, encoding)
            }
        }
        (Method::POST, None) => writing::create(shared, resource, &namespace, &body),
        (Method::DELETE, None) => {
            let options = Options::parse(resource, address.namespace.as_deref(), &query)?;
            writing::delete_all(shared, resource, &options)
        }
        (method, Some(name)) => {
            let key = Key { namespace, name };
            let target = Target { resource, key, status: address.status, body: &body };
            match method {
                Method::GET => reading::get(shared, resource, &target.key, encoding),
                Method::PUT => writing::update(shared, &target),
                Method::PATCH => {
                    let media_type = parts.headers.get(header::CONTENT_TYPE);
                    let media_type = media_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
                    writing::patch(shared, &target, media_type)
                }
                Method::DELETE => writing::delete(shared, resource, &target.key),
                _ => Err(Refusal::method_not_allowed()),
            }
        }
        _ => Err(Refusal::method_not_allowed()),
    }
}

/// An answer without a body, which never ends if it is mute.
fn nothing(mute: bool, encoding: Encoding) -> Response {
    let body = if mute {
        Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>())
    } else {
        Body::empty()
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(encoding.media_type()));
    response
}

impl Address {
    fn parse(path: &str) -> Option<Self> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, version, rest) = match segments.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
            _ => (None, rest),
        };
        let (plural, name, status) = match rest {
            [plural] => (plural, None, false),
            [plural, name] => (plural, Some((*name).to_owned()), false),
            [plural, name, "status"] => (plural, Some((*name).to_owned()), true),
            _ => return None,
        };
        let resource = resource::of_path(group, version, plural)?;
        let kind = &RESOURCES[resource];
        let scope_fits =
            if kind.namespaced { name.is_none() || namespace.is_some() } else { namespace.is_none() };
        (scope_fits && (!status || kind.has_status)).then_some(Self { resource, namespace, name, status })
    }
}

/// The paths that hold no objects: health, version and discovery.
fn fixed(path: &str) -> Option<Response> {
    let body = match path.trim_end_matches('/') {
        "/healthz" | "/livez" | "/readyz" => return Some("ok".into_response()),
        "/version" => json!({
            "major": "1", "minor": "36", "gitVersion": KUBERNETES_VERSION, "platform": "linux/amd64",
        }),
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []}),
        "/apis" => {
            let groups: Vec<Value> = groups().map(|(group, version)| group_value(group, version)).collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        "/api/v1" => resource_list("", "v1"),
        other => {
            let (group, version) = other.strip_prefix("/apis/")?.split_once('/')?;
            groups().find(|known| *known == (group, version))?;
            resource_list(group, version)
        }
    };
    Some(json_response(StatusCode::OK, body.to_string().into_bytes()))
}

fn groups() -> impl Iterator<Item = (&'static str, &'static str)> {
    RESOURCES
        .iter()
        .filter(|resource| !resource.group.is_empty())
        .map(|resource| (resource.group, resource.version))
}

fn group_value(group: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

fn resource_list(group: &str, version: &str) -> Value {
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let entry = |resource: &Resource| {
        json!({
            "name": resource.plural, "singularName": resource.kind.to_lowercase(), "kind": resource.kind,
            "namespaced": resource.namespaced, "verbs": verbs,
        })
    };
    let resources: Vec<Value> = RESOURCES
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
        .map(entry)
        .collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}
