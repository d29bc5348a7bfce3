//! The part of the settings that backends act on.

use std::net::IpAddr;

use ipnet::IpNet;
use proxy_core::{
    environment::{EnvironmentSettings, LocalPods, NodePortSettings},
    model::{Family, Protocol},
};

use crate::settings::{
    effective::{DetectLocal, Mode, NodePortAddressSet, Settings},
    feature_gates::Feature,
};

/// `pod_cidrs`: the node's own, where they tell its pods apart.
pub(crate) fn settings(settings: &Settings, pod_cidrs: &[IpNet]) -> EnvironmentSettings {
    let local_pods = match &settings.detect_local {
        DetectLocal::ClusterCidr(cidrs) if cidrs.is_empty() => {
            tracing::info!("Defaulting to no-op detect-local");
            LocalPods::Unknown
        }
        DetectLocal::ClusterCidr(cidrs) => LocalPods::Cidrs(cidrs.clone().into()),
        DetectLocal::NodeCidr => LocalPods::Cidrs(pod_cidrs.into()),
        DetectLocal::BridgeInterface(name) => LocalPods::Bridge(name.as_str().into()),
        DetectLocal::InterfaceNamePrefix(prefix) => LocalPods::InterfacePrefix(prefix.as_str().into()),
    };
    let selection = &settings.node_port_addresses;
    let node_ports = match &selection.addresses {
        NodePortAddressSet::Any => NodePortSettings::Any,
        NodePortAddressSet::Primary => NodePortSettings::Primary,
        NodePortAddressSet::Cidrs(cidrs) => NodePortSettings::Within(cidrs.clone().into()),
        NodePortAddressSet::PrimaryAndCidrs(cidrs) => {
            NodePortSettings::PrimaryAndWithin(cidrs.clone().into())
        }
    };
    let v4: Vec<&IpNet> = selection.addresses.cidrs().iter().filter(|cidr| cidr.addr().is_ipv4()).collect();
    let loopback = IpAddr::from([127, 0, 0, 0]);
    let names_loopback = v4
        .iter()
        .any(|cidr| cidr.prefix_len() > 0 && (cidr.addr().is_loopback() || cidr.contains(&loopback)));
    let everywhere = match &selection.addresses {
        NodePortAddressSet::Any => true,
        NodePortAddressSet::Primary => false,
        NodePortAddressSet::Cidrs(_) => v4.is_empty() || v4.iter().any(|cidr| cidr.prefix_len() == 0),
        NodePortAddressSet::PrimaryAndCidrs(_) => v4.iter().any(|cidr| cidr.prefix_len() == 0),
    };
    // Somebody may have set the gate; nobody needs to.
    let gate = settings.feature_gates.chosen(Feature::KubeProxyNFTablesLocalhostNodePorts);
    let localhost_node_ports = match settings.mode {
        // As kube-proxy: on by default, where NodePorts answer on all addresses or on a loopback network.
        Mode::Iptables => {
            settings.localhost_node_ports && (selection.localhost || names_loopback || everywhere)
        }
        // Only where it is asked for: the kernel setting behind it has a cost in safety.
        Mode::Nftables => (selection.localhost || names_loopback) && gate != Some(false),
        Mode::Ipvs => selection.localhost || names_loopback,
    };
    let refused = |family| -> &[Protocol] {
        match (settings.mode, family) {
            (Mode::Nftables, Family::V4) if localhost_node_ports => &[],
            // Whoever listens there has no other way to an endpoint (see `serve::localhost_node_ports`).
            (Mode::Nftables, Family::V6) if listens_on_localhost(settings) => {
                &[Protocol::Udp, Protocol::Sctp]
            }
            // As kube-proxy where the gate is on and no loopback address is named.
            (Mode::Nftables, _) if gate == Some(true) => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
            _ => &[],
        }
    };
    let refused_on_localhost = Family::BOTH
        .into_iter()
        .flat_map(|family| refused(family).iter().map(move |protocol| (family, *protocol)))
        .collect();
    EnvironmentSettings {
        masquerade_mark: settings.masquerade_mark,
        masquerade_all: settings.masquerade_all,
        local_pods,
        node_ports,
        localhost_node_ports,
        refused_on_localhost,
    }
}

/// Whether NodePorts on ::1 are served, by listeners of this process.
pub(crate) fn listens_on_localhost(settings: &Settings) -> bool {
    settings.mode == Mode::Nftables
        && settings.node_port_addresses.localhost_v6
        && settings.feature_gates.chosen(Feature::KubeProxyNFTablesLocalhostNodePorts) != Some(false)
}

#[cfg(test)]
mod tests {
    use proxy_core::environment::{NodeFacts, NodePortAddresses};

    use super::*;
    use crate::settings::{self, Command};

    /// Where NodePorts answer on a node with these addresses, loopback included.
    fn answering(mode: &str, forms: &str) -> (String, String) {
        answering_with(mode, forms, &[])
    }

    fn loaded(mode: &str, forms: &str, more: &[String]) -> Settings {
        let mut arguments = vec![format!("--mode={mode}"), format!("--nodeport-addresses={forms}")];
        arguments.extend_from_slice(more);
        let Command::Run(settings) = settings::load(&arguments).expect(forms).command else {
            panic!("not to be run");
        };
        *settings
    }

    /// The protocols that are refused on loopback addresses and counted, as the gate says.
    #[test]
    fn what_is_refused_on_localhost_depends_on_the_gate_and_on_who_listens() {
        use Protocol::{Sctp, Tcp, Udp};
        let all: &'static [Protocol] = &[Tcp, Udp, Sctp];
        type Case =
            (&'static str, &'static str, Option<&'static str>, &'static [Protocol], &'static [Protocol]);
        let cases: [Case; 9] = [
            ("nftables", "primary", None, &[], &[]),
            ("nftables", "primary,localhost", None, &[], &[Udp, Sctp]),
            ("nftables", "primary,127.0.0.0/8", None, &[], &[]),
            ("nftables", "primary", Some("KubeProxyNFTablesLocalhostNodePorts=true"), all, all),
            ("nftables", "primary,localhost", Some("AllAlpha=true"), &[], &[Udp, Sctp]),
            (
                "nftables",
                "primary,::1/128",
                Some("KubeProxyNFTablesLocalhostNodePorts=true"),
                all,
                &[Udp, Sctp],
            ),
            ("nftables", "primary,localhost", Some("KubeProxyNFTablesLocalhostNodePorts=false"), &[], &[]),
            ("iptables", "primary,localhost", Some("KubeProxyNFTablesLocalhostNodePorts=true"), &[], &[]),
            ("ipvs", "primary,localhost", Some("KubeProxyNFTablesLocalhostNodePorts=true"), &[], &[]),
        ];
        for (mode, forms, gate, v4, v6) in cases {
            let gates: Vec<String> = gate.iter().map(|gate| format!("--feature-gates={gate}")).collect();
            let settings = settings(&loaded(mode, forms, &gates), &[]);
            let of = |family| settings.resolve(family, &NodeFacts::default()).refused_on_localhost;
            assert_eq!((&*of(Family::V4), &*of(Family::V6)), (v4, v6), "{mode} {forms} {gate:?}");
        }
    }

    fn answering_with(mode: &str, forms: &str, more: &[String]) -> (String, String) {
        let settings = loaded(mode, forms, more);
        let facts = NodeFacts {
            node_ips: ips("192.168.0.10 2001:db8::10"),
            interface_addresses: ips("127.0.0.1 192.168.0.10 10.0.0.1 ::1 2001:db8::10 2001:db8:1::1"),
            ..NodeFacts::default()
        };
        let environment = super::settings(&settings, &[]);
        let of = |family| {
            let environment = environment.resolve(family, &facts);
            let mut addresses = match environment.node_ports {
                NodePortAddresses::Any => "any".to_owned(),
                NodePortAddresses::Only(some) => {
                    some.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
                }
            };
            let localhost = match family {
                Family::V4 => !environment.loopback_node_ports.is_empty(),
                Family::V6 if mode == "nftables" => listens_on_localhost(&settings),
                Family::V6 => settings.node_port_addresses.localhost_v6,
            };
            if localhost {
                addresses.push_str(" +localhost");
            }
            addresses.trim().to_owned()
        };
        (of(Family::V4), of(Family::V6))
    }

    fn ips(texts: &str) -> Box<[IpAddr]> {
        texts.split(' ').map(|text| text.parse().expect("an address")).collect()
    }

    /// The forms that kube-proxy 1.37 takes, and the addresses that answer.
    #[test]
    fn every_form_of_node_port_addresses_is_the_union_of_what_it_names() {
        const PRIMARY: (&str, &str) = ("192.168.0.10", "2001:db8::10");
        for (forms, v4, v6) in [
            ("primary", PRIMARY.0, PRIMARY.1),
            ("all", "any", "any"),
            ("localhost", "+localhost", "+localhost"),
            ("127.0.0.0/8", "+localhost", "any"),
            ("::1/128", "any", "+localhost"),
            ("10.0.0.0/8", "10.0.0.1", "any"),
            ("2001:db8:1::/64", "any", "2001:db8:1::1"),
            ("10.0.0.0/8,2001:db8:1::/64", "10.0.0.1", "2001:db8:1::1"),
            ("primary,all", "any", "any"),
            ("all,primary", "any", "any"),
            ("all,localhost", "any +localhost", "any +localhost"),
            ("all,127.0.0.0/8", "any +localhost", "any"),
            ("all,10.0.0.0/8", "any", "any"),
            ("primary,localhost", "192.168.0.10 +localhost", "2001:db8::10 +localhost"),
            ("localhost,primary", "192.168.0.10 +localhost", "2001:db8::10 +localhost"),
            ("primary,127.0.0.0/8", "192.168.0.10 +localhost", PRIMARY.1),
            ("primary,127.0.0.1/32", "192.168.0.10 +localhost", PRIMARY.1),
            ("primary,::1/128", PRIMARY.0, "2001:db8::10 +localhost"),
            ("primary,10.0.0.0/8", "10.0.0.1 192.168.0.10", PRIMARY.1),
            ("primary,192.168.0.0/16", PRIMARY.0, PRIMARY.1),
            ("primary,0.0.0.0/0", "any", PRIMARY.1),
            ("primary,10.0.0.0/8,localhost", "10.0.0.1 192.168.0.10 +localhost", "2001:db8::10 +localhost"),
            ("localhost,10.0.0.0/8", "10.0.0.1 +localhost", "+localhost"),
            ("primary,all,localhost", "any +localhost", "any +localhost"),
            ("0.0.0.0/0,::/0", "any", "any"),
            ("198.51.100.0/24", "", "any"),
        ] {
            for mode in ["nftables", "ipvs"] {
                assert_eq!(answering(mode, forms), (v4.to_owned(), v6.to_owned()), "{mode} {forms}");
            }
            // There, all addresses include 127.0.0.1, unless localhostNodePorts says otherwise.
            let v4 = if v4 == "any" { "any +localhost" } else { v4 };
            assert_eq!(answering("iptables", forms), (v4.to_owned(), v6.to_owned()), "iptables {forms}");
        }
        // In iptables and ipvs mode the gate of the nftables mode means nothing.
        for (mode, v4) in [("nftables", PRIMARY.0), ("iptables", "192.168.0.10 +localhost")] {
            let off = ["--feature-gates=KubeProxyNFTablesLocalhostNodePorts=false".to_owned()];
            let (found, _) = answering_with(mode, "primary,localhost", &off);
            assert_eq!(found, v4, "{mode}");
        }
        // Unset: the default of the mode.
        assert_eq!(answering("nftables", ""), (PRIMARY.0.to_owned(), PRIMARY.1.to_owned()));
        assert_eq!(answering("ipvs", ""), ("any".to_owned(), "any".to_owned()));
    }
}
