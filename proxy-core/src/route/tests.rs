use super::*;
use ipnet::IpNet;

use crate::{
    model::{Endpoint, Family, NodeHint, Slice, SlicePort},
    store::Entry,
};

const V4: Family = Family::V4;
const V6: Family = Family::V6;

/// What is special, the endpoints, and the last octets of those expected under policy Cluster and Local.
type LocalCase<'a> = (&'a str, &'a [&'a str], &'a [u8], &'a [u8]);

/// What is special, the ranges given, the family, and the ranges expected.
type RangesCase<'a> = (&'a str, Option<&'a [&'a str]>, Family, Option<&'a [&'a str]>);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a network")
}

/// A dual-stack ClusterIP Service with TCP port 80, named `http`.
fn service() -> Service {
    Service {
        name: crate::model::ServiceName::new("ns", "svc"),
        created: 0,
        cluster_ips: [ip("172.30.0.1"), ip("fd00::1")].into(),
        external_ips: [].into(),
        ignored_external_ips: [].into(),
        load_balancer_ips: [].into(),
        source_ranges: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: [ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }]
            .into(),
        options: [].into(),
    }
}

/// An endpoint written as its address and words: `ready`, `serving`, `terminating`, `local`, `node=here`,
/// `node=other`, `zone=a,b`.
fn endpoint(words: &str) -> Endpoint {
    let mut words = words.split(' ');
    let mut endpoint = Endpoint {
        addr: ip(words.next().expect("an address")),
        ready: false,
        serving: false,
        terminating: false,
        local: false,
        for_nodes: NodeHint::Absent,
        for_zones: None,
    };
    for word in words {
        match word {
            "ready" => (endpoint.ready, endpoint.serving) = (true, true),
            "serving" => endpoint.serving = true,
            "terminating" => endpoint.terminating = true,
            "local" => endpoint.local = true,
            "node=here" => endpoint.for_nodes = NodeHint::Here,
            "node=other" => endpoint.for_nodes = NodeHint::Elsewhere,
            _ => {
                let zones = word.strip_prefix("zone=").expect("a known word");
                let zones: Vec<Box<str>> =
                    zones.split(',').filter(|zone| !zone.is_empty()).map(Into::into).collect();
                endpoint.for_zones = Some(zones.into());
            }
        }
    }
    endpoint
}

fn node(zone: &str) -> NodeView {
    NodeView { zone: (!zone.is_empty()).then(|| zone.into()), ips: [ip("192.168.0.10")].into() }
}

fn routed(service: &Service, endpoints: &[&str], zone: &str) -> Route {
    let slice = Slice {
        name: crate::model::SliceName::new("ns", "svc-1"),
        service: service.name.clone(),
        family: V4,
        ports: [SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: endpoints.iter().map(|words| endpoint(words)).collect(),
        trigger_time: None,
    };
    let entry = Entry { service: None, slices: [slice].into_iter().collect() };
    let node = node(zone);
    let policy = Arc::new(Policy::of(service, V4, &node));
    let all = asked(service, V4);
    let (granted, lost): (Vec<Asked>, Vec<Asked>) = all.iter().partition(|asked| asked.counts);
    let [granted, lost] = [granted, lost].map(|asked| asked.iter().map(|asked| asked.frontend).collect());
    route(service, &service.ports[0], &policy, (granted, lost), &entry.endpoints(V4), &node)
}

/// What the first port asks for and may get.
fn wanted(service: &Service, family: Family) -> Vec<Frontend> {
    let all = asked(service, family);
    all.iter().filter(|asked| asked.counts && asked.port == 0).map(|asked| asked.frontend).collect()
}

fn last_octets(targets: &[Target]) -> Vec<u8> {
    let octet = |target: &Target| match target.addr {
        IpAddr::V4(addr) => addr.octets()[3],
        IpAddr::V6(addr) => addr.octets()[15],
    };
    targets.iter().map(octet).collect()
}

fn with_node_port(external_policy: TrafficPolicy) -> Service {
    let mut service = service();
    service.external_policy = external_policy;
    service.ports[0].node_port = Some(30080);
    service
}

/// What each kind of frontend answers, for the first of that kind.
fn answer(route: &Route, kind: FrontendKind) -> Answer<'_> {
    let frontend = route.frontends.iter().find(|frontend| frontend.kind == kind);
    route.answer(frontend.expect("a frontend of this kind"))
}

#[test]
fn cluster_traffic_uses_ready_endpoints_and_else_those_that_drain() {
    #[rustfmt::skip]
    let cases: &[(&str, &[&str], &[u8])] = &[
        ("only ready ones", &["10.0.0.1 ready", "10.0.0.2", "10.0.0.3 ready local"], &[1, 3]),
        ("never a mixture", &["10.0.0.1 ready", "10.0.0.2 serving terminating"], &[1]),
        ("draining ones when none is ready", &["10.0.0.1", "10.0.0.2 serving terminating"], &[2]),
        ("terminating and not serving is gone", &["10.0.0.1 terminating"], &[]),
        ("serving but not ready and not terminating is not usable", &["10.0.0.1 serving"], &[]),
        ("ready though terminating (publishNotReadyAddresses)", &["10.0.0.1 ready terminating"], &[1]),
        ("remote draining ones as well", &["10.0.0.1 serving terminating", "10.0.0.2 serving terminating local"], &[1, 2]),
    ];
    for (what, endpoints, expected) in cases {
        let route = routed(&service(), endpoints, "");
        assert_eq!(last_octets(&route.cluster), *expected, "{what}");
        assert_eq!(route.any_endpoint, !expected.is_empty(), "{what}");
        assert!(route.local.is_empty(), "{what}: no traffic of it is under policy Local");
    }
}

#[test]
fn local_traffic_uses_this_nodes_endpoints_and_falls_back_on_its_own() {
    #[rustfmt::skip]
    let cases: &[LocalCase<'_>] = &[
        ("local ready", &["10.0.0.1 ready", "10.0.0.2 ready local"], &[1, 2], &[2]),
        ("local draining while others are ready", &["10.0.0.1 ready", "10.0.0.2 serving terminating local"], &[1], &[2]),
        ("local ready goes before local draining", &["10.0.0.1 ready local", "10.0.0.2 serving terminating local"], &[1], &[1]),
        ("none local", &["10.0.0.1 ready"], &[1], &[]),
        ("draining elsewhere does not help Local", &["10.0.0.1 serving terminating"], &[1], &[]),
        ("none at all", &["10.0.0.1 local"], &[], &[]),
    ];
    for (what, endpoints, cluster, local) in cases {
        let route = routed(&with_node_port(TrafficPolicy::Local), endpoints, "");
        assert_eq!(last_octets(&route.cluster), *cluster, "{what}");
        assert_eq!(last_octets(&route.local), *local, "{what}");
        assert_eq!(route.any_endpoint, !cluster.is_empty() || !local.is_empty(), "{what}");
    }
}

#[test]
fn topology_hints_count_when_every_ready_endpoint_has_one_and_one_names_us() {
    #[rustfmt::skip]
    let cases: &[(&str, &str, &[&str], &[u8])] = &[
        ("zone", "a", &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"], &[1]),
        ("two zones of one endpoint", "b", &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=a,b"], &[2]),
        ("one without a hint", "a", &["10.0.0.1 ready zone=a", "10.0.0.2 ready"], &[1, 2]),
        ("one with an empty hint", "a", &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone="], &[1, 2]),
        ("nobody names our zone", "c", &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"], &[1, 2]),
        ("the node has no zone", "", &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"], &[1, 2]),
        ("hints of endpoints that are not ready do not matter", "a", &["10.0.0.1 ready zone=a", "10.0.0.2", "10.0.0.3 ready zone=b"], &[1]),
        ("a zone that only an unready endpoint names", "a", &["10.0.0.1 zone=a", "10.0.0.2 ready zone=b"], &[2]),
        ("node", "", &["10.0.0.1 ready node=here", "10.0.0.2 ready node=other"], &[1]),
        ("node goes before zone", "a", &["10.0.0.1 ready node=here zone=b", "10.0.0.2 ready node=other zone=a"], &[1]),
        ("zone where no endpoint is hinted for the node", "a", &["10.0.0.1 ready node=other zone=b", "10.0.0.2 ready node=other zone=a"], &[2]),
        ("zone where a node hint is missing", "a", &["10.0.0.1 ready node=here zone=b", "10.0.0.2 ready zone=a"], &[2]),
        ("draining endpoints know no topology", "a", &["10.0.0.1 serving terminating zone=a", "10.0.0.2 serving terminating zone=b"], &[1, 2]),
    ];
    for (what, zone, endpoints, expected) in cases {
        assert_eq!(last_octets(&routed(&service(), endpoints, zone).cluster), *expected, "{what}");
    }
}

#[test]
fn policy_local_knows_no_topology() {
    let endpoints = ["10.0.0.1 ready zone=a", "10.0.0.2 ready local zone=b"];
    let route = routed(&with_node_port(TrafficPolicy::Local), &endpoints, "a");
    assert_eq!(last_octets(&route.cluster), [1]);
    assert_eq!(last_octets(&route.local), [2]);
}

#[test]
fn a_service_without_endpoints_refuses_everywhere() {
    for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
        let mut service = with_node_port(policy);
        service.internal_policy = policy;
        let route = routed(&service, &["10.0.0.1"], "");
        assert_eq!(answer(&route, FrontendKind::ClusterIp), Answer::Reject);
        assert_eq!(answer(&route, FrontendKind::NodePort), Answer::Reject);
    }
}

#[test]
fn internal_policy_local_concerns_the_cluster_ip_only() {
    let mut service = with_node_port(TrafficPolicy::Cluster);
    service.internal_policy = TrafficPolicy::Local;
    let route = routed(&service, &["10.0.0.1 ready"], "");
    assert_eq!(answer(&route, FrontendKind::ClusterIp), Answer::Drop, "endpoints are elsewhere only");
    assert!(matches!(answer(&route, FrontendKind::NodePort), Answer::To(all) if last_octets(all) == [1]));

    let route = routed(&service, &["10.0.0.1 ready", "10.0.0.2 ready local"], "");
    assert!(matches!(answer(&route, FrontendKind::ClusterIp), Answer::To(all) if last_octets(all) == [2]));
    assert!(matches!(answer(&route, FrontendKind::NodePort), Answer::To(all) if last_octets(all) == [1, 2]));
}

#[test]
fn without_external_access_policy_local_inside_looks_at_no_other_node() {
    let mut service = service();
    service.internal_policy = TrafficPolicy::Local;
    let route = routed(&service, &["10.0.0.1 ready"], "");
    assert!(route.cluster.is_empty(), "no traffic of it is under policy Cluster");
    assert_eq!(answer(&route, FrontendKind::ClusterIp), Answer::Drop);
}

#[test]
fn external_policy_local_short_circuits_for_the_node_and_its_pods() {
    let route = routed(&with_node_port(TrafficPolicy::Local), &["10.0.0.1 ready"], "");
    let Answer::Local { here, anywhere } = answer(&route, FrontendKind::NodePort) else { panic!("Local") };
    assert!(here.is_empty());
    assert_eq!(last_octets(anywhere), [1]);
    assert!(matches!(answer(&route, FrontendKind::ClusterIp), Answer::To(all) if last_octets(all) == [1]));
}

#[test]
fn external_policy_local_without_external_access_means_nothing() {
    let mut service = service();
    service.external_policy = TrafficPolicy::Local;
    let route = routed(&service, &["10.0.0.1 ready local"], "");
    assert_eq!(route.external_policy, TrafficPolicy::Cluster);
    assert!(route.local.is_empty());
}

#[test]
fn external_access_through_the_other_family_does_not_count() {
    let mut service = service();
    service.external_policy = TrafficPolicy::Local;
    service.load_balancer_ips = [ip("2001:db8::1")].into();
    let route = routed(&service, &["10.0.0.1 ready local"], "");
    assert_eq!(route.external_policy, TrafficPolicy::Cluster);
    assert_eq!(route.frontends.len(), 1);
}

#[test]
fn external_traffic_under_policy_cluster_is_always_masqueraded() {
    for (policy, external) in [(TrafficPolicy::Cluster, true), (TrafficPolicy::Local, false)] {
        let route = routed(&with_node_port(policy), &["10.0.0.1 ready"], "");
        assert!(!route.masquerades_always(&route.frontends[0]), "the cluster IP follows the environment");
        assert_eq!(route.masquerades_always(&route.frontends[1]), external);
    }
}

#[test]
fn frontends_are_those_of_the_family() {
    let mut service = with_node_port(TrafficPolicy::Cluster);
    service.external_ips = [ip("203.0.113.1"), ip("2001:db8::1")].into();
    service.load_balancer_ips = [ip("198.51.100.1"), ip("2001:db8::2")].into();
    let wanted = |family| {
        let all = wanted(&service, family);
        all.into_iter().map(|frontend| (frontend.kind, frontend.at, frontend.port)).collect::<Vec<_>>()
    };
    use FrontendKind::{ClusterIp, ExternalIp, LoadBalancerIp, NodePort};
    assert_eq!(
        wanted(V4),
        [
            (ClusterIp, Some(ip("172.30.0.1")), 80),
            (ExternalIp, Some(ip("203.0.113.1")), 80),
            (LoadBalancerIp, Some(ip("198.51.100.1")), 80),
            (NodePort, None, 30080),
        ]
    );
    assert_eq!(
        wanted(V6),
        [
            (ClusterIp, Some(ip("fd00::1")), 80),
            (ExternalIp, Some(ip("2001:db8::1")), 80),
            (LoadBalancerIp, Some(ip("2001:db8::2")), 80),
            (NodePort, None, 30080),
        ]
    );
}

#[test]
fn a_service_without_an_address_of_the_family_does_not_exist_there() {
    let mut service = with_node_port(TrafficPolicy::Cluster);
    service.cluster_ips = [ip("172.30.0.1")].into();
    service.load_balancer_ips = [ip("2001:db8::2")].into();
    assert_eq!(*asked(&service, V6), []);
}

#[test]
fn an_address_given_twice_is_one_frontend_and_stays_restricted() {
    let mut service = service();
    service.external_ips = [ip("198.51.100.1"), ip("203.0.113.1"), ip("203.0.113.1")].into();
    service.load_balancer_ips = [ip("198.51.100.1")].into();
    service.source_ranges = Some([net("10.0.0.0/8")].into());
    let wanted = wanted(&service, V4);
    let kinds: Vec<FrontendKind> = wanted.iter().map(|frontend| frontend.kind).collect();
    assert_eq!(
        kinds,
        [FrontendKind::ClusterIp, FrontendKind::ExternalIp, FrontendKind::LoadBalancerIp],
        "{wanted:?}"
    );
    let route = routed(&service, &[], "");
    assert!(route.sources(&wanted[2]).is_some());
    let lost: Vec<_> = route.lost.iter().map(|frontend| frontend.at).collect();
    assert_eq!(lost, [Some(ip("198.51.100.1")), Some(ip("203.0.113.1"))]);
}

#[test]
fn a_route_says_what_the_objects_name_beyond_what_counts() {
    let route = routed(&service(), &["10.0.0.1 ready", "10.0.0.2"], "");
    assert_eq!((route.endpoints, &*route.lost), (2, &[][..]));
    let ignored = |text| {
        let service = Service { ignored_external_ips: [ip(text)].into(), ..service() };
        routed(&service, &[], "").lost.len()
    };
    assert_eq!(ignored("203.0.113.1"), 1, "nothing answers there, but the Service asked for it");
    assert_eq!(ignored("2001:db8::1"), 0, "of the other family");
}

#[test]
fn ports_that_share_a_name_or_an_address_are_one() {
    let port =
        |name: &str, port| ServicePort { name: name.into(), protocol: Protocol::Tcp, port, node_port: None };
    let ports = [port("a", 80), port("a", 81), port("b", 80), port("c", 82)];
    let service = Service { ports: ports.into(), ..service() };
    let all: Vec<_> = asked(&service, V4).iter().map(|asked| (asked.port, asked.counts)).collect();
    assert_eq!(all, [(0, true), (2, false), (3, true)]);
}

#[test]
fn an_ignored_external_ip_keeps_its_traffic_policies() {
    let mut service = Service { ignored_external_ips: [ip("203.0.113.1")].into(), ..service() };
    service.internal_policy = TrafficPolicy::Local;
    service.external_policy = TrafficPolicy::Local;
    let route = routed(&service, &["10.0.0.1 ready", "10.0.0.2 ready local"], "");
    assert_eq!((last_octets(&route.cluster), last_octets(&route.local)), (vec![1, 2], vec![2]));
}

#[test]
fn source_ranges_restrict_load_balancer_addresses_only() {
    let mut service = with_node_port(TrafficPolicy::Cluster);
    service.external_ips = [ip("203.0.113.1")].into();
    service.load_balancer_ips = [ip("198.51.100.1")].into();
    service.source_ranges = Some([net("10.0.0.0/8")].into());
    let route = routed(&service, &[], "");
    for frontend in &route.frontends {
        assert_eq!(
            route.sources(frontend).is_some(),
            frontend.kind == FrontendKind::LoadBalancerIp,
            "{:?}",
            frontend.kind
        );
    }
}

#[test]
fn source_ranges_of_each_family() {
    #[rustfmt::skip]
    let cases: &[RangesCase<'_>] = &[
        ("no list", None, V4, None),
        ("ranges of the family only", Some(&["10.0.0.0/8", "fd00::/8"]), V4, Some(&["10.0.0.0/8"])),
        ("everybody of the family", Some(&["10.0.0.0/8", "0.0.0.0/0"]), V4, None),
        ("a list of the other family leaves this one open", Some(&["10.0.0.0/8"]), V6, None),
        ("a list without a valid range", Some(&[]), V4, None),
        ("everybody of the other family as well", Some(&["10.0.0.0/8", "::/0"]), V4, Some(&["10.0.0.0/8"])),
    ];
    for (what, given, family, expected) in cases {
        let mut service = service();
        service.load_balancer_ips = [ip("198.51.100.1"), ip("2001:db8::2")].into();
        service.source_ranges = given.map(|given| given.iter().map(|range| net(range)).collect());
        let sources = Policy::of(&service, *family, &node("")).sources;
        let ranges = sources.map(|sources| sources.ranges.to_vec());
        let expected = expected.map(|all| all.iter().map(|range| net(range)).collect::<Vec<_>>());
        assert_eq!(ranges, expected, "{what}");
    }
}

#[test]
fn a_family_is_open_by_omission_where_a_list_says_nothing_about_it() {
    #[rustfmt::skip]
    let cases: &[(&str, Option<&[&str]>, bool)] = &[
        ("no list", None, false),
        ("a list of this family", Some(&["fd00::/8"]), false),
        ("a list of the other family", Some(&["10.0.0.0/8"]), true),
        ("everybody of the other family", Some(&["10.0.0.0/8", "0.0.0.0/0"]), false),
        ("a list without a valid range", Some(&[]), true),
    ];
    for (what, given, expected) in cases {
        let mut service = service();
        service.source_ranges = given.map(|given| given.iter().map(|range| net(range)).collect());
        assert!(!open_by_omission(&service, V6), "{what}, but there is no load balancer");
        service.load_balancer_ips = [ip("198.51.100.1"), ip("2001:db8::2")].into();
        assert_eq!(open_by_omission(&service, V6), *expected, "{what}");
    }
}

#[test]
fn a_range_that_holds_the_node_lets_it_use_its_own_vips() {
    let mut service = service();
    service.load_balancer_ips = [ip("198.51.100.1"), ip("198.51.100.2")].into();
    for (range, own) in [("192.168.0.0/16", 2), ("10.0.0.0/8", 0)] {
        service.source_ranges = Some([net(range)].into());
        let sources = Policy::of(&service, V4, &node("")).sources.expect("restricted");
        assert_eq!(sources.own_vips.len(), own, "{range}");
    }
}

#[test]
fn ports_and_affinity_reach_the_route() {
    let mut service = service();
    service.affinity = Some(10800);
    let route = routed(&service, &["10.0.0.1 ready local"], "");
    assert_eq!(route.policy.affinity, Some(10800));
    assert_eq!(*route.cluster, [Target { addr: ip("10.0.0.1"), port: 8080, local: true }]);
}

#[test]
fn hints_that_are_not_followed_have_a_reason() {
    use HintsIgnored::{Incomplete, NoZone, NoneHere};
    #[rustfmt::skip]
    let cases: &[(&str, &[&str], Option<HintsIgnored>)] = &[
        ("a", &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"], None),
        ("", &["10.0.0.1 ready node=here", "10.0.0.2 ready node=other"], None),
        ("a", &["10.0.0.1 ready", "10.0.0.2 ready"], None),
        ("a", &["10.0.0.1 zone=a", "10.0.0.2 ready"], None),
        ("a", &["10.0.0.1 ready zone=a", "10.0.0.2 ready"], Some(Incomplete)),
        ("", &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"], Some(NoZone)),
        ("c", &["10.0.0.1 ready zone=a", "10.0.0.2 ready zone=b"], Some(NoneHere)),
        ("a", &["10.0.0.1 ready node=other", "10.0.0.2 ready node=other"], Some(NoneHere)),
        ("", &["10.0.0.1 ready node=here", "10.0.0.2 ready"], Some(Incomplete)),
    ];
    for (zone, texts, expected) in cases {
        let endpoints: Vec<Endpoint> = texts.iter().map(|text| endpoint(text)).collect();
        let endpoints: Vec<(&Endpoint, u16)> = endpoints.iter().map(|endpoint| (endpoint, 80)).collect();
        let zone = (!zone.is_empty()).then_some(*zone);
        assert_eq!(hints_ignored(&endpoints, zone), *expected, "{zone:?} {texts:?}");
    }
}
