//! What packets meet between the commits of one restore: never more, and never less, than before it or after it.
//!
//! A datagram that passes untranslated between two commits is remembered so by connection tracking.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use proptest::{collection::vec, prelude::*};
use proxy_core::{
    backend::{Effect, Plan, Planned, Planner as _},
    model::{Family, Protocol},
};

use super::{
    Bench, addr, environment,
    history::{Changes, SERVICES, changes},
};
use crate::{
    Host, Op, Planner,
    model::{Fate, Model, Packet},
    restore,
};

const NODE: &str = "192.168.10.1";
const SOURCES: [(&str, Option<&str>); 4] = [
    ("10.244.0.77", Some("veth1")),
    ("198.51.100.7", Some("eth0")),
    ("192.0.2.1", Some("eth0")),
    (NODE, None),
];

fn local(at: IpAddr) -> bool {
    at.is_loopback() || at == addr(NODE)
}

/// Whatever may become of packets from everywhere to every frontend that a Service of these tests may have.
fn fates(model: &Model) -> Vec<BTreeSet<Fate>> {
    let frontends = (0..SERVICES.len()).flat_map(|service| {
        let at = |net: &str, port: usize| format!("{net}:{port}").parse().expect("a socket address");
        [
            at(&format!("10.96.0.{}", service + 10), 80),
            at(&format!("203.0.113.{}", service + 10), 80),
            at(NODE, 30_000 + service),
        ]
    });
    let all = frontends.flat_map(|to: SocketAddr| SOURCES.map(|from| (from, to)));
    all.map(|((source, interface), to)| {
        model.fates(&Packet { source: addr(source), interface, protocol: Protocol::Tcp, to }, &local)
    })
    .collect()
}

/// What may be met between the commits. A frontend that comes or goes may refuse for a moment what passes without it, and
/// refuse in another way.
fn allowed(before: &BTreeSet<Fate>, after: &BTreeSet<Fate>) -> BTreeSet<Fate> {
    let mut allowed = before | after;
    if !allowed.iter().all(is_translated) {
        allowed.extend([Fate::Rejected, Fate::Dropped]);
    }
    allowed
}

fn is_translated(fate: &Fate) -> bool {
    matches!(fate, Fate::Translated { .. })
}

/// Applies a plan commit by commit, and says where a packet met something else than before or after all of it.
fn surprise(model: &mut Model, plan: &Plan<Op>, longest: usize) -> Option<String> {
    let before = fates(model);
    let mut between = Vec::new();
    for step in &plan.steps {
        let text = restore::text_in_blocks(step, longest);
        for block in text.split_inclusive("COMMIT\n") {
            model.restore(block).expect("every block is taken");
            between.push((block.to_owned(), fates(model)));
        }
    }
    let after = fates(model);
    between.into_iter().find_map(|(block, now)| {
        let packets = now.iter().zip(before.iter().zip(&after));
        let wrong = packets.enumerate().find(|(_, (now, (before, after)))| {
            let allowed = allowed(before, after);
            if longest == usize::MAX {
                return !now.is_subset(&allowed);
            }
            // Where table `nat` is written in several commits, chains of Services come before what leads there: a new
            // endpoint or policy may be met by the old way. Nothing passes by, and what works goes on working.
            (now.contains(&Fate::Passed) && !allowed.contains(&Fate::Passed))
                || (allowed.iter().all(is_translated) && !now.iter().all(is_translated))
        });
        wrong
            .map(|(at, (now, expected))| format!("packet {at}: {now:?}, not of {expected:?}, after\n{block}"))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_packet_meets_a_state_that_nobody_wanted(
        history in vec(changes(), 1..5),
        longest in prop_oneof![Just(2_usize), Just(usize::MAX)],
    ) {
        let mut bench = Bench::with(environment(Family::V4), []);
        for changes in history {
            let Planned::Plan(plan) = bench.plan(&changes) else { panic!("nothing has failed") };
            let surprise = surprise(&mut bench.model, &plan, longest);
            prop_assert!(surprise.is_none(), "{}", surprise.unwrap_or_default());
            bench.planner.settle(Effect::Applied);
            bench.remember(&changes);
        }
    }

    /// What changed while no proxy ran is done by a full plan.
    #[test]
    fn nor_while_a_restart_makes_up_for_what_it_missed(
        first in changes(),
        missed in changes(),
        longest in prop_oneof![Just(2_usize), Just(usize::MAX)],
    ) {
        let mut bench = Bench::with(environment(Family::V4), []);
        bench.change(&first);
        let missed: Changes = missed;
        bench.remember(&missed);
        let mut restarted = Planner::new(Family::V4);
        let found = bench.model.found(Host::default());
        let plan = restarted.plan_full(&bench.routes, &bench.environment, found, super::now());
        let surprise = surprise(&mut bench.model, &plan, longest);
        prop_assert!(surprise.is_none(), "{}", surprise.unwrap_or_default());
    }
}

/// The order in which tables are committed.
fn order(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix('*')).collect()
}

#[test]
fn what_refuses_goes_after_the_translation_comes_and_comes_before_it_goes() {
    use super::{Route, name, web};
    let none = || Route { cluster: Box::default(), any_endpoint: false, ..web() };
    let other = |route: Route| Route {
        frontends: [super::frontend(super::FrontendKind::ClusterIp, Some("10.96.0.20"), 80)].into(),
        ..route
    };
    let mut bench = Bench::with(environment(Family::V4), [("web", none()), ("other", other(web()))]);
    let gains = bench.change(&[(name("web"), Some(web()))]);
    assert_eq!(order(&gains), ["nat", "filter"], "{gains}");
    let loses = bench.change(&[(name("web"), Some(none()))]);
    assert_eq!(order(&loses), ["filter", "nat"], "{loses}");
    let both = bench.change(&[(name("web"), Some(web())), (name("other"), Some(other(none())))]);
    assert_eq!(order(&both), ["filter", "nat", "filter"], "{both}");
}
