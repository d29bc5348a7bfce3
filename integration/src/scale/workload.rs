//! The clusters that are measured: named after where they were met, or by their size, and the same for the same seed.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde_json::{Value, json};

use super::seed::Seed;

/// The namespace that all objects are in.
pub const NAMESPACE: &str = "scale";
/// The node on which the contender runs.
pub const NODE: &str = "node-a";
/// What every endpoint listens on.
pub const ENDPOINT_PORT: u16 = 8080;
/// Services that are changed to see when a change takes effect. They come on top of the workload's own.
pub const CANARIES: usize = 16;

/// For cluster IPs.
pub(crate) const CLUSTER_IP_RANGE: &str = "172.16.0.0/12";
/// Where the range begins, after its first address, which is that of the API server's own Service.
const CLUSTER_IPS: u32 = 0xac10_0001;
/// 10.64.0.0/11, for endpoints.
const ENDPOINTS: u32 = 0x0a40_0000;
const MOST_CLUSTER_IPS: usize = 1 << 20;
const MOST_ENDPOINTS: usize = 1 << 21;
/// As Kubernetes' own controller does it.
const ENDPOINTS_PER_SLICE: usize = 100;
/// Node ports, then as many health check ports.
pub(crate) const NODE_PORT_RANGE: &str = "30000-35999";
/// The first node port handed out.
const NODE_PORTS: usize = 30_000;
const MOST_NODE_PORTS: usize = 2_700;

/// How large a cluster is and what its Services are like.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    pub name: String,
    /// Where the figures come from.
    pub source: &'static str,
    pub services: usize,
    /// Of all Services together.
    pub endpoints: usize,
    pub kind: Kind,
    /// Endpoint changes a second that belong to this workload, beside those asked for.
    pub own_churn: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    /// All types of Services and policies, by turns.
    Mixed,
}

/// One Service of the workload, as far as measuring needs it.
#[derive(Debug, Clone)]
pub struct Service {
    pub name: String,
    pub address: SocketAddr,
    /// Indices of its endpoints.
    endpoints: std::ops::Range<usize>,
    kind: ServiceKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ServiceKind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    SourceRanges,
    ExternalIp,
    Sticky,
    LocalTraffic,
    Udp,
    TwoPorts,
}

/// The objects of one cluster.
#[derive(Debug, Clone)]
pub struct Workload {
    pub shape: Shape,
    pub services: Vec<Service>,
    /// For each canary its address.
    pub canaries: Vec<SocketAddr>,
}

impl Shape {
    /// The built-in ones.
    pub fn named() -> Vec<Self> {
        let shape = |name: &str, source, services, endpoints| Self {
            name: name.to_owned(),
            source,
            services,
            endpoints,
            kind: Kind::ClusterIp,
            own_churn: None,
        };
        vec![
            shape("issue-139513", "kubernetes/kubernetes#139513", 44_125, 44_125),
            shape("issue-135639", "kubernetes/kubernetes#135639", 5_006, 250_011),
            shape("k8s-blog-5k", "kubernetes.io/blog/2025/02/28/nftables-kube-proxy", 5_000, 5_000),
            shape("k8s-blog-10k", "kubernetes.io/blog/2025/02/28/nftables-kube-proxy", 10_000, 10_000),
            shape("k8s-blog-30k", "kubernetes.io/blog/2025/02/28/nftables-kube-proxy", 30_000, 30_000),
            shape("10kx10", "the project's own goal", 10_000, 100_000),
            shape("one-big-service", "the project's own goal", 1, 100_000),
            Self {
                // A tenth of all endpoints within a minute.
                own_churn: Some(1_000.0 / 60.0),
                ..shape("rolling-update", "a tenth of all endpoints replaced in a minute", 1_000, 10_000)
            },
            Self {
                kind: Kind::Mixed,
                ..shape("mixed", "all types of Services and policies by turns", 1_000, 5_000)
            },
        ]
    }

    /// How many endpoints the Service at `index` has: as even as can be.
    fn endpoints_of(&self, index: usize) -> std::ops::Range<usize> {
        let at = |index: usize| self.endpoints * index / self.services;
        at(index)..at(index + 1)
    }
}

impl FromStr for Shape {
    type Err = String;

    /// A name, `k8s-blog` for its largest, or `SERVICESxENDPOINTS` with the endpoints of each Service.
    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = if text == "k8s-blog" { "k8s-blog-30k" } else { text };
        if let Some(shape) = Self::named().into_iter().find(|shape| shape.name == wanted) {
            return Ok(shape);
        }
        let sizes = text.split_once('x').and_then(|(services, endpoints)| {
            Some((services.parse::<usize>().ok()?, endpoints.parse::<usize>().ok()?))
        });
        let names = || {
            let names: Vec<String> = Self::named().into_iter().map(|shape| shape.name).collect();
            names.join(", ")
        };
        let Some((services, each)) = sizes else {
            return Err(format!(
                "{text:?} is no workload: give SERVICESxENDPOINTS such as 1000x10, or one of {}",
                names()
            ));
        };
        let endpoints = services.saturating_mul(each);
        if services == 0 || each == 0 {
            return Err(format!("workload {text:?} has nothing to measure"));
        }
        if services + CANARIES > MOST_CLUSTER_IPS || endpoints + 2 * CANARIES + MOVES > MOST_ENDPOINTS {
            return Err(format!(
                "workload {text:?} is too large: at most {MOST_CLUSTER_IPS} Services and {MOST_ENDPOINTS} endpoints"
            ));
        }
        Ok(Self {
            name: text.to_owned(),
            source: "size as given",
            services,
            endpoints,
            kind: Kind::ClusterIp,
            own_churn: None,
        })
    }
}

/// Addresses kept free at the end of the endpoints' range, for endpoints that move.
const MOVES: usize = 65_536;

impl Workload {
    pub fn generate(shape: Shape, seed: u64) -> Self {
        let mut seed = Seed::new(seed);
        let total = shape.services + CANARIES;
        // Which Service gets which address must not follow the order of names: some maps are trees.
        let mut addresses: Vec<u32> = (0..u32::try_from(total).expect("checked against the range")).collect();
        seed.shuffle(&mut addresses);
        let address =
            |index: usize| SocketAddr::new(Ipv4Addr::from(CLUSTER_IPS + 1 + addresses[index]).into(), 80);
        let services = (0..shape.services)
            .map(|index| Service {
                name: format!("s-{index:06}"),
                address: address(index),
                endpoints: shape.endpoints_of(index),
                kind: kind_at(shape.kind, index),
            })
            .collect();
        let canaries = (shape.services..total).map(address).collect();
        Self { shape, services, canaries }
    }

    /// All objects to begin with, the node among them.
    pub fn objects(&self) -> impl Iterator<Item = Value> + '_ {
        let services = self.services.iter().enumerate().flat_map(|(index, service)| {
            let mut objects = vec![self.service_object(index, service)];
            objects.extend(self.slices_of(index, None));
            objects
        });
        let canaries = (0..CANARIES).flat_map(|index| {
            let address = self.canaries[index];
            [cluster_ip_service(&canary_name(index), address), self.canary_slice(index, 0)]
        });
        std::iter::once(node_object()).chain(services).chain(canaries)
    }

    /// Services whose TCP cluster IP must answer once the rules are complete.
    pub fn answering(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let services = self
            .services
            .iter()
            .filter(|service| service.kind.answers_everywhere() && !service.endpoints.is_empty());
        services.map(|service| service.address).chain(self.canaries.iter().copied())
    }

    /// The address that a canary's only endpoint has in a step.
    pub fn canary_endpoint(&self, canary: usize, step: usize) -> Ipv4Addr {
        endpoint_address(self.shape.endpoints + 2 * canary + step % 2)
    }

    pub fn canary_slice(&self, canary: usize, step: usize) -> Value {
        slice_object(&canary_name(canary), 0, vec![self.canary_object(canary, step, false)])
    }

    /// The slice of a step, and in it the endpoint of the step before, which is terminating.
    pub fn retiring_canary_slice(&self, canary: usize, step: usize) -> Value {
        let endpoints =
            vec![self.canary_object(canary, step - 1, true), self.canary_object(canary, step, false)];
        slice_object(&canary_name(canary), 0, endpoints)
    }

    fn canary_object(&self, canary: usize, step: usize, terminating: bool) -> Value {
        json!({
            "addresses": [self.canary_endpoint(canary, step).to_string()],
            "conditions": {"ready": !terminating, "serving": true, "terminating": terminating},
            "nodeName": "node-b",
        })
    }

    /// The slice that results when one endpoint of the Service at `index` is replaced by a new one.
    pub fn moved_slice(&self, index: usize, step: usize) -> Value {
        let free = self.shape.endpoints + 2 * CANARIES + step % MOVES;
        let mut slices = self.slices_of(index, Some((step, free)));
        slices.swap_remove(0)
    }

    fn service_object(&self, index: usize, service: &Service) -> Value {
        let mut object = cluster_ip_service(&service.name, service.address);
        let spec = &mut object["spec"];
        let node_port = NODE_PORTS + index % MOST_NODE_PORTS;
        let outside = |third: u8| {
            let index = u32::try_from(index).expect("checked against the range");
            Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, third, 0)) + index % 32_768).to_string()
        };
        match service.kind {
            ServiceKind::ClusterIp => {}
            ServiceKind::NodePort => {
                spec["type"] = json!("NodePort");
                spec["ports"][0]["nodePort"] = json!(node_port);
            }
            ServiceKind::LoadBalancer | ServiceKind::SourceRanges | ServiceKind::LocalTraffic => {
                spec["type"] = json!("LoadBalancer");
                spec["ports"][0]["nodePort"] = json!(node_port);
                if service.kind == ServiceKind::SourceRanges {
                    spec["loadBalancerSourceRanges"] = json!(["203.0.113.0/24", "10.96.0.0/16"]);
                }
                if service.kind == ServiceKind::LocalTraffic {
                    spec["externalTrafficPolicy"] = json!("Local");
                    spec["healthCheckNodePort"] = json!(node_port + MOST_NODE_PORTS);
                }
                object["status"] = json!({"loadBalancer": {"ingress": [{"ip": outside(0)}]}});
            }
            ServiceKind::ExternalIp => spec["externalIPs"] = json!([outside(128)]),
            ServiceKind::Sticky => {
                spec["sessionAffinity"] = json!("ClientIP");
                spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": 10_800}});
            }
            ServiceKind::Udp => spec["ports"][0]["protocol"] = json!("UDP"),
            ServiceKind::TwoPorts => {
                let second = json!({"name": "admin", "port": 81, "targetPort": 8081, "protocol": "TCP"});
                spec["ports"].as_array_mut().expect("ports are a list").push(second);
            }
        }
        object
    }

    /// Its slices; with `moved`, the one whose endpoint was replaced, only.
    fn slices_of(&self, index: usize, moved: Option<(usize, usize)>) -> Vec<Value> {
        let service = &self.services[index];
        let chunks: Vec<Vec<usize>> = service
            .endpoints
            .clone()
            .collect::<Vec<usize>>()
            .chunks(ENDPOINTS_PER_SLICE)
            .map(<[usize]>::to_vec)
            .collect();
        let victim = moved.map(|(step, free)| (step % service.endpoints.len().max(1), free));
        let mut slices = Vec::new();
        for (number, chunk) in chunks.iter().enumerate() {
            let mut chunk = chunk.clone();
            if let Some((victim, free)) = victim {
                let (holder, place) = (victim / ENDPOINTS_PER_SLICE, victim % ENDPOINTS_PER_SLICE);
                if holder != number {
                    continue;
                }
                chunk[place] = free;
            }
            let endpoints = chunk.iter().map(|endpoint| endpoint_object(*endpoint)).collect();
            let mut slice = slice_object(&service.name, number, endpoints);
            match service.kind {
                ServiceKind::Udp => slice["ports"][0]["protocol"] = json!("UDP"),
                ServiceKind::TwoPorts => {
                    let second = json!({"name": "admin", "port": 8081, "protocol": "TCP"});
                    slice["ports"].as_array_mut().expect("ports are a list").push(second);
                }
                _ => {}
            }
            slices.push(slice);
        }
        slices
    }
}

impl ServiceKind {
    const ALL: [Self; 9] = [
        Self::ClusterIp,
        Self::NodePort,
        Self::LoadBalancer,
        Self::SourceRanges,
        Self::ExternalIp,
        Self::Sticky,
        Self::LocalTraffic,
        Self::Udp,
        Self::TwoPorts,
    ];

    /// Whether a TCP connection to the cluster IP succeeds from anywhere in the cluster.
    fn answers_everywhere(self) -> bool {
        self != Self::Udp
    }
}

fn kind_at(kind: Kind, index: usize) -> ServiceKind {
    match kind {
        Kind::ClusterIp => ServiceKind::ClusterIp,
        Kind::Mixed => ServiceKind::ALL[index % ServiceKind::ALL.len()],
    }
}

fn canary_name(index: usize) -> String {
    format!("canary-{index:02}")
}

fn endpoint_address(index: usize) -> Ipv4Addr {
    Ipv4Addr::from(ENDPOINTS + 1 + u32::try_from(index).expect("checked against the range"))
}

/// One endpoint in twenty is on the node itself.
fn endpoint_object(index: usize) -> Value {
    let node = if index.is_multiple_of(20) { NODE.to_owned() } else { format!("node-{}", index % 20) };
    json!({
        "addresses": [endpoint_address(index).to_string()],
        "conditions": {"ready": true, "serving": true, "terminating": false},
        "nodeName": node,
        "targetRef": {"kind": "Pod", "namespace": NAMESPACE, "name": format!("pod-{index}")},
    })
}

fn node_object() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "uid": "5ca1e000-0000-0000-0000-000000000000"},
        "spec": {"podCIDR": "10.96.0.0/24", "podCIDRs": ["10.96.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.168.50.1"}]},
    })
}

fn cluster_ip_service(name: &str, address: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "uid": format!("uid-{name}"),
            "creationTimestamp": "2026-01-01T00:00:00Z", "labels": {"app": name}},
        "spec": {
            "type": "ClusterIP", "clusterIP": address.ip().to_string(), "clusterIPs": [address.ip().to_string()],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "selector": {"app": name},
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "main", "port": address.port(), "targetPort": ENDPOINT_PORT, "protocol": "TCP"}],
        },
    })
}

fn slice_object(service: &str, number: usize, endpoints: Vec<Value>) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": format!("{service}-{number}"), "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "scale"}},
        "addressType": "IPv4",
        "ports": [{"name": "main", "port": ENDPOINT_PORT, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{CANARIES, Shape, Workload};

    fn shape(text: &str) -> Shape {
        text.parse().expect("a workload")
    }

    #[test]
    fn named_workloads_have_the_sizes_of_their_sources() {
        let size = |name: &str| (shape(name).services, shape(name).endpoints);
        assert_eq!(size("issue-139513"), (44_125, 44_125));
        assert_eq!(size("issue-135639"), (5_006, 250_011));
        assert_eq!(size("k8s-blog"), (30_000, 30_000));
        assert_eq!(size("10kx10"), (10_000, 100_000));
        assert_eq!(size("one-big-service"), (1, 100_000));
    }

    #[test]
    fn every_endpoint_of_the_shape_is_in_exactly_one_slice() {
        let workload = Workload::generate(shape("7x31"), 1);
        let mut addresses = Vec::new();
        for object in workload.objects().filter(|object| object["kind"] == "EndpointSlice") {
            for endpoint in object["endpoints"].as_array().expect("a list") {
                addresses.push(endpoint["addresses"][0].as_str().expect("an address").to_owned());
            }
        }
        assert_eq!(addresses.len(), 7 * 31 + CANARIES);
        assert_eq!(addresses.iter().collect::<HashSet<_>>().len(), addresses.len());
    }

    #[test]
    fn the_same_seed_makes_the_same_cluster_and_another_seed_other_addresses() {
        let objects = |seed| Workload::generate(shape("5x2"), seed).objects().collect::<Vec<_>>();
        assert_eq!(objects(3), objects(3));
        assert_ne!(objects(3), objects(4));
    }

    #[test]
    fn a_move_replaces_one_endpoint_of_the_right_slice() {
        let workload = Workload::generate(shape("2x250"), 1);
        let moved = workload.moved_slice(1, 130);
        assert_eq!(moved["metadata"]["name"], "s-000001-1");
        let before = workload
            .objects()
            .find(|object| object["metadata"]["name"] == "s-000001-1")
            .expect("the slice exists");
        let (old, new) =
            (before["endpoints"].as_array().expect("list"), moved["endpoints"].as_array().expect("list"));
        assert_eq!(old.len(), new.len());
        assert_eq!(old.iter().zip(new).filter(|(old, new)| old != new).count(), 1);
    }

    #[test]
    fn a_mixed_cluster_has_all_types() {
        let workload = Workload::generate(shape("mixed"), 1);
        let types: HashSet<String> = workload
            .objects()
            .filter(|object| object["kind"] == "Service")
            .map(|object| object["spec"]["type"].as_str().expect("a type").to_owned())
            .collect();
        assert_eq!(types.len(), 3);
        assert!(workload.answering().count() < workload.services.len() + CANARIES);
    }

    #[test]
    fn what_is_no_workload_is_refused_by_name() {
        for text in ["10k", "0x1", "1x0", "9999999x1", "2x9999999"] {
            let refusal = text.parse::<Shape>().expect_err("not a workload");
            assert!(refusal.contains(text), "{refusal}");
        }
    }
}
