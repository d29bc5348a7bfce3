//! Requests to a cluster's API server, and to metrics beside it, one at a time.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::{Method, Request};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) struct Connection {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Connection {
    pub(crate) fn open(kubeconfig: &Path) -> Result<Self> {
        let file =
            Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
        Self::with(file).with_context(|| format!("{} is not usable", kubeconfig.display()))
    }

    pub(crate) fn with(kubeconfig: Kubeconfig) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    /// `None` if there is no such object.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Value>> {
        match self.send(Method::GET, path, None) {
            Ok(found) => Ok(Some(found)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(plain(error)).with_context(|| format!("GET {path}")),
        }
    }

    pub(crate) fn create(&self, path: &str, object: &Value) -> Result<Value> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        self.send(Method::POST, path, Some((object, "application/json")))
            .map_err(plain)
            .with_context(|| format!("creating {name} at {path}"))
    }

    /// `None` if there is no such object to replace; some kinds are created then.
    pub(crate) fn replace(&self, path: &str, object: &Value) -> Result<Option<Value>> {
        match self.send(Method::PUT, path, Some((object, "application/json"))) {
            Ok(replaced) => Ok(Some(replaced)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(plain(error)).with_context(|| format!("replacing {path}")),
        }
    }

    pub(crate) fn patch(&self, path: &str, patch: &Value) -> Result<()> {
        self.send(Method::PATCH, path, Some((patch, "application/merge-patch+json")))
            .map_err(plain)
            .with_context(|| format!("changing {path}"))?;
        Ok(())
    }

    /// What is gone already is no error.
    pub(crate) fn delete(&self, path: &str) -> Result<()> {
        match self.send(Method::DELETE, path, None) {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop).map_err(plain).with_context(|| format!("deleting {path}")),
        }
    }

    /// What the API server passes on as text.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        let request = Request::get(path).body(Vec::new())?;
        let answer = async { tokio::time::timeout(PATIENCE, self.client.request_text(request)).await };
        Ok(self.runtime.block_on(answer).context("no answer in time")??)
    }

    fn send(&self, method: Method, path: &str, body: Option<(&Value, &str)>) -> Result<Value, kube::Error> {
        let mut request = Request::builder().method(method).uri(path);
        let mut bytes = Vec::new();
        if let Some((object, kind)) = body {
            request = request.header("content-type", kind);
            bytes = object.to_string().into_bytes();
        }
        let request = request.body(bytes).map_err(kube::Error::HttpError)?;
        self.runtime.block_on(self.client.request::<Value>(request))
    }
}

/// What the server says is all that a reader needs.
fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::Error::msg(status.message),
        other => other.into(),
    }
}

/// A page of plain HTTP elsewhere.
pub(crate) fn fetch(url: &str) -> Result<String> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url} does not begin with http://"))?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let address = host
        .to_socket_addrs()
        .with_context(|| format!("{host} is no HOST:PORT"))?
        .next()
        .with_context(|| format!("{host} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the answer ends with the connection.
    write!(stream, "GET /{path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{url}: {status}");
    }
    Ok(body.to_owned())
}
