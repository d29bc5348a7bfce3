use insight::state::{Mode, NodePorts};

use super::*;
use crate::verbs::test_state::state;

fn service<'a>(state: &'a State, name: &str) -> &'a Service {
    state.services.iter().find(|service| service.name.name() == name).expect(name)
}

#[test]
fn what_the_api_server_allocates_stays_or_is_stood_in_for() {
    let mut changed = Changed::new(state(Mode::Nftables));
    let web = "{\"kind\":\"Service\",\"metadata\":{\"name\":\"web\",\"namespace\":\"shop\"},\"spec\":{\"type\":\"NodePort\",\"ports\":[{\"name\":\"http\",\"port\":8080}]}}";
    changed.apply(web, "default").expect("JSON");
    let web = service(&changed.state, "web");
    assert_eq!(web.cluster_ips.to_vec(), ["10.96.0.10".parse::<IpAddr>().expect("an address")]);
    assert_eq!((web.ports[0].port, web.ports[0].node_port), (8080, Some(30_080)));
    assert_eq!(changed.notes, [""; 0]);
    changed
        .apply("kind: Service\nmetadata: {name: new}\nspec: {type: NodePort, ports: [{port: 80}]}", "mine")
        .expect("YAML");
    let new = service(&changed.state, "new");
    assert_eq!(new.name.namespace(), "mine");
    assert_eq!(new.cluster_ips.to_vec(), ["10.96.255.254".parse::<IpAddr>().expect("an address")]);
    assert_eq!(new.ports[0].node_port, Some(LAST_NODE_PORT));
    assert_eq!(changed.notes.len(), 2, "{:?}", changed.notes);
}

#[test]
fn a_list_and_several_documents_are_applied_and_others_are_counted() {
    let mut changed = Changed::new(state(Mode::Nftables));
    let slices = changed.state.slices.len();
    let text = r"
kind: List
items:
- {kind: ConfigMap, metadata: {name: x}}
- {kind: Deployment, metadata: {name: x}}
- {kind: Deployment, metadata: {name: y}}
---
---
kind: EndpointSlice
metadata: {name: more, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.9.9]}, {addresses: [nonsense]}]
ports: [{name: http, port: 8080}]
";
    changed.apply(text, "default").expect("YAML");
    assert_eq!(changed.state.slices.len(), slices + 1);
    let notes = changed.notes.join("\n");
    assert!(notes.contains("2 of kind Deployment") && notes.contains("nonsense"), "{notes}");
}

#[test]
fn what_cannot_be_read_is_named() {
    let mut changed = Changed::new(state(Mode::Nftables));
    for (text, name) in [
        ("kind: Service\nmetadata: {}\n", "without a name"),
        ("metadata: {name: x}\n", "without a kind"),
        ("kind: Service\nmetadata: {name: bad}\nspec: {ports: 7}\n", "default/bad"),
    ] {
        let error = format!("{:#}", changed.apply(text, "default").expect_err(text));
        assert!(error.contains(name), "{error}");
    }
    assert_eq!(changed.state, state(Mode::Nftables), "and nothing was changed");
    assert!(changed.apply_file(Path::new("/nowhere/x.yaml"), "default").is_err());
}

#[test]
fn another_mode_brings_its_own_defaults() {
    let mut changed = Changed::new(state(Mode::Iptables));
    assert_eq!(changed.state.header.environment.node_ports, NodePorts::Any);
    assert!(changed.state.header.environment.localhost_node_ports);
    changed.mode(Mode::Nftables).expect("a configuration");
    assert_eq!(changed.state.header.environment.node_ports, NodePorts::Primary);
    assert!(!changed.state.header.environment.localhost_node_ports);
    changed.mode(Mode::Ipvs).expect("a configuration");
    assert!(changed.state.header.ipvs.is_some());
}

#[test]
fn a_configuration_that_is_refused_names_its_field() {
    let path = std::env::temp_dir().join(format!("plan-{}.yaml", std::process::id()));
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let mut changed = Changed::new(state(Mode::Iptables));
    fs::write(&path, format!("{head}mode: nftables\nnodePortAddresses: [all]\n")).expect("a file");
    changed.configuration(&path).expect("a configuration");
    assert_eq!(
        (changed.state.header.mode, &changed.state.header.environment.node_ports),
        (Mode::Nftables, &NodePorts::Any)
    );
    fs::write(&path, format!("{head}mode: nonsense\n")).expect("a file");
    let error = format!("{:#}", changed.configuration(&path).expect_err("no such mode"));
    assert!(error.contains("mode") && error.contains("nonsense"), "{error}");
    fs::remove_file(path).expect("it was written");
}
