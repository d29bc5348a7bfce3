//! The clusters that are measured: named after where they were met, or by their size, and the same for the same seed.

mod objects;
mod shape;

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use super::seed::Seed;
use objects::{
    canary_name, cluster_ip_service, endpoint_address, endpoint_object, node_object, slice_object,
};
pub use shape::{Kind, Shape};

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
/// As Kubernetes' own controller does it.
const ENDPOINTS_PER_SLICE: usize = 100;
/// Node ports, then as many health check ports.
pub(crate) const NODE_PORT_RANGE: &str = "30000-35999";
/// The first node port handed out.
const NODE_PORTS: usize = 30_000;
const MOST_NODE_PORTS: usize = 2_700;

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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::{CANARIES, Shape, Workload};

    fn shape(text: &str) -> Shape {
        text.parse().expect("a workload")
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
}
