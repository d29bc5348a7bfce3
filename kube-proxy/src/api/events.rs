//! Events on the Node and on Services, through events.k8s.io/v1.
//!
//! Whoever has something to report hands it over and goes on: a task of its own sends, repeats are counted rather
//! than sent, and where the API server forbids Events they are dropped without noise.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Method, Request, StatusCode};
use jiff::Timestamp;
use kube::Client;
use proxy_core::{
    limits::Excess,
    model::{Family, ObjectName, ServiceName},
    route::HintsIgnored,
};
use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};

use crate::{api::cluster_size, telemetry::metrics};

mod history;
mod outbox;
mod rate;

use outbox::{Act, Job, Next, Outbox};

/// events.k8s.io/v1 refuses longer ones (validation of Event).
const LONGEST_NOTE: usize = 1024;
const LONGEST_INSTANCE: usize = 128;
/// Of any object.
const LONGEST_NAME: usize = 253;
const CONTROLLER: &str = "kube-proxy";
/// How long one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) regarding: Regarding,
    pub(crate) severity: Severity,
    pub(crate) reason: &'static str,
    pub(crate) action: &'static str,
    pub(crate) note: String,
    /// Every node of a cluster finds the same about a Service; with this key they all give the Event one name, so that
    /// the first makes it and the others find it there.
    shared: Option<String>,
}

/// The object that an Event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Regarding {
    /// This node.
    Node,
    Service(ServiceName),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

impl Event {
    pub(crate) fn starting() -> Self {
        Self::node(Severity::Normal, "Starting", "StartKubeProxy", String::new())
    }

    /// The health port cannot be bound, and that is fatal.
    pub(crate) fn health_server_failed(note: String) -> Self {
        Self::node(Severity::Warning, "FailedToStartProxierHealthcheck", "StartKubeProxy", note)
    }

    /// The metrics port cannot be bound, and that is fatal.
    pub(crate) fn metrics_server_failed(note: String) -> Self {
        Self::node(Severity::Warning, "FailedToStartMetricServer", "StartKubeProxy", note)
    }

    pub(crate) fn service_health_check_failed(service: &ServiceName, note: String) -> Self {
        Self::service(service, Severity::Warning, "FailedToStartServiceHealthcheck", "Listen", note)
    }

    /// The kernel refused this Service's rules; its last good ones stay, all other Services go on.
    pub(crate) fn set_aside(service: &ServiceName, node: &str, reason: &str) -> Self {
        let note = format!(
            "node {node}: the kernel refused the rules of this Service, its last good ones stay: {reason}"
        );
        Self::service(service, Severity::Warning, "ServiceSetAside", "SyncProxyRules", note).shared("")
    }

    pub(crate) fn restored(service: &ServiceName, node: &str) -> Self {
        let note =
            format!("node {node}: the rules of this Service, which the kernel had refused, are in force");
        Self::service(service, Severity::Normal, "ServiceRestored", "SyncProxyRules", note).shared("")
    }

    /// Another Service, which goes first, has `count` of its addresses, `at` among them.
    pub(crate) fn address_conflict(
        service: &ServiceName,
        winner: &ServiceName,
        at: &str,
        count: usize,
    ) -> Self {
        let more = if count > 1 { format!(" (and {} more)", count - 1) } else { String::new() };
        let note = format!(
            "{at}{more} is also claimed by the Service {winner}, which gets its traffic: an allocated address goes before \
             one of status.loadBalancer, that before one of externalIPs, and then the older Service"
        );
        let key = format!("{at}{more} {winner}");
        Self::service(service, Severity::Warning, "AddressConflict", "SyncProxyRules", note).shared(&key)
    }

    /// The Service asks for more than one may.
    pub(crate) fn too_large(service: &ServiceName, family: Family, excess: &Excess) -> Self {
        let note =
            format!("{family}: {excess}. Its last good rules stay, if there are any, until it asks for less");
        let key = format!("{family} {excess}");
        Self::service(service, Severity::Warning, "ServiceTooLarge", "SyncProxyRules", note).shared(&key)
    }

    /// The Service restricts its load balancer's sources, but says nothing about this family.
    pub(crate) fn load_balancer_open(service: &ServiceName, family: Family) -> Self {
        let note = format!(
            "loadBalancerSourceRanges names no {family} network: everybody may use the load balancer's {family} addresses. \
             Add the networks that may, or the one of all addresses if this is meant"
        );
        let key = family.to_string();
        Self::service(service, Severity::Warning, "LoadBalancerOpen", "SyncProxyRules", note).shared(&key)
    }

    /// Endpoints carry topology hints, and traffic goes to all of them all the same.
    pub(crate) fn hints_ignored(
        service: &ServiceName,
        node: &str,
        family: Family,
        why: HintsIgnored,
    ) -> Self {
        let reason = match why {
            HintsIgnored::Incomplete => {
                "some ready endpoint carries no hint (the controller gives them to all or to none; is one in the middle of a change?)"
            }
            HintsIgnored::NoZone => "this node has no label topology.kubernetes.io/zone",
            HintsIgnored::NoneHere => "no ready endpoint is hinted for this node or its zone",
        };
        let note = format!(
            "node {node}: {family} traffic goes to endpoints of all zones, their topology hints are ignored: {reason}"
        );
        Self::service(service, Severity::Warning, "TopologyHintsIgnored", "SyncProxyRules", note)
            .shared(&format!("{family} {why:?}"))
    }

    /// Rules that are ours were changed by somebody else.
    pub(crate) fn drifted(note: String) -> Self {
        Self::node(Severity::Warning, "RulesChangedByOthers", "SyncProxyRules", note)
    }

    /// A kernel setting that the configuration asks for could not be made.
    pub(crate) fn setting_failed(note: String) -> Self {
        Self::node(Severity::Warning, "FailedToSetSysctl", "StartKubeProxy", note)
    }

    /// Nobody chose the mode, and the default will be another one (KEP-5343).
    pub(crate) fn mode_defaulted(mode: &str) -> Self {
        let note = format!(
            "no proxy mode is configured: it is {mode}, the default of Kubernetes up to 1.39; from 1.40 on that is nftables. \
             Set \"mode\" in the configuration"
        );
        Self::node(Severity::Warning, "ProxyModeDefaulted", "StartKubeProxy", note)
    }

    /// The node's addresses are not known; `off`: its NodePorts need them.
    pub(crate) fn node_unknown(reason: &str, off: bool) -> Self {
        let consequence = if off { "; NodePorts stay off" } else { "" };
        let note = format!("the addresses of this node are not known{consequence}: {reason}");
        Self::node(Severity::Warning, "NodeAddressesUnknown", "StartKubeProxy", note)
    }

    /// The kernel lacks something; `note` says what, and what does not work without it.
    pub(crate) fn kernel_lacks(note: String) -> Self {
        Self::node(Severity::Warning, "KernelFeatureMissing", "StartKubeProxy", note)
    }

    /// The API server was not heard from for a time; said when that is over.
    pub(crate) fn api_silent(note: String) -> Self {
        Self::node(Severity::Warning, "APIServerWasSilent", "SyncProxyRules", note)
    }

    /// An object cannot be decoded: its last state stays.
    pub(crate) fn unreadable(kind: &str, object: &ObjectName, why: &str) -> Self {
        let note = format!("{kind} {object} cannot be read, its last state stays: {why}");
        match kind {
            "Service" => Self::service(object, Severity::Warning, "UnreadableObject", "SyncProxyRules", note),
            _ => Self::node(Severity::Warning, "UnreadableObject", "SyncProxyRules", note),
        }
    }

    fn node(severity: Severity, reason: &'static str, action: &'static str, note: String) -> Self {
        Self { regarding: Regarding::Node, severity, reason, action, note, shared: None }
    }

    fn service(
        service: &ServiceName,
        severity: Severity,
        reason: &'static str,
        action: &'static str,
        note: String,
    ) -> Self {
        Self { regarding: Regarding::Service(service.clone()), severity, reason, action, note, shared: None }
    }

    fn shared(self, key: &str) -> Self {
        Self { shared: Some(key.to_owned()), ..self }
    }
}

/// Takes Events from any thread, without ever waiting.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    outbox: Mutex<Outbox>,
    /// Something was handed over.
    news: Notify,
    /// Everything was sent or given up.
    empty: Notify,
}

impl Shared {
    fn outbox(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was handed over and is not sent.
#[derive(Debug)]
pub(crate) struct Outgoing {
    shared: Arc<Shared>,
    node: String,
}

/// Where Events are handed over, and what sends them.
pub(crate) fn channel(node: &str) -> (Events, Outgoing) {
    let shared = Shared { outbox: Mutex::new(Outbox::new(node)), news: Notify::new(), empty: Notify::new() };
    let shared = Arc::new(shared);
    (Events { shared: Arc::clone(&shared) }, Outgoing { shared, node: node.to_owned() })
}

impl Events {
    pub(crate) fn send(&self, event: Event) {
        let now = Instant::now().into_std();
        let taken = self.shared.outbox().offer(event, &cluster_size::SEEN, now, Timestamp::now());
        match taken {
            Ok(()) => self.shared.news.notify_one(),
            Err(reason) => metrics::event_dropped(reason),
        }
    }

    /// Waits until everything that was handed over is sent, for so long at most; for the last words of a process.
    pub(crate) async fn flush(&self, limit: Duration) {
        self.shared.outbox().hurry();
        let flushed = async {
            loop {
                let empty = self.shared.empty.notified();
                self.shared.news.notify_one();
                empty.await;
                if self.shared.outbox().is_empty() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limit, flushed).await;
    }

    /// What was handed over and not sent, where nobody sends.
    #[cfg(test)]
    pub(crate) fn take_waiting(&self) -> Vec<Event> {
        self.shared.outbox().take_waiting()
    }
}

impl Outgoing {
    /// Sends for as long as the process runs.
    pub(crate) async fn run(self, client: Client) {
        let Self { shared, node } = self;
        let sender = Sender { client, node };
        loop {
            let next = shared.outbox().next(Instant::now().into_std());
            match next {
                Next::Send(job) => {
                    let request = sender.request(&job);
                    let sent = tokio::time::timeout(REQUEST_LIMIT, sender.send(&request)).await;
                    let outcome = sent.unwrap_or(Err(None));
                    let done = shared.outbox().done(*job, outcome, Instant::now().into_std());
                    if let Err(reason) = done {
                        metrics::event_dropped(reason);
                    }
                }
                Next::Wait(until) => tokio::select! {
                    () = tokio::time::sleep_until(until.into()) => {}
                    () = shared.news.notified() => {}
                },
                Next::Idle => {
                    shared.empty.notify_waiters();
                    shared.news.notified().await;
                }
            }
        }
    }
}

struct Sender {
    client: Client,
    node: String,
}

impl Sender {
    fn request(&self, job: &Job) -> ApiRequest {
        match &job.act {
            Act::Create { name } => create(&job.event, &self.node, name, Timestamp::now()),
            Act::Repeat { name, count } => repeat(&job.event.regarding, name, *count, Timestamp::now()),
        }
    }

    /// The error is the status, where there was an answer at all.
    async fn send(&self, request: &ApiRequest) -> Result<(), Option<StatusCode>> {
        let kind =
            if request.method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let built = Request::builder()
            .method(&request.method)
            .uri(&request.path)
            .header(http::header::CONTENT_TYPE, kind)
            .body(request.body.to_string().into_bytes())
            .map_err(|_| Some(StatusCode::BAD_REQUEST))?;
        match self.client.request::<Value>(built).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => {
                tracing::debug!(code = status.code, message = status.message, "An Event was refused");
                Err(StatusCode::from_u16(status.code).ok())
            }
            Err(error) => {
                tracing::debug!(%error, "An Event could not be sent");
                Err(None)
            }
        }
    }
}

#[derive(Debug, PartialEq)]
struct ApiRequest {
    method: Method,
    path: String,
    body: Value,
}

fn create(event: &Event, node: &str, name: &str, now: Timestamp) -> ApiRequest {
    let namespace = namespace(&event.regarding);
    let regarding = match &event.regarding {
        Regarding::Node => json!({ "apiVersion": "v1", "kind": "Node", "name": node }),
        Regarding::Service(service) => json!({
            "apiVersion": "v1", "kind": "Service", "namespace": service.namespace(), "name": service.name(),
        }),
    };
    ApiRequest {
        method: Method::POST,
        path: format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"),
        body: json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": name, "namespace": namespace },
            "eventTime": micro_time(now),
            "reportingController": CONTROLLER,
            "reportingInstance": cut(&format!("{CONTROLLER}-{node}"), LONGEST_INSTANCE),
            "action": event.action,
            "reason": event.reason,
            "regarding": regarding,
            "note": cut(&event.note, LONGEST_NOTE),
            "type": match event.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            },
        }),
    }
}

/// An Event that was sent before happened again: its series grows.
fn repeat(regarding: &Regarding, name: &str, count: u32, now: Timestamp) -> ApiRequest {
    ApiRequest {
        method: Method::PATCH,
        path: format!("/apis/events.k8s.io/v1/namespaces/{}/events/{name}", namespace(regarding)),
        body: json!({ "series": { "count": count, "lastObservedTime": micro_time(now) } }),
    }
}

/// Events about objects without a namespace live in `default`.
fn namespace(regarding: &Regarding) -> &str {
    match regarding {
        Regarding::Node => "default",
        Regarding::Service(service) => service.namespace(),
    }
}

/// The object's name, and what tells this Event from others: the time, or what all nodes have in common.
fn object_name(event: &Event, node: &str, now: Timestamp) -> String {
    let object = match &event.regarding {
        Regarding::Node => node,
        Regarding::Service(service) => service.name(),
    };
    let tail = match &event.shared {
        Some(key) => format!("{:016x}", cluster_size::hash(&[event.reason, key])),
        None => format!("{:x}", now.as_nanosecond()),
    };
    let object = &object[..object.floor_char_boundary(LONGEST_NAME - tail.len() - 1)];
    // Before a dot, a name of the API must end in a letter or a digit.
    format!("{}.{tail}", object.trim_end_matches(|c: char| !c.is_ascii_alphanumeric()))
}

/// Always six digits, as the API's MicroTime wants it.
fn micro_time(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// At most so many bytes, and whole characters.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

#[cfg(test)]
mod tests;
