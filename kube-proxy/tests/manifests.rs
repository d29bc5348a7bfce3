//! The manifests under deploy/: their configurations are accepted by the program, and they ask for no more rights and
//! no other command line than kubeadm's kube-proxy.

use std::{fs, path::PathBuf, process::Command};

use serde_json::Value;

fn deploy(file: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn documents(file: &str) -> Vec<Value> {
    deploy(file)
        .split("\n---\n")
        .map(|text| serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{file}: {error}")))
        .collect()
}

fn of_kind(file: &str, kind: &str) -> Value {
    let all = documents(file);
    all.into_iter().find(|document| document["kind"] == kind).unwrap_or_else(|| panic!("{file}: no {kind}"))
}

/// The configuration that results from one, as the program writes it.
fn resulting(name: &str, configuration: &str) -> Value {
    let directory = std::env::temp_dir().join(format!("switchyard-manifests-{name}-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    let (given, written) = (directory.join("config.conf"), directory.join("written.yaml"));
    fs::write(&given, configuration).expect("a file");
    let output = Command::new(env!("CARGO_BIN_EXE_kube-proxy"))
        .arg(format!("--config={}", given.display()))
        .arg(format!("--write-config-to={}", written.display()))
        .output()
        .expect("the program runs");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("lenient"), "{name}: an unknown field");
    let result = serde_saphyr::from_str(&fs::read_to_string(&written).expect("a file")).expect("YAML");
    fs::remove_dir_all(&directory).expect("an end");
    result
}

#[test]
fn every_configuration_is_accepted_in_its_mode() {
    for (file, mode) in [
        ("daemonset.yaml", "nftables"),
        ("overlays/iptables/config.yaml", "iptables"),
        ("overlays/ipvs/config.yaml", "ipvs"),
    ] {
        let map = of_kind(file, "ConfigMap");
        let configuration = map["data"]["config.conf"].as_str().expect("a configuration");
        let result = resulting(mode, configuration);
        assert_eq!(result["mode"], mode, "{file}");
        assert_eq!(result["clientConnection"]["kubeconfig"], "/var/lib/kube-proxy/kubeconfig.conf", "{file}");
    }
    assert_eq!(resulting("kubeadm", &deploy("testdata/config.conf"))["mode"], "iptables");
}

#[test]
fn the_daemonset_runs_what_kubeadm_runs() {
    let set = of_kind("daemonset.yaml", "DaemonSet");
    let spec = &set["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let command: Vec<&str> =
        container["command"].as_array().expect("a command").iter().filter_map(Value::as_str).collect();
    assert_eq!(
        command,
        [
            "/usr/local/bin/kube-proxy",
            "--config=/var/lib/kube-proxy/config.conf",
            "--hostname-override=$(NODE_NAME)"
        ]
    );
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["fieldPath"], "spec.nodeName");
    assert_eq!(container["securityContext"]["privileged"], true);
    assert_eq!(spec["hostNetwork"], true);
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(set["spec"]["selector"]["matchLabels"]["k8s-app"], "kube-proxy");
}

#[test]
fn no_rights_beyond_those_of_kube_proxy_are_asked_for() {
    let all = documents("daemonset.yaml");
    let kinds: Vec<&str> = all.iter().filter_map(|document| document["kind"].as_str()).collect();
    assert_eq!(kinds, ["ServiceAccount", "ClusterRoleBinding", "ConfigMap", "DaemonSet"]);
    assert_eq!(of_kind("daemonset.yaml", "ClusterRoleBinding")["roleRef"]["name"], "system:node-proxier");
}

#[test]
fn the_patch_for_kubeadm_changes_the_image_and_nothing_else() {
    let [patch] = &documents("kubeadm/image.yaml")[..] else { panic!("one document") };
    let image =
        of_kind("daemonset.yaml", "DaemonSet")["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    assert_eq!(
        *patch,
        serde_json::json!({ "spec": { "template": { "spec": { "containers": [{ "name": "kube-proxy", "image": image }] } } } })
    );
}
