//! What may be seen of an engine from outside, whatever its backend: a borrow for as long as the look takes.

use std::sync::Arc;

use crate::{
    backend::{Executor, Planner},
    claims::ClaimKey,
    environment::{Environment, EnvironmentSettings, NodeFacts},
    instance::{Conflict, Instance, SetAside, Standing},
    model::{Family, ServiceName, ServicePortName},
    reconciler::Reconciler,
    route::{NodeView, Route},
    store::Store,
};

/// An engine, read only. Every answer takes a time that does not depend on the number of Services, but for what borrows the
/// whole store: whoever walks through that holds the engine up, and does it in small pieces.
pub trait Look {
    /// The families that it serves.
    fn families(&self) -> Vec<Family>;
    /// What the cluster says.
    fn store(&self) -> &Store;
    /// What the node is found to be.
    fn facts(&self) -> &NodeFacts;
    /// What routes depend on beside objects.
    fn node(&self) -> &NodeView;
    /// The configuration.
    fn settings(&self) -> &EnvironmentSettings;
    /// What the backend is told of the node; `None` until the node's facts were first resolved.
    fn environment(&self, family: Family) -> Option<&Environment>;
    /// What is installed for one Service, port by port.
    fn installed(&self, family: Family, service: &ServiceName) -> &[(ServicePortName, Arc<Route>)];
    /// Why a Service does not get what it asks for, if the kernel refused it or it asks for too much.
    fn set_aside(&self, family: Family, service: &ServiceName) -> Option<SetAside>;
    /// Addresses that a Service asks for and that others have.
    fn lost(&self, family: Family, service: &ServiceName) -> &[Conflict];
    /// Who owns an address and port.
    fn owner(&self, family: Family, key: &ClaimKey) -> Option<&ServiceName>;
    /// Whether a Service waits for its next sync.
    fn waits(&self, family: Family, service: &ServiceName) -> bool;
    /// What the next syncs owe; `None`: the family is not served.
    fn standing(&self, family: Family) -> Option<Standing>;
}

impl<P, X> Look for Reconciler<P, X>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    fn families(&self) -> Vec<Family> {
        self.instances().iter().map(Instance::family).collect()
    }

    fn store(&self) -> &Store {
        self.store()
    }

    fn facts(&self) -> &NodeFacts {
        self.facts()
    }

    fn node(&self) -> &NodeView {
        self.node()
    }

    fn settings(&self) -> &EnvironmentSettings {
        self.settings()
    }

    fn environment(&self, family: Family) -> Option<&Environment> {
        self.instance(family)?.environment()
    }

    fn installed(&self, family: Family, service: &ServiceName) -> &[(ServicePortName, Arc<Route>)] {
        self.instance(family).map_or(&[], |instance| instance.installed(service))
    }

    fn set_aside(&self, family: Family, service: &ServiceName) -> Option<SetAside> {
        self.instance(family)?.why_aside(service)
    }

    fn lost(&self, family: Family, service: &ServiceName) -> &[Conflict] {
        self.instance(family).map_or(&[], |instance| instance.lost(service))
    }

    fn owner(&self, family: Family, key: &ClaimKey) -> Option<&ServiceName> {
        self.instance(family)?.owner(key)
    }

    fn waits(&self, family: Family, service: &ServiceName) -> bool {
        self.instance(family).is_some_and(|instance| instance.waits(service))
    }

    fn standing(&self, family: Family) -> Option<Standing> {
        Some(self.instance(family)?.standing())
    }
}
