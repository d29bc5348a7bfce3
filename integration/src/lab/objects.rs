//! Short ways to write the objects of a scenario. Everything is dual-stack unless it says otherwise.

use serde_json::{Value, json};

use crate::network::{Family, Place, Protocol};

/// The namespace of all objects of a scenario.
pub const NAMESPACE: &str = "lab";

/// What can be applied to the API server.
pub trait Objects {
    fn objects(self) -> Vec<Value>;
}

impl Objects for Value {
    fn objects(self) -> Vec<Value> {
        vec![self]
    }
}

/// A Service under construction.
#[derive(Debug, Clone)]
pub struct Service(Value);

/// A Service with cluster IPs of that number and no ports yet.
pub fn service(name: &str, number: u8) -> Service {
    let [v4, v6] = Family::BOTH.map(|family| family.service(number).to_string());
    Service(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": name},
        "spec": {
            "type": "ClusterIP", "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [],
        },
    }))
}

impl Service {
    pub fn port(mut self, name: &str, port: u16, protocol: Protocol) -> Self {
        // No target port is looked up here: the slices say where the endpoints listen.
        let port = json!({"name": name, "port": port, "protocol": protocol.name(), "targetPort": port});
        self.ports().push(port);
        self
    }

    /// Gives the latest port a node port.
    pub fn node_port(mut self, number: u16) -> Self {
        if self.0["spec"]["type"] == "ClusterIP" {
            self.0["spec"]["type"] = json!("NodePort");
        }
        if self.0["spec"]["externalTrafficPolicy"].is_null() {
            self.0["spec"]["externalTrafficPolicy"] = json!("Cluster");
        }
        self.ports().last_mut().expect("a port comes first")["nodePort"] = json!(number);
        self
    }

    /// Adds ingress addresses of that number.
    pub fn load_balancer(self, number: u8) -> Self {
        self.load_balancer_with(number, Value::Null)
    }

    /// The same with an `ipMode`.
    pub fn load_balancer_with(mut self, number: u8, ip_mode: Value) -> Self {
        self.0["spec"]["type"] = json!("LoadBalancer");
        if self.0["spec"]["externalTrafficPolicy"].is_null() {
            self.0["spec"]["externalTrafficPolicy"] = json!("Cluster");
        }
        let mut ingress = self.0["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        for family in Family::BOTH {
            let mut entry = json!({"ip": family.load_balancer(number)});
            if !ip_mode.is_null() {
                entry["ipMode"] = ip_mode.clone();
            }
            ingress.push(entry);
        }
        self.0["status"] = json!({"loadBalancer": {"ingress": ingress}});
        self
    }

    pub fn external_ip(mut self, number: u8) -> Self {
        self.0["spec"]["externalIPs"] = json!(Family::BOTH.map(|family| family.external(number)));
        if self.0["spec"]["externalTrafficPolicy"].is_null() {
            self.0["spec"]["externalTrafficPolicy"] = json!("Cluster");
        }
        self
    }

    pub fn external_local(self) -> Self {
        self.set("/spec/externalTrafficPolicy", json!("Local"))
    }

    pub fn internal_local(self) -> Self {
        self.set("/spec/internalTrafficPolicy", json!("Local"))
    }

    /// Session affinity by client address.
    pub fn affinity(self, seconds: u32) -> Self {
        self.set("/spec/sessionAffinity", json!("ClientIP"))
            .set("/spec/sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
    }

    pub fn source_ranges(self, ranges: &[&str]) -> Self {
        self.set("/spec/loadBalancerSourceRanges", json!(ranges))
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = json!(value);
        self
    }

    pub fn created(self, timestamp: &str) -> Self {
        self.set("/metadata/creationTimestamp", json!(timestamp))
    }

    /// Sets any field by its JSON pointer; the parent must exist.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, field) = pointer.rsplit_once('/').expect("a JSON pointer begins with a slash");
        self.0.pointer_mut(parent).expect("the parent exists")[field] = value;
        self
    }

    fn ports(&mut self) -> &mut Vec<Value> {
        self.0["spec"]["ports"].as_array_mut().expect("made as an array")
    }
}

impl Objects for Service {
    fn objects(self) -> Vec<Value> {
        vec![self.0]
    }
}

/// One EndpointSlice per family under construction.
#[derive(Debug, Clone)]
pub struct Slices {
    service: String,
    name: String,
    labels: Value,
    ports: Vec<Value>,
    endpoints: Vec<(Place, Value, Value)>,
    /// What it says of where its endpoints are, where that is not so.
    node: Option<Value>,
}

/// Slices of a Service without ports or endpoints yet.
pub fn slices(service: &str) -> Slices {
    Slices {
        service: service.to_owned(),
        name: format!("{service}-1"),
        labels: json!({"kubernetes.io/service-name": service}),
        ports: Vec::new(),
        endpoints: Vec::new(),
        node: None,
    }
}

impl Slices {
    /// Other slices of the same Service need other names.
    pub fn named(mut self, suffix: &str) -> Self {
        self.name = format!("{}-{suffix}", self.service);
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels[key] = json!(value);
        self
    }

    pub fn port(mut self, name: &str, port: u16, protocol: Protocol) -> Self {
        self.ports.push(json!({"name": name, "port": port, "protocol": protocol.name()}));
        self
    }

    pub fn ready(self, places: &[Place]) -> Self {
        places.iter().fold(self, |slices, place| {
            slices.endpoint(*place, json!({"ready": true, "serving": true, "terminating": false}))
        })
    }

    /// Endpoints that shut down and may still be asked.
    pub fn terminating(self, places: &[Place]) -> Self {
        places.iter().fold(self, |slices, place| {
            slices.endpoint(*place, json!({"ready": false, "serving": true, "terminating": true}))
        })
    }

    pub fn unready(self, places: &[Place]) -> Self {
        places.iter().fold(self, |slices, place| {
            slices.endpoint(*place, json!({"ready": false, "serving": false, "terminating": false}))
        })
    }

    pub fn endpoint(mut self, place: Place, conditions: Value) -> Self {
        self.endpoints.push((place, conditions, Value::Null));
        self
    }

    /// Says that all endpoints are on this node, or of no node (null): slices that people make by hand.
    pub fn said_to_be_on(mut self, node: Value) -> Self {
        self.node = Some(node);
        self
    }

    /// Gives the latest endpoint topology hints, by zone and by node.
    pub fn hinted(mut self, zones: &[&str], nodes: &[&str]) -> Self {
        let named = |names: &[&str]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let hints = &mut self.endpoints.last_mut().expect("an endpoint comes first").2;
        *hints = json!({});
        if !zones.is_empty() {
            hints["forZones"] = json!(named(zones));
        }
        if !nodes.is_empty() {
            hints["forNodes"] = json!(named(nodes));
        }
        self
    }

    /// The slice of one family.
    pub fn of(&self, family: Family) -> Value {
        let endpoints: Vec<Value> = self
            .endpoints
            .iter()
            .map(|(place, conditions, hints)| {
                let mut endpoint = json!({"addresses": [place.address(family)], "conditions": conditions});
                match self.node.clone().unwrap_or_else(|| json!(place.node_name())) {
                    Value::Null => {}
                    node => endpoint["nodeName"] = node,
                }
                if !hints.is_null() {
                    endpoint["hints"] = hints.clone();
                }
                endpoint
            })
            .collect();
        let (suffix, kind) = if family == Family::V4 { ("v4", "IPv4") } else { ("v6", "IPv6") };
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": kind,
            "metadata": {"namespace": NAMESPACE, "name": format!("{}-{suffix}", self.name), "labels": self.labels},
            "ports": self.ports, "endpoints": endpoints,
        })
    }
}

impl Objects for Slices {
    fn objects(self) -> Vec<Value> {
        Family::BOTH.map(|family| self.of(family)).to_vec()
    }
}

/// The node under test, or the second one.
pub fn node(place: Place, zone: &str) -> Value {
    let pod_cidrs = match place {
        Place::Node => json!(Family::BOTH.map(|family| family.node_pod_cidr().to_string())),
        _ => json!(["10.0.2.0/24", "fd00:10:2::/64"]),
    };
    let address = |family: Family| json!({"type": "InternalIP", "address": place.address(family)});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": place.name(), "labels": {
            "topology.kubernetes.io/zone": zone, "kubernetes.io/hostname": place.name(),
        }},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs},
        "status": {"addresses": Family::BOTH.map(address)},
    })
}

/// The range of cluster IPs.
pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": Family::BOTH.map(|family| family.service_cidr().to_string())},
    })
}
