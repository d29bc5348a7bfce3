//! `services`: what each Service asks for, what it gets, and whether it is in force.

use std::{collections::HashMap, net::IpAddr, process::ExitCode};

use clap::Args;
use insight::{
    digest,
    endpoints::{self, Account},
    engine::Engine,
    state::{API_VERSION, Aside, Conflict, Filter, State},
    table::{Cell, Look, Style, Table},
    text,
};
use proxy_core::{
    model::{Family, Service, ServiceName, ServicePortName, TrafficPolicy},
    route::{Answer, Frontend, Route},
};
use serde::Serialize;

use super::common::{Common, state_of_one};

/// Show Services: their addresses, policies and endpoints, and whether they are in force on this node
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// One Service, port by port
    #[arg(value_name = "[NAMESPACE/]SERVICE")]
    service: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct List {
    api_version: &'static str,
    kind: &'static str,
    node: String,
    mode: &'static str,
    services: Vec<Shown>,
}

/// One Service in one family.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    namespace: String,
    name: String,
    family: &'static str,
    internal_traffic_policy: &'static str,
    external_traffic_policy: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    affinity_seconds: Option<u32>,
    state: Standing,
    /// Why it is not as it asks to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    /// Since when.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<text::Time>,
    ports: Vec<PortShown>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PortShown {
    name: String,
    protocol: &'static str,
    /// Endpoints that slices name.
    endpoints: usize,
    /// Those that get new connections from somebody.
    used: usize,
    in_force: bool,
    frontends: Vec<FrontendShown>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FrontendShown {
    kind: &'static str,
    /// Absent for a NodePort.
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<IpAddr>,
    port: u16,
    /// What a new connection meets.
    answer: String,
    /// The Service that has it instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
}

/// How what is intended stands to what the process has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum Standing {
    InForce,
    /// Addresses that it asks for are another's; the rest is in force.
    Disputed,
    /// A change waits for the next sync.
    Waiting,
    /// The kernel refused it, or it asks for too much.
    SetAside,
    /// It is not what the process has written, and nobody has said why: the next sync may be under way.
    NotInForce,
}

impl Standing {
    const fn as_str(self) -> &'static str {
        match self {
            Self::InForce => "in force",
            Self::Disputed => "disputed",
            Self::Waiting => "waiting",
            Self::SetAside => "set aside",
            Self::NotInForce => "not in force",
        }
    }

    const fn style(self) -> Style {
        match self {
            Self::InForce => Style::Good,
            Self::Disputed | Self::Waiting => Style::Warn,
            Self::SetAside | Self::NotInForce => Style::Bad,
        }
    }
}

pub(crate) fn run(options: &Options, common: &Common) -> anyhow::Result<ExitCode> {
    let one = options.service.as_deref().map(|text| common.service(text));
    let state = match &one {
        Some(name) => state_of_one(common, name)?,
        None => {
            let namespace = common.namespace().map(str::to_owned);
            common.state(Filter { namespace, ..Filter::default() })?
        }
    };
    let engine = common.engine(&state);
    let wanted = |name: &ServiceName| match &one {
        Some(one) => name == one,
        None => common.namespace().is_none_or(|namespace| namespace == name.namespace()),
    };
    let list = list(&state, &engine, &wanted);
    if let Some(one) = one.as_ref().filter(|_| list.services.is_empty()) {
        anyhow::bail!(
            "this node's proxy knows no Service {one} (headless and ExternalName ones are no proxy's)"
        );
    }
    common.answer(&list, |look| match &one {
        Some(_) => detail(&list, look),
        None => table(&list, look),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What people read, for a test.
#[cfg(test)]
pub(super) fn rendered(state: &State, engine: &Engine, one: Option<&ServiceName>, look: Look) -> String {
    let list = list(state, engine, &|name| one.is_none_or(|one| name == one));
    if one.is_some() { detail(&list, look) } else { table(&list, look) }
}

fn list(state: &State, engine: &Engine, wanted: &dyn Fn(&ServiceName) -> bool) -> List {
    let mut conflicts: HashMap<(&str, Family), Vec<&Conflict>> = HashMap::new();
    for conflict in &state.conflicts {
        conflicts.entry((&conflict.service, conflict.family)).or_default().push(conflict);
    }
    let asides: HashMap<(&str, Family), &Aside> =
        state.asides.iter().map(|aside| ((&*aside.service, aside.family), aside)).collect();
    let mut services = Vec::new();
    for service in state.services.iter().filter(|service| wanted(&service.name)) {
        let accounts = endpoints::of_service(engine, &service.name);
        let text = service.name.to_string();
        for family in state.families() {
            if !service.cluster_ips.iter().any(|ip| Family::of(*ip) == family) {
                continue;
            }
            let key = (&*text, family);
            let known = (asides.get(&key).copied(), conflicts.get(&key).map_or(&[][..], Vec::as_slice));
            services.push(shown(state, engine, service, family, &accounts, known));
        }
    }
    List {
        api_version: API_VERSION,
        kind: "ServiceList",
        node: state.header.node.clone(),
        mode: state.header.mode.as_str(),
        services,
    }
}

fn shown(
    state: &State,
    engine: &Engine,
    service: &Service,
    family: Family,
    accounts: &[Account],
    (aside, conflicts): (Option<&Aside>, &[&Conflict]),
) -> Shown {
    let installed = state.installed(family, &service.name);
    let instance = engine.instance(family);
    let routes = instance.map_or(&[][..], |instance| instance.installed(&service.name));
    let ports: Vec<PortShown> =
        routes.iter().map(|(name, route)| port(state, engine, (family, name, route), accounts)).collect();
    let written = installed.map_or(0, |installed| installed.ports.len());
    let all = ports.iter().all(|port| port.in_force) && written == ports.len();
    let owners = || {
        let of = |conflict: &&Conflict| {
            let address =
                conflict.address.map_or_else(|| "node port".to_owned(), |address| address.to_string());
            let more = conflict.count - 1;
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            format!(
                "{address} {}/{}{more} is {}'s",
                conflict.port,
                text::protocol(conflict.protocol),
                conflict.winner
            )
        };
        conflicts.iter().map(of).collect::<Vec<_>>().join("; ")
    };
    let queued = state.header.families.iter().find(|served| served.family == family);
    let queued = queued.and_then(|served| served.queued_since);
    let (standing, why, since) = match (aside, all) {
        (Some(aside), _) => (Standing::SetAside, Some(aside.reason.clone()), Some(aside.since)),
        (None, true) if conflicts.is_empty() => (Standing::InForce, None, None),
        (None, true) => (Standing::Disputed, Some(owners()), None),
        (None, false) if installed.is_some_and(|installed| installed.waits) => {
            (Standing::Waiting, Some("it waits for the next sync".to_owned()), queued)
        }
        (None, false) => (Standing::NotInForce, None, None),
    };
    let policy = |policy| if policy == TrafficPolicy::Local { "Local" } else { "Cluster" };
    Shown {
        namespace: service.name.namespace().to_owned(),
        name: service.name.name().to_owned(),
        family: text::family(family),
        internal_traffic_policy: policy(service.internal_policy),
        external_traffic_policy: policy(service.external_policy),
        affinity_seconds: service.affinity,
        state: standing,
        why,
        since,
        ports,
    }
}

fn port(
    state: &State,
    engine: &Engine,
    (family, name, route): (Family, &ServicePortName, &Route),
    accounts: &[Account],
) -> PortShown {
    let installed = state.installed(family, &name.service).and_then(|installed| {
        installed.ports.iter().find(|port| *port.port == *name.port && port.protocol == name.protocol)
    });
    let account = accounts.iter().find(|account| account.port == *name && account.family == family);
    let listed = account.map_or(&[][..], |account| &account.endpoints);
    let used = listed.iter().filter(|listed| {
        listed.cluster.is_some_and(endpoints::Why::is_used)
            || listed.local.is_some_and(endpoints::Why::is_used)
    });
    let frontend = |frontend: &Frontend, lost: bool| {
        let owner = engine.instance(family).and_then(|instance| {
            instance.owner(&(route.protocol, frontend.at, frontend.port)).map(ToString::to_string)
        });
        let answer = if lost { "not its own".to_owned() } else { answer(route, frontend) };
        FrontendShown {
            kind: digest::kind(frontend.kind),
            address: frontend.at,
            port: frontend.port,
            answer,
            owner: owner.filter(|owner| lost && *owner != name.service.to_string()),
        }
    };
    let granted = route.frontends.iter().map(|one| frontend(one, false));
    PortShown {
        name: name.port.to_string(),
        protocol: text::protocol(name.protocol),
        endpoints: listed.len(),
        used: used.count(),
        in_force: installed.is_some_and(|installed| installed.digest == digest::of_route(route)),
        frontends: granted.chain(route.lost.iter().map(|one| frontend(one, true))).collect(),
    }
}

fn answer(route: &Route, frontend: &Frontend) -> String {
    let some = |count: usize| match count {
        1 => "1 endpoint".to_owned(),
        count => format!("{count} endpoints"),
    };
    match route.answer(frontend) {
        Answer::To(targets) => some(targets.len()),
        Answer::Local { here, anywhere } => {
            format!("{} here, {} for local pods", here.len(), anywhere.len())
        }
        Answer::Reject => "refused".to_owned(),
        Answer::Drop => "dropped".to_owned(),
    }
}

/// A Service on a line.
fn table(list: &List, look: Look) -> String {
    let mut table = Table::new()
        .text("NAMESPACE", 9)
        .text("NAME", 8)
        .column("FAMILY")
        .text("ADDRESSES", 11)
        .text("PORTS", 6)
        .number("USED")
        .column("STATE")
        .text("WHY", 8)
        .column("INTERNAL")
        .wide()
        .column("EXTERNAL")
        .wide()
        .number("AFFINITY")
        .wide()
        .column("SINCE")
        .wide();
    for service in &list.services {
        let mut addresses: Vec<String> = Vec::new();
        let mut node_ports = Vec::new();
        for frontend in service.ports.iter().flat_map(|port| &port.frontends) {
            match frontend.address {
                Some(address) => addresses.push(address.to_string()),
                None => node_ports.push(frontend.port),
            }
        }
        let mut seen = std::collections::HashSet::new();
        addresses.retain(|address| seen.insert(address.clone()));
        let ports = service.ports.iter().map(|port| {
            let number = port.frontends.iter().find(|frontend| frontend.address.is_some());
            let node_port = port.frontends.iter().find(|frontend| frontend.address.is_none());
            let node_port = node_port.map_or(String::new(), |frontend| format!(":{}", frontend.port));
            format!("{}{node_port}/{}", number.map_or(0, |frontend| frontend.port), port.protocol)
        });
        let used = service.ports.iter().map(|port| port.used).min().unwrap_or(0);
        let named = service.ports.iter().map(|port| port.endpoints).min().unwrap_or(0);
        table.row([
            Cell::from(service.namespace.clone()),
            Cell::from(service.name.clone()),
            Cell::from(service.family),
            Cell::from(addresses.join(",")),
            Cell::from(ports.collect::<Vec<_>>().join(",")),
            Cell::new(format!("{used}/{named}"), if used == 0 { Style::Bad } else { Style::Plain }),
            Cell::new(service.state.as_str(), service.state.style()),
            Cell::from(service.why.clone().unwrap_or_default()),
            Cell::from(service.internal_traffic_policy),
            Cell::from(service.external_traffic_policy),
            Cell::from(service.affinity_seconds.map_or(String::new(), |seconds| format!("{seconds}s"))),
            Cell::from(service.since.map_or(String::new(), |since| since.to_string())),
        ]);
    }
    if table.is_empty() { "No Services.\n".to_owned() } else { table.print(look) }
}

/// One Service, an address on a line.
fn detail(list: &List, look: Look) -> String {
    let mut text = String::new();
    for service in &list.services {
        let since = service.since.map_or(String::new(), |since| format!(" since {since}"));
        let why = service.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        let affinity = service
            .affinity_seconds
            .map_or(String::new(), |seconds| format!(", a client stays for {seconds} s"));
        let state = service.state.style().paint(service.state.as_str(), look.colour);
        text += &format!(
            "{}/{} {}: {state}{since}{why}\n  internalTrafficPolicy {}, externalTrafficPolicy {}{affinity}\n",
            service.namespace,
            service.name,
            service.family,
            service.internal_traffic_policy,
            service.external_traffic_policy,
        );
        let mut table = Table::new()
            .text("PORT", 6)
            .column("PROTOCOL")
            .column("KIND")
            .column("ADDRESS")
            .column("WRITTEN")
            .text("ANSWER", 12)
            .number("USED");
        for port in &service.ports {
            for frontend in &port.frontends {
                let address = frontend.address.map_or_else(|| "*".to_owned(), |address| address.to_string());
                let at = if address.contains(':') { format!("[{address}]") } else { address };
                let owner =
                    frontend.owner.as_ref().map_or(String::new(), |owner| format!(": it is {owner}'s"));
                table.row([
                    Cell::from(if port.name.is_empty() { "-" } else { &*port.name }),
                    Cell::from(port.protocol),
                    Cell::from(frontend.kind),
                    Cell::from(format!("{at}:{}", frontend.port)),
                    if port.in_force { Cell::new("yes", Style::Good) } else { Cell::new("no", Style::Bad) },
                    Cell::from(format!("{}{owner}", frontend.answer)),
                    Cell::from(format!("{}/{}", port.used, port.endpoints)),
                ]);
            }
        }
        for line in table.print(look).lines() {
            text += &format!("  {line}\n");
        }
    }
    text
}
