//! How large clusters are: named after where they were met, or by their size.

use std::str::FromStr;

use super::{CANARIES, MOVES};

const MOST_CLUSTER_IPS: usize = 1 << 20;
const MOST_ENDPOINTS: usize = 1 << 21;

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
    pub(super) fn endpoints_of(&self, index: usize) -> std::ops::Range<usize> {
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

#[cfg(test)]
mod tests {
    use super::Shape;

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
    fn what_is_no_workload_is_refused_by_name() {
        for text in ["10k", "0x1", "1x0", "9999999x1", "2x9999999"] {
            let refusal = text.parse::<Shape>().expect_err("not a workload");
            assert!(refusal.contains(text), "{refusal}");
        }
    }
}
