//! Random histories of a small cluster: the same seed gives the same Services, slices and accidents.

use serde_json::{Value, json};

use crate::lab::{self, Objects, Service, Slices};
use crate::network::{Family, Place, Protocol};
use crate::random::Random;

/// How many Services a history juggles with.
const SERVICES: u64 = 8;
/// Addresses outside that Services quarrel about.
const SHARED: u64 = 3;
const PLACES: [Place; 7] =
    [Place::PodA, Place::PodB, Place::PodC, Place::PodD, Place::PodE, Place::Node, Place::Node2];
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// One thing that happens to the cluster.
#[derive(Debug, Clone)]
pub enum Step {
    Apply {
        what: String,
        objects: Vec<Value>,
    },
    Delete {
        kind: &'static str,
        name: String,
    },
    /// The proxy ends, the following step happens without it, and it starts again.
    Restart,
}

/// An endless sequence of steps.
#[derive(Debug)]
pub struct History {
    random: Random,
    /// When each Service was made, if it is there.
    services: Vec<Option<String>>,
    /// The names of the slices that are there, without their families.
    slices: Vec<(u8, &'static str)>,
    made: u64,
    /// Whether Services may claim one another's addresses.
    conflicts: bool,
}

impl History {
    pub fn new(seed: u64) -> Self {
        let services = vec![None; usize::try_from(SERVICES).expect("a few")];
        Self { random: Random::new(seed), services, slices: Vec::new(), made: 0, conflicts: true }
    }

    /// The same without Services that claim one address: for a proxy whose choice between them is not known.
    pub fn without_conflicts(seed: u64) -> Self {
        Self { conflicts: false, ..Self::new(seed) }
    }

    fn service_step(&mut self) -> Vec<Step> {
        let number = self.random.below(SERVICES);
        let index = usize::try_from(number).expect("a few");
        let name = name_of(number + 1);
        if self.services[index].is_some() && self.random.one_in(4) {
            self.services[index] = None;
            return vec![Step::Delete { kind: "Service", name }];
        }
        let fresh = self.services[index].is_none();
        if fresh {
            self.made += 1;
            // Times differ, so that it is known who is older.
            self.services[index] =
                Some(format!("2026-01-01T{:02}:{:02}:00Z", self.made / 60 % 24, self.made % 60));
        }
        let created = self.services[index].clone().unwrap_or_default();
        let service = self.service(number, &created);
        let objects = service.objects();
        let verb = if fresh { "create" } else { "change" };
        vec![Step::Apply { what: format!("{verb} {}", objects[0]), objects }]
    }

    fn service(&mut self, number: u64, created: &str) -> Service {
        let random = &mut self.random;
        let conflicts = self.conflicts;
        let small = |value: u64| u8::try_from(value).expect("a few");
        let mut service = lab::service(&name_of(number + 1), small(number + 1)).created(created);
        for port in 0..=random.below(3) {
            let protocol = random.one_of(&PROTOCOLS);
            let number_of_port = u16::try_from(80 + port).expect("small");
            service = service.port(&format!("p{port}"), number_of_port, protocol);
            if random.one_in(2) {
                service =
                    service.node_port(u16::try_from(30_000 + number * 10 + port).expect("in the range"));
            }
        }
        if random.one_in(3) {
            let shared = random.below(SHARED) + 1;
            service = service.external_ip(small(if conflicts { shared } else { number + 10 }));
        }
        if random.one_in(2) {
            let shared = random.one_in(3) && conflicts;
            let address = if shared { random.below(SHARED) + 1 } else { number + 10 };
            let mode = if random.one_in(5) { json!("Proxy") } else { Value::Null };
            service = service.load_balancer_with(small(address), mode);
            if random.one_in(3) {
                let ranges: &[&str] = random.one_of(&[
                    &["203.0.113.0/24", "2001:db8:113::/64"],
                    &["192.168.0.0/16", "fd00:70::/64"],
                    &["10.0.1.0/24", "fd00:10::/32"],
                    &["0.0.0.0/0", "::/0"],
                    &["192.168.50.1/32", "203.0.113.100/32", "fd00:50::1/128"],
                ]);
                service = service.source_ranges(ranges);
            }
        }
        if random.one_in(3) {
            service = service.external_local();
        }
        if random.one_in(4) {
            service = service.internal_local();
        }
        if random.one_in(4) {
            service = service.affinity(600);
        }
        if random.one_in(10) {
            service = service.label("service.kubernetes.io/service-proxy-name", "other");
        }
        if random.one_in(10) {
            let family = random.one_of(&Family::BOTH);
            let only = family.service(small(number + 1)).to_string();
            let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
            service = service
                .set("/spec/clusterIP", json!(only))
                .set("/spec/clusterIPs", json!([only]))
                .set("/spec/ipFamilies", json!([name]))
                .set("/spec/ipFamilyPolicy", json!("SingleStack"));
        }
        service
    }

    fn slice_step(&mut self) -> Vec<Step> {
        if !self.slices.is_empty() && self.random.one_in(5) {
            let at = self.random.below(self.slices.len() as u64);
            let (number, suffix) = self.slices.swap_remove(usize::try_from(at).expect("an index"));
            let delete = |family| Step::Delete {
                kind: "EndpointSlice",
                name: format!("{}-{suffix}-{family}", name_of(u64::from(number))),
            };
            return vec![delete("v4"), delete("v6")];
        }
        let number = u8::try_from(self.random.below(SERVICES) + 1).expect("a few");
        let suffix = self.random.one_of(&["1", "2"]);
        if !self.slices.contains(&(number, suffix)) {
            self.slices.push((number, suffix));
        }
        let objects = self.slice(number, suffix).objects();
        vec![Step::Apply { what: format!("slice {}", objects[0]), objects }]
    }

    fn slice(&mut self, number: u8, suffix: &str) -> Slices {
        let random = &mut self.random;
        let mut slices = lab::slices(&name_of(u64::from(number))).named(suffix);
        for port in 0..3 {
            if random.one_in(6) {
                continue;
            }
            // A Service's port finds its endpoints by name and protocol; one protocol a port is not enough to guess it.
            for protocol in PROTOCOLS {
                let target = random.one_of(&crate::network::PORTS);
                slices = slices.port(&format!("p{port}"), target, protocol);
            }
        }
        let hinted = random.one_in(3);
        for place in PLACES {
            if random.one_in(2) {
                continue;
            }
            let conditions = random.one_of(&[
                json!({"ready": true, "serving": true, "terminating": false}),
                json!({"ready": true}),
                json!({}),
                json!({"ready": false, "serving": true, "terminating": true}),
                json!({"ready": false, "serving": false, "terminating": true}),
                json!({"ready": false, "serving": false, "terminating": false}),
            ]);
            slices = slices.endpoint(place, conditions);
            if hinted && !random.one_in(8) {
                let zone = random.one_of(&["a", "b"]);
                let node: &[&str] = random.one_of(&[&[], &["node"], &["node2"]]);
                slices = slices.hinted(&[zone], node);
            }
        }
        if random.one_in(12) {
            slices = slices.label("service.kubernetes.io/headless", "");
        }
        slices
    }
}

impl Iterator for History {
    type Item = Vec<Step>;

    /// The next few things, which happen at once.
    fn next(&mut self) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        if self.random.one_in(8) {
            steps.push(Step::Restart);
        }
        for _ in 0..=self.random.below(4) {
            steps.extend(match self.random.below(20) {
                0 => {
                    let zone = self.random.one_of(&["a", "b", "c"]);
                    let what = format!("the node moves to zone {zone}");
                    vec![Step::Apply { what, objects: vec![lab::node(Place::Node, zone)] }]
                }
                1..=9 => self.service_step(),
                _ => self.slice_step(),
            });
        }
        Some(steps)
    }
}

fn name_of(number: u64) -> String {
    format!("svc-{number}")
}

#[cfg(test)]
mod tests {
    use super::{History, Step};

    fn told(seed: u64, steps: usize) -> String {
        History::new(seed).take(steps).map(|steps| format!("{steps:?}\n")).collect()
    }

    #[test]
    fn a_seed_always_tells_the_same_history() {
        assert_eq!(told(7, 50), told(7, 50));
        assert_ne!(told(7, 50), told(8, 50));
    }

    #[test]
    fn every_feature_happens() {
        let story = told(1, 120);
        for feature in [
            "sessionAffinity\": String(\"ClientIP",
            "loadBalancerSourceRanges",
            "externalIPs",
            "externalTrafficPolicy\": String(\"Local",
            "internalTrafficPolicy\": String(\"Local",
            "service-proxy-name",
            "service.kubernetes.io/headless",
            "ipMode",
            "SCTP",
            "forNodes",
            "terminating\": Bool(true",
            "Restart",
            "zone c",
        ] {
            assert!(story.contains(feature), "{feature} never happens");
        }
        let deletes = |wanted: &str| {
            History::new(1)
                .take(120)
                .flatten()
                .any(|step| matches!(step, Step::Delete { kind, .. } if kind == wanted))
        };
        assert!(deletes("Service") && deletes("EndpointSlice"));
    }
}
