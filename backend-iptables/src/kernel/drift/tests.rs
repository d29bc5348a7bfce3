use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use proxy_core::model::Family;

use super::*;

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
