//! One Service port's lines in the chains that all Services share.

use proxy_core::{
    model::{Family, Protocol},
    route::{Frontend, FrontendKind},
};

use crate::{
    plan::service::{rules::Dispatch, writer::Writer},
    schema::{
        chains::{Dispatcher, Role, ServiceChain},
        counters::LOCALHOST_ACCEPTED,
        rule::Rule,
    },
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
            let policy = self.route.policy.internal;
            if self.has_endpoints_under(policy) {
                self.captured(&mut lines, " cluster IP", frontend, self.policy_chain(policy));
            } else {
                self.refused(&mut lines, Dispatcher::FilterServices, frontend);
            }
        }
        for frontend in self.frontends(FrontendKind::ExternalIp) {
            if self.route.any_endpoint {
                self.captured(&mut lines, " external IP", frontend, self.chain(Role::External));
            }
            self.refused_external(&mut lines, frontend);
        }
        let restricted = self.sources().is_some();
        let to = self.chain(if restricted { Role::Firewall } else { Role::External });
        for frontend in self.frontends(FrontendKind::LoadBalancerIp) {
            if self.route.any_endpoint {
                self.captured(&mut lines, " loadbalancer IP", frontend, to);
                if restricted {
                    let comment = [&self.name, " traffic not accepted by ", &to.to_string()];
                    self.to_frontend(&mut lines, Dispatcher::FilterProxyFirewall, frontend, &comment)
                        .jump(&["DROP"]);
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
        if let Some(port) = self.route.policy.health_check_node_port {
            let dispatcher = Dispatcher::FilterNodePorts;
            Rule::in_fixed(lines.of(dispatcher), dispatcher.chain())
                .protocol(Protocol::Tcp)
                .comment(&[&self.name, " health check node port"])
                .port(port)
                .jump(&["ACCEPT"]);
        }
        Dispatch::new(Dispatcher::ALL.into_iter().zip(lines.0))
    }

    fn to_frontend<'a>(
        &self,
        lines: &'a mut Lines,
        dispatcher: Dispatcher,
        frontend: &Frontend,
        comment: &[&str],
    ) -> Rule<'a> {
        let mut rule = Rule::in_fixed(lines.of(dispatcher), dispatcher.chain());
        if let Some(addr) = frontend.at {
            rule = rule.destination_host(addr);
        }
        rule = rule.protocol(self.route.protocol).comment(comment);
        if frontend.at.is_none() && dispatcher == Dispatcher::FilterExternalServices {
            // In table `filter` node ports have no chain that is reached for local destinations only.
            rule = rule.more("-m addrtype --dst-type LOCAL");
        }
        rule.port(frontend.port)
    }

    fn captured(&self, lines: &mut Lines, kind: &str, frontend: &Frontend, to: ServiceChain) {
        self.to_frontend(lines, Dispatcher::NatServices, frontend, &[&self.name, kind]).goto(to);
    }

    fn node_port(&self, lines: &mut Lines, frontend: &Frontend) {
        let dispatcher = Dispatcher::NatNodePorts;
        let to = self.chain(Role::External);
        if self.context.environment.localhost_node_ports && self.context.host.counters.localhost_accepted {
            // `iptables-save` prints two blanks before the name (libxt_nfacct.c).
            Rule::in_fixed(lines.of(dispatcher), dispatcher.chain())
                .destination("127.0.0.0/8")
                .protocol(self.route.protocol)
                .comment(&[&self.name])
                .port(frontend.port)
                .more("-m nfacct --nfacct-name ")
                .more(LOCALHOST_ACCEPTED)
                .goto(to);
        }
        self.to_frontend(lines, dispatcher, frontend, &[&self.name]).goto(to);
    }

    /// Without any endpoint: refused. With endpoints elsewhere only: what no chain has taken before is dropped.
    fn refused_external(&self, lines: &mut Lines, frontend: &Frontend) {
        if !self.has_endpoints_under(self.route.external_policy) {
            self.refused(lines, Dispatcher::FilterExternalServices, frontend);
        }
    }

    fn refused(&self, lines: &mut Lines, dispatcher: Dispatcher, frontend: &Frontend) {
        let (verdict, why) = match (self.route.any_endpoint, self.context.environment.family) {
            (true, _) => ("DROP", " has no local endpoints"),
            (false, Family::V4) => ("REJECT --reject-with icmp-port-unreachable", " has no endpoints"),
            (false, Family::V6) => ("REJECT --reject-with icmp6-port-unreachable", " has no endpoints"),
        };
        self.to_frontend(lines, dispatcher, frontend, &[&self.name, why]).jump(&[verdict]);
    }
}
