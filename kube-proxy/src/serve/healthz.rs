//! The health server: `/healthz` for load balancers, `/livez` for the kubelet.

use std::{io, net::SocketAddr, time::Instant};

use http::{Request, StatusCode};
use hyper::body::Incoming;
use jiff::Timestamp;

use super::{
    answer::{self, Answer},
    connections::Connections,
    server,
};
use crate::telemetry::{
    health::HealthState,
    metrics::{self, HealthPath},
};

/// Serves for ever; returns only with `hard_fail`, when the port cannot be bound.
pub(crate) async fn serve(
    state: HealthState,
    address: SocketAddr,
    hard_fail: bool,
    connections: &Connections,
) -> io::Error {
    server::keep_serving("proxy healthz", address, hard_fail, connections, handler(state)).await
}

pub(super) fn handler(
    state: HealthState,
) -> impl Fn(Request<Incoming>) -> std::future::Ready<Answer> + Clone + Send + 'static {
    move |request| std::future::ready(respond(&state, request.uri().path()))
}

/// The method does not matter.
#[expect(clippy::disallowed_methods, reason = "the moment of the question")]
fn respond(state: &HealthState, path: &str) -> Answer {
    let path = match path {
        "/healthz" => HealthPath::Healthz,
        "/livez" => HealthPath::Livez,
        _ => return answer::not_found(),
    };
    let now = Instant::now();
    let health = state.health(now);
    let for_balancers = path == HealthPath::Healthz;
    let good = health.healthy && (!for_balancers || (health.eligible && health.synced));
    let code = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    metrics::health_answered(path, code.as_u16());
    answer::json(code, health.to_json(good, for_balancers, now, Timestamp::now()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proxy_core::model::Family;

    use super::*;
    use crate::serve::server::{
        Stack, listen,
        tests::{ask, loopback},
    };

    async fn start(state: &HealthState) -> SocketAddr {
        let listener = listen(loopback(), Stack::Both).expect("a port");
        let address = listener.local_addr().expect("an address");
        server::tests::start(listener, handler(state.clone()));
        address
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the real server has the real clock")]
    async fn codes_follow_eligibility_and_health() {
        let state = HealthState::new(Duration::from_secs(60));
        let address = start(&state).await;
        let codes = || async {
            let (healthz, _) = ask(address, "GET", "/healthz", "").await;
            let (livez, _) = ask(address, "GET", "/livez?verbose", "").await;
            (healthz[9..12].to_owned(), livez[9..12].to_owned())
        };
        let expect = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(codes().await, expect("503", "200"), "the node is not known yet");
        state.set_eligible(true);
        assert_eq!(codes().await, expect("200", "200"));
        state.started(Family::V4, Instant::now());
        assert_eq!(codes().await, expect("503", "200"), "no rules yet");
        state.updated(Family::V4, Instant::now());
        assert_eq!(codes().await, expect("200", "200"));
        state.queued(Family::V4, Instant::now() - Duration::from_secs(61));
        assert_eq!(codes().await, expect("503", "503"), "stuck");
        state.writing(Family::V4, Instant::now());
        assert_eq!(codes().await, expect("200", "200"), "slow, but moving");
    }

    #[tokio::test]
    async fn headers_and_methods_are_those_of_kube_proxy() {
        let state = HealthState::new(Duration::from_secs(60));
        state.set_eligible(true);
        let address = start(&state).await;
        for method in ["GET", "POST", "DELETE"] {
            let (head, body) = ask(address, method, "/healthz", "").await;
            assert!(head.starts_with("http/1.1 200 ok"), "{head}");
            assert!(head.contains("content-type: application/json"), "{head}");
            assert!(head.contains("x-content-type-options: nosniff"), "{head}");
            assert!(
                body.starts_with("{\"lastUpdated\":\"")
                    && body.ends_with("\"nodeEligible\":true,\"healthy\":true}"),
                "{body}"
            );
        }
        let (head, body) = ask(address, "GET", "/x", "").await;
        assert!(head.starts_with("http/1.1 404"));
        assert_eq!(body, "404 page not found\n");
    }
}
