//! One version of one object, as bytes ready to send and what selectors ask of it.
//!
//! An object is kept serialised only: a hundred thousand endpoints as `serde_json::Value` would take 400 MB.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::protobuf;
use super::resource::Resource;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// One version of one object.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) key: Key,
    pub(crate) version: u64,
    pub(crate) labels: BTreeMap<String, String>,
    fields: Vec<(&'static str, String)>,
    /// As it stands in a list: without `kind` and `apiVersion`, which lists state once.
    pub(crate) item: Bytes,
    protobuf: OnceLock<Bytes>,
}

impl Stored {
    pub(crate) fn new(resource: &Resource, mut object: Value, version: u64) -> Self {
        let fields = resource.selectable(&object);
        let key = key_of(&object);
        let labels = object["metadata"]["labels"]
            .as_object()
            .map(|labels| {
                labels.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect()
            })
            .unwrap_or_default();
        if let Some(map) = object.as_object_mut() {
            map.remove("kind");
            map.remove("apiVersion");
        }
        Self {
            key,
            version,
            labels,
            fields,
            item: Bytes::from(object.to_string()),
            protobuf: OnceLock::new(),
        }
    }

    pub(crate) fn field(&self, path: &str) -> &str {
        match path {
            "metadata.name" => &self.key.name,
            "metadata.namespace" => &self.key.namespace,
            _ => self.fields.iter().find(|(known, _)| *known == path).map_or("", |(_, value)| value),
        }
    }

    /// The whole object, with `kind` and `apiVersion`.
    pub(crate) fn value(&self, resource: &Resource) -> Value {
        let mut value: Value = serde_json::from_slice(&self.item).expect("the store serialised it");
        value["kind"] = json!(resource.kind);
        value["apiVersion"] = json!(resource.api_version());
        value
    }

    /// Its own message in protobuf, made when it is first asked for.
    pub(crate) fn protobuf(&self, resource: &Resource) -> &Bytes {
        self.protobuf.get_or_init(|| {
            let value = serde_json::from_slice(&self.item).expect("the store serialised it");
            protobuf::message(resource.kind, &value).into()
        })
    }

    /// Appends the whole object as JSON text.
    pub(crate) fn write(&self, resource: &Resource, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"kind\":\"");
        out.extend_from_slice(resource.kind.as_bytes());
        out.extend_from_slice(b"\",\"apiVersion\":\"");
        out.extend_from_slice(resource.api_version().as_bytes());
        out.extend_from_slice(b"\",");
        out.extend_from_slice(&self.item[1..]);
    }
}

pub(crate) fn key_of(object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    Key { namespace: text("namespace"), name: text("name") }
}
