//! A backend whose kernel is a table in memory: it refuses what it is told to refuse, and fails the test when two
//! routes hold one address or when the engine and the planner disagree about what is installed.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use proxy_core::{
    backend::{ApplyError, Change, Effect, Executor, Outcome, Plan, Planned, Planner, Rejection, Step},
    environment::{Environment, EnvironmentSettings, LocalPods, NodePortSettings},
    model::{
        Endpoint, Family, Input, Kind, NodeHint, Protocol, Service, ServiceName, ServicePort,
        ServicePortName, Slice, SliceName, SlicePort, TrafficPolicy,
    },
    reconciler::{Pace, Reconciler},
    route::{FrontendKind, Route},
};

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Environment(Environment),
    Flush,
    Delete(ServicePortName),
    Put(ServicePortName, Arc<Route>),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(_) => f.write_str("environment"),
            Self::Flush => f.write_str("flush"),
            Self::Delete(name) => write!(f, "delete {name}"),
            Self::Put(name, _) => write!(f, "put {name}"),
        }
    }
}

/// How the kernel is told to misbehave.
#[derive(Debug, Default, Clone)]
pub(crate) struct Faults {
    /// Services whose routes are refused, the whole transaction with them.
    pub(crate) refuse: BTreeSet<ServiceName>,
    /// Services whose routes are refused one by one while everything else takes effect.
    pub(crate) reject: BTreeSet<ServiceName>,
    /// Refuse so many transactions without naming anybody.
    pub(crate) busy: u32,
    /// Fail so many checks for drift.
    pub(crate) silent: u32,
    /// Lose so many replies; the transaction took effect or not.
    pub(crate) lost: Vec<bool>,
}

#[derive(Debug, Default)]
pub(crate) struct Kernel {
    pub(crate) routes: BTreeMap<ServicePortName, Arc<Route>>,
    pub(crate) environment: Option<Environment>,
    pub(crate) faults: Faults,
    pub(crate) damaged: bool,
    /// Attempted transactions, as text.
    pub(crate) log: Vec<String>,
    pub(crate) surveys: usize,
    /// The planner says once that what is wanted does not fit.
    pub(crate) full_up: bool,
    /// Next upkeep of the planner and how often it ran.
    pub(crate) upkeep_at: Option<Instant>,
    pub(crate) upkeeps: usize,
}

pub(crate) type SharedKernel = Rc<RefCell<Kernel>>;

pub(crate) struct Table {
    kernel: SharedKernel,
    memory: HashMap<ServicePortName, Arc<Route>>,
    planned: Option<HashMap<ServicePortName, Arc<Route>>>,
    environment: Option<Environment>,
}

impl Planner for Table {
    type Op = Op;
    type Found = ();

    fn plan(&mut self, changes: &[Change], environment: &Environment, _: Instant) -> Planned<Op> {
        assert!(self.planned.is_none(), "the last plan was not settled");
        if std::mem::take(&mut self.kernel.borrow_mut().full_up) {
            return Planned::StartOver("does not fit");
        }
        let mut memory = self.memory.clone();
        let mut step = Step::default();
        if self.environment.as_ref() != Some(environment) {
            step.push(Op::Environment(environment.clone()), None);
        }
        for (at, change) in changes.iter().enumerate() {
            assert!(change.before.is_some() || change.after.is_some());
            assert_eq!(self.memory.get(&change.name), change.before.as_ref(), "{}", change.name);
            if change.before.is_some() {
                memory.remove(&change.name);
                step.push(Op::Delete(change.name.clone()), Some(at as u32));
            }
        }
        for (at, change) in changes.iter().enumerate() {
            if let Some(after) = &change.after {
                memory.insert(change.name.clone(), after.clone());
                step.push(Op::Put(change.name.clone(), after.clone()), Some(at as u32));
            }
        }
        self.planned = Some(memory);
        Planned::Plan(Plan { steps: vec![step] })
    }

    fn plan_full(
        &mut self,
        routes: &[(ServicePortName, Arc<Route>)],
        environment: &Environment,
        (): (),
        _: Instant,
    ) -> Plan<Op> {
        assert!(self.planned.is_none(), "the last plan was not settled");
        assert!(routes.is_sorted_by(|a, b| a.0 < b.0), "sorted by name, each once");
        let mut step = Step::default();
        step.push(Op::Flush, None);
        step.push(Op::Environment(environment.clone()), None);
        for (at, (name, route)) in routes.iter().enumerate() {
            step.push(Op::Put(name.clone(), route.clone()), Some(at as u32));
        }
        self.planned = Some(routes.iter().cloned().collect());
        Plan { steps: vec![step] }
    }

    fn settle(&mut self, effect: Effect) {
        let planned = self.planned.take();
        if effect == Effect::Applied {
            self.memory = planned.unwrap_or_else(|| self.memory.clone());
        }
    }

    fn plan_upkeep(&mut self, now: Instant) -> Option<Plan<Op>> {
        let mut kernel = self.kernel.borrow_mut();
        if kernel.upkeep_at.is_none_or(|at| at > now) {
            return None;
        }
        assert!(self.planned.is_none(), "the last plan was not settled");
        self.planned = Some(self.memory.clone());
        kernel.upkeeps += 1;
        if kernel.faults.busy == 0 {
            kernel.upkeep_at = None;
        }
        Some(Plan::default())
    }

    fn next_upkeep(&self) -> Option<Instant> {
        self.kernel.borrow().upkeep_at
    }
}

pub(crate) struct Teller(pub(crate) SharedKernel);

impl Executor for Teller {
    type Op = Op;
    type Found = ();

    fn survey(&mut self) -> Result<(), ApplyError> {
        self.0.borrow_mut().surveys += 1;
        Ok(())
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        let mut kernel = self.0.borrow_mut();
        kernel.log.push(plan.to_string());
        let refused = |reason: &str, culprit| ApplyError::Refused { reason: reason.into(), culprit };
        if kernel.faults.busy > 0 {
            kernel.faults.busy -= 1;
            return Err(refused("busy", None));
        }
        let mut routes = kernel.routes.clone();
        let mut environment = kernel.environment.clone();
        let mut outcome = Outcome::default();
        for owned in plan.steps.iter().flat_map(|step| &step.ops) {
            match &owned.op {
                Op::Flush => routes.clear(),
                Op::Environment(wanted) => environment = Some(wanted.clone()),
                Op::Delete(name) => {
                    routes.remove(name);
                }
                Op::Put(name, _) if kernel.faults.refuse.contains(&name.service) => {
                    return Err(refused("not this one", owned.owner));
                }
                Op::Put(name, _) if kernel.faults.reject.contains(&name.service) => {
                    outcome.rejected.push(Rejection { owner: owned.owner, reason: "not this op".into() });
                }
                Op::Put(name, route) => {
                    routes.insert(name.clone(), route.clone());
                }
            }
        }
        let lost = kernel.faults.lost.pop();
        if lost != Some(false) {
            assert_no_address_twice(&routes);
            kernel.routes = routes;
            kernel.environment = environment;
            kernel.damaged = false;
        }
        match lost {
            Some(_) => Err(ApplyError::Lost(io::Error::other("no reply"))),
            None => Ok(outcome),
        }
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        let mut kernel = self.0.borrow_mut();
        if kernel.faults.silent > 0 {
            kernel.faults.silent -= 1;
            return Err(ApplyError::Lost(io::Error::other("locked")));
        }
        Ok(!kernel.damaged)
    }
}

fn assert_no_address_twice(routes: &BTreeMap<ServicePortName, Arc<Route>>) {
    let mut seen = HashMap::new();
    for (name, route) in routes {
        for frontend in &route.frontends {
            let at = (route.protocol, frontend.at, frontend.port);
            if let Some(other) = seen.insert(at, name) {
                panic!("{at:?} belongs to {other} and to {name}");
            }
        }
    }
}

/// The engine over such kernels, with its own clock.
pub(crate) struct Rig {
    pub(crate) engine: Reconciler<Table, Teller>,
    pub(crate) kernels: HashMap<Family, SharedKernel>,
    pub(crate) now: Instant,
}

pub(crate) fn settings() -> EnvironmentSettings {
    EnvironmentSettings {
        masquerade_mark: 0x4000,
        masquerade_all: false,
        local_pods: LocalPods::Unknown,
        node_ports: NodePortSettings::Any,
        localhost_node_ports: false,
        refused_on_localhost: Box::default(),
    }
}

/// Long enough for every back-off to have passed.
pub(crate) const LONG: Duration = Duration::from_secs(60);

impl Rig {
    /// Both families, nothing listed yet.
    pub(crate) fn new() -> Self {
        let kernels: HashMap<Family, SharedKernel> =
            Family::BOTH.into_iter().map(|family| (family, SharedKernel::default())).collect();
        let backend = |family: Family| {
            let kernel = kernels[&family].clone();
            let table =
                Table { kernel: kernel.clone(), memory: HashMap::new(), planned: None, environment: None };
            (family, table, Teller(kernel))
        };
        let backends = Family::BOTH.map(backend).into();
        #[expect(clippy::disallowed_methods, reason = "any instant will do; from here on time is virtual")]
        let start = Instant::now();
        let mut rig =
            Self { engine: Reconciler::new(settings(), Pace::default(), backends), kernels, now: start };
        rig.put(Input::InterfaceAddresses([ip("192.168.0.10")].into()));
        rig
    }

    /// Listed: `inputs`, and nothing else.
    pub(crate) fn listed(inputs: impl IntoIterator<Item = Input>) -> Self {
        let mut rig = Self::new();
        rig.put(Input::Listing(Kind::Service));
        rig.put(Input::Listing(Kind::Slice));
        inputs.into_iter().for_each(|input| rig.put(input));
        rig.put(Input::Listed(Kind::Service));
        rig.put(Input::Listed(Kind::Slice));
        rig
    }

    /// Listed and synced.
    pub(crate) fn running(inputs: impl IntoIterator<Item = Input>) -> Self {
        let mut rig = Self::listed(inputs);
        rig.settle();
        rig
    }

    pub(crate) fn put(&mut self, input: Input) {
        self.engine.handle(input, self.now);
    }

    pub(crate) fn v4(&self) -> std::cell::RefMut<'_, Kernel> {
        self.kernels[&Family::V4].borrow_mut()
    }

    pub(crate) fn v6(&self) -> std::cell::RefMut<'_, Kernel> {
        self.kernels[&Family::V6].borrow_mut()
    }

    pub(crate) fn sync(&mut self) -> Vec<proxy_core::instance::SyncReport> {
        let now = self.now;
        self.engine.sync_due(&mut || now)
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    /// Lets time pass from wake-up to wake-up, for so long. Returns the reports.
    pub(crate) fn run_for(&mut self, time: Duration) -> Vec<proxy_core::instance::SyncReport> {
        let end = self.now + time;
        let mut reports = Vec::new();
        let mut rounds = 0;
        while let Some(at) = self.engine.next_wakeup().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            reports.extend(self.sync());
            rounds += 1;
            assert!(rounds < 10_000, "it wakes up without making progress");
        }
        self.now = end;
        reports
    }

    /// Until nothing is owed. Panics if that takes more than an hour.
    pub(crate) fn settle(&mut self) -> Vec<proxy_core::instance::SyncReport> {
        let reports = self.run_for(Duration::from_secs(3600));
        assert_eq!(self.engine.next_wakeup(), None, "nothing is owed after an hour");
        reports
    }

    /// Names of the Service ports in one kernel.
    pub(crate) fn in_kernel(&self, family: Family) -> Vec<String> {
        self.kernels[&family].borrow().routes.keys().map(|name| name.service.name().to_owned()).collect()
    }

    /// The frontends of a Service in the IPv4 kernel, as text.
    pub(crate) fn frontends(&self, name: &str) -> Vec<String> {
        let kernel = self.v4();
        let routes = kernel.routes.iter().filter(|(port, _)| port.service.name() == name);
        let frontends = routes.flat_map(|(_, route)| route.frontends.iter());
        frontends
            .map(|frontend| match frontend.at {
                Some(at) => format!("{at}:{}", frontend.port),
                None => format!("{:?}:{}", FrontendKind::NodePort, frontend.port),
            })
            .collect()
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn name(text: &str) -> ServiceName {
    ServiceName::new("ns", text)
}

/// A Service with TCP port 80 at 172.30.0.`number` and, unless told otherwise, fd00::`number`.
pub(crate) fn service(of: &str, number: u8) -> Service {
    Service {
        name: name(of),
        created: i64::from(number),
        cluster_ips: [IpAddr::from([172, 30, 0, number]), ip(&format!("fd00::{number:x}"))].into(),
        external_ips: [].into(),
        ignored_external_ips: [].into(),
        load_balancer_ips: [].into(),
        source_ranges: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity: None,
        health_check_node_port: None,
        ports: [ServicePort { name: "p".into(), protocol: Protocol::Tcp, port: 80, node_port: None }].into(),
        options: [].into(),
    }
}

pub(crate) fn endpoint(addr: IpAddr) -> Endpoint {
    Endpoint {
        addr,
        ready: true,
        serving: true,
        terminating: false,
        local: false,
        for_nodes: NodeHint::Absent,
        for_zones: None,
    }
}

/// The IPv4 slice `of`-1 with ready endpoints 10.0.0.`last`.
pub(crate) fn slice(of: &str, last: &[u8]) -> Slice {
    Slice {
        name: SliceName::new("ns", &format!("{of}-1")),
        service: name(of),
        family: Family::V4,
        ports: [SlicePort { name: "p".into(), protocol: Protocol::Tcp, port: 8080 }].into(),
        endpoints: last.iter().map(|last| endpoint(IpAddr::from([10, 0, 0, *last]))).collect(),
        trigger_time: None,
    }
}
