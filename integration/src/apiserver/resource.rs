//! Which resources the server knows, and which of their fields a field selector may name.

use serde_json::Value;

/// One resource type, addressed by its path segments.
#[derive(Debug)]
pub(crate) struct Resource {
    /// The API group; empty for the core group.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespaced: bool,
    /// Whether `/status` exists, so that a plain update leaves the status alone.
    pub(crate) has_status: bool,
    /// Fields beside `metadata.name` and `metadata.namespace` that a field selector may name.
    pub(crate) fields: &'static [&'static str],
}

/// Everything a kube-proxy reads or writes.
pub(crate) const RESOURCES: &[Resource] = &[
    Resource {
        group: "",
        version: "v1",
        plural: "services",
        kind: "Service",
        namespaced: true,
        has_status: true,
        fields: &["spec.clusterIP", "spec.type"],
    },
    Resource {
        group: "",
        version: "v1",
        plural: "nodes",
        kind: "Node",
        namespaced: false,
        has_status: true,
        fields: &["spec.unschedulable"],
    },
    Resource {
        group: "",
        version: "v1",
        plural: "events",
        kind: "Event",
        namespaced: true,
        has_status: false,
        fields: &["involvedObject.kind", "involvedObject.name", "reason", "type"],
    },
    Resource {
        group: "discovery.k8s.io",
        version: "v1",
        plural: "endpointslices",
        kind: "EndpointSlice",
        namespaced: true,
        has_status: false,
        fields: &[],
    },
    Resource {
        group: "networking.k8s.io",
        version: "v1",
        plural: "servicecidrs",
        kind: "ServiceCIDR",
        namespaced: false,
        has_status: true,
        fields: &[],
    },
    Resource {
        group: "events.k8s.io",
        version: "v1",
        plural: "events",
        kind: "Event",
        namespaced: true,
        has_status: false,
        fields: &["regarding.kind", "regarding.name", "reason", "type"],
    },
    // Nothing is kept from a namespace that does not exist; this is for tools that make one of their own.
    Resource {
        group: "",
        version: "v1",
        plural: "namespaces",
        kind: "Namespace",
        namespaced: false,
        has_status: true,
        fields: &[],
    },
];

impl Resource {
    /// The value of `apiVersion` in its objects.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// How `kubectl` and the API server's messages name it: `endpointslices.discovery.k8s.io`.
    pub(crate) fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The field values kept beside an object so that selectors need not parse it again.
    pub(crate) fn selectable(&self, object: &Value) -> Vec<(&'static str, String)> {
        self.fields.iter().map(|path| (*path, text_at(object, path))).collect()
    }
}

/// Finds the resource of an object by its `apiVersion` and `kind`.
pub(crate) fn of_object(object: &Value) -> Option<usize> {
    let api_version = object["apiVersion"].as_str()?;
    let kind = object["kind"].as_str()?;
    RESOURCES.iter().position(|resource| resource.kind == kind && resource.api_version() == api_version)
}

/// Finds the resource that a path names.
pub(crate) fn of_path(group: &str, version: &str, plural: &str) -> Option<usize> {
    RESOURCES.iter().position(|resource| {
        resource.group == group && resource.version == version && resource.plural == plural
    })
}

fn text_at(object: &Value, path: &str) -> String {
    let value = path.split('.').fold(object, |value, segment| &value[segment]);
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
