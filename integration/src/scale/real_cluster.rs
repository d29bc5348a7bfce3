//! A real kube-apiserver as the cluster of a benchmark: loaded once for each workload, copied for each run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use crate::interrupt;
use crate::network::Namespace;
use crate::real_apiserver::{RealApiServer, Settings};

use super::workload::{CLUSTER_IP_RANGE, NAMESPACE, NODE_PORT_RANGE, Workload};

/// Requests at a time: a server answers many together faster than one after the other.
const TOGETHER: usize = 64;

/// What etcd holds once all objects of a workload are there.
#[derive(Debug)]
pub(crate) struct LoadedData {
    assets: PathBuf,
    folder: PathBuf,
}

/// A server with a client of the administrator.
#[derive(Debug)]
pub(crate) struct RealCluster {
    server: RealApiServer,
    writer: Writer,
}

/// Its threads, and so its sockets, are in the namespace that it was made in, wherever it is called from.
struct Writer {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl LoadedData {
    pub(crate) fn load(assets: &Path, workload: &Workload) -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("scale-etcd-{}-{}", std::process::id(), workload.shape.name));
        interrupt::remember_folder(&folder);
        let data = Self { assets: assets.to_owned(), folder };
        let place = Namespace::create("loading")?;
        place
            .run(|| {
                let server = RealApiServer::start(assets, settings(None))?;
                let writer = Writer::open(&server)?;
                writer.create(vec![
                    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
                ])?;
                let mut objects = workload.objects().peekable();
                while objects.peek().is_some() {
                    writer.create(objects.by_ref().take(5_000).collect())?;
                }
                drop(writer);
                server.stop_and_keep(&data.folder)
            })?
            .context("loading the workload into a real API server")?;
        Ok(data)
    }
}

impl Drop for LoadedData {
    fn drop(&mut self) {
        // It may never have been made.
        drop(std::fs::remove_dir_all(&self.folder));
        interrupt::forget_folder(&self.folder);
    }
}

impl RealCluster {
    /// In the network namespace of the calling thread.
    pub(crate) fn start(data: &LoadedData) -> Result<Self> {
        let server = RealApiServer::start(&data.assets, settings(Some(&data.folder)))?;
        let writer = Writer::open(&server)?;
        let cluster = Self { server, writer };
        // A contender is not to wait for the server's own caches.
        for path in ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"] {
            let path = format!("{path}?resourceVersion=0&limit=1");
            cluster.writer.wait_for(send(cluster.writer.client.clone(), Method::GET, path, None))?;
        }
        Ok(cluster)
    }

    pub(crate) fn proxy_kubeconfig(&self) -> String {
        self.server.proxy_kubeconfig()
    }

    /// The outcome comes when the server has answered all.
    pub(crate) fn begin_replace(&self, objects: Vec<Value>) -> mpsc::Receiver<Result<()>> {
        let client = self.writer.client.clone();
        self.writer.spawn(async move {
            let requests = objects.into_iter().map(|object| {
                let path = format!("{}/{}", collection(&object), name(&object));
                send(client.clone(), Method::PUT, path, Some(object))
            });
            stream::iter(requests).buffer_unordered(TOGETHER).try_collect().await
        })
    }
}

impl Writer {
    fn open(server: &RealApiServer) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let client = runtime.block_on(async {
            let file = Kubeconfig::from_yaml(&server.kubeconfig())?;
            let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    fn create(&self, objects: Vec<Value>) -> Result<()> {
        let client = self.client.clone();
        self.wait_for(async move {
            stream::iter(objects.into_iter().map(|object| create_one(client.clone(), object)))
                .buffer_unordered(TOGETHER)
                .try_collect()
                .await
        })
    }

    fn wait_for(&self, work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
        self.spawn(work).recv().context("the writer ended early")?
    }

    fn spawn(&self, work: impl Future<Output = Result<()>> + Send + 'static) -> mpsc::Receiver<Result<()>> {
        let (done, outcome) = mpsc::channel();
        // Not on the calling thread, whose network may be another one. Whoever asked may have gone.
        self.runtime.spawn(async move { drop(done.send(work.await)) });
        outcome
    }
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Writer").finish_non_exhaustive()
    }
}

fn settings(data: Option<&Path>) -> Settings<'_> {
    Settings { service_range: CLUSTER_IP_RANGE, node_ports: NODE_PORT_RANGE, data }
}

/// What both programs say about themselves.
pub(crate) fn versions(assets: &Path) -> Result<String> {
    let version = |name: &str| -> Result<String> {
        let program = assets.join(name);
        let output = Command::new(&program).arg("--version").output();
        let output = output.with_context(|| format!("running {}", program.display()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let word = text.lines().next().and_then(|line| line.split_whitespace().last()).unwrap_or_default();
        Ok(word.to_owned())
    };
    Ok(format!("kube-apiserver {} with etcd {}", version("kube-apiserver")?, version("etcd")?))
}

async fn create_one(client: Client, object: Value) -> Result<()> {
    let path = collection(&object);
    let status = object.get("status").filter(|_| object["kind"] == "Service").cloned();
    let status_path = format!("{path}/{}/status", name(&object));
    send(client.clone(), Method::POST, path, Some(object)).await?;
    // A Service's status is not taken from whoever creates it.
    if let Some(status) = status {
        send(client, Method::PATCH, status_path, Some(json!({ "status": status }))).await?;
    }
    Ok(())
}

async fn send(client: Client, method: Method, path: String, object: Option<Value>) -> Result<()> {
    let what = format!("{method} {path}");
    let kind = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
    let body = object.map(|object| object.to_string().into_bytes()).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header("content-type", kind).body(body)?;
    client.request_text(request).await.map(drop).context(what)
}

fn collection(object: &Value) -> String {
    let group = match object["apiVersion"].as_str().unwrap_or_default() {
        "v1" => "/api/v1".to_owned(),
        group => format!("/apis/{group}"),
    };
    let plural = format!("{}s", object["kind"].as_str().unwrap_or_default().to_lowercase());
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}"),
        None => format!("{group}/{plural}"),
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
