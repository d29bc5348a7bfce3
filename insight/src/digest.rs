//! A short number that tells whether two routes are the same, the same on every machine and in every version of this program
//! that writes the same schema.

use std::fmt::{self, Write as _};

use proxy_core::{
    model::TrafficPolicy,
    route::{Frontend, FrontendKind, Route, Target},
};

/// FNV-1a, 64 bits: not against forgery, but against chance.
struct Fnv(u64);

impl fmt::Write for Fnv {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        Ok(())
    }
}

/// Everything that a route says, as sixteen hexadecimal digits.
pub fn of_route(route: &Route) -> String {
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    // Nothing that is written to can fail.
    let _ = write(&mut hash, route);
    format!("{:016x}", hash.0)
}

fn write(to: &mut Fnv, route: &Route) -> fmt::Result {
    let policy = &route.policy;
    write!(
        to,
        "{};{};{};{:?};{:?};{};{}",
        route.protocol,
        word(policy.internal),
        word(route.external_policy),
        policy.affinity,
        policy.health_check_node_port,
        route.any_endpoint,
        route.endpoints,
    )?;
    if let Some(sources) = &policy.sources {
        to.write_str(";sources")?;
        sources.ranges.iter().try_for_each(|range| write!(to, ",{range}"))?;
        sources.own_vips.iter().try_for_each(|vip| write!(to, ",{vip}"))?;
    }
    policy.options.iter().try_for_each(|(name, value)| write!(to, ";{name}={value}"))?;
    for (title, frontends) in [("frontends", &route.frontends), ("lost", &route.lost)] {
        write!(to, ";{title}")?;
        frontends.iter().try_for_each(|one| frontend(to, one))?;
    }
    for (title, targets) in [("cluster", &route.cluster), ("local", &route.local)] {
        write!(to, ";{title}")?;
        targets.iter().try_for_each(|one| target(to, one))?;
    }
    // As in files of before there were any.
    if !route.kept.is_empty() {
        to.write_str(";kept")?;
        route.kept.iter().try_for_each(|one| target(to, one))?;
    }
    Ok(())
}

fn frontend(to: &mut Fnv, frontend: &Frontend) -> fmt::Result {
    write!(to, ",{}", kind(frontend.kind))?;
    if let Some(at) = frontend.at {
        write!(to, " {at}")?;
    }
    write!(to, " {}", frontend.port)
}

fn target(to: &mut Fnv, target: &Target) -> fmt::Result {
    write!(to, ",{} {}{}", target.addr, target.port, if target.local { " here" } else { "" })
}

const fn word(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

/// What kind of address a frontend has, as people say it.
pub const fn kind(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::ClusterIp => "cluster IP",
        FrontendKind::ExternalIp => "external IP",
        FrontendKind::LoadBalancerIp => "load balancer IP",
        FrontendKind::NodePort => "node port",
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, sync::Arc};

    use proxy_core::{model::Protocol, route::Policy};

    use super::*;

    fn route() -> Route {
        let at: IpAddr = [10, 96, 0, 1].into();
        Route {
            policy: Arc::new(Policy::default()),
            frontends: [Frontend { kind: FrontendKind::ClusterIp, at: Some(at), port: 80 }].into(),
            lost: Box::default(),
            cluster: [Target { addr: [10, 244, 1, 1].into(), port: 8080, local: true }].into(),
            local: Box::default(),
            kept: Box::default(),
            endpoints: 1,
            protocol: Protocol::Tcp,
            external_policy: TrafficPolicy::Cluster,
            any_endpoint: true,
        }
    }

    #[test]
    fn it_is_the_same_for_ever_and_another_for_every_change() {
        let known = of_route(&route());
        assert_eq!(known, "df1467a68475925a", "a file of an earlier version must be understood");
        let mut seen = std::collections::BTreeSet::from([known]);
        let mut changed = |change: &dyn Fn(&mut Route)| {
            let mut route = route();
            change(&mut route);
            assert!(seen.insert(of_route(&route)), "{route:?}");
        };
        changed(&|route| route.protocol = Protocol::Udp);
        changed(&|route| route.cluster = Box::default());
        changed(&|route| route.cluster[0].local = false);
        changed(&|route| route.cluster[0].port = 8081);
        changed(&|route| route.local = route.cluster.clone());
        changed(&|route| route.kept = route.cluster.clone());
        changed(&|route| route.lost = route.frontends.clone());
        changed(&|route| route.frontends[0].kind = FrontendKind::ExternalIp);
        changed(&|route| route.frontends[0].at = None);
        changed(&|route| route.any_endpoint = false);
        changed(&|route| route.endpoints = 2);
        changed(&|route| route.external_policy = TrafficPolicy::Local);
        changed(&|route| route.policy_mut().internal = TrafficPolicy::Local);
        changed(&|route| route.policy_mut().affinity = Some(10));
        changed(&|route| route.policy_mut().health_check_node_port = Some(10));
        changed(&|route| route.policy_mut().options = [("a".into(), "b".into())].into());
    }
}
