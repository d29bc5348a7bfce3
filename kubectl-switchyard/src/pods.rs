//! Pods: those of the proxies, and those that a question names.

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    arguments::{Asked, Options},
    kubectl::Kubectl,
};

/// A proxy that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    pub(crate) node: String,
    pub(crate) pod: String,
}

/// The running proxies, by the names of their nodes.
pub(crate) fn of_proxies(kubectl: &Kubectl, options: &Options) -> anyhow::Result<Vec<Proxy>> {
    let list = kubectl.get(&["pods", "-n", &options.proxy_namespace, "-l", &options.selector])?;
    let found = running(&list);
    if found.is_empty() {
        bail!(
            "no pod with the labels {} runs in namespace {}: name others with --selector and --proxy-namespace",
            options.selector,
            options.proxy_namespace
        );
    }
    Ok(found)
}

/// While a DaemonSet is updated a node may have two pods: the one that is going does not answer any more.
fn running(list: &Value) -> Vec<Proxy> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_running =
        |pod: &&Value| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
    let proxy = |pod: &Value| {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Some(Proxy { node: text(&pod["spec"]["nodeName"])?, pod: text(&pod["metadata"]["name"])? })
    };
    let mut found: Vec<Proxy> = items.iter().filter(is_running).filter_map(proxy).collect();
    found.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
    found.dedup_by(|later, earlier| later.node == earlier.node);
    found
}

/// A verb's words, with addresses in the place of names.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) words: Vec<String>,
    /// Where the first pod that was named runs.
    pub(crate) node: Option<String>,
}

/// Puts the addresses of pods and nodes into the place of `pod/NAME`, `pod/NAMESPACE/NAME` and `node/NAME`.
pub(crate) fn with_addresses(kubectl: &Kubectl, asked: &Asked) -> anyhow::Result<Resolved> {
    let mut resolved = Resolved::default();
    for word in &asked.verb {
        let (name, port) = with_port(word);
        let address = if let Some(name) = name.strip_prefix("pod/") {
            let (namespace, name) = match name.split_once('/') {
                Some((namespace, name)) => (Some(namespace), name),
                None => (namespace(&asked.verb), name),
            };
            let scope = namespace.map_or_else(Vec::new, |namespace| vec!["-n", namespace]);
            let pod = kubectl.get(&[&["pod", name][..], &scope].concat())?;
            let address =
                pod["status"]["podIP"].as_str().with_context(|| format!("pod {name} has no address yet"))?;
            resolved.node = resolved.node.or_else(|| pod["spec"]["nodeName"].as_str().map(str::to_owned));
            address.to_owned()
        } else if let Some(name) = name.strip_prefix("node/") {
            let node = kubectl.get(&["node", name])?;
            internal_address(&node)
                .with_context(|| format!("node {name} has no address of type InternalIP"))?
        } else {
            resolved.words.push(word.clone());
            continue;
        };
        resolved.words.push(match port {
            Some(port) if address.contains(':') => format!("[{address}]:{port}"),
            Some(port) => format!("{address}:{port}"),
            None => address,
        });
    }
    Ok(resolved)
}

fn with_port(word: &str) -> (&str, Option<&str>) {
    word.split_once(':').map_or((word, None), |(name, port)| (name, Some(port)))
}

fn namespace(verb: &[String]) -> Option<&str> {
    let mut words = verb.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-n" | "--namespace" => return words.next().map(String::as_str),
            "--" => return None,
            word => {
                let value = word.strip_prefix("--namespace=").or_else(|| word.strip_prefix("-n"));
                if let Some(value) = value {
                    return Some(value.trim_start_matches('='));
                }
            }
        }
    }
    None
}

fn internal_address(node: &Value) -> Option<String> {
    let addresses = node["status"]["addresses"].as_array()?;
    let internal = addresses.iter().find(|address| address["type"] == "InternalIP")?;
    internal["address"].as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_has_one_proxy_that_runs() {
        let pod = |name: &str, node: &str, phase: &str, going: bool| {
            let deleted = going.then_some("2026-01-01T00:00:00Z");
            json!({ "metadata": { "name": name, "deletionTimestamp": deleted }, "spec": { "nodeName": node },
                "status": { "phase": phase } })
        };
        let list = json!({ "items": [
            pod("p3", "b", "Running", false),
            pod("p1", "a", "Running", true),
            pod("p2", "a", "Running", false),
            pod("p4", "c", "Pending", false),
            { "status": { "phase": "Running" }, "metadata": {} },
        ] });
        let names: Vec<(String, String)> =
            running(&list).into_iter().map(|proxy| (proxy.node, proxy.pod)).collect();
        assert_eq!(names, [("a".into(), "p2".into()), ("b".into(), "p3".into())]);
        assert!(running(&json!({})).is_empty());
    }

    #[test]
    fn the_namespace_is_read_in_all_its_forms() {
        let of = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            namespace(&words).map(str::to_owned)
        };
        for line in [
            "explain -n shop a b",
            "-nshop explain a",
            "explain a --namespace=shop",
            "x --namespace shop",
            "x -n=shop",
        ] {
            assert_eq!(of(line).as_deref(), Some("shop"), "{line}");
        }
        assert_eq!(of("explain a b -- -n shop"), None);
    }
}
