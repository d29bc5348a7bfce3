//! A small cluster as one node's state, for tests of verbs; and golden texts.

use insight::{
    state::{API_VERSION, Facts, Header, Mode, Served, Settings, State, Versions},
    text::Time,
};
use proxy_core::model::Family;
use serde_json::json;

use super::plan::changed::Changed;
use crate::settings;

/// Services and slices that fill what backends have.
pub(crate) const OBJECTS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, creationTimestamp: 2026-01-01T00:00:00Z}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  ports: [{name: http, port: 80, nodePort: 30080}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.244.1.7], nodeName: here}
- {addresses: [10.244.2.7], nodeName: there}
---
apiVersion: v1
kind: Service
metadata: {name: pay, namespace: shop, creationTimestamp: 2026-01-01T00:00:00Z}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.11
  clusterIPs: [10.96.0.11]
  externalTrafficPolicy: Local
  healthCheckNodePort: 31000
  loadBalancerSourceRanges: [192.0.2.0/24]
  sessionAffinity: ClientIP
  ports: [{name: https, port: 443, nodePort: 30443}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.11}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: pay-1, namespace: shop, labels: {kubernetes.io/service-name: pay}}
addressType: IPv4
ports: [{name: https, port: 8443}]
endpoints:
- {addresses: [10.244.1.9], nodeName: here}
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: kube-system, creationTimestamp: 2026-01-01T00:00:00Z}
spec:
  clusterIP: 10.96.0.53
  clusterIPs: [10.96.0.53]
  ports: [{name: dns, port: 53, protocol: UDP}]
";

/// The state of a node named `here` that serves these objects in a mode, with kube-proxy's defaults.
pub(crate) fn state(mode: Mode) -> State {
    let document = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode.as_str(),
        "clusterCIDR": "10.244.0.0/16",
    });
    let settings = settings::of_document(&document).expect("a configuration");
    let ip = |text: &str| text.parse().expect("an address");
    let header = Header {
        api_version: API_VERSION.to_owned(),
        node: "here".to_owned(),
        taken: Time::from_micros(1_790_000_000_000_000),
        mode,
        versions: Versions { switchyard: "0.2.0".to_owned(), kubernetes: "v1.36.2".to_owned() },
        facts: Facts {
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a network")],
            node_ips: vec![ip("192.168.0.10")],
            interface_addresses: vec![ip("127.0.0.1"), ip("192.168.0.10"), ip("10.244.1.1")],
            zone: None,
        },
        allow_service_external_ips: true,
        environment: Settings::of(&settings::environment::settings(&settings, &[])),
        localhost_v6_node_ports: false,
        ipvs: crate::sync::ipvs::insight(&settings).expect("settings of ipvs"),
        configuration: settings.document.clone(),
        families: vec![Served {
            family: Family::V4,
            waiting: 0,
            queued_since: None,
            full_sync_owed: None,
            failures: 0,
        }],
        filter: Default::default(),
        anonymised: false,
    };
    let mut changed = Changed::new(State::new(header));
    changed.apply(OBJECTS, "default").expect("objects");
    changed.state
}

/// Compares a text with a file of the folder `golden`; `SWITCHYARD_GOLDEN=write` writes it.
pub(crate) fn golden(name: &str, text: &str) {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/verbs/golden").join(name);
    if std::env::var_os("SWITCHYARD_GOLDEN").is_some() {
        std::fs::write(&path, text).expect("the folder is there");
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, wanted, "{name}: SWITCHYARD_GOLDEN=write writes what is printed now");
}
