//! What a plan says is what a sync then does, in every mode.

use std::sync::{Arc, Mutex};

use insight::{
    state::{Mode, State},
    table::Look,
};
use proxy_core::{
    backend::{ApplyError, Executor, Outcome, Plan, Planner},
    model::Family,
    reconciler::{Pace, Reconciler},
};

use super::{changed::Changed, operations::*, *};
use crate::verbs::{
    intended::{Intended, now},
    test_state::{golden, state},
};

/// Takes everything, and notes what each plan was.
struct Recorder<Op, Found> {
    plans: Arc<Mutex<Vec<Vec<String>>>>,
    kinds: std::marker::PhantomData<fn() -> (Op, Found)>,
}

impl<Op: std::fmt::Display, Found: Default> Executor for Recorder<Op, Found> {
    type Op = Op;
    type Found = Found;

    fn survey(&mut self) -> Result<Found, ApplyError> {
        Ok(Found::default())
    }

    fn apply(&mut self, plan: &Plan<Op>) -> Result<Outcome, ApplyError> {
        let texts = plan.steps.iter().flat_map(|step| &step.ops).map(|owned| owned.op.to_string());
        self.plans.lock().expect("no panic").push(texts.collect());
        Ok(Outcome::default())
    }

    fn intact(&mut self) -> Result<bool, ApplyError> {
        Ok(true)
    }
}

/// The plans that the engine applies when one state is followed by another.
fn synced<P: Planner>(planner: P, before: &State, after: &State) -> Vec<Vec<String>>
where
    P::Found: Default,
{
    let plans = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder { plans: Arc::clone(&plans), kinds: std::marker::PhantomData };
    let settings = before.header.environment.to_settings();
    let mut engine = Reconciler::new(settings, Pace::default(), vec![(Family::V4, planner, recorder)]);
    let mut time = now();
    for state in [before, after] {
        for input in state.inputs() {
            engine.handle(input, time);
        }
        engine.set_settings(state.header.environment.to_settings(), Pace::default(), time);
        time += std::time::Duration::from_secs(60);
        engine.sync_due(&mut || time);
        time += std::time::Duration::from_secs(60);
    }
    let plans = plans.lock().expect("no panic");
    plans.clone()
}

/// Changes of the small cluster.
const CHANGES: [&str; 4] = [
    // Another endpoint, and one less.
    r"
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.2.7]}, {addresses: [10.244.2.8]}, {addresses: [10.244.2.9]}]
",
    // A Service that is new, whose addresses the API server will allocate.
    r"
kind: Service
metadata: {name: new, namespace: shop}
spec: {type: NodePort, ports: [{name: http, port: 80}]}
---
kind: EndpointSlice
metadata: {name: new-1, namespace: shop, labels: {kubernetes.io/service-name: new}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.244.3.3]}]
",
    // Policies and affinity.
    r"
kind: Service
metadata: {name: pay, namespace: shop}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Cluster
  ports: [{name: https, port: 443}]
",
    // A Service that becomes headless is no longer ours.
    r"
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
",
];

#[test]
fn the_plan_of_a_change_is_what_the_sync_then_does() {
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Ipvs] {
        let before = state(mode);
        for change in CHANGES {
            let mut changed = Changed::new(before.clone());
            changed.apply(change, "default").expect(change);
            let (from, to) =
                (Intended::of(&before).expect("a state"), Intended::of(&changed.state).expect("a state"));
            let plans = plan(From::Intended(&from), &to, false).expect("a plan");
            let planned = &plans[&Family::V4];
            let texts: Vec<String> = planned.all.iter().map(|operation| operation.text.clone()).collect();
            let done = match mode {
                Mode::Nftables => synced(backend_nft::Planner::new(Family::V4), &before, &changed.state),
                Mode::Iptables => synced(backend_iptables::Planner::new(Family::V4), &before, &changed.state),
                Mode::Ipvs => {
                    let settings = to.ipvs.clone().expect("of this mode");
                    synced(backend_ipvs::IpvsPlanner::alone(settings), &before, &changed.state)
                }
            };
            assert!(!texts.is_empty(), "{mode:?} {change}");
            assert_eq!(done.len(), 2, "a first sync, and one for the change");
            assert_eq!(texts, done[1], "{mode:?} {change}");
            // Every operation that belongs to somebody belongs to a Service that changes.
            for operation in planned.all.iter().filter_map(|operation| operation.owner.as_ref()) {
                let owned = planned.changes.iter().any(|change| change.name == *operation);
                assert!(owned || mode == Mode::Iptables, "{operation} {change}");
            }
        }
    }
}

#[test]
fn what_does_not_change_takes_no_operation() {
    for mode in [Mode::Nftables, Mode::Iptables, Mode::Ipvs] {
        let before = state(mode);
        let intended = Intended::of(&before).expect("a state");
        let plans = plan(From::Intended(&intended), &intended, false).expect("a plan");
        assert_eq!(plans[&Family::V4].all, [], "{mode:?}");
        assert!(plans[&Family::V4].total > 10, "{mode:?}");
    }
}

#[test]
fn a_change_of_mode_is_planned_as_the_first_sync_of_that_mode() {
    for (from, to) in
        [(Mode::Iptables, Mode::Nftables), (Mode::Nftables, Mode::Ipvs), (Mode::Ipvs, Mode::Iptables)]
    {
        let before = state(from);
        let mut changed = Changed::new(before.clone());
        changed.mode(to).expect("a configuration");
        let configured = state(to).header;
        assert_eq!(
            changed.state.header.environment, configured.environment,
            "as if it had been configured so"
        );
        assert_eq!((changed.state.header.mode, &changed.state.header.ipvs), (to, &configured.ipvs));
        let answer =
            answer(&Intended::of(&before).expect("a state"), &changed, false, false, true).expect("a plan");
        let done = match to {
            Mode::Nftables => synced(backend_nft::Planner::new(Family::V4), &changed.state, &changed.state),
            Mode::Iptables => {
                synced(backend_iptables::Planner::new(Family::V4), &changed.state, &changed.state)
            }
            Mode::Ipvs => synced(
                backend_ipvs::IpvsPlanner::alone(backend_ipvs::Settings::default()),
                &changed.state,
                &changed.state,
            ),
        };
        assert_eq!(answer.texts["IPv4"], done[0], "{from:?} {to:?}");
        assert_eq!((answer.mode, answer.mode_before), (to.as_str(), Some(from.as_str())));
    }
}

#[test]
fn a_plan_at_80_and_at_160_columns() {
    let before = state(Mode::Nftables);
    let mut changed = Changed::new(before.clone());
    changed.apply(CHANGES[0], "default").expect("objects");
    changed.apply(CHANGES[1], "default").expect("objects");
    let mut answer =
        answer(&Intended::of(&before).expect("a state"), &changed, false, false, false).expect("a plan");
    // How long it took is this machine's affair.
    if let Some(estimate) = &mut answer.estimate {
        estimate.seconds = 0.0042;
    }
    let look = |width| Look { width: Some(width), wide: false, colour: false };
    golden("plan-80.txt", &text(&answer, look(80)));
    golden("plan-160.txt", &text(&answer, look(160)));
}

#[test]
fn an_estimate_names_where_it_comes_from() {
    for (mode, known) in [(Mode::Nftables, true), (Mode::Iptables, true), (Mode::Ipvs, false)] {
        let before = state(mode);
        let mut changed = Changed::new(before.clone());
        changed.apply(CHANGES[0], "default").expect("objects");
        let answer =
            answer(&Intended::of(&before).expect("a state"), &changed, false, false, false).expect("a plan");
        assert_eq!(answer.estimate.is_some(), known, "{mode:?}");
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let page = std::fs::read_to_string(root.join("docs/benchmarks.md")).expect("the page is there");
        if let Some(estimate) = answer.estimate {
            assert!(estimate.source.contains("docs/benchmarks.md, 10kx10"), "{}", estimate.source);
            assert!(
                page.contains("### 10kx10") && page.contains("430,163"),
                "the figures are those of the page"
            );
            assert!(page.contains("225,258") && page.contains("30.6 MB") && page.contains("227 MB"));
            assert!(page.contains("64.7 ms") && page.contains("4.42 s") && page.contains("401 ms"));
        }
    }
}
