//! Counts and times the requests to the API server, as client-go does: a layer around the client's service.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

/// Put it around the service of a `kube::Client`. There, requests do not name their host yet: the client adds it
/// further inside.
#[derive(Debug, Clone)]
pub(crate) struct RestClientMetrics {
    host: Arc<str>,
}

impl RestClientMetrics {
    /// `host`: address and port of the API server, as its URL has them.
    pub(crate) fn new(host: &str) -> Self {
        Self { host: host.into() }
    }
}

impl<S> Layer<S> for RestClientMetrics {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner, host: Arc::clone(&self.host) }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Measured<S> {
    inner: S,
    host: Arc<str>,
}

impl<S, B, R> Service<Request<B>> for Measured<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
    B: http_body::Body,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    #[expect(clippy::disallowed_methods, reason = "measures how long a request took")]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let host = self.host.to_string();
        let method = request.method().to_string();
        if let Some(size) = request.body().size_hint().exact() {
            metrics::histogram!("rest_client_request_size_bytes", "verb" => method.clone(), "host" => host.clone())
                .record(size as f64);
        }
        let begun = Instant::now();
        let response = self.inner.call(request);
        Box::pin(async move {
            let result = response.await;
            let code = match &result {
                Ok(response) => response.status().as_u16().to_string(),
                // client-go's word for a request that got no answer.
                Err(_) => "<error>".to_owned(),
            };
            metrics::histogram!("rest_client_request_duration_seconds", "verb" => method.clone(), "host" => host.clone())
                .record(begun.elapsed().as_secs_f64());
            metrics::counter!("rest_client_requests_total", "code" => code, "method" => method, "host" => host)
                .increment(1);
            result
        })
    }
}
