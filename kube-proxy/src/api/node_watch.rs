//! Watches this node's Node object: waits for what the start needs of it, and passes on what changes later.

use std::{net::IpAddr, time::Duration};

use anyhow::Context as _;
use ipnet::IpNet;
use proxy_core::model::Input;
use tokio::sync::watch;

use crate::{
    api::{
        node::{self, Node},
        reflector::{Selection, Told},
        watch::{Source, reflect},
    },
    engine::mailbox::Mailbox,
    telemetry::health::HealthState,
};

/// Waits until the Node object shows what is asked for; empty when the time is up.
pub(crate) async fn wait_for<T>(
    node: &mut watch::Receiver<Option<Node>>,
    limit: Duration,
    select: fn(&Node) -> Vec<T>,
) -> Vec<T> {
    let found = node.wait_for(|node| node.as_ref().is_some_and(|node| !select(node).is_empty()));
    match tokio::time::timeout(limit, found).await {
        Ok(Ok(node)) => node.as_ref().map(select).unwrap_or_default(),
        _ => Vec::new(),
    }
}

pub(crate) async fn run(source: Source, name: String, sender: watch::Sender<Option<Node>>) {
    let selection = Selection { fields: Some(format!("metadata.name={name}")), ..Selection::default() };
    reflect::<Node>(&source, selection, None, |told| {
        match told {
            Told::Applied(node) => drop(sender.send_replace(Some(node))),
            Told::Gone(_) => drop(sender.send_replace(None)),
            Told::Listed => {}
        }
        true
    })
    .await;
}

/// Passes on what changes about the node while the process runs. Ends when the process should. `pod_cidrs` are those by
/// which pods are known; none where something else decides that.
pub(crate) async fn follow(
    mut node: watch::Receiver<Option<Node>>,
    bind_address: Option<IpAddr>,
    mut pod_cidrs: watch::Receiver<Vec<IpNet>>,
    messages: Mailbox,
    health: HealthState,
) -> anyhow::Result<()> {
    loop {
        {
            let now = node.borrow_and_update();
            // A Node object that is gone for a moment must not take the NodePorts with it, nor load balancers' health
            // checks: as in kube-proxy, what was last seen stays.
            if let Some(now) = now.as_ref() {
                health.set_eligible(now.eligible());
                let cidrs = now.pod_cidrs();
                let pod_cidrs = pod_cidrs.borrow_and_update();
                if !pod_cidrs.is_empty() && !cidrs.is_empty() && cidrs != *pod_cidrs {
                    anyhow::bail!(
                        "the node's podCIDRs changed from {:?} to {cidrs:?}: starting over with them",
                        *pod_cidrs
                    );
                }
                messages.send(Input::Zone(now.zone().map(Into::into)).into())?;
                let ips = node::primary_first(now.ips(), bind_address);
                if !ips.is_empty() {
                    messages.send(Input::NodeIps(ips.into()).into())?;
                }
            }
        }
        tokio::select! {
            changed = node.changed() => changed.context("the node's watch ended")?,
            // Whoever changes them runs as long as the process.
            Ok(()) = pod_cidrs.changed() => {}
        }
    }
}
