//! From a request's path and method to what serves it.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Query, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::reading::{self, Options};
use super::resource::{self, RESOURCES, Resource};
use super::status::{Refusal, json_response};
use super::stored::Key;
use super::writing::{self, Target};
use super::{KUBERNETES_VERSION, Shared};

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
    shared.note_request(&request);
    shared.wait_while_hanging().await;
    match answer(&shared, request).await {
        Ok(response) => response,
        Err(refusal) => refusal.response(),
    }
}

async fn answer(shared: &Arc<Shared>, request: Request) -> Result<Response, Refusal> {
    if let Some(response) = fixed(request.uri().path()) {
        return Ok(response);
    }
    let address = Address::parse(request.uri().path()).ok_or_else(Refusal::no_such_path)?;
    let (parts, body) = request.into_parts();
    let kind = &RESOURCES[address.resource];
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
            if options.is_watch() {
                reading::watch(shared, resource, options)
            } else {
                reading::list(shared, resource, &options)
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
                Method::GET => reading::get(shared, resource, &target.key),
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
