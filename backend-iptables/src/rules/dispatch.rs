//! One Service port's lines in the chains that all Services share.

use proxy_core::{
    model::Protocol,
    route::{Frontend, FrontendKind},
};

use super::{Dispatch, Writer, text::Match};
use crate::{
    accounting::LOCALHOST_ACCEPTED,
    chains::{Dispatcher, Role, ServiceChain},
};

#[derive(Default)]
struct Lines([String; Dispatcher::ALL.len()]);

impl Lines {
    fn of(&mut self, dispatcher: Dispatcher) -> &mut String {
        &mut self.0[dispatcher as usize]
    }
}

impl Writer<'_> {
    pub(super) fn dispatch(&self) -> Dispatch {
        let mut lines = Lines::default();
        for frontend in self.frontends(FrontendKind::ClusterIp) {
            let policy = self.route.internal_policy;
            if self.has_endpoints_under(policy) {
                self.captured(&mut lines, "cluster IP", frontend, self.policy_chain(policy));
            } else {
                self.refused(&mut lines, Dispatcher::FilterServices, frontend);
            }
        }
        for frontend in self.frontends(FrontendKind::ExternalIp) {
            if self.route.any_endpoint {
                self.captured(&mut lines, "external IP", frontend, self.chain(Role::External));
            }
            self.refused_external(&mut lines, frontend);
        }
        let restricted = self.sources().is_some();
        let to = self.chain(if restricted { Role::Firewall } else { Role::External });
        for frontend in self.frontends(FrontendKind::LoadBalancerIp) {
            if self.route.any_endpoint {
                self.captured(&mut lines, "loadbalancer IP", frontend, to);
                if restricted {
                    let comment = format!("{} traffic not accepted by {to}", self.name);
                    let dispatcher = Dispatcher::FilterProxyFirewall;
                    self.to_frontend(dispatcher, frontend, &comment).jump(lines.of(dispatcher), "DROP");
                }
            }
            self.refused_external(&mut lines, frontend);
        }
        for frontend in self.frontends(FrontendKind::NodePort) {
            if self.route.any_endpoint {
                self.node_port(&mut lines, frontend);
            }
            self.refused_external(&mut lines, frontend);
        }
        if let Some(port) = self.route.health_check_node_port {
            let dispatcher = Dispatcher::FilterNodePorts;
            Match::in_fixed(dispatcher.chain())
                .protocol(Protocol::Tcp)
                .comment(&format!("{} health check node port", self.name))
                .port(port)
                .jump(lines.of(dispatcher), "ACCEPT");
        }
        let written = Dispatcher::ALL.into_iter().zip(lines.0).filter(|(_, lines)| !lines.is_empty());
        Dispatch(written.map(|(dispatcher, lines)| (dispatcher, lines.into())).collect())
    }

    fn to_frontend(&self, dispatcher: Dispatcher, frontend: &Frontend, comment: &str) -> Match {
        let rule = Match::in_fixed(dispatcher.chain())
            .destination(frontend.at)
            .protocol(self.route.protocol)
            .comment(comment);
        // In table `filter` a node port has no chain of its own that is reached for local destinations only.
        let local = frontend.at.is_none() && dispatcher == Dispatcher::FilterExternalServices;
        if local { rule.more("-m addrtype --dst-type LOCAL") } else { rule }.port(frontend.port)
    }

    fn captured(&self, lines: &mut Lines, kind: &str, frontend: &Frontend, to: ServiceChain) {
        let comment = format!("{} {kind}", self.name);
        let dispatcher = Dispatcher::NatServices;
        self.to_frontend(dispatcher, frontend, &comment).goto(lines.of(dispatcher), to);
    }

    fn node_port(&self, lines: &mut Lines, frontend: &Frontend) {
        let dispatcher = Dispatcher::NatNodePorts;
        let to = self.chain(Role::External);
        if self.context.environment.localhost_node_ports && self.context.host.counters.localhost_accepted {
            // `iptables-save` prints two blanks before the name (libxt_nfacct.c).
            self.to_frontend(dispatcher, frontend, &self.name)
                .destination_network("127.0.0.0/8")
                .more(&format!("-m nfacct --nfacct-name  {LOCALHOST_ACCEPTED}"))
                .goto(lines.of(dispatcher), to);
        }
        self.to_frontend(dispatcher, frontend, &self.name).goto(lines.of(dispatcher), to);
    }

    /// Without any endpoint: refused. With endpoints elsewhere only: what no chain has taken before is dropped.
    fn refused_external(&self, lines: &mut Lines, frontend: &Frontend) {
        if !self.has_endpoints_under(self.route.external_policy) {
            self.refused(lines, Dispatcher::FilterExternalServices, frontend);
        }
    }

    fn refused(&self, lines: &mut Lines, dispatcher: Dispatcher, frontend: &Frontend) {
        let (verdict, why) = match (self.route.any_endpoint, self.context.environment.family) {
            (true, _) => ("DROP", "has no local endpoints"),
            (false, proxy_core::model::Family::V4) => {
                ("REJECT --reject-with icmp-port-unreachable", "has no endpoints")
            }
            (false, proxy_core::model::Family::V6) => {
                ("REJECT --reject-with icmp6-port-unreachable", "has no endpoints")
            }
        };
        let comment = format!("{} {why}", self.name);
        self.to_frontend(dispatcher, frontend, &comment).jump(lines.of(dispatcher), verdict);
    }
}
