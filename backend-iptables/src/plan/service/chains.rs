//! The chains of one Service port in table `nat`.

use proxy_core::{
    environment::LocalPods,
    model::TrafficPolicy,
    route::{AllowedSources, FrontendKind, Target},
};

use crate::{
    plan::service::{
        rules::{EndpointComments, Rules},
        writer::{Endpoint, Writer},
    },
    schema::{
        chains::{MARK_MASQUERADE, Role, ServiceChain},
        rule::{Rule, full_mask, host, network, one_in},
    },
};

impl Writer<'_> {
    pub(super) fn chains_into(&self, rules: &mut Rules) {
        if self.is_external() {
            rules.add_chain(self.chain(Role::External), |text| self.external_chain(text));
        }
        if let Some(sources) = self.sources() {
            rules.add_chain(self.chain(Role::Firewall), |text| self.firewall_chain(text, sources));
        }
        for (policy, targets) in
            [(TrafficPolicy::Cluster, &self.route.cluster), (TrafficPolicy::Local, &self.route.local)]
        {
            if !targets.is_empty() {
                rules.add_chain(self.policy_chain(policy), |text| {
                    self.policy_chain_rules(text, policy, targets);
                });
            }
        }
        for (chain, endpoint) in &self.endpoints {
            rules.add_chain(*chain, |text| self.endpoint_chain(text, *chain, endpoint));
        }
    }

    fn external_chain(&self, text: &mut String) {
        fn comment<'a>(rule: Rule<'a>, what: &str, writer: &Writer<'_>) -> Rule<'a> {
            rule.comment(&[what, &writer.name, " external destinations"])
        }
        let chain = self.chain(Role::External);
        match self.route.external_policy {
            TrafficPolicy::Cluster => {
                comment(Rule::new(text, chain), "masquerade traffic for ", self).jump(&[MARK_MASQUERADE]);
            }
            TrafficPolicy::Local => {
                const FROM_NODE: &str = "-m addrtype --src-type LOCAL";
                let anywhere = self.chain(Role::Cluster);
                // Traffic of this node is treated as if it went out to a load balancer and came back: no policy.
                for pods in local_pods(&self.context.environment.local_pods) {
                    let rule = match &pods {
                        Pods::Source(network) => Rule::new(text, chain).source(network),
                        Pods::Interface(name) => Rule::new(text, chain).interface(name),
                    };
                    comment(rule, "pod traffic for ", self).goto(anywhere);
                }
                // From the node itself it has the destination as its source, so that needs translation.
                comment(Rule::new(text, chain), "masquerade LOCAL traffic for ", self)
                    .more(FROM_NODE)
                    .jump(&[MARK_MASQUERADE]);
                comment(Rule::new(text, chain), "route LOCAL traffic for ", self)
                    .more(FROM_NODE)
                    .goto(anywhere);
            }
        }
        if self.has_endpoints_under(self.route.external_policy) {
            Rule::new(text, chain).goto(self.policy_chain(self.route.external_policy));
        }
    }

    fn firewall_chain(&self, text: &mut String, sources: &AllowedSources) {
        let chain = self.chain(Role::Firewall);
        let ranges = sources.ranges.iter().map(network);
        for source in ranges.chain(sources.own_vips.iter().map(|vip| host(*vip))) {
            Rule::new(text, chain)
                .source(&source)
                .comment(&[&self.name, " loadbalancer IP"])
                .goto(self.chain(Role::External));
        }
        Rule::new(text, chain)
            .comment(&["other traffic to ", &self.name, " will be dropped by KUBE-PROXY-FIREWALL"])
            .end();
    }

    fn policy_chain_rules(&self, text: &mut String, policy: TrafficPolicy, targets: &[Target]) {
        let chain = self.policy_chain(policy);
        if self.route.policy.internal == policy {
            self.masquerade_internal(text, chain);
        }
        let mut endpoints: Vec<&(ServiceChain, Endpoint)> =
            targets.iter().map(|target| self.endpoint_of(*target)).collect();
        // kube-proxy's order: by `address:port` as text.
        endpoints.sort_unstable_by(|(_, a), (_, b)| a.text.cmp(&b.text));
        if let Some(seconds) = self.route.policy.affinity {
            for (to, endpoint) in &endpoints {
                let mask = full_mask(endpoint.addr);
                self.to_endpoint(text, chain, endpoint)
                    .more(&format!(
                        "-m recent --rcheck --seconds {seconds} --reap --name {to} --mask {mask} --rsource"
                    ))
                    .goto(*to);
            }
        }
        for (at, (to, endpoint)) in endpoints.iter().enumerate() {
            let left = endpoints.len() - at;
            let rule = self.to_endpoint(text, chain, endpoint);
            if left > 1 { rule.more(&one_in(left)) } else { rule }.goto(*to);
        }
    }

    fn to_endpoint<'a>(&self, text: &'a mut String, chain: ServiceChain, endpoint: &Endpoint) -> Rule<'a> {
        let rule = Rule::new(text, chain);
        match self.context.comments {
            EndpointComments::Written => rule.comment(&[&self.name, " -> ", &endpoint.text]),
            EndpointComments::LeftOut => rule,
        }
    }

    /// Traffic to a cluster IP from outside the cluster may be answered by another node, and must come back here.
    fn masquerade_internal(&self, text: &mut String, chain: ServiceChain) {
        let environment = self.context.environment;
        for frontend in self.frontends(FrontendKind::ClusterIp) {
            let to_frontend = |rule: Rule<'_>, target: &[&str]| {
                rule.protocol(self.route.protocol)
                    .comment(&[&self.name, " cluster IP"])
                    .port(frontend.port)
                    .jump(target);
            };
            let to = frontend.at.map(host).unwrap_or_default();
            let pods = local_pods(&environment.local_pods);
            match &pods[..] {
                _ if environment.masquerade_all => {
                    to_frontend(Rule::new(text, chain).destination(&to), &[MARK_MASQUERADE]);
                }
                [] => {}
                [Pods::Source(network)] => {
                    let rule = Rule::new(text, chain).not_source(network).destination(&to);
                    to_frontend(rule, &[MARK_MASQUERADE]);
                }
                [Pods::Interface(name)] => {
                    let rule = Rule::new(text, chain).destination(&to).not_interface(name);
                    to_frontend(rule, &[MARK_MASQUERADE]);
                }
                // One rule cannot exclude two networks: mark all, then clear what turns out to be local.
                several => {
                    to_frontend(Rule::new(text, chain).destination(&to), &[MARK_MASQUERADE]);
                    let clear = format!("MARK --set-xmark 0x0/{:#x}", environment.masquerade_mark);
                    for pods in several {
                        let rule = match pods {
                            Pods::Source(network) => Rule::new(text, chain).source(network).destination(&to),
                            Pods::Interface(name) => Rule::new(text, chain).destination(&to).interface(name),
                        };
                        to_frontend(rule, &[&clear]);
                    }
                }
            }
        }
    }

    fn endpoint_chain(&self, text: &mut String, chain: ServiceChain, endpoint: &Endpoint) {
        fn comment<'a>(rule: Rule<'a>, writer: &Writer<'_>) -> Rule<'a> {
            match writer.context.comments {
                EndpointComments::Written => rule.comment(&[&writer.name]),
                EndpointComments::LeftOut => rule,
            }
        }
        // An endpoint that reaches itself would answer itself directly, past the translation.
        comment(Rule::new(text, chain).source_host(endpoint.addr), self).jump(&[MARK_MASQUERADE]);

        let mut rule = comment(Rule::new(text, chain).protocol(self.route.protocol), self);
        if self.route.policy.affinity.is_some() {
            let mask = full_mask(endpoint.addr);
            rule = rule.more(&format!("-m recent --set --name {chain} --mask {mask} --rsource"));
        }
        rule.protocol_match().jump(&["DNAT --to-destination ", &endpoint.text]);
    }
}

/// One way to tell that a packet comes from a pod of this node.
enum Pods {
    Source(String),
    Interface(String),
}

fn local_pods(detector: &LocalPods) -> Vec<Pods> {
    match detector {
        LocalPods::Unknown => Vec::new(),
        LocalPods::Cidrs(cidrs) => cidrs.iter().map(|cidr| Pods::Source(network(cidr))).collect(),
        LocalPods::Bridge(name) => vec![Pods::Interface(name.to_string())],
        LocalPods::InterfacePrefix(prefix) => vec![Pods::Interface(format!("{prefix}+"))],
    }
}
