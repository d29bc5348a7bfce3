//! create, update, patch and delete.

use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::reading::{Options, object_response};
use super::resource::RESOURCES;
use super::shared::Shared;
use super::status::{Refusal, json_response};
use super::stored::Key;

/// What a write is aimed at.
pub(crate) struct Target<'a> {
    pub(crate) resource: usize,
    pub(crate) key: Key,
    /// `/status`: only the status is written. Otherwise the status, if the resource has a subresource, is left alone.
    pub(crate) status: bool,
    pub(crate) body: &'a Bytes,
}

pub(crate) fn create(
    shared: &Shared,
    resource: usize,
    namespace: &str,
    body: &Bytes,
) -> Result<Response, Refusal> {
    let object = complete(resource, namespace, None, parse(body)?)?;
    let stored = shared.store().create(resource, object)?;
    Ok(object_response(StatusCode::CREATED, resource, &stored))
}

pub(crate) fn update(shared: &Shared, target: &Target<'_>) -> Result<Response, Refusal> {
    let given =
        complete(target.resource, &target.key.namespace, Some(&target.key.name), parse(target.body)?)?;
    let mut store = shared.store();
    let object = match store.find(target.resource, &target.key) {
        Some(current) => merged(current.value(&RESOURCES[target.resource]), given, target),
        None => given,
    };
    let stored = store.replace(target.resource, object)?;
    Ok(object_response(StatusCode::OK, target.resource, &stored))
}

pub(crate) fn patch(shared: &Shared, target: &Target<'_>, media_type: &str) -> Result<Response, Refusal> {
    let patch = parse(target.body)?;
    match media_type.split(';').next().unwrap_or_default().trim() {
        "application/merge-patch+json" => {}
        // Without lists the two kinds mean the same; merge keys of lists are not known here.
        "application/strategic-merge-patch+json" if !holds_list(&patch) => {}
        _ => return Err(Refusal::media_type(media_type)),
    }
    let kind = &RESOURCES[target.resource];
    let mut store = shared.store();
    let current = store
        .find(target.resource, &target.key)
        .ok_or_else(|| Refusal::not_found(kind, &target.key.name))?
        .value(kind);
    let mut object = current.clone();
    merge(&mut object, patch);
    let object = complete(target.resource, &target.key.namespace, Some(&target.key.name), object)?;
    let stored = store.replace(target.resource, merged(current, object, target))?;
    Ok(object_response(StatusCode::OK, target.resource, &stored))
}

pub(crate) fn delete(shared: &Shared, resource: usize, key: &Key) -> Result<Response, Refusal> {
    let last = shared.store().delete(resource, key)?;
    let details = json!({"name": last.key.name, "kind": RESOURCES[resource].plural});
    Ok(success(&details))
}

pub(crate) fn delete_all(shared: &Shared, resource: usize, options: &Options) -> Result<Response, Refusal> {
    let mut store = shared.store();
    for object in store.matching(resource, &options.selector) {
        store.delete(resource, &object.key)?;
    }
    Ok(success(&json!({"kind": RESOURCES[resource].plural})))
}

fn success(details: &Value) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    json_response(StatusCode::OK, status.to_string().into_bytes())
}

fn parse(body: &Bytes) -> Result<Value, Refusal> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(Refusal::bad_request("the body is not a JSON object".to_owned())),
        Err(error) => Err(Refusal::bad_request(format!("couldn't parse the body as JSON: {error}"))),
    }
}

/// Checks the object against the path it was sent to, and fills in what the path says.
fn complete(
    resource: usize,
    namespace: &str,
    name: Option<&str>,
    mut object: Value,
) -> Result<Value, Refusal> {
    let kind = &RESOURCES[resource];
    if kind.namespaced && namespace.is_empty() {
        return Err(Refusal::bad_request(format!("{} need a namespace in the path", kind.plural)));
    }
    for (field, wanted) in [("kind", kind.kind.to_owned()), ("apiVersion", kind.api_version())] {
        match object[field].as_str() {
            None | Some("") => object[field] = json!(wanted),
            Some(given) if given == wanted => {}
            Some(given) => {
                let message = format!("{field} {given:?} does not match the path, which holds {wanted:?}");
                return Err(Refusal::bad_request(message));
            }
        }
    }
    for (field, wanted) in [("namespace", Some(namespace).filter(|_| kind.namespaced)), ("name", name)] {
        let Some(wanted) = wanted else { continue };
        match object["metadata"][field].as_str() {
            None | Some("") => object["metadata"][field] = json!(wanted),
            Some(given) if given == wanted => {}
            Some(given) => {
                let message =
                    format!("the {field} of the object ({given}) does not match that of the path ({wanted})");
                return Err(Refusal::bad_request(message));
            }
        }
    }
    let named = object["metadata"]["name"].as_str().is_some_and(|name| !name.is_empty());
    if !named && !object["metadata"]["generateName"].is_string() {
        return Err(Refusal::bad_request("metadata.name is required".to_owned()));
    }
    Ok(object)
}

/// Combines what is stored and what was sent, by the rule of the status subresource.
fn merged(current: Value, given: Value, target: &Target<'_>) -> Value {
    let (mut base, status_of) = match (target.status, RESOURCES[target.resource].has_status) {
        (true, _) => (current, given),
        (false, true) => (given, current),
        (false, false) => return given,
    };
    if target.status {
        base["metadata"]["resourceVersion"] = status_of["metadata"]["resourceVersion"].clone();
    }
    match status_of.get("status") {
        Some(status) => base["status"] = status.clone(),
        None => {
            base.as_object_mut().map(|map| map.remove("status"));
        }
    }
    base
}

/// RFC 7386.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    let map = into.as_object_mut().expect("made an object above");
    for (key, value) in patch {
        if value.is_null() {
            map.remove(&key);
        } else {
            merge(map.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn holds_list(value: &Value) -> bool {
    match value {
        Value::Array(_) => true,
        Value::Object(map) => map.values().any(holds_list),
        _ => false,
    }
}
