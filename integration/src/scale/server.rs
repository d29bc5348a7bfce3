//! The API server that contenders watch: this project's own inside the benchmark, or a real kube-apiserver with its etcd.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::mpsc;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::apiserver::ApiServer;
use crate::real_apiserver;

use super::real_cluster::{LoadedData, RealCluster};
use super::site::Site;
use super::workload::Workload;

/// The embedded server's place on the node.
const EMBEDDED: &str = "127.0.0.1:6443";

/// Which one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerKind {
    Embedded,
    /// From the folder of its programs.
    Real(PathBuf),
}

/// A server of that kind for one workload, to be started for each run.
#[derive(Debug)]
pub(crate) enum Prepared<'a> {
    Embedded(&'a Workload),
    /// Loading takes a real server long, so it is done once; every run begins with a copy.
    Real(LoadedData),
}

/// A server on the node of a run.
#[derive(Debug)]
pub(crate) enum Server {
    Embedded(ApiServer),
    Real(RealCluster),
}

/// A write that may still be under way.
#[must_use]
pub(crate) enum Writing {
    Done,
    Underway(mpsc::Receiver<Result<()>>),
}

impl FromStr for ServerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, real_apiserver::assets()) {
            ("embedded", _) => Ok(Self::Embedded),
            ("real", Some(assets)) => Ok(Self::Real(assets)),
            ("real", None) => {
                Err("name the folder of kube-apiserver and etcd in KUBEBUILDER_ASSETS".to_owned())
            }
            _ => Err(format!("{text:?} is no API server: embedded or real")),
        }
    }
}

impl ServerKind {
    /// For a report.
    pub fn describe(&self) -> Result<String> {
        match self {
            Self::Embedded => Ok("the benchmark's own, in its process".to_owned()),
            Self::Real(assets) => super::real_cluster::versions(assets),
        }
    }

    pub(crate) fn prepare<'a>(&self, workload: &'a Workload) -> Result<Prepared<'a>> {
        match self {
            Self::Embedded => Ok(Prepared::Embedded(workload)),
            Self::Real(assets) => LoadedData::load(assets, workload).map(Prepared::Real),
        }
    }
}

impl Prepared<'_> {
    /// On loopback of the node, with all objects of the workload.
    pub(crate) fn start(&self, site: &Site) -> Result<Server> {
        match self {
            Self::Embedded(workload) => {
                let server = site.node.run(|| ApiServer::start(EMBEDDED.parse().expect("a constant")))??;
                server.load(workload.objects()).context("loading the workload")?;
                Ok(Server::Embedded(server))
            }
            Self::Real(data) => Ok(Server::Real(site.node.run(|| RealCluster::start(data))??)),
        }
    }
}

impl Server {
    /// For the contender.
    pub(crate) fn kubeconfig(&self) -> String {
        match self {
            Self::Embedded(server) => server.kubeconfig(),
            Self::Real(cluster) => cluster.proxy_kubeconfig(),
        }
    }

    /// What the contender must be told to speak; `None` leaves it its default.
    pub(crate) fn content_type(&self) -> Option<&'static str> {
        match self {
            Self::Embedded(_) => Some("application/json"),
            Self::Real(_) => None,
        }
    }

    /// Replaces EndpointSlices, no two of them the same. Does not wait for a server in another process.
    pub(crate) fn begin_write(&self, slices: Vec<Value>) -> Result<Writing> {
        match self {
            Self::Embedded(server) => {
                server.load(slices)?;
                Ok(Writing::Done)
            }
            Self::Real(cluster) => Ok(Writing::Underway(cluster.begin_replace(slices))),
        }
    }

    pub(crate) fn write(&self, slices: Vec<Value>) -> Result<()> {
        self.begin_write(slices)?.finish()
    }
}

impl Writing {
    pub(crate) fn finish(self) -> Result<()> {
        match self {
            Self::Done => Ok(()),
            Self::Underway(outcome) => outcome.recv().context("the writer ended early")?,
        }
    }
}
