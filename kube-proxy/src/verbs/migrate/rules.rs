//! What behaves differently after a change of mode or of the program: each difference as data, with a predicate that names the
//! Services of this cluster that it concerns. The words are those of the documents, which each rule names.

use insight::state::{Mode, State};
use proxy_core::model::{Family, Service};

/// What is compared.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Move<'a> {
    /// The state until now.
    pub(crate) state: &'a State,
    /// And as it would be.
    pub(crate) after: &'a State,
    /// Until now a kube-proxy serves the node, in the mode of `state`.
    pub(crate) from_kube_proxy: bool,
}

impl Move<'_> {
    fn before(&self) -> Mode {
        self.state.header.mode
    }

    fn to(&self) -> Mode {
        self.after.header.mode
    }

    fn leaves(&self, mode: Mode) -> bool {
        self.before() == mode && self.to() != mode
    }

    fn enters(&self, mode: Mode) -> bool {
        self.before() != mode && self.to() == mode
    }

    fn services(&self, concerned: impl Fn(&Service) -> bool) -> Concern {
        let names = self.after.services.iter().filter(|service| concerned(service));
        let names: Vec<String> = names.map(|service| service.name.to_string()).collect();
        if names.is_empty() { Concern::Nothing } else { Concern::Services(names) }
    }
}

/// Whom a rule concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Concern {
    Nothing,
    /// All Services, or the node itself.
    Node,
    /// These, `namespace/name`.
    Services(Vec<String>),
}

impl Concern {
    fn node(concerned: bool) -> Self {
        if concerned { Self::Node } else { Self::Nothing }
    }
}

/// One difference.
pub(crate) struct Rule {
    pub(crate) name: &'static str,
    /// What is different.
    pub(crate) what: &'static str,
    /// What to do about it.
    pub(crate) mend: &'static str,
    /// The document that says so, and words of it by which the place is found.
    pub(crate) see: (&'static str, &'static str),
    pub(crate) concerns: fn(&Move<'_>) -> Concern,
}

const MIGRATE: &str = "docs/migrate.md";
const DIFFERENCES: &str = "docs/differences.md";
const IPVS_USERS: &str = "docs/ipvs-users.md";

fn has_node_port(service: &Service) -> bool {
    service.ports.iter().any(|port| port.node_port.is_some())
}

fn has_option(service: &Service, name: &str) -> bool {
    service.options.iter().any(|(own, _)| &**own == name)
}

fn restricts_one_family(service: &Service) -> bool {
    let Some(ranges) = &service.source_ranges else { return false };
    Family::BOTH.into_iter().any(|family| {
        service.load_balancer_ips.iter().any(|ip| Family::of(*ip) == family)
            && !ranges.iter().any(|net| Family::of_net(net) == family)
            && !ranges.is_empty()
    })
}

pub(crate) const RULES: [Rule; 19] = [
    Rule {
        name: "forward",
        what: "forwarded traffic is not accepted ahead of other rules of FORWARD",
        mend: "let your own firewall pass traffic to and from pods",
        see: (MIGRATE, "No accept in FORWARD."),
        concerns: |way| Concern::node(way.enters(Mode::Nftables)),
    },
    Rule {
        name: "localhost-node-ports",
        what: "NodePorts do not answer on 127.0.0.1",
        mend: "nodePortAddresses: [primary, localhost], or [all, localhost]",
        see: (MIGRATE, "**NodePorts on 127.0.0.1**"),
        concerns: |way| {
            let had = way.state.header.environment.localhost_node_ports;
            let has = way.after.header.environment.localhost_node_ports;
            if had && !has { way.services(has_node_port) } else { Concern::Nothing }
        },
    },
    Rule {
        name: "node-port-addresses",
        what: "NodePorts answer at the node's primary addresses only, no longer at all of its addresses",
        mend: "nodePortAddresses: [all]",
        see: (MIGRATE, "**NodePort addresses.**"),
        concerns: |way| {
            let everywhere =
                |state: &State| state.header.environment.node_ports == insight::state::NodePorts::Any;
            if everywhere(way.state) && !everywhere(way.after) {
                way.services(has_node_port)
            } else {
                Concern::Nothing
            }
        },
    },
    Rule {
        name: "chains",
        what: "there are no chains KUBE-*: what looks for them or adds to KUBE-MARK-MASQ finds nothing",
        mend: "look at the table: nft list table ip kube-proxy",
        see: (MIGRATE, "**No KUBE-* chains.**"),
        concerns: |way| Concern::node(way.leaves(Mode::Iptables) && way.to() == Mode::Nftables),
    },
    Rule {
        name: "source-ranges-before-translation",
        what: "source ranges are enforced before translation, also for packets of the node itself",
        mend: "name the node's addresses in loadBalancerSourceRanges where it must get through",
        see: (MIGRATE, "**Source ranges**"),
        concerns: |way| {
            if way.enters(Mode::Nftables) {
                way.services(|service| service.source_ranges.is_some())
            } else {
                Concern::Nothing
            }
        },
    },
    Rule {
        name: "unallocated-cluster-ips",
        what: "packets to addresses of the ServiceCIDRs that no Service has are dropped, and other ports are refused",
        mend: "nothing, unless something else uses addresses of the ServiceCIDRs",
        see: (MIGRATE, "**Unallocated ClusterIPs**"),
        concerns: |way| Concern::node(way.enters(Mode::Nftables)),
    },
    Rule {
        name: "host-firewall",
        what: "firewalls of the host must let NodePorts and health check node ports in by themselves",
        mend: "open them in every table that filters",
        see: (MIGRATE, "**Firewalls of the host**"),
        concerns: |way| {
            let checked = |service: &Service| service.health_check_node_port.is_some();
            if way.enters(Mode::Nftables) {
                way.services(|service| has_node_port(service) || checked(service))
            } else {
                Concern::Nothing
            }
        },
    },
    Rule {
        name: "addresses-of-the-device",
        what: "virtual IPs are local routes to kube-ipvs0, not addresses of it",
        mend: "--ipvs-vip-binding=addresses, if something reads addresses there",
        see: (MIGRATE, "Virtual IPs are local routes to the device `kube-ipvs0`"),
        concerns: |way| {
            let routes = way.after.header.ipvs.as_ref().is_none_or(|ipvs| ipvs.vip_binding == "routes");
            let new = way.from_kube_proxy || way.enters(Mode::Ipvs);
            Concern::node(way.to() == Mode::Ipvs && routes && new)
        },
    },
    Rule {
        name: "ipsets",
        what: "what IPVS cannot decide stands in the table kube-proxy-ipvs, not in ipsets and iptables",
        mend: "nothing, unless something reads the ipsets KUBE-*",
        see: (MIGRATE, "stands in the nftables table `kube-proxy-ipvs`"),
        concerns: |way| {
            Concern::node(way.to() == Mode::Ipvs && (way.from_kube_proxy && way.before() == Mode::Ipvs))
        },
    },
    Rule {
        name: "scheduler",
        what: "an endpoint is chosen at random, whatever scheduler of IPVS was configured",
        mend: "nothing; session affinity is kept",
        see: (IPVS_USERS, "schedulers by `ipvs.scheduler`"),
        concerns: |way| {
            let chosen = way.state.header.ipvs.as_ref().is_some_and(|ipvs| ipvs.scheduler != "rr");
            Concern::node(way.leaves(Mode::Ipvs) && chosen)
        },
    },
    Rule {
        name: "scheduler-annotations",
        what: "the annotations ipvs-scheduler, ipvs-weight and ipvs-local-weight have no effect",
        mend: "nothing that stands in for them: endpoints are chosen at random",
        see: (IPVS_USERS, "by Service (annotation)"),
        concerns: |way| {
            if way.leaves(Mode::Ipvs) {
                way.services(|service| {
                    proxy_core::model::OPTIONS.iter().any(|name| has_option(service, name))
                })
            } else {
                Concern::Nothing
            }
        },
    },
    Rule {
        name: "no-device",
        what: "there is no device kube-ipvs0: bird, ExternalDNS and scripts find no virtual IPs on the node",
        mend: "announce from the API instead (MetalLB, kube-vip, your CNI's BGP)",
        see: (IPVS_USERS, "addresses of `kube-ipvs0`"),
        concerns: |way| Concern::node(way.leaves(Mode::Ipvs)),
    },
    Rule {
        name: "forward-policy",
        what: "answers of endpoints are no longer accepted where the host drops in FORWARD",
        mend: "let pods through yourself",
        see: (IPVS_USERS, "`-P FORWARD DROP` on the host"),
        concerns: |way| Concern::node(way.leaves(Mode::Ipvs) && way.to() == Mode::Nftables),
    },
    Rule {
        name: "host-ports-on-virtual-ips",
        what: "ports of the host do not answer at a virtual IP",
        mend: "reach them at the node's own addresses",
        see: (IPVS_USERS, "ports of the host on a virtual IP"),
        concerns: |way| {
            Concern::node(way.before() == Mode::Ipvs && (way.from_kube_proxy || way.leaves(Mode::Ipvs)))
        },
    },
    Rule {
        name: "disputed-addresses",
        what: "of two Services with one address and port always the same one has it",
        mend: "give the other one an address of its own; an Event AddressConflict names both",
        see: (DIFFERENCES, "two Services with the same external address and port"),
        concerns: |way| {
            let lost = |service: &Service| {
                let name = service.name.to_string();
                way.state.conflicts.iter().any(|conflict| conflict.service == name)
            };
            if way.from_kube_proxy { way.services(lost) } else { Concern::Nothing }
        },
    },
    Rule {
        name: "too-large",
        what: "a Service that asks for too much keeps its last good rules",
        mend: "divide it; an Event ServiceTooLarge names the number and the limit",
        see: (DIFFERENCES, "one that asks for more than 10,000 addresses with ports"),
        concerns: |way| {
            let aside = |service: &Service| {
                let name = service.name.to_string();
                way.state.asides.iter().any(|aside| aside.service == name && aside.retry_at.is_none())
            };
            if way.from_kube_proxy { way.services(aside) } else { Concern::Nothing }
        },
    },
    Rule {
        name: "open-load-balancers",
        what: "a list of source ranges restricts one family only: the other is open to everybody",
        mend: "name ranges of both families",
        see: (DIFFERENCES, "`loadBalancerSourceRanges` with ranges of one family"),
        concerns: |way| {
            if way.from_kube_proxy { way.services(restricts_one_family) } else { Concern::Nothing }
        },
    },
    Rule {
        name: "restricted-external-ips",
        what: "an address that is an external IP and a load balancer's is restricted by the source ranges",
        mend: "take the address out of externalIPs, or widen the ranges",
        see: (DIFFERENCES, "an address that is both an external IP and a load balancer's"),
        concerns: |way| {
            let both = |service: &Service| {
                service.source_ranges.is_some()
                    && service.external_ips.iter().any(|ip| service.load_balancer_ips.contains(ip))
            };
            if way.from_kube_proxy && way.before() == Mode::Iptables {
                way.services(both)
            } else {
                Concern::Nothing
            }
        },
    },
    Rule {
        name: "udp-flows",
        what: "UDP and SCTP flows of Services that changed or went are removed from connection tracking",
        mend: "nothing: clients begin anew",
        see: (DIFFERENCES, "UDP flows of a Service that lost all its endpoints, changed, or was deleted"),
        concerns: |way| {
            use proxy_core::model::Protocol;
            if way.from_kube_proxy {
                way.services(|service| service.ports.iter().any(|port| port.protocol != Protocol::Tcp))
            } else {
                Concern::Nothing
            }
        },
    },
];
