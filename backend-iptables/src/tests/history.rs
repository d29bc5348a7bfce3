//! Whatever happened before, the tables hold what a fresh start writes.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::subsequence};
use proxy_core::{
    backend::{Effect, Planned, Planner as _},
    model::{Family, ServicePortName, TrafficPolicy},
    route::{AllowedSources, FrontendKind, Policy, Route, Target},
};

use super::{Bench, addr, environment, frontend, name, target};
use crate::{Variant, model::Model, restore};

pub(super) const SERVICES: [&str; 4] = ["cart", "mail", "pay", "web"];

fn endpoints() -> impl Strategy<Value = Vec<Target>> {
    let all: Vec<Target> =
        (1..=6u8).map(|n| target(&format!("10.244.{}.{}:8080", n % 2, n * 7), n % 2 == 0)).collect();
    subsequence(all, 0..=6)
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

pub(super) fn route(service: usize) -> impl Strategy<Value = Route> {
    let affinity = prop_oneof![Just(None), Just(Some(10_800))];
    (endpoints(), policy(), policy(), any::<[bool; 4]>(), affinity).prop_map(
        move |(
            endpoints,
            internal_policy,
            external_policy,
            [node_port, vip, restricted, health],
            affinity,
        )| {
            let at = |net: &str| format!("{net}.{}", service + 10);
            let mut frontends = vec![frontend(FrontendKind::ClusterIp, Some(&at("10.96.0")), 80)];
            if vip {
                frontends.push(frontend(FrontendKind::LoadBalancerIp, Some(&at("203.0.113")), 80));
            }
            if node_port {
                frontends.push(frontend(FrontendKind::NodePort, None, 30_000 + service as u16));
            }
            let external = node_port || vip;
            let external_policy = if external { external_policy } else { TrafficPolicy::Cluster };
            let uses_cluster = internal_policy == TrafficPolicy::Cluster || external;
            let uses_local =
                internal_policy == TrafficPolicy::Local || external_policy == TrafficPolicy::Local;
            let local: Vec<Target> = endpoints.iter().copied().filter(|target| target.local).collect();
            let sources = || AllowedSources {
                ranges: ["198.51.100.0/24".parse().expect("a network")].into(),
                own_vips: [addr(&at("203.0.113"))].into(),
            };
            let policy = Policy {
                internal: internal_policy,
                affinity,
                health_check_node_port: health.then_some(32_000 + service as u16),
                sources: restricted.then(|| sources().into()),
                options: Box::default(),
            };
            Route {
                policy: policy.into(),
                frontends: frontends.into(),
                external_policy,
                any_endpoint: !endpoints.is_empty(),
                cluster: if uses_cluster { endpoints.into() } else { Box::default() },
                local: if uses_local { local.into() } else { Box::default() },
                ..super::web()
            }
        },
    )
}

pub(super) type Changes = Vec<(ServicePortName, Option<Route>)>;

pub(super) fn changes() -> impl Strategy<Value = Changes> {
    let one = |service: usize| {
        proptest::option::weighted(0.8, route(service))
            .prop_map(move |route| (name(SERVICES[service]), route))
    };
    (vec(0..SERVICES.len(), 1..4))
        .prop_flat_map(move |services| services.into_iter().map(one).collect::<Vec<_>>())
        .prop_map(|changes| changes.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect())
}

/// What the kernel does with a plan.
#[derive(Debug, Clone, Copy)]
enum Luck {
    Takes,
    /// Takes table `filter` and refuses `nat`, as a restore can end.
    TakesHalf,
    /// Takes all but the last commit.
    TakesMost,
    TakesNothing,
}

fn luck() -> impl Strategy<Value = Luck> {
    prop_oneof![4 => Just(Luck::Takes), 1 => Just(Luck::TakesHalf), 1 => Just(Luck::TakesMost), 1 => Just(Luck::TakesNothing)]
}

#[test]
fn a_long_change_that_fails_may_be_half_done_and_is_started_over() {
    let mut bench = Bench::with(environment(Family::V4), [("web", super::web())]);
    let many = (0..1200u32).map(|n| target(&format!("10.244.{}.{}:80", n / 250, n % 250 + 1), false));
    let many = [(name("web"), Some(Route { cluster: many.collect(), ..super::web() }))];
    assert!(matches!(bench.plan(&many), Planned::Plan(_)));
    bench.planner.settle(Effect::Nothing);
    assert!(matches!(bench.plan(&[]), Planned::StartOver(_)));
    bench.full();
    assert!(matches!(bench.plan(&many), Planned::Plan(_)), "a full write clears all doubt");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_ends_where_a_fresh_start_begins(history in vec((changes(), luck()), 1..8)) {
        let mut bench = Bench::with(environment(Family::V4), []);
        for (changes, luck) in history {
            let plan = match bench.plan(&changes) {
                Planned::Plan(plan) => plan,
                Planned::StartOver(_) => {
                    bench.full();
                    continue;
                }
            };
            match luck {
                Luck::Takes => {
                    bench.model.apply(&plan).expect("taken");
                    bench.planner.settle(Effect::Applied);
                    bench.remember(&changes);
                }
                Luck::TakesHalf => {
                    let text: String = plan.steps.iter().map(|step| restore::text(step, Variant::Legacy)).collect();
                    if let Some((filter, _)) = text.split_once("*nat\n") {
                        bench.model.restore(filter).expect("taken");
                    }
                    bench.planner.settle(Effect::Nothing);
                }
                Luck::TakesMost => {
                    let text: String = plan.steps.iter().map(|step| restore::text(step, Variant::Legacy)).collect();
                    let commits: Vec<&str> = text.split_inclusive("COMMIT\n").collect();
                    if let [most @ .., _] = &commits[..] {
                        bench.model.restore(&most.concat()).expect("taken");
                    }
                    bench.planner.settle(Effect::Nothing);
                }
                Luck::TakesNothing => bench.planner.settle(Effect::Nothing),
            }
        }
        // What is owed to a failure is done with the next plan.
        let last = [(name("web"), Some(super::web()))];
        match bench.plan(&last) {
            Planned::Plan(plan) => {
                bench.model.apply(&plan).expect("taken");
                bench.planner.settle(Effect::Applied);
                bench.remember(&last);
            }
            Planned::StartOver(_) => {
                bench.remember(&last);
                bench.full();
            }
        }
        let mut fresh = Bench::new(environment(Family::V4));
        fresh.routes = bench.routes.clone();
        fresh.full();
        prop_assert_eq!(bench.model.save(), fresh.model.save());
        let rest = bench.full();
        let written = rest.steps.iter().flat_map(|step| &step.ops).filter(|owned| owned.op.table().is_some());
        prop_assert_eq!(written.count(), 0, "a restart finds nothing to write");
    }

    #[test]
    fn undoing_a_change_restores_the_tables(first in changes(), second in changes()) {
        let mut bench = Bench::with(environment(Family::V4), []);
        bench.change(&first);
        let before = bench.model.clone();
        let undo: Changes = second
            .iter()
            .map(|(name, _)| {
                let old = bench.routes.iter().find(|(other, _)| other == name);
                (name.clone(), old.map(|(_, route)| (**route).clone()))
            })
            .collect();
        bench.change(&second);
        bench.change(&undo);
        prop_assert_eq!(bench.model.save(), before.save());
    }

    #[test]
    fn blocks_of_the_nft_variant_end_in_the_same_tables(history in vec(changes(), 1..4)) {
        let mut whole = Bench::with(environment(Family::V4), []);
        let mut split = Model::new(Family::V4, Variant::Nft);
        let plan = Bench::new(environment(Family::V4)).full();
        split.apply(&plan).expect("taken");
        for changes in history {
            let Planned::Plan(plan) = whole.plan(&changes) else { panic!("nothing has failed") };
            whole.model.apply(&plan).expect("taken");
            whole.planner.settle(Effect::Applied);
            whole.remember(&changes);
            for step in &plan.steps {
                split.restore(&restore::text_in_blocks(step, 2)).expect("every block finds what it leads to");
            }
        }
        prop_assert_eq!(split.save(), whole.model.save());
    }
}
