//! What a changed configuration reaches in the running process.

use std::time::Duration;

use ipnet::IpNet;
use proxy_core::model::Family;
use tokio::sync::watch;

use crate::{
    api::{
        events::{Event, Events},
        node::Node,
    },
    engine::mailbox::{Mailbox, Message},
    host::sysctl::{self, Sysctl},
    reload::{Refusal, Target},
    settings::{
        effective::{DetectLocal, Settings},
        environment,
        plausibility::{self, Found},
    },
    sync::start,
    telemetry::{health::HealthState, logging::LogControl},
};

/// Everything that some field of the configuration acts on while the process runs.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) log: LogControl,
    pub(crate) health: HealthState,
    pub(crate) events: Events,
    pub(crate) messages: Mailbox,
    /// The node as it was seen last.
    pub(crate) node: watch::Receiver<Option<Node>>,
    /// The networks by which this node's pods are known, where the Node object's decide that; else none.
    pub(crate) pod_cidrs: watch::Sender<Vec<IpNet>>,
    /// To whom keeps an eye on the firewall of others.
    pub(crate) forwarding: watch::Sender<Duration>,
    /// The family of the node's first address.
    pub(crate) primary: Family,
    pub(crate) served: Vec<Family>,
    /// NodePorts on ::1 were asked for when the process started.
    pub(crate) localhost_v6: bool,
}

impl Live {
    /// As they would be with these settings. Those in force stay: if the node's change, the process starts over.
    fn pod_cidrs(&self, settings: &Settings) -> Vec<IpNet> {
        if settings.detect_local != DetectLocal::NodeCidr {
            return Vec::new();
        }
        let known = self.pod_cidrs.borrow().clone();
        if known.is_empty() {
            self.node.borrow().as_ref().map(Node::pod_cidrs).unwrap_or_default()
        } else {
            known
        }
    }
}

impl Target for Live {
    fn check(&self, settings: &Settings) -> Result<(), Refusal> {
        let pod_cidrs = self.pod_cidrs(settings);
        if settings.detect_local == DetectLocal::NodeCidr && pod_cidrs.is_empty() {
            // A new process waits for them; without them no traffic would be told from that of other nodes.
            return Err(Refusal::Restart(vec!["detectLocalMode".to_owned()]));
        }
        if settings.node_port_addresses.localhost_v6 != self.localhost_v6 {
            return Err(Refusal::Restart(vec!["nodePortAddresses".to_owned()]));
        }
        let found = Found { primary: self.primary, served: &self.served, pod_cidrs: &pod_cidrs };
        plausibility::check(settings, found).map_err(|fault| Refusal::Unfit(fault.to_string()))
    }

    fn apply(&self, settings: &Settings) {
        self.log.apply(&settings.logging);
        self.health.set_limit(settings.sync_period * 2);
        sysctl::set_oom_score(settings.oom_score_adj);
        set_conntrack(settings, &self.events);
        let pod_cidrs = self.pod_cidrs(settings);
        let environment = environment::settings(settings, &pod_cidrs);
        self.pod_cidrs.send_replace(pod_cidrs);
        // Where the engine has ended, so does the process. Nobody else hears of the period but in ipvs mode.
        let pace = (start::pace(settings), start::drift_interval(settings));
        let _ = self.messages.send(Message::Settings(environment, pace.0, pace.1));
        let _ = self.forwarding.send(settings.sync_period);
    }
}

/// The kernel settings that the configuration asks for; what cannot be made is told and does no harm otherwise.
pub(crate) fn set_conntrack(settings: &Settings, events: &Events) {
    for error in Sysctl::kernel().set_conntrack(&settings.conntrack) {
        tracing::error!(%error, "A kernel setting could not be made");
        events.send(Event::setting_failed(error.to_string()));
    }
}
