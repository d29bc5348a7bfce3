use netlink::conntrack::{Carried, Counted, Tuple};
use proxy_core::{
    model::TrafficPolicy,
    route::{Frontend, FrontendKind, Policy, Target},
};

use super::*;
use crate::settings::service_metrics::tests::of;

const CLIENT: [u8; 4] = [10, 0, 0, 9];

fn services(given: &'static [(&str, &str)]) -> Services {
    Services::new(of(given).expect("good").expect("asked for"))
}

fn name(service: &str) -> ServiceName {
    ServiceName::new("default", service)
}

/// A Service at 172.30.0.`number`:80 with endpoints 10.1.0.x:8080.
fn routes(service: &str, number: u8, endpoints: &[u8]) -> Vec<(ServicePortName, Arc<Route>)> {
    let targets: Box<[Target]> = endpoints
        .iter()
        .map(|last| Target { addr: [10, 1, 0, *last].into(), port: 8080, local: true })
        .collect();
    let route = Route {
        policy: Arc::new(Policy::default()),
        frontends: [
            Frontend { kind: FrontendKind::ClusterIp, at: Some([172, 30, 0, number].into()), port: 80 },
            Frontend { kind: FrontendKind::NodePort, at: None, port: 30_000 + u16::from(number) },
        ]
        .into(),
        lost: Box::default(),
        any_endpoint: !targets.is_empty(),
        endpoints: targets.len() as u32,
        cluster: targets,
        local: Box::default(),
        kept: Box::default(),
        protocol: Protocol::Tcp,
        external_policy: TrafficPolicy::Cluster,
    };
    let port = ServicePortName { service: name(service), port: "http".into(), protocol: Protocol::Tcp };
    vec![(port, Arc::new(route))]
}

fn follow(services: &Services, service: &str, routes: &[(ServicePortName, Arc<Route>)]) {
    services.follow(Family::V4, &[name(service)], |_| routes);
}

fn flow(to: [u8; 4], port: u16, endpoint: u8, status: u32) -> Flow {
    let tuple = |source: [u8; 4], source_port, destination: [u8; 4], destination_port| Tuple {
        source: source.into(),
        destination: destination.into(),
        protocol: protocol::TCP,
        source_port,
        destination_port,
        icmp: None,
    };
    Flow {
        original: tuple(CLIENT, 40_000, to, port),
        reply: tuple([10, 1, 0, endpoint], 8080, CLIENT, 40_000),
        zone: 0,
        status,
        id: Some(1),
        timeout: 0,
        mark: 0,
        tcp_state: Some(tcp_state::ESTABLISHED),
    }
}

fn event(moment: Moment, flow: Flow, bytes: u64) -> FlowEvent {
    let carried = Carried { original: Counted { packets: 1, bytes }, reply: Counted::default() };
    FlowEvent { moment, flow, carried: (moment == Moment::Ended).then_some(carried) }
}

fn value(services: &Services, series: &str) -> Option<u64> {
    let text = services.render();
    let line =
        text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn of_service(services: &Services, metric: &str, service: &str) -> Option<u64> {
    let labels = format!("namespace=\"default\",name=\"{service}\",port=\"http\",protocol=\"TCP\"");
    value(services, &format!("switchyard_service_{metric}{{{labels}}}"))
}

const ALL: &[(&str, &str)] =
    &[("SWITCHYARD_SERVICE_METRICS", "*"), ("SWITCHYARD_SERVICE_METRICS_ENDPOINTS", "true")];

#[test]
fn events_are_counted_for_the_service_whose_frontend_or_node_port_it_is() {
    let services = services(ALL);
    follow(&services, "web", &routes("web", 1, &[1, 2]));
    for (to, port) in [([172, 30, 0, 1], 80), ([192, 168, 0, 1], 30_001)] {
        services.event(&event(Moment::New, flow(to, port, 1, 0), 0));
        services.event(&event(Moment::Ended, flow(to, port, 1, status::SEEN_REPLY), 500));
    }
    services.event(&event(Moment::New, flow([172, 30, 0, 1], 80, 2, 0), 0));
    services.event(&event(Moment::Ended, flow([172, 30, 0, 1], 80, 2, 0), 40));
    services.event(&event(Moment::New, flow([172, 30, 0, 2], 80, 2, 0), 0));
    assert_eq!(of_service(&services, "connections_total", "web"), Some(3));
    assert_eq!(of_service(&services, "bytes_total", "web"), Some(1040));
    assert_eq!(of_service(&services, "failed_handshakes_total", "web"), Some(1));
    let endpoint = "switchyard_endpoint_connections_total{namespace=\"default\",name=\"web\",port=\"http\",\
                    protocol=\"TCP\",endpoint=\"10.1.0.1:8080\"}";
    assert_eq!(value(&services, endpoint), Some(2));
    let mut walk = Walk::default();
    services.open(&mut walk, &flow([172, 30, 0, 1], 80, 1, status::SEEN_REPLY));
    services
        .open(&mut walk, &Flow { tcp_state: Some(tcp_state::TIME_WAIT), ..flow([172, 30, 0, 1], 80, 1, 0) });
    services.opened(walk);
    assert_eq!(of_service(&services, "open_connections", "web"), Some(1));
    services.opened(Walk::default());
    assert_eq!(of_service(&services, "open_connections", "web"), Some(0));
}

#[test]
fn what_is_over_the_limit_is_counted_and_who_goes_makes_room() {
    let services =
        services(&[("SWITCHYARD_SERVICE_METRICS", "*"), ("SWITCHYARD_SERVICE_METRICS_LIMIT", "2")]);
    for (service, number) in [("a", 1), ("b", 2), ("c", 3)] {
        follow(&services, service, &routes(service, number, &[1]));
    }
    for number in 1..4 {
        services.event(&event(Moment::New, flow([172, 30, 0, number], 80, 1, 0), 0));
    }
    assert_eq!(of_service(&services, "connections_total", "a"), Some(1));
    assert_eq!(of_service(&services, "connections_total", "c"), None);
    assert_eq!(value(&services, "switchyard_service_metrics_left_out_ports"), Some(1));
    assert_eq!(value(&services, "switchyard_service_metrics_left_out_connections_total"), Some(1));
    follow(&services, "a", &[]);
    assert_eq!(of_service(&services, "connections_total", "a"), None);
    follow(&services, "c", &routes("c", 3, &[1, 2]));
    services.event(&event(Moment::New, flow([172, 30, 0, 3], 80, 1, 0), 0));
    assert_eq!(of_service(&services, "connections_total", "c"), Some(1));
    assert_eq!(value(&services, "switchyard_service_metrics_left_out_ports"), Some(0));
}

#[test]
fn endpoints_count_towards_the_limit_and_go_with_the_slice() {
    const GIVEN: &[(&str, &str)] = &[
        ("SWITCHYARD_SERVICE_METRICS", "default/*"),
        ("SWITCHYARD_SERVICE_METRICS_ENDPOINTS", "true"),
        ("SWITCHYARD_SERVICE_METRICS_LIMIT", "3"),
    ];
    let services = services(GIVEN);
    follow(&services, "web", &routes("web", 1, &[1, 2, 3]));
    for endpoint in 1..4 {
        services.event(&event(Moment::New, flow([172, 30, 0, 1], 80, endpoint, 0), 0));
    }
    assert_eq!(of_service(&services, "connections_total", "web"), Some(3), "the Service is counted whole");
    assert_eq!(services.render().matches("switchyard_endpoint_connections_total{").count(), 2);
    assert_eq!(value(&services, "switchyard_service_metrics_left_out_endpoint_events_total"), Some(1));
    follow(&services, "web", &routes("web", 1, &[3]));
    services.event(&event(Moment::New, flow([172, 30, 0, 1], 80, 3, 0), 0));
    assert!(services.render().contains("endpoint=\"10.1.0.3:8080\"} 1"));
    assert!(!services.render().contains("endpoint=\"10.1.0.1:8080\""));
}

#[test]
fn what_has_no_endpoint_is_refused_until_it_has_one() {
    let services = services(ALL);
    follow(&services, "web", &routes("web", 1, &[]));
    let (version, spots) = services.refusing();
    assert_eq!(spots.len(), 2, "the cluster IP and the node port");
    services.refused([(spots[1], 5)]);
    services.refused([(spots[1], 7)]);
    assert_eq!(of_service(&services, "refused_total", "web"), Some(7));
    follow(&services, "web", &routes("web", 1, &[]));
    assert_eq!(services.refusing().0, version, "nothing is new");
    follow(&services, "web", &routes("web", 1, &[1]));
    let (later, none) = services.refusing();
    assert!(later != version && none.is_empty());
    // What was counted until then is told still.
    services.refused([(spots[1], 8)]);
    assert_eq!(of_service(&services, "refused_total", "web"), Some(8));
}

#[test]
fn virtual_servers_that_are_made_anew_count_on() {
    let services = services(ALL);
    follow(&services, "web", &routes("web", 1, &[1]));
    let spot =
        Spot { family: Family::V4, protocol: Protocol::Tcp, at: Some([172, 30, 0, 1].into()), port: 80 };
    for (connections, bytes, open) in [(5, 100, 2), (7, 150, 1), (3, 60, 3)] {
        services.virtual_servers([(spot, connections, bytes, open)]);
    }
    assert_eq!(of_service(&services, "connections_total", "web"), Some(10));
    assert_eq!(of_service(&services, "bytes_total", "web"), Some(210));
    assert_eq!(of_service(&services, "open_connections", "web"), Some(3));
}

#[test]
fn an_address_that_passes_to_another_service_is_its() {
    let services = services(ALL);
    follow(&services, "old", &routes("old", 1, &[1]));
    follow(&services, "new", &routes("new", 1, &[1]));
    follow(&services, "old", &[]);
    services.event(&event(Moment::New, flow([172, 30, 0, 1], 80, 1, 0), 0));
    assert_eq!(of_service(&services, "connections_total", "new"), Some(1));
}
