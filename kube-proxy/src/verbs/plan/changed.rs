//! A state as it would be: with objects applied over it, with another configuration, in another mode.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    net::IpAddr,
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use insight::state::{LocalPods, Mode, Settings as Environment, State};
use ipnet::IpNet;
use proxy_core::model::{Family, ObjectName, Service, Slice};
use serde_json::{Value, json};

use crate::{
    api::slim,
    settings::{self, effective},
    sync::ipvs,
};

/// NodePorts that stand for those that the API server will allocate, from here downwards.
const LAST_NODE_PORT: u16 = 32_767;

/// A state, and what is to be said about how it came to be.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) state: State,
    pub(crate) notes: Vec<String>,
}

impl Changed {
    pub(crate) fn new(state: State) -> Self {
        Self { state, notes: Vec::new() }
    }

    /// Applies the Services and EndpointSlices of a file (YAML or JSON, any number of documents, lists too) over it.
    pub(crate) fn apply_file(&mut self, path: &Path, namespace: &str) -> anyhow::Result<()> {
        let text = if path.as_os_str() == "-" {
            std::io::read_to_string(std::io::stdin()).context("standard input")?
        } else {
            fs::read_to_string(path).with_context(|| format!("{}", path.display()))?
        };
        self.apply(&text, namespace).with_context(|| format!("{}", path.display()))
    }

    pub(crate) fn apply(&mut self, text: &str, namespace: &str) -> anyhow::Result<()> {
        let mut others: BTreeMap<String, usize> = BTreeMap::new();
        let mut applied = 0;
        for document in documents(text)? {
            let items = match document.get("items").and_then(Value::as_array) {
                Some(items) => items.clone(),
                None => vec![document],
            };
            for object in items {
                match object.get("kind").and_then(Value::as_str) {
                    Some("Service") => self.apply_service(object, namespace)?,
                    Some("EndpointSlice") => self.apply_slice(object, namespace)?,
                    Some(kind) => {
                        *others.entry(kind.to_owned()).or_default() += 1;
                        continue;
                    }
                    None => bail!("a document without a kind"),
                }
                applied += 1;
            }
        }
        for (kind, count) in others {
            self.notes.push(format!(
                "{count} of kind {kind} passed over: a proxy reads Services and EndpointSlices"
            ));
        }
        if applied == 0 {
            self.notes.push("no Service and no EndpointSlice to apply".to_owned());
        }
        Ok(())
    }

    fn apply_service(&mut self, mut object: Value, namespace: &str) -> anyhow::Result<()> {
        let name = named(&mut object, namespace)?;
        let known = self.state.services.iter().position(|service| service.name == name);
        let before = known.map(|at| Arc::clone(&self.state.services[at]));
        self.allocate(&mut object, &name, before.as_deref());
        let has_status = object.get("status").is_some();
        let read: slim::Service =
            serde_json::from_str(&object.to_string()).with_context(|| format!("Service {name}"))?;
        let translated = read.translate(self.state.header.allow_service_external_ips);
        self.notes.extend(translated.complaints.into_iter().map(|what| format!("Service {name}: {what}")));
        if let Some(at) = known {
            self.state.services.remove(at);
        }
        let Some(mut service) = translated.object else {
            self.notes
                .push(format!("Service {name} is no proxy's (headless, ExternalName, or of another proxy)"));
            return Ok(());
        };
        if let Some(before) = before {
            service.created = before.created;
            if !has_status {
                service.load_balancer_ips = before.load_balancer_ips.clone();
            }
        }
        self.state.services.push(Arc::new(service));
        self.state.services.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(())
    }

    fn apply_slice(&mut self, mut object: Value, namespace: &str) -> anyhow::Result<()> {
        let name = named(&mut object, namespace)?;
        let read: slim::EndpointSlice =
            serde_json::from_str(&object.to_string()).with_context(|| format!("EndpointSlice {name}"))?;
        let translated = read.translate(&self.state.header.node);
        self.notes
            .extend(translated.complaints.into_iter().map(|what| format!("EndpointSlice {name}: {what}")));
        self.state.slices.retain(|slice| slice.name != name);
        if let Some(slice) = translated.object {
            self.state.slices.push(Arc::new(slice));
        }
        let key = |slice: &Arc<Slice>| (slice.service.clone(), slice.name.clone());
        self.state.slices.sort_by_cached_key(key);
        Ok(())
    }

    /// What the API server would allocate: as it is, where the Service is there; else something that nobody has.
    fn allocate(&mut self, object: &mut Value, name: &ObjectName, before: Option<&Service>) {
        let kind = object["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
        let given = object["spec"].get("clusterIP").and_then(Value::as_str).unwrap_or_default().to_owned();
        if given.is_empty() && kind != "ExternalName" {
            let ips = before.map_or_else(|| self.free_addresses(), |before| before.cluster_ips.to_vec());
            if before.is_none() {
                let texts: Vec<String> = ips.iter().map(ToString::to_string).collect();
                self.notes.push(format!(
                    "Service {name}: the API server allocates its cluster IP; {} stands for it here",
                    texts.join(" and ")
                ));
            }
            object["spec"]["clusterIP"] = json!(ips.first());
            object["spec"]["clusterIPs"] = json!(ips);
        }
        if !matches!(&*kind, "NodePort" | "LoadBalancer") {
            return;
        }
        if object["spec"]["allocateLoadBalancerNodePorts"] == json!(false) {
            return;
        }
        let mut taken: HashSet<u16> = self
            .state
            .services
            .iter()
            .flat_map(|service| &service.ports)
            .filter_map(|port| port.node_port)
            .collect();
        let mut stands = 0;
        for port in object["spec"]["ports"].as_array_mut().into_iter().flatten() {
            if port.get("nodePort").and_then(Value::as_u64).is_some_and(|port| port > 0) {
                continue;
            }
            let called = port.get("name").and_then(Value::as_str).unwrap_or_default();
            let known =
                before.and_then(|before| before.ports.iter().find(|known| &*known.name == called)?.node_port);
            let number = known.or_else(|| (30_000..=LAST_NODE_PORT).rev().find(|port| !taken.contains(port)));
            if let Some(number) = number {
                stands += usize::from(known.is_none());
                taken.insert(number);
                port["nodePort"] = json!(number);
            }
        }
        if stands > 0 {
            self.notes.push(format!(
                "Service {name}: the API server allocates {stands} node ports; free ones stand for them here"
            ));
        }
    }

    /// The last address of each family's first Service network that no Service has.
    fn free_addresses(&self) -> Vec<IpAddr> {
        let taken: BTreeSet<IpAddr> =
            self.state.services.iter().flat_map(|service| service.cluster_ips.iter().copied()).collect();
        let primary = self.state.header.facts.node_ips.first().map(|ip| Family::of(*ip));
        let of = |family: Family| {
            let net =
                self.state.header.facts.service_cidrs.iter().find(|net| Family::of_net(net) == family)?;
            last_free(net, &taken)
        };
        primary.into_iter().filter_map(of).collect()
    }

    /// In another mode, with the configuration that there is.
    pub(crate) fn mode(&mut self, mode: Mode) -> anyhow::Result<()> {
        let mut document = self.state.header.configuration.clone();
        if document.is_null() {
            bail!("the state holds no configuration, from which the defaults of another mode would follow");
        }
        // What is in force has the defaults of the mode filled in.
        if self.state.header.mode == Mode::Nftables
            && mode != Mode::Nftables
            && document["nodePortAddresses"] == json!(["primary"])
        {
            document["nodePortAddresses"] = Value::Null;
            self.notes.push(
                "nodePortAddresses [primary] is taken for the nftables mode's default; where your configuration names it, \
                 plan with --config"
                    .to_owned(),
            );
        }
        document["mode"] = json!(mode.as_str());
        let settings = settings::of_document(&document).context("the configuration in that mode")?;
        self.take(&settings)
    }

    /// With the configuration of a file.
    pub(crate) fn configuration(&mut self, path: &Path) -> anyhow::Result<()> {
        let argument = format!("--config={}", path.display());
        let loaded = settings::load(&[argument]).with_context(|| format!("{}", path.display()))?;
        self.notes.extend(loaded.notices);
        let settings::Command::Run(settings) = loaded.command else {
            bail!("{} is no configuration to run with", path.display());
        };
        self.take(&settings)
    }

    fn take(&mut self, settings: &effective::Settings) -> anyhow::Result<()> {
        let header = &mut self.state.header;
        let pods: Vec<IpNet> = match (&settings.detect_local, &header.environment.local_pods) {
            (effective::DetectLocal::NodeCidr, LocalPods::Cidrs(cidrs)) => cidrs.clone(),
            (effective::DetectLocal::NodeCidr, _) => {
                self.notes
                    .push("the node's own pod networks are not known here: none are assumed".to_owned());
                Vec::new()
            }
            _ => Vec::new(),
        };
        header.environment = Environment::of(&settings::environment::settings(settings, &pods));
        header.mode = match settings.mode {
            effective::Mode::Nftables => Mode::Nftables,
            effective::Mode::Iptables => Mode::Iptables,
            effective::Mode::Ipvs => Mode::Ipvs,
        };
        header.ipvs = ipvs::insight(settings)?;
        header.configuration = settings.document.clone();
        let gate = settings::feature_gates::Feature::AllowServiceExternalIPs;
        header.allow_service_external_ips = settings.feature_gates.enabled(gate);
        Ok(())
    }
}

fn last_free(net: &IpNet, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    // Enough to pass by all that are taken.
    let tries = taken.len() as u128 + 2;
    match net {
        IpNet::V4(net) => {
            let last = u32::from(net.broadcast()).checked_sub(1)?;
            (0..tries as u32)
                .map(|back| IpAddr::V4(last.saturating_sub(back).into()))
                .find(|addr| net.contains(&as_v4(addr)) && !taken.contains(addr))
        }
        IpNet::V6(net) => {
            let last = u128::from(net.broadcast());
            (0..tries)
                .map(|back| IpAddr::V6(last.saturating_sub(back).into()))
                .find(|addr| !taken.contains(addr))
        }
    }
}

fn as_v4(addr: &IpAddr) -> std::net::Ipv4Addr {
    match addr {
        IpAddr::V4(addr) => *addr,
        IpAddr::V6(_) => std::net::Ipv4Addr::UNSPECIFIED,
    }
}

/// An object's name; one without a namespace is in this one.
fn named(object: &mut Value, namespace: &str) -> anyhow::Result<ObjectName> {
    let metadata = &object["metadata"];
    let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    anyhow::ensure!(!name.is_empty(), "an object of kind {} without a name", object["kind"]);
    let own = metadata.get("namespace").and_then(Value::as_str).unwrap_or(namespace).to_owned();
    object["metadata"]["namespace"] = json!(own);
    Ok(ObjectName::new(&own, &name))
}

/// The documents of a text: YAML, or JSON values one after the other.
fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    if text.trim_start().starts_with('{') {
        let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        if let Ok(values) = values.collect::<Result<Vec<_>, _>>() {
            return Ok(values);
        }
    }
    let values: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(values.into_iter().filter(|value| !value.is_null()).collect())
}

#[cfg(test)]
#[path = "changed_tests.rs"]
mod tests;
