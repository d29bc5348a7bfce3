//! What `healthCheckNodePort` answers: how many ready endpoints of a Service are on this node.

use std::collections::HashMap;

use crate::{
    model::{Family, ServiceName},
    store::Entry,
};

/// One Service's answer to load balancers that ask its health check node port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port that is served, in all families.
    pub port: u16,
    /// Distinct addresses of ready endpoints on this node; nothing for a family that the Service is not of.
    pub local_v4: Option<usize>,
    /// The same of IPv6.
    pub local_v6: Option<usize>,
}

/// Kept up to date one Service at a time.
#[derive(Debug, Default)]
pub struct HealthChecks {
    checks: HashMap<ServiceName, HealthCheck>,
    changed: bool,
}

impl HealthChecks {
    /// Looks at a Service; `None`: it is gone.
    pub fn update(&mut self, name: &ServiceName, entry: Option<&Entry>) {
        let check = entry.and_then(|entry| {
            let service = entry.service.as_deref()?;
            let port = service.health_check_node_port?;
            let local = |family| {
                let is_of = service.cluster_ips.iter().any(|ip| Family::of(*ip) == family);
                is_of.then(|| entry.ready_local_addresses(family))
            };
            Some(HealthCheck { port, local_v4: local(Family::V4), local_v6: local(Family::V6) })
        });
        let before = match check {
            Some(check) => self.checks.insert(name.clone(), check),
            None => self.checks.remove(name),
        };
        self.changed |= before != check;
    }

    /// All of them, if any changed since the last call.
    pub fn take_changed(&mut self) -> Option<&HashMap<ServiceName, HealthCheck>> {
        std::mem::take(&mut self.changed).then_some(&self.checks)
    }
}
