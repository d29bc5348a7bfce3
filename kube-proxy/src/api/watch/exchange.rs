//! One request and its answer, as far as they are the same for lists, watches and questions beside them.

use std::{io, time::Duration};

use http::header;
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};

use crate::api::{
    events::Events,
    reflector::{Refusal, Request},
    wire::{self, Encoding},
};

/// Of the body of a refusal, no more is read than this.
const LARGEST_REFUSAL: usize = 64 * 1024;
/// How long a request for one object, or the body of a refusal, may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Where objects come from.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) client: Client,
    /// Which encodings to ask for (`wire::accept`).
    pub(crate) accept: &'static str,
    /// Told where an object cannot be read.
    pub(crate) events: Option<Events>,
}

pub(super) async fn send(
    source: &Source,
    path: String,
    request: &Request,
) -> Result<http::Response<Body>, kube::Error> {
    let request = http::Request::get(format!("{path}?{}", request.query()))
        .header(header::ACCEPT, source.accept)
        .body(Body::empty())
        .map_err(kube::Error::HttpError)?;
    source.client.send(request).await
}

pub(super) fn encoding(response: &http::Response<Body>) -> Option<Encoding> {
    Encoding::of(response.headers().get(header::CONTENT_TYPE)?.to_str().ok()?)
}

/// `None` at the end.
pub(super) async fn next_piece(
    body: &mut Body,
) -> Result<Option<impl std::ops::Deref<Target = [u8]>>, String> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(error)) => return Err(chain(&error)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// What the server says about a request that it refused.
pub(super) async fn refusal(response: http::Response<Body>) -> Refusal {
    let code = response.status().as_u16();
    let encoding = encoding(&response);
    let seconds =
        response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut body = response.into_body();
    let mut text = Vec::new();
    let read = async {
        while let Ok(Some(piece)) = next_piece(&mut body).await {
            text.extend_from_slice(&piece);
            if text.len() > LARGEST_REFUSAL {
                break;
            }
        }
    };
    // What the code alone says will do.
    let _ = tokio::time::timeout(PATIENCE, read).await;
    let refusal = wire::refusal(encoding, code, &text);
    Refusal { retry_after: seconds.map(Duration::from_secs).or(refusal.retry_after), ..refusal }
}

pub(super) fn is_connection_refused(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        if cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
        {
            return true;
        }
        error = cause.source();
    }
    false
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
