//! The objects of a lab in a real kube-apiserver, which completes them and refuses what no cluster can hold.

use anyhow::{Context as _, Result};
use kube::config::Kubeconfig;
use serde_json::{Value, json};

use super::NAMESPACE;
use crate::connection::Connection;
use crate::network::{Family, Namespace};
use crate::real_apiserver::{RealApiServer, Settings, assets};

/// Its first address is the API server's own Service's, and a lab gives out addresses from the first one on.
const SERVICE_RANGE_V4: &str = "172.16.0.0/12";
const NODE_PORTS: &str = "1-65535";
/// Asks the lab to use a real API server.
const VARIABLE: &str = "SWITCHYARD_REAL_API_SERVER";

/// The server, and how its administrator talks to it.
pub(super) struct RealCluster {
    server: RealApiServer,
    connection: Connection,
}

impl RealCluster {
    /// Starts one on a node's loopback, where the environment asks for it.
    pub(super) fn start_if_wanted(node: &Namespace) -> Result<Option<Self>> {
        // A VM has no room for it.
        let unwanted = std::env::var_os(VARIABLE).is_none() || std::env::var_os("VM_RUN_GUEST").is_some();
        if unwanted {
            return Ok(None);
        }
        let assets = assets().with_context(|| format!("{VARIABLE} needs KUBEBUILDER_ASSETS"))?;
        let service_range = format!("{SERVICE_RANGE_V4},{}", Family::V6.service_cidr());
        let cluster = node.run(|| {
            let settings = Settings { service_range: &service_range, node_ports: NODE_PORTS, data: None };
            let server = RealApiServer::start(&assets, settings)?;
            let connection = Connection::with(Kubeconfig::from_yaml(&server.kubeconfig())?)?;
            anyhow::Ok(Self { server, connection })
        })??;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        cluster.write(node, &namespace)?;
        Ok(Some(cluster))
    }

    /// With the rights of kube-proxy and no more.
    pub(super) fn kubeconfig(&self) -> String {
        self.server.proxy_kubeconfig()
    }

    /// What the server itself made that concerns a proxy.
    pub(super) fn own_objects(&self, node: &Namespace) -> Result<Vec<Value>> {
        let paths = [
            "/api/v1/namespaces/default/services/kubernetes",
            "/apis/networking.k8s.io/v1/servicecidrs/kubernetes",
        ];
        node.run(|| {
            // They come a little later than the server.
            let found = |path: &&str| loop {
                if let Some(object) = self.connection.get(path)? {
                    return Ok(object);
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            };
            paths.iter().map(found).collect()
        })?
    }

    /// Creates or replaces an object; answers what the server made of it. What an object may not become while it lives it
    /// becomes by being deleted and created, as its user would have to do it.
    pub(super) fn write(&self, node: &Namespace, object: &Value) -> Result<Value> {
        let path = path_of(object);
        node.run(|| {
            let written = match self.connection.replace(&path, object) {
                Ok(Some(replaced)) => replaced,
                Ok(None) => self.connection.create(collection_of(&path), object)?,
                Err(_) => {
                    self.connection.delete(&path)?;
                    self.connection.create(collection_of(&path), object)?
                }
            };
            // A status is only taken by a request of its own; one that is not given goes.
            let balancer = "/status/loadBalancer/ingress";
            if object["status"].is_null() && written.pointer(balancer).is_none() {
                return Ok(written);
            }
            let mut with_status = written;
            with_status["status"] = if object["status"].is_null() {
                json!({"loadBalancer": {}})
            } else {
                object["status"].clone()
            };
            let replaced = self.connection.replace(&format!("{path}/status"), &with_status)?;
            replaced.with_context(|| format!("{path} has no status"))
        })?
    }

    pub(super) fn delete(&self, node: &Namespace, object: &Value) -> Result<()> {
        node.run(|| self.connection.delete(&path_of(object)))?
    }
}

impl std::fmt::Debug for RealCluster {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RealCluster").field("server", &self.server).finish_non_exhaustive()
    }
}

fn path_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let group = match text(&object["apiVersion"]).as_str() {
        "v1" => "/api/v1".to_owned(),
        group => format!("/apis/{group}"),
    };
    let namespace = match &object["metadata"]["namespace"] {
        Value::String(namespace) => format!("/namespaces/{namespace}"),
        _ => String::new(),
    };
    let plural = format!("{}s", text(&object["kind"]).to_lowercase());
    format!("{group}{namespace}/{plural}/{}", text(&object["metadata"]["name"]))
}

fn collection_of(path: &str) -> &str {
    path.rsplit_once('/').map_or(path, |(collection, _)| collection)
}
