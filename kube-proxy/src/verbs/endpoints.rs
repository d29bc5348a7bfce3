//! `endpoints`: every endpoint that slices name for a Service, and why it gets new connections or none.

use std::{net::SocketAddr, process::ExitCode};

use clap::Args;
use insight::{
    endpoints::{self, Account, Listed, Why},
    engine::Engine,
    state::{API_VERSION, State},
    table::{Cell, Look, Style, Table},
    text,
};
use proxy_core::{model::ServiceName, route::Hints};
use serde::Serialize;

use super::common::{Common, state_of_one};

/// Show the endpoints of a Service, and why each gets new connections from this node or none
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The Service
    #[arg(value_name = "[NAMESPACE/]SERVICE")]
    service: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    api_version: &'static str,
    kind: &'static str,
    node: String,
    service: String,
    ports: Vec<PortShown>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PortShown {
    name: String,
    protocol: &'static str,
    family: &'static str,
    /// `node`, `zone` or `ignored`; absent: no traffic follows policy Cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    topology_hints: Option<&'static str>,
    endpoints: Vec<EndpointShown>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EndpointShown {
    address: std::net::IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    slice: String,
    on_this_node: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    zones: Vec<String>,
    /// For traffic under policy Cluster; absent: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<UseShown>,
    /// For traffic under policy Local; absent: there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    local: Option<UseShown>,
}

#[derive(Debug, Serialize)]
struct UseShown {
    used: bool,
    why: &'static str,
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    let name = common.service(&options.service);
    let state = state_of_one(common, &name)?;
    let engine = common.engine(&state);
    anyhow::ensure!(
        state.services.iter().any(|service| service.name == name),
        "this node's proxy knows no Service {name} (headless and ExternalName ones are no proxy's)"
    );
    let list = listed(&state, &engine, &name);
    common.answer(&list, |look| table(&list, look))?;
    Ok(ExitCode::SUCCESS)
}

/// What people read, for a test.
#[cfg(test)]
pub(super) fn rendered(state: &State, engine: &Engine, name: &ServiceName, look: Look) -> String {
    table(&listed(state, engine, name), look)
}

fn listed(state: &State, engine: &Engine, name: &ServiceName) -> List {
    let accounts = endpoints::of_service(engine, name);
    List {
        api_version: API_VERSION,
        kind: "EndpointList",
        node: state.header.node.clone(),
        service: name.to_string(),
        ports: accounts.iter().map(port).collect(),
    }
}

fn port(account: &Account) -> PortShown {
    PortShown {
        name: account.port.port.to_string(),
        protocol: text::protocol(account.port.protocol),
        family: text::family(account.family),
        topology_hints: account.hints.map(|hints| match hints {
            Hints::Node => "node",
            Hints::Zone => "zone",
            Hints::Ignored => "ignored",
        }),
        endpoints: account.endpoints.iter().map(endpoint).collect(),
    }
}

fn endpoint(listed: &Listed) -> EndpointShown {
    let shown = |why: Option<Why>| why.map(|why| UseShown { used: why.is_used(), why: why.as_str() });
    let zones = listed.endpoint.for_zones.iter().flat_map(|zones| zones.iter());
    EndpointShown {
        address: listed.address,
        port: listed.port,
        slice: listed.slice.name().to_owned(),
        on_this_node: listed.endpoint.local,
        ready: listed.endpoint.ready,
        serving: listed.endpoint.serving,
        terminating: listed.endpoint.terminating,
        zones: zones.map(ToString::to_string).collect(),
        cluster: shown(listed.cluster),
        local: shown(listed.local),
    }
}

fn table(list: &List, look: Look) -> String {
    let any_local =
        list.ports.iter().flat_map(|port| &port.endpoints).any(|endpoint| endpoint.local.is_some());
    let mut table = Table::new()
        .text("PORT", 6)
        .column("ENDPOINT")
        .column("HERE")
        .text(if any_local { "POLICY CLUSTER" } else { "CONNECTIONS" }, 8);
    if any_local {
        table = table.text("POLICY LOCAL", 8);
    }
    table = table.text("SLICE", 8).text("ZONES", 5).wide().column("CONDITIONS").wide();
    for port in &list.ports {
        for endpoint in &port.endpoints {
            let at = match endpoint.port {
                Some(number) => SocketAddr::new(endpoint.address, number).to_string(),
                None => endpoint.address.to_string(),
            };
            let used = |shown: &Option<UseShown>| match shown {
                Some(shown) => Cell::new(shown.why, if shown.used { Style::Good } else { Style::Warn }),
                None => Cell::new("-", Style::Dim),
            };
            let words = [
                (endpoint.ready, "ready"),
                (endpoint.serving, "serving"),
                (endpoint.terminating, "terminating"),
            ];
            let words: Vec<&str> = words.into_iter().filter(|(is, _)| *is).map(|(_, word)| word).collect();
            let name = if port.name.is_empty() { "-" } else { &*port.name };
            let mut cells = vec![
                Cell::from(format!("{name}/{}", port.protocol)),
                Cell::from(at),
                Cell::from(if endpoint.on_this_node { "yes" } else { "" }),
                used(&endpoint.cluster),
            ];
            if any_local {
                cells.push(used(&endpoint.local));
            }
            cells.extend([
                Cell::from(endpoint.slice.clone()),
                Cell::from(endpoint.zones.join(",")),
                Cell::from(words.join(",")),
            ]);
            table.row(cells);
        }
    }
    let mut text = if table.is_empty() {
        format!("No slice names an endpoint of {}.\n", list.service)
    } else {
        table.print(look)
    };
    for port in &list.ports {
        let hinted = port.endpoints.iter().any(|endpoint| !endpoint.zones.is_empty());
        let name = if port.name.is_empty() { &list.service } else { &port.name };
        let said = match port.topology_hints {
            Some("node") => "topology hints are followed: endpoints hinted for this node",
            Some("zone") => "topology hints are followed: endpoints hinted for this node's zone",
            Some(_) if hinted => {
                "topology hints are ignored: not every ready endpoint has one, or none names this node or its zone"
            }
            _ => continue,
        };
        text += &format!("{name} {}: {said}.\n", port.family);
    }
    text
}
