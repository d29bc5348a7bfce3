//! Real connections through network namespaces: where they go, what source they show, what is refused.

mod support;

use std::{collections::BTreeSet, net::SocketAddr};

use proxy_core::model::Family;
use support::{
    Saw, enter_node, pod,
    routes::{Build, Proxy, ip, name, route, target},
    serve, tcp,
};

fn socket(addr: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip(addr), port)
}

#[test]
fn a_cluster_ip_reaches_every_endpoint_from_pods_and_from_the_node() {
    enter_node();
    let client = pod(1);
    let servers = [pod(2), pod(3), pod(4)];
    for server in &servers {
        serve(server, 8080);
    }
    let mut proxy = Proxy::new(Family::V4);
    let targets: Vec<_> = servers.iter().map(|server| target(&server.v4.to_string())).collect();
    proxy.full(vec![(name("web"), route(&targets).cluster_ip("172.30.0.1"))]);

    for from in [Some(client.name.as_str()), None] {
        let seen: BTreeSet<String> =
            (0..40).map(|_| tcp(from, socket("172.30.0.1", 80)).name().to_owned()).collect();
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
    // A pod of this node is not masqueraded.
    assert_eq!(tcp(Some("pod1"), socket("172.30.0.1", 80)).source(), client.v4);
    assert_eq!(tcp(Some("pod1"), socket("172.30.0.1", 81)), Saw::Refused);
    assert_eq!(tcp(Some("pod1"), socket("172.30.0.9", 80)), Saw::Silence);
}
