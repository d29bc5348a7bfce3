use std::{process::Command, sync::Arc};

use nix::sched::{CloneFlags, unshare};
use proxy_core::{
    backend::{Change, Effect, Executor as _, Planned, Planner as _},
    model::Family,
    route::Route,
};

use super::*;
use crate::{
    Executor, Planner,
    tests::{environment, name, web},
};

fn run(line: &str) {
    assert!(Command::new("sh").args(["-c", line]).status().expect("sh is there").success(), "{line}");
}

fn standing(variant: Variant) -> Standing {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own");
    run(&format!("iptables-{variant} -w -t nat -N KUBE-SERVICES"));
    let mut standing = Standing::new(Family::V4, variant, "no-such-program".to_owned());
    standing.expected = Some(Sums::default());
    standing.before_survey();
    standing
}

#[test]
fn while_nobody_writes_no_program_is_run() {
    for variant in [Variant::Nft, Variant::Legacy] {
        let mut standing = standing(variant);
        for _ in 0..3 {
            assert!(standing.intact().expect("nothing has to be run"), "{variant}");
        }
        assert!(standing.is_at_rest());
        run(&format!("iptables-{variant} -w -N SOMEBODY"));
        if variant == Variant::Nft {
            // The chain there is, and the sums that are expected here, differ.
            assert!(!standing.intact().expect("counting takes no program"));
        } else {
            assert!(standing.intact().is_err(), "now the tables have to be read");
        }
    }
}

/// What both families write is counted together, and nothing has to be read because of it.
#[test]
fn our_own_writes_are_not_taken_for_somebody_elses() {
    for variant in [Variant::Nft, Variant::Legacy] {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own");
        let own = OwnCommits::default();
        let mut both = Family::BOTH.map(|family| {
            let executor = Executor::open_variant(family, variant).expect("iptables works").counting(&own);
            (Planner::new(family), executor, environment(family))
        });
        let gone = || Route { cluster: Box::default(), any_endpoint: false, ..web() };
        for (planner, executor, environment) in &mut both {
            let found = executor.survey().expect("the tables can be read");
            let plan = planner.plan_full(&[], environment, found, now());
            executor.apply(&plan).expect("taken");
            planner.settle(Effect::Applied);
        }
        let (planner, executor, environment) = &mut both[0];
        assert!(executor.intact().expect("the kernel answers"));
        let routes = [None, Some(web()), Some(gone()), Some(web()), None].map(|route| route.map(Arc::new));
        for step in routes.windows(2) {
            let change = Change { name: name("web"), before: step[0].clone(), after: step[1].clone() };
            let Planned::Plan(plan) = planner.plan(&[change], environment, now()) else { panic!("a plan") };
            executor.apply(&plan).expect("taken");
            planner.settle(Effect::Applied);
            assert!(executor.intact().expect("the kernel answers"));
            assert!(executor.is_at_rest(), "{variant}");
        }
        let (_, other, _) = &mut both[1];
        assert!(other.intact().expect("the kernel answers"));
        assert!(other.is_at_rest(), "{variant}");
    }
}

#[test]
fn a_difference_that_a_repair_does_not_remove_is_no_damage_unless_somebody_wrote_since() {
    let mut standing = standing(Variant::Nft);
    let difference = Difference::Content(7);
    assert!(!standing.is_no_damage(difference));
    standing.before_survey();
    standing.disturbed = true;
    assert!(!standing.is_no_damage(difference), "somebody may have done it again");
    standing.before_survey();
    assert!(!standing.is_no_damage(Difference::Content(8)), "another one");
    standing.before_survey();
    assert!(standing.is_no_damage(Difference::Content(8)));
    assert!(standing.is_no_damage(Difference::Content(8)), "from now on");
    assert!(!standing.is_no_damage(Difference::Content(0)), "now that is a difference");
}

#[test]
fn a_program_that_fails_is_no_answer_and_asked_again() {
    let mut standing = standing(Variant::Legacy);
    standing.save = "false".to_owned();
    standing.reading_owed = true;
    let mut failures = 0;
    for _ in 0..100 {
        failures += usize::from(standing.intact().is_err());
        if failures > 0 {
            break;
        }
    }
    assert_eq!(failures, 1);
    assert!(standing.reading_owed);
}
