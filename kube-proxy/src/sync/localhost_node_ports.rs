//! Which NodePorts lead where for clients on ::1, from what each sync installed.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use proxy_core::{
    model::{Family, Protocol, ServiceName, ServicePortName},
    route::{Answer, FrontendKind, Route},
};

use crate::serve::localhost_node_ports::{NodePorts, Target};

/// Follows the TCP NodePorts of IPv6 Services.
#[derive(Debug)]
pub(crate) struct LocalhostNodePorts {
    told: NodePorts,
    /// The ports of each Service.
    known: HashMap<ServiceName, HashSet<u16>>,
    /// Whose each port is: it passes from one Service to another within one sync, in any order.
    owners: HashMap<u16, ServiceName>,
}

impl LocalhostNodePorts {
    pub(crate) fn new(told: NodePorts) -> Self {
        Self { told, known: HashMap::new(), owners: HashMap::new() }
    }

    /// These Services were looked at; `installed` is what of each is in the kernel now.
    pub(crate) fn follow<'a>(
        &mut self,
        family: Family,
        services: &[ServiceName],
        installed: impl Fn(&ServiceName) -> &'a [(ServicePortName, Arc<Route>)],
    ) {
        if family != Family::V6 {
            return;
        }
        for name in services {
            let mut before = self.known.remove(name).unwrap_or_default();
            let mut now = HashSet::new();
            for (_, route) in installed(name) {
                let Some((port, target)) = node_port(route) else { continue };
                before.remove(&port);
                now.insert(port);
                self.owners.insert(port, name.clone());
                self.told.set(port, Some(target));
            }
            for port in before {
                if self.owners.get(&port) == Some(name) {
                    self.owners.remove(&port);
                    self.told.set(port, None);
                }
            }
            if !now.is_empty() {
                self.known.insert(name.clone(), now);
            }
        }
    }
}

/// Nothing where a client on the node is refused: nobody listens then.
fn node_port(route: &Route) -> Option<(u16, Target)> {
    if route.protocol != Protocol::Tcp {
        return None;
    }
    let frontend = route.frontends.iter().find(|frontend| frontend.kind == FrontendKind::NodePort)?;
    let targets = match route.answer(frontend) {
        // As for all traffic of the node itself.
        Answer::To(targets) | Answer::Local { anywhere: targets, .. } => targets,
        Answer::Reject | Answer::Drop => return None,
    };
    let endpoints: Arc<[SocketAddr]> =
        targets.iter().map(|target| SocketAddr::new(target.addr, target.port)).collect();
    let affinity = route.policy.affinity.map(|seconds| Duration::from_secs(seconds.into()));
    (!endpoints.is_empty()).then_some((frontend.port, Target { endpoints, affinity }))
}

#[cfg(test)]
mod tests {
    use proxy_core::{
        model::TrafficPolicy,
        route::{Frontend, Policy, Target as Endpoint},
    };

    use super::*;

    fn route(protocol: Protocol, port: u16, local: bool, endpoints: &[(&str, bool)]) -> Route {
        let targets: Box<[Endpoint]> = endpoints
            .iter()
            .map(|(addr, local)| Endpoint {
                addr: addr.parse().expect("an address"),
                port: 80,
                local: *local,
            })
            .collect();
        Route {
            policy: Arc::new(Policy { affinity: Some(5), ..Policy::default() }),
            frontends: [Frontend { kind: FrontendKind::NodePort, at: None, port }].into(),
            lost: Box::default(),
            local: targets.iter().filter(|target| target.local).copied().collect(),
            any_endpoint: !targets.is_empty(),
            endpoints: u32::try_from(targets.len()).expect("few"),
            kept: Box::default(),
            cluster: targets,
            protocol,
            external_policy: if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster },
        }
    }

    fn installed(routes: &[Route]) -> Vec<(ServicePortName, Arc<Route>)> {
        let service = ServiceName::new("ns", "web");
        let name = |at: usize| ServicePortName {
            service: service.clone(),
            port: at.to_string().into(),
            protocol: Protocol::Tcp,
        };
        routes.iter().enumerate().map(|(at, route)| (name(at), Arc::new(route.clone()))).collect()
    }

    fn follow(ports: &mut LocalhostNodePorts, name: &str, routes: &[Route]) -> Vec<(u16, Vec<String>)> {
        let installed = installed(routes);
        ports.follow(Family::V6, &[ServiceName::new("ns", name)], |_| &installed);
        let texts = |target: Option<Target>| {
            let endpoints = target.map(|target| target.endpoints.to_vec()).unwrap_or_default();
            endpoints.iter().map(ToString::to_string).collect()
        };
        let mut told: Vec<(u16, Vec<String>)> =
            ports.told.take().into_iter().map(|(port, target)| (port, texts(target))).collect();
        told.sort();
        told
    }

    #[test]
    fn tcp_node_ports_of_ipv6_are_told_with_the_nodes_own_endpoints_of_the_policy() {
        let mut ports = LocalhostNodePorts::new(NodePorts::default());
        let both = [("fd00::1", true), ("fd00::2", false)];
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let told = follow(
            &mut ports,
            "web",
            &[
                route(Protocol::Tcp, 30_000, false, &both),
                route(Protocol::Udp, 30_001, false, &both),
                route(Protocol::Tcp, 30_002, true, &both),
                route(Protocol::Tcp, 30_003, false, &[]),
            ],
        );
        let all = texts(&["[fd00::1]:80", "[fd00::2]:80"]);
        assert_eq!(told, [(30_000, all.clone()), (30_002, all)]);
        let told = follow(&mut ports, "web", &[route(Protocol::Tcp, 30_000, false, &both[..1])]);
        assert_eq!(told, [(30_000, texts(&["[fd00::1]:80"])), (30_002, texts(&[]))]);
        assert_eq!(follow(&mut ports, "web", &[]), [(30_000, texts(&[]))]);
        let installed = installed(&[route(Protocol::Tcp, 30_000, false, &both)]);
        ports.follow(Family::V4, &[ServiceName::new("ns", "web")], |_| &installed);
        assert!(ports.told.take().is_empty(), "IPv4 is the kernel's");
    }

    #[test]
    fn a_port_that_passes_to_another_service_stays_open_whoever_is_looked_at_first() {
        let mut ports = LocalhostNodePorts::new(NodePorts::default());
        let endpoint = [("fd00::1", true)];
        let route = || [route(Protocol::Tcp, 30_000, false, &endpoint)];
        follow(&mut ports, "old", &route());
        let there = vec!["[fd00::1]:80".to_owned()];
        assert_eq!(follow(&mut ports, "new", &route()), [(30_000, there)]);
        assert_eq!(follow(&mut ports, "old", &[]), [], "it is the other one's by now");
        assert_eq!(follow(&mut ports, "new", &[]), [(30_000, Vec::new())]);
    }
}
