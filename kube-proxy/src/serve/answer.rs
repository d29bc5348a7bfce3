//! Answers as a Go server gives them: the same headers and texts for the same situations.

use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Bytes;

pub(crate) type Answer = Response<Full<Bytes>>;

const PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer that browsers do not second-guess.
pub(crate) fn plain(code: StatusCode, text: impl Into<Bytes>) -> Answer {
    no_sniff(with_type(code, PLAIN, text))
}

pub(crate) fn json(code: StatusCode, text: impl Into<Bytes>) -> Answer {
    no_sniff(with_type(code, JSON, text))
}

pub(crate) fn with_type(code: StatusCode, kind: HeaderValue, text: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(text.into()));
    *answer.status_mut() = code;
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// What Go's mux says of a path that nobody serves.
pub(crate) fn not_found() -> Answer {
    plain(StatusCode::NOT_FOUND, "404 page not found\n")
}

pub(crate) fn with_header(mut answer: Answer, name: HeaderName, value: HeaderValue) -> Answer {
    answer.headers_mut().insert(name, value);
    answer
}

fn no_sniff(answer: Answer) -> Answer {
    with_header(answer, header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))
}
