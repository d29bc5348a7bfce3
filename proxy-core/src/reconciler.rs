//! When to sync, what to plan, and what to do when the kernel says no. A state machine: the clock is handed in.
//!
//! The store is shared; everything that follows from it exists once per IP family, so that a failing IPv6 neither
//! stops IPv4 nor loses what it still owes.

use std::{collections::HashMap, time::Instant};

use crate::{
    backend::{Executor, Planner},
    environment::{EnvironmentSettings, NodeFacts},
    health::HealthChecks,
    instance::{Instance, SyncReport},
    model::{Family, Input, Kind, ServiceName},
    route::NodeView,
    store::{Store, Touched},
};

pub use crate::pace::Pace;

/// The engine: inputs go in by [`handle`](Self::handle), kernel state comes out of [`sync_due`](Self::sync_due).
pub struct Reconciler<P, X> {
    store: Store,
    node: NodeView,
    settings: EnvironmentSettings,
    facts: NodeFacts,
    health: HealthChecks,
    instances: Vec<Instance<P, X>>,
}

impl<P, X> Reconciler<P, X>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    /// One planner and executor for each family that is served; nothing is known yet.
    pub fn new(settings: EnvironmentSettings, pace: Pace, backends: Vec<(Family, P, X)>) -> Self {
        let instances = backends
            .into_iter()
            .map(|(family, planner, executor)| Instance::new(family, planner, executor, pace))
            .collect();
        Self {
            store: Store::default(),
            node: NodeView::default(),
            settings,
            facts: NodeFacts::default(),
            health: HealthChecks::default(),
            instances,
        }
    }

    /// Remembers an input and marks what it touches. Does not touch the kernel.
    pub fn handle(&mut self, input: Input, now: Instant) {
        match input {
            Input::Service(service) => {
                let touched = self.store.set_service(service);
                self.touch(touched, Kind::Service, now);
            }
            Input::ServiceGone(name) => {
                let touched = self.store.remove_service(&name);
                self.touch(touched, Kind::Service, now);
            }
            Input::Slice(slice) => {
                let trigger = slice.trigger_time.map(|at| (slice.family, at));
                let touched = self.store.set_slice(slice);
                if let (Some((family, at)), false) = (trigger, touched.is_empty()) {
                    self.instances
                        .iter_mut()
                        .filter(|instance| instance.family() == family)
                        .for_each(|instance| instance.note_trigger(at));
                }
                self.touch(touched, Kind::Slice, now);
            }
            Input::SliceGone(name) => {
                let touched = self.store.remove_slice(&name);
                self.touch(touched, Kind::Slice, now);
            }
            Input::Listing(kind) => self.store.begin_listing(kind),
            Input::Listed(kind) => {
                let touched = self.store.end_listing(kind);
                self.touch(touched, kind, now);
                if self.store.is_complete() {
                    self.instances.iter_mut().for_each(|instance| instance.begin(now));
                }
            }
            Input::ServiceCidrs(cidrs) => {
                self.facts.service_cidrs = cidrs;
                self.resolve(now);
            }
            Input::InterfaceAddresses(addresses) => {
                self.facts.interface_addresses = addresses;
                self.resolve(now);
            }
            Input::NodeIps(ips) => {
                if self.facts.node_ips != ips {
                    self.facts.node_ips.clone_from(&ips);
                    self.node.ips = ips;
                    self.resolve(now);
                    self.touch_all(now);
                }
            }
            Input::Zone(zone) => {
                if self.node.zone != zone {
                    self.node.zone = zone;
                    self.touch_all(now);
                }
            }
        }
    }

    /// Applies changed settings (a configuration file that was edited) without a restart.
    pub fn set_settings(&mut self, settings: EnvironmentSettings, pace: Pace, now: Instant) {
        self.settings = settings;
        self.instances.iter_mut().for_each(|instance| instance.set_pace(pace));
        self.resolve(now);
    }

    /// Syncs every family that is due. `clock` is read around the kernel calls only.
    pub fn sync_due(&mut self, clock: &mut dyn FnMut() -> Instant) -> Vec<SyncReport> {
        if !self.store.is_complete() {
            return Vec::new();
        }
        let mut reports = Vec::new();
        for instance in &mut self.instances {
            if instance.is_due(clock()) {
                reports.extend(instance.sync(&self.store, &self.node, clock));
            }
        }
        reports
    }

    /// When `sync_due` next has something to do, if nothing happens before.
    pub fn next_wakeup(&self) -> Option<Instant> {
        if !self.store.is_complete() {
            return None;
        }
        self.instances.iter().filter_map(Instance::next_wakeup).min()
    }

    /// Looks whether somebody else changed what was installed (constant cost); what is damaged is rebuilt at the next
    /// `sync_due`.
    pub fn check_drift(&mut self, now: Instant) -> Vec<Family> {
        self.instances
            .iter_mut()
            .filter_map(|instance| instance.check_drift(now).then(|| instance.family()))
            .collect()
    }

    /// Demands a full sync of every family.
    pub fn start_over(&mut self, reason: &'static str, now: Instant) {
        self.instances.iter_mut().for_each(|instance| instance.start_over(reason, now));
    }

    /// What the cluster said.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What the node is found to be.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// What routes depend on beside objects.
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// The configuration in force.
    pub fn settings(&self) -> &EnvironmentSettings {
        &self.settings
    }

    /// The families, in the order in which they are synced.
    pub fn instances(&self) -> &[Instance<P, X>] {
        &self.instances
    }

    /// One family's half.
    pub fn instance(&self, family: Family) -> Option<&Instance<P, X>> {
        self.instances.iter().find(|instance| instance.family() == family)
    }

    /// Health check node ports and their counts, if they changed since the last call.
    pub fn take_health_checks(&mut self) -> Option<&HashMap<ServiceName, crate::health::HealthCheck>> {
        self.health.take_changed()
    }

    fn touch(&mut self, touched: impl IntoIterator<Item = Touched>, kind: Kind, now: Instant) {
        for Touched { service, family } in touched {
            self.health.update(&service, self.store.entry(&service));
            for instance in &mut self.instances {
                if family.is_none_or(|family| family == instance.family()) {
                    instance.touch(service.clone(), kind, now);
                }
            }
        }
    }

    fn touch_all(&mut self, now: Instant) {
        let names: Vec<ServiceName> = self.store.names().cloned().collect();
        for instance in &mut self.instances {
            names.iter().for_each(|name| instance.touch_again(name.clone(), now));
        }
    }

    fn resolve(&mut self, now: Instant) {
        for instance in &mut self.instances {
            instance.set_environment(self.settings.resolve(instance.family(), &self.facts), now);
        }
    }
}
