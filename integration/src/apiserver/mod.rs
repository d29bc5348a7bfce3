//! A Kubernetes API server for the resources that a kube-proxy uses, over real HTTP, with faults on demand.
//!
//! It keeps what clients depend on (resource versions, watches, bookmarks, streaming lists, paging, selectors, 410 Gone)
//! and leaves out what they do not see (validation, defaults, admission, storage, authentication).

mod certificates;
mod clock;
mod connections;
mod faults;
mod journal;
mod protobuf;
mod reading;
mod resource;
mod routing;
mod security;
mod selector;
mod shared;
mod status;
mod store;
mod stored;
mod watching;
mod writing;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

pub use certificates::{Authority, Certified};
use faults::Control;
pub use faults::{Faults, FromTheFuture, Lag, SlowBody};
use journal::Journal;
pub use journal::{Asked, Peer};
use resource::RESOURCES;
pub use security::{Dialect, Security};
use selector::Selector;
use shared::Shared;
use store::Store;
use stored::Key;

/// A running server. It stops when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    is_secure: bool,
    stop: watch::Sender<bool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// What an object from outside lacks.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    #[error("apiVersion {api_version:?}, kind {kind:?} is not a resource of this server")]
    UnknownKind { api_version: String, kind: String },
    #[error("{kind} without {field}")]
    Missing { kind: &'static str, field: &'static str },
    #[error("there is no {kind} {namespace}/{name}")]
    NotFound { kind: String, namespace: String, name: String },
}

impl ApiServer {
    /// Serves on `address`, in the network namespace of the calling thread.
    pub fn start(address: SocketAddr) -> io::Result<Self> {
        Self::start_with(address, Duration::from_secs(60))
    }

    /// The same, with bookmarks on idle watches every `bookmark_interval`.
    pub fn start_with(address: SocketAddr, bookmark_interval: Duration) -> io::Result<Self> {
        Self::begin(address, bookmark_interval, None)
    }

    /// Serves over TLS.
    pub fn start_secure(address: SocketAddr, security: Security) -> io::Result<Self> {
        Self::begin(address, Duration::from_secs(60), Some(security))
    }

    fn begin(
        address: SocketAddr,
        bookmark_interval: Duration,
        security: Option<Security>,
    ) -> io::Result<Self> {
        let is_secure = security.is_some();
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            store: Mutex::new(Store::new()),
            control: watch::Sender::new(Control::default()),
            journal: Journal::new(),
            bookmark_interval,
        });
        let (stop, stopped) = watch::channel(false);
        let (ready, started) = mpsc::channel();
        let for_thread = shared.clone();
        // A thread is born in the namespace of its creator, so a listener re-opened later is in the right one too.
        let thread = thread::Builder::new().name("api-server".to_owned()).spawn(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(ready.send(Err(error))),
            };
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener);
                let accepting = listener
                    .map(|listener| connections::accept(for_thread, listener, address, security, stopped));
                match accepting {
                    Ok(accepting) => {
                        drop(ready.send(Ok(())));
                        accepting.await;
                    }
                    Err(error) => drop(ready.send(Err(error))),
                }
            });
        })?;
        started.recv().map_err(io::Error::other)??;
        Ok(Self { shared, address, is_secure, stop, thread: Some(thread) })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// A kubeconfig file's text for this server.
    pub fn kubeconfig(&self) -> String {
        kubeconfig(&self.url())
    }

    /// Creates or replaces an object; a `List` stands for its items. Answers the server's version afterwards.
    pub fn apply(&self, object: Value) -> Result<u64, ObjectError> {
        if object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) {
            let Value::Array(items) = object["items"].clone() else { return Ok(self.version()) };
            return self.load(items);
        }
        self.load([object])
    }

    /// Creates or replaces many objects under one lock. Stops at the first bad one.
    pub fn load(&self, objects: impl IntoIterator<Item = Value>) -> Result<u64, ObjectError> {
        let mut store = self.shared.store();
        for object in objects {
            let resource = resource::of_object(&object).ok_or_else(|| ObjectError::UnknownKind {
                api_version: object["apiVersion"].as_str().unwrap_or_default().to_owned(),
                kind: object["kind"].as_str().unwrap_or_default().to_owned(),
            })?;
            let kind = &RESOURCES[resource];
            let mut required = vec!["name"];
            if kind.namespaced {
                required.push("namespace");
            }
            for field in required {
                if object["metadata"][field].as_str().is_none_or(str::is_empty) {
                    return Err(ObjectError::Missing {
                        kind: kind.kind,
                        field: if field == "name" { "metadata.name" } else { "metadata.namespace" },
                    });
                }
            }
            store.put(resource, object);
        }
        Ok(store.version())
    }

    /// Deletes an object, named by its kind (`Service`) or plural (`events.events.k8s.io`).
    pub fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<u64, ObjectError> {
        let (resource, key) = address_of(kind, namespace, name)?;
        let mut store = self.shared.store();
        match store.delete(resource, &key) {
            Ok(_) => Ok(store.version()),
            Err(_) => Err(ObjectError::NotFound {
                kind: kind.to_owned(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
        }
    }

    pub fn object(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        let (resource, key) = address_of(kind, namespace, name).ok()?;
        let stored = self.shared.store().find(resource, &key).cloned()?;
        Some(stored.value(&RESOURCES[resource]))
    }

    /// All objects of a kind.
    pub fn objects(&self, kind: &str) -> Vec<Value> {
        let Some(resource) = resource_named(kind) else { return Vec::new() };
        let stored = self.shared.store().matching(resource, &Selector::default());
        stored.iter().map(|object| object.value(&RESOURCES[resource])).collect()
    }

    pub fn count(&self, kind: &str) -> usize {
        resource_named(kind).map_or(0, |resource| self.shared.store().len(resource))
    }

    /// The newest resource version.
    pub fn version(&self) -> u64 {
        self.shared.store().version()
    }

    /// The latest requests, oldest first, as `GET /api/v1/services?watch=true`.
    pub fn requests(&self) -> Vec<String> {
        let whole = |asked: Asked| {
            let mark = if asked.query.is_empty() { "" } else { "?" };
            format!("{} {}{mark}{}", asked.method, asked.path, asked.query)
        };
        self.shared.journal.all().into_iter().map(whole).collect()
    }

    /// The latest requests, oldest first, with what came of them.
    pub fn journal(&self) -> Vec<Asked> {
        self.shared.journal.all()
    }

    /// The time since the start, on the clock of the journal.
    pub fn clock(&self) -> Duration {
        self.shared.journal.now()
    }

    /// Changes the lasting faults.
    pub fn set_faults(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.control.send_modify(|control| change(&mut control.faults));
    }

    /// Forgets history: whoever resumes from an older version gets 410.
    pub fn compact(&self) {
        self.shared.store().compact();
    }

    /// Goes back to the state of an older version, as etcd does when it is restored from a copy; the connections break, as
    /// the API server is started anew for it. Answers whether that version was still known.
    pub fn restore(&self, version: u64) -> bool {
        let known = self.shared.store().restore(version);
        self.cut_watches();
        known
    }

    /// Ends all running watches cleanly.
    pub fn close_watches(&self) {
        self.shared.control.send_modify(|control| control.close += 1);
    }

    /// Ends all running watches with an ERROR event 410.
    pub fn expire_watches(&self) {
        self.shared.control.send_modify(|control| control.expire += 1);
    }

    /// Breaks all running watches in the middle of an event.
    pub fn cut_watches(&self) {
        self.shared.control.send_modify(|control| control.cut += 1);
    }

    /// Tells all clients to make new connections for what they ask from now on (GOAWAY of HTTP/2); what runs goes on.
    pub fn go_away(&self) {
        self.shared.control.send_modify(|control| control.go_away += 1);
    }

    /// Resets every connection that there is in the middle of what is sent on it next.
    pub fn tear_connections(&self) {
        self.shared.control.send_modify(|control| control.tear += 1);
    }

    /// Drops all connections and refuses new ones until `come_back`.
    pub fn go_down(&self) {
        self.shared.control.send_modify(|control| control.down = true);
    }

    pub fn come_back(&self) {
        self.shared.control.send_modify(|control| control.down = false);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A kubeconfig file's text for a server without authentication.
pub fn kubeconfig(url: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: embedded\n  cluster:\n    server: {url}\n\
         contexts:\n- name: embedded\n  context:\n    cluster: embedded\n    user: embedded\n\
         current-context: embedded\nusers:\n- name: embedded\n  user: {{}}\n"
    )
}

fn resource_named(kind: &str) -> Option<usize> {
    RESOURCES.iter().position(|resource| resource.kind == kind || resource.qualified() == kind)
}

fn address_of(kind: &str, namespace: &str, name: &str) -> Result<(usize, Key), ObjectError> {
    let resource = resource_named(kind)
        .ok_or_else(|| ObjectError::UnknownKind { api_version: String::new(), kind: kind.to_owned() })?;
    let namespace = if RESOURCES[resource].namespaced { namespace.to_owned() } else { String::new() };
    Ok((resource, Key { namespace, name: name.to_owned() }))
}
