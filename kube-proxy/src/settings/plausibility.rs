//! Does the configuration fit this node? What does not is told once at the start; what cannot work is refused.

use std::net::SocketAddr;

use ipnet::IpNet;
use proxy_core::model::Family;

use crate::settings::effective::{DetectLocal, NodePortAddressSet, Settings};

/// What the node turned out to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    /// The family of the node's first address.
    pub(crate) primary: Family,
    /// The families that the machine and the mode can serve.
    pub(crate) served: &'a [Family],
    /// Of the Node object; only asked for in NodeCIDR mode.
    pub(crate) pod_cidrs: &'a [IpNet],
}

/// Logs what is suspicious; the error is what makes a start useless.
pub(crate) fn check(settings: &Settings, found: Found<'_>) -> anyhow::Result<()> {
    let verdict = judge(settings, found);
    for suspicion in &verdict.suspicions {
        tracing::error!(err = suspicion, "Kube-proxy configuration may be incomplete or incorrect");
    }
    if let Some(fault) = verdict.fault {
        anyhow::bail!(fault);
    }
    let primary = found.primary;
    if found.served.len() == Family::BOTH.len() {
        tracing::info!(%primary, "kube-proxy running in dual-stack mode");
    } else {
        tracing::info!(ipFamily = %primary, "kube-proxy running in single-stack mode");
    }
    Ok(())
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    suspicions: Vec<String>,
    fault: Option<String>,
}

fn judge(settings: &Settings, found: Found<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    if !found.served.contains(&found.primary) {
        verdict.fault = Some(format!("no support for primary IP family {:?}", found.primary.to_string()));
        return verdict;
    }
    verdict.suspicions.extend(node_ports(settings, found));
    families(settings, found, &mut verdict);
    verdict
}

fn node_ports(settings: &Settings, found: Found<'_>) -> Option<String> {
    let (primary, other) = (found.primary, other(found.primary));
    match &settings.node_port_addresses.addresses {
        NodePortAddressSet::Any if settings.document["nodePortAddresses"].as_array().is_none_or(Vec::is_empty) => {
            Some(
                "nodePortAddresses is unset; NodePort connections will be accepted on all local IPs. Consider using \
                 `--nodeport-addresses primary`"
                    .to_owned(),
            )
        }
        NodePortAddressSet::Cidrs(nets) => {
            let lists = [&settings.cluster_cidrs[..], nets, &settings.ipvs.exclude_cidrs, found.pod_cidrs];
            let dual = lists.iter().any(|list| is_all(list, primary).is_none() && !list.is_empty());
            if dual && is_all(nets, primary) == Some(true) {
                Some(format!(
                    "cluster appears to be dual-stack but nodePortAddresses contains only {primary} addresses; \
                     NodePort connections will be accepted on all local {other} IPs"
                ))
            } else if is_all(nets, other) == Some(true) {
                Some(format!(
                    "cluster appears to be {primary}-primary but nodePortAddresses contains only {other} addresses; \
                     NodePort connections will be accepted on all local {primary} IPs"
                ))
            } else {
                None
            }
        }
        _ => None,
    }
}

fn families(settings: &Settings, found: Found<'_>, verdict: &mut Verdict) {
    let bad = other(found.primary);
    let single = found.served.len() == 1;
    let cluster = format!("cluster is {}-{}", found.primary, if single { "only" } else { "primary" });
    let mut wrong = Vec::new();
    let mut fatal = false;
    if is_all(&settings.cluster_cidrs, bad) == Some(true) {
        wrong.push(format!("{cluster} but clusterCIDR contains only {bad} addresses"));
        fatal |= single && matches!(settings.detect_local, DetectLocal::ClusterCidr(_));
    }
    if is_all(found.pod_cidrs, bad) == Some(true) {
        wrong.push(format!("{cluster} but node.spec.podCIDRs contains only {bad} addresses"));
        fatal |= settings.detect_local == DetectLocal::NodeCidr;
    }
    if single {
        if is_all(&settings.ipvs.exclude_cidrs, bad) == Some(true) {
            wrong.push(format!("{cluster} but ipvs.excludeCIDRs contains only {bad} addresses"));
        }
        let listens = |address: Option<SocketAddr>| {
            address.is_some_and(|address| Family::of(address.ip()) == bad && !address.ip().is_unspecified())
        };
        for (field, address) in [
            ("healthzBindAddress", settings.healthz_address),
            ("metricsBindAddress", settings.metrics_address),
        ] {
            if listens(address) {
                wrong.push(format!("{cluster} but {field} is {bad}"));
            }
        }
    }
    if fatal {
        verdict.fault = Some(format!("kube-proxy configuration is incorrect: {}", wrong.join(", ")));
    } else {
        verdict.suspicions.extend(wrong);
    }
}

/// Whether all are of the family, or none is; `None` for an empty list and for a mixed one.
fn is_all(nets: &[IpNet], family: Family) -> Option<bool> {
    let of_family = nets.iter().filter(|net| Family::of_net(net) == family).count();
    match of_family {
        _ if nets.is_empty() => None,
        0 => Some(false),
        all if all == nets.len() => Some(true),
        _ => None,
    }
}

fn other(family: Family) -> Family {
    match family {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{self, Command};

    fn settings(arguments: &[&str]) -> Settings {
        match settings::load(arguments).expect("good arguments").command {
            Command::Run(settings) => *settings,
            other => panic!("{other:?}"),
        }
    }

    fn verdict(arguments: &[&str], primary: Family, served: &[Family], pod_cidrs: &[&str]) -> Verdict {
        let pod_cidrs: Vec<IpNet> = pod_cidrs.iter().map(|text| text.parse().expect("a network")).collect();
        judge(&settings(arguments), Found { primary, served, pod_cidrs: &pod_cidrs })
    }

    const ALL: &str = "--nodeport-addresses=all";

    #[test]
    fn a_usual_configuration_raises_no_suspicion() {
        for arguments in [
            &["--mode=nftables", "--cluster-cidr=10.0.0.0/8"][..],
            &["--mode=iptables", ALL, "--cluster-cidr=10.0.0.0/8,fd00::/48"],
            &["--mode=iptables", "--nodeport-addresses=10.0.0.0/8"],
        ] {
            assert_eq!(
                verdict(arguments, Family::V4, &Family::BOTH, &[]),
                Verdict::default(),
                "{arguments:?}"
            );
        }
    }

    #[test]
    fn a_primary_family_without_support_is_a_fault() {
        let verdict = verdict(&[ALL], Family::V6, &[Family::V4], &[]);
        assert_eq!(verdict.fault.as_deref(), Some("no support for primary IP family \"IPv6\""));
    }

    #[test]
    fn unset_node_port_addresses_are_worth_a_word() {
        let verdict = verdict(&["--mode=iptables"], Family::V4, &Family::BOTH, &[]);
        assert!(verdict.suspicions[0].starts_with("nodePortAddresses is unset"));
        assert_eq!(verdict.fault, None);
    }

    #[test]
    fn node_port_addresses_that_leave_a_family_open_are_worth_a_word() {
        let only_v4 = ["--nodeport-addresses=10.0.0.0/8", "--cluster-cidr=10.0.0.0/8,fd00::/48"];
        let found = verdict(&only_v4, Family::V4, &Family::BOTH, &[]);
        assert!(found.suspicions[0].contains("contains only IPv4 addresses"), "{found:?}");
        let only_v6 = ["--nodeport-addresses=fd00::/8"];
        let found = verdict(&only_v6, Family::V4, &Family::BOTH, &[]);
        assert!(
            found.suspicions[0].contains("IPv4-primary but nodePortAddresses contains only IPv6"),
            "{found:?}"
        );
    }

    #[test]
    fn pod_networks_of_the_wrong_family_are_fatal_where_they_decide() {
        let wrong = [ALL, "--cluster-cidr=fd00::/48"];
        let found = verdict(&wrong, Family::V4, &[Family::V4], &[]);
        assert_eq!(
            found.fault.as_deref(),
            Some(
                "kube-proxy configuration is incorrect: cluster is IPv4-only but clusterCIDR contains only IPv6 addresses"
            )
        );
        let found = verdict(&wrong, Family::V4, &Family::BOTH, &[]);
        assert_eq!(found.fault, None);
        assert_eq!(
            found.suspicions,
            ["cluster is IPv4-primary but clusterCIDR contains only IPv6 addresses"]
        );
        let node = [ALL, "--detect-local-mode=NodeCIDR"];
        assert!(verdict(&node, Family::V4, &Family::BOTH, &["fd00::/64"]).fault.is_some());
        assert_eq!(verdict(&node, Family::V4, &Family::BOTH, &["10.0.0.0/24"]), Verdict::default());
    }

    #[test]
    fn on_a_node_of_one_family_addresses_of_the_other_are_worth_a_word() {
        let arguments = [
            ALL,
            "--healthz-bind-address=[fd00::1]:1",
            "--metrics-bind-address=[::]:2",
            "--ipvs-exclude-cidrs=fd00::/8",
        ];
        let found = verdict(&arguments, Family::V4, &[Family::V4], &[]);
        assert_eq!(
            found.suspicions,
            [
                "cluster is IPv4-only but ipvs.excludeCIDRs contains only IPv6 addresses",
                "cluster is IPv4-only but healthzBindAddress is IPv6",
            ]
        );
        assert_eq!(verdict(&arguments, Family::V4, &Family::BOTH, &[]), Verdict::default());
    }
}
