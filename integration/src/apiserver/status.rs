//! Refusals, as the `Status` objects that Kubernetes clients understand.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::protobuf;
use super::resource::Resource;

/// How a response is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    /// The first that the client accepts and that is spoken here.
    pub(crate) fn accepted(accept: &str, speaks_protobuf: bool) -> Self {
        let media_types = accept.split(',').map(|one| one.split(';').next().unwrap_or_default().trim());
        let mut known = media_types.filter_map(|media_type| match media_type {
            protobuf::MEDIA_TYPE if speaks_protobuf => Some(Self::Protobuf),
            "application/json" | "application/*" | "*/*" => Some(Self::Json),
            _ => None,
        });
        known.next().unwrap_or(Self::Json)
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => protobuf::MEDIA_TYPE,
        }
    }

    pub(crate) fn watch_media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }
}

/// Why a request was not served.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    reason: &'static str,
    message: String,
    details: Value,
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: String) -> Self {
        Self { code, reason, message, details: Value::Null }
    }

    pub(crate) fn bad_request(message: String) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn no_such_path() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource".to_owned())
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Self { details: details(resource, name), ..Self::new(404, "NotFound", message) }
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Self { details: details(resource, name), ..Self::new(409, "AlreadyExists", message) }
    }

    pub(crate) fn conflict(resource: &Resource, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes to the latest version and try again",
            resource.qualified()
        );
        Self { details: details(resource, name), ..Self::new(409, "Conflict", message) }
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource".to_owned(),
        )
    }

    pub(crate) fn media_type(given: &str) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!("the body of the request was in an unknown format: {given:?}"),
        )
    }

    pub(crate) fn invalid_list_options(cause: &str) -> Self {
        Self::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {cause}"))
    }

    /// The version asked for is no longer known.
    pub(crate) fn gone(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// The page asked for belongs to a version that is no longer known.
    pub(crate) fn continue_expired() -> Self {
        Self::new(410, "Expired", "The provided continue parameter is too old".to_owned())
    }

    /// The version asked for is not known yet.
    pub(crate) fn too_large(asked: u64, current: u64) -> Self {
        let message = format!("Too large resource version: {asked}, current: {current}");
        let details = json!({
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        });
        Self { details, ..Self::new(504, "Timeout", message) }
    }

    /// A refusal that a test asked for.
    pub(crate) fn injected(resource: &Resource, verb: &str, code: u16) -> Self {
        let resource_name = resource.qualified();
        match code {
            403 => Self::new(
                code,
                "Forbidden",
                format!(
                    "{resource_name} is forbidden: User \"system:anonymous\" cannot {verb} resource \"{}\"",
                    resource.plural
                ),
            ),
            404 => Self::no_such_path(),
            410 => Self::gone(1, 2),
            504 => Self::too_large(2, 1),
            429 => Self::new(code, "TooManyRequests", "the server has received too many requests".to_owned()),
            _ => Self::new(
                code,
                "InternalError",
                format!("an error on the server (\"{code}\") was asked for by the test"),
            ),
        }
    }

    pub(crate) fn value(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }

    pub(crate) fn response(&self, encoding: Encoding) -> Response {
        let code = StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = match encoding {
            Encoding::Json => self.value().to_string().into_bytes(),
            Encoding::Protobuf => protobuf::status(&self.value()),
        };
        let mut response = encoded_response(code, encoding, body);
        if self.code == 429 {
            response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

pub(crate) fn json_response(code: StatusCode, body: Vec<u8>) -> Response {
    encoded_response(code, Encoding::Json, body)
}

pub(crate) fn encoded_response(code: StatusCode, encoding: Encoding, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    let media_type = header::HeaderValue::from_static(encoding.media_type());
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

fn details(resource: &Resource, name: &str) -> Value {
    json!({"name": name, "group": resource.group, "kind": resource.plural})
}
