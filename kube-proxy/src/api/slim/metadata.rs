//! What is kept of an object's metadata: the rest (managed fields above all) is dropped while it is read.

use std::{borrow::Cow, fmt};

use proxy_core::model::ObjectName;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use crate::api::reflector::Version;

/// Of annotations, only these count: options of ours, and when the change of an EndpointSlice began.
pub(crate) use proxy_core::model::OPTION_PREFIX;

pub(crate) const ANNOTATION_TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// On the bookmark that ends a streamed list (KEP-3157).
pub(crate) const ANNOTATION_LIST_END: &str = "k8s.io/initial-events-end";

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// `None` where the object says none, as in a bookmark.
    pub(crate) name: Option<ObjectName>,
    pub(crate) version: Box<str>,
    /// In seconds since 1970.
    pub(crate) created: Option<i64>,
    pub(crate) is_being_deleted: bool,
    pub(crate) labels: Pairs,
    pub(crate) annotations: Pairs,
    /// Of a bookmark: everything that exists was told.
    pub(crate) ends_list: bool,
}

impl Metadata {
    pub(crate) fn name(&self) -> ObjectName {
        self.name.clone().unwrap_or_else(|| ObjectName::new("", ""))
    }

    pub(crate) fn version(&self) -> Version {
        Version::new(&self.version)
    }
}

/// What identifies an object, and nothing else.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Names {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) resource_version: String,
}

impl From<Names> for Metadata {
    fn from(names: Names) -> Self {
        Self {
            name: (!names.name.is_empty()).then(|| ObjectName::new(&names.namespace, &names.name)),
            version: names.resource_version.into(),
            ..Self::default()
        }
    }
}

/// Labels or annotations.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Pairs(Vec<(Box<str>, Box<str>)>);

impl Pairs {
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(known, _)| **known == *key).map(|(_, value)| &**value)
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    pub(crate) fn push(&mut self, key: &str, value: &str) {
        self.0.push((key.into(), value.into()));
    }

    /// One order for all encodings: JSON objects are sorted by key, protobuf maps in any order.
    pub(crate) fn sort(&mut self) {
        self.0.sort_unstable();
    }
}

pub(crate) fn is_of_interest(annotation: &str) -> bool {
    annotation.starts_with(OPTION_PREFIX)
        || annotation == ANNOTATION_TRIGGER_TIME
        || annotation == ANNOTATION_LIST_END
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Raw {
            #[serde(default)]
            name: Option<String>,
            #[serde(default)]
            namespace: Option<String>,
            #[serde(default)]
            resource_version: Option<String>,
            #[serde(default)]
            creation_timestamp: Option<String>,
            #[serde(default)]
            deletion_timestamp: Option<IgnoredAny>,
            #[serde(default)]
            labels: Option<All>,
            #[serde(default)]
            annotations: Option<OfInterest>,
        }
        let raw = Raw::deserialize(deserializer)?;
        let created = raw.creation_timestamp.map(|text| match text.parse::<jiff::Timestamp>() {
            Ok(time) => Ok(time.as_second()),
            Err(error) => Err(D::Error::custom(format!("creationTimestamp {text:?}: {error}"))),
        });
        let annotations = raw.annotations.map(|annotations| annotations.0).unwrap_or_default();
        let name = raw.name.filter(|name| !name.is_empty());
        Ok(Self {
            name: name.map(|name| ObjectName::new(raw.namespace.as_deref().unwrap_or_default(), &name)),
            version: raw.resource_version.unwrap_or_default().into(),
            created: created.transpose()?,
            is_being_deleted: raw.deletion_timestamp.is_some(),
            labels: raw.labels.map(|labels| labels.0).unwrap_or_default(),
            ends_list: annotations.get(ANNOTATION_LIST_END) == Some("true"),
            annotations,
        })
    }
}

struct All(Pairs);
struct OfInterest(Pairs);

impl<'de> Deserialize<'de> for All {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(|_| true)).map(Self)
    }
}

impl<'de> Deserialize<'de> for OfInterest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor(is_of_interest)).map(Self)
    }
}

struct PairsVisitor(fn(&str) -> bool);

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        let mut pairs = Pairs::default();
        while let Some(Text(key)) = map.next_key::<Text<'de>>()? {
            if (self.0)(&key) {
                let Text(value) = map.next_value::<Text<'de>>()?;
                pairs.push(&key, &value);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        pairs.sort();
        Ok(pairs)
    }
}
