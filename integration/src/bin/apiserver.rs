//! The embedded API server as a program: for trying a kube-proxy by hand, and for tests that want it in a process of its own.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;
use integration::apiserver::ApiServer;
use integration::manifest;

/// Serves Services, EndpointSlices, Nodes, ServiceCIDRs and Events over the Kubernetes API.
#[derive(Parser)]
struct Arguments {
    /// Address and port to serve on; port 0 chooses a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// YAML or JSON files with objects to begin with.
    #[arg(long, value_name = "FILE")]
    load: Vec<PathBuf>,
    /// Where to write a kubeconfig for this server.
    #[arg(long, value_name = "FILE")]
    kubeconfig_out: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let server =
        ApiServer::start(arguments.listen).with_context(|| format!("listening on {}", arguments.listen))?;
    for file in &arguments.load {
        let objects = manifest::read(file)?;
        let count = objects.len();
        server.load(objects).with_context(|| format!("loading {}", file.display()))?;
        println!("loaded {count} objects from {}", file.display());
    }
    if let Some(file) = &arguments.kubeconfig_out {
        std::fs::write(file, server.kubeconfig()).with_context(|| format!("writing {}", file.display()))?;
    }
    println!("serving on {}", server.url());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(tokio::signal::ctrl_c())?;
    Ok(())
}
