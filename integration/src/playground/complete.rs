//! What a cluster's control plane adds to a Service: addresses, node ports, and slices of the pods that its selector names. The
//! embedded API server takes complete objects only.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::network::{Family, Place};

/// Node ports that are given out.
const NODE_PORTS: std::ops::RangeInclusive<u64> = 30_000..=32_767;

/// Fills in what the user left to the control plane; `others` are the Services that there are.
pub(super) fn service(object: &mut Value, others: &[Value]) {
    let name = (object["metadata"]["namespace"].clone(), object["metadata"]["name"].clone());
    let itself = others
        .iter()
        .find(|other| (&other["metadata"]["namespace"], &other["metadata"]["name"]) == (&name.0, &name.1));
    let spec = &mut object["spec"];
    if spec["type"].is_null() {
        spec["type"] = json!("ClusterIP");
    }
    if spec["type"] == "ExternalName" {
        return;
    }
    if spec["clusterIP"].is_null() {
        let taken: HashSet<&str> =
            others.iter().filter_map(|other| other["spec"]["clusterIP"].as_str()).collect();
        let kept = itself.map(|old| old["spec"]["clusterIPs"].clone()).filter(|ips| ips.is_array());
        let addresses = kept.unwrap_or_else(|| {
            let free =
                (1..=249).find(|number| !taken.contains(Family::V4.service(*number).to_string().as_str()));
            json!(Family::BOTH.map(|family| family.service(free.unwrap_or(249)).to_string()))
        });
        spec["clusterIP"] = addresses[0].clone();
        spec["clusterIPs"] = addresses;
        spec["ipFamilies"] = json!(["IPv4", "IPv6"]);
        spec["ipFamilyPolicy"] = json!("RequireDualStack");
    }
    let has_node_ports = spec["type"] == "NodePort" || spec["type"] == "LoadBalancer";
    let mut taken: HashSet<u64> = others.iter().flat_map(node_ports).collect();
    let old: Vec<u64> = itself.map(|old| node_ports(old).collect()).unwrap_or_default();
    for (at, port) in spec["ports"].as_array_mut().into_iter().flatten().enumerate() {
        if port["protocol"].is_null() {
            port["protocol"] = json!("TCP");
        }
        if has_node_ports && port["nodePort"].is_null() {
            let free = old.get(at).copied().or_else(|| NODE_PORTS.clone().find(|port| !taken.contains(port)));
            port["nodePort"] = json!(free);
            taken.extend(free);
        }
    }
}

fn node_ports(service: &Value) -> impl Iterator<Item = u64> + '_ {
    service["spec"]["ports"].as_array().into_iter().flatten().filter_map(|port| port["nodePort"].as_u64())
}

/// Of the pods here: `app: web`, their name, and their node's.
fn has_label(place: Place, key: &str, value: &Value) -> bool {
    match key {
        "app" => value == "web",
        "pod" => value == place.name(),
        "node" => value == place.node_name(),
        _ => false,
    }
}

/// The slices of a Service with a selector, one for each family; none without.
pub(super) fn slices(service: &Value) -> Vec<Value> {
    let Some(selector) = service["spec"]["selector"].as_object().filter(|selector| !selector.is_empty())
    else {
        return Vec::new();
    };
    let (namespace, name) =
        (&service["metadata"]["namespace"], service["metadata"]["name"].as_str().unwrap_or_default());
    let pods = Place::LOCAL_PODS.into_iter().chain(Place::REMOTE_PODS);
    let chosen: Vec<Place> =
        pods.filter(|place| selector.iter().all(|(key, value)| has_label(*place, key, value))).collect();
    let ports: Vec<Value> = service["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            let to = port["targetPort"].as_u64().or_else(|| port["port"].as_u64());
            json!({ "name": port["name"].as_str().unwrap_or_default(), "protocol": port["protocol"], "port": to })
        })
        .collect();
    let of = |family: Family| {
        let (kind, suffix) = match family {
            Family::V4 => ("IPv4", "v4"),
            Family::V6 => ("IPv6", "v6"),
        };
        let endpoint = |place: &Place| {
            json!({
                "addresses": [place.address(family).to_string()], "nodeName": place.node_name(),
                "conditions": { "ready": true, "serving": true, "terminating": false },
            })
        };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {
                "namespace": namespace, "name": format!("{name}-{suffix}"),
                "labels": { "kubernetes.io/service-name": name },
            },
            "ports": ports, "endpoints": chosen.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    Family::BOTH.map(of).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_gets_what_is_free_and_keeps_what_it_has() {
        let mut first = json!({
            "metadata": { "namespace": "default", "name": "first" },
            "spec": { "type": "NodePort", "selector": { "app": "web", "node": "node" }, "ports": [{ "port": 80, "targetPort": 8080 }] },
        });
        let fresh = first.clone();
        service(&mut first, &[]);
        assert_eq!(first["spec"]["ports"][0]["nodePort"], 30_000);
        assert_eq!(first["spec"]["clusterIPs"].as_array().expect("two").len(), 2);
        let mut second = fresh.clone();
        second["metadata"]["name"] = json!("second");
        service(&mut second, std::slice::from_ref(&first));
        assert_eq!(second["spec"]["ports"][0]["nodePort"], 30_001);
        assert_ne!(second["spec"]["clusterIP"], first["spec"]["clusterIP"]);
        let mut again = fresh;
        service(&mut again, &[first.clone(), second]);
        assert_eq!(again["spec"], first["spec"], "applied again, it is the same");
        let slices = slices(&first);
        assert_eq!(slices.len(), 2);
        assert_eq!(slices[0]["endpoints"].as_array().expect("a list").len(), Place::LOCAL_PODS.len());
        assert_eq!(slices[0]["ports"][0]["port"], 8080);
    }
}
