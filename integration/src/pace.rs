//! How often a client may ask an API server that fails: no more often than Kubernetes' own clients.
//!
//! Own words for what client-go documents of its reflector: after a failure it waits 0.8 s, then twice as long each time,
//! up to 30 s, and a random part more; a watch that ends within a second and told of nothing is a failure, and so is
//! every refusal; a watch that ends otherwise is started again at once. Where an answer says that another request may
//! help (no streamed lists, a version that is not to be had), that one follows at once.

use std::time::Duration;

use crate::apiserver::Asked;

const FIRST: Duration = Duration::from_millis(800);
const LONGEST: Duration = Duration::from_secs(30);
/// A watch that ends earlier and told of nothing has failed.
const LIVED: Duration = Duration::from_secs(1);
/// A watch that lived so long ends the growth of the pauses.
const WELL: Duration = Duration::from_secs(30);
/// An attempt is at most a streamed list, a list, a list without a version, and the watch that follows.
const PER_ATTEMPT: usize = 4;
/// What clocks and schedulers may take away from a pause.
const SLACK: Duration = Duration::from_millis(20);

/// The most attempts within `time` at a server that always fails.
pub fn most_attempts(time: Duration) -> usize {
    let mut next = Duration::ZERO;
    let mut pause = FIRST;
    let mut attempts = 0;
    while next <= time {
        attempts += 1;
        next += pause;
        pause = (pause * 2).min(LONGEST);
    }
    attempts
}

/// The requests for one resource (its path), in order; what is too often is an error that says so.
pub fn check(journal: &[Asked], path: &str) -> Result<(), String> {
    let mut failures = 0_u32;
    // Requests without a pause before them.
    let mut in_a_row = 1;
    let asked: Vec<&Asked> =
        journal.iter().filter(|asked| asked.path == path && asked.method == "GET").collect();
    for pair in asked.windows(2) {
        let (before, next) = (pair[0], pair[1]);
        let ended = before.ended.unwrap_or(next.at);
        let lived = ended.saturating_sub(before.at);
        let gap = next.at.saturating_sub(ended);
        let refused = before.code.is_some_and(|code| code != 200);
        let is_short_watch = before.is_watch() && before.changes == 0 && lived < LIVED;
        if before.is_watch() && !refused && (before.changes > 0 || lived >= WELL) {
            failures = 0;
        }
        let pause = (FIRST * (1 << failures.min(10))).min(LONGEST);
        if gap + SLACK >= pause {
            in_a_row = 1;
            failures += u32::from(refused || is_short_watch);
            continue;
        }
        // Without that pause: a list's next page or its watch, a watch that lived, or another way of asking.
        let follows = !refused && !is_short_watch;
        in_a_row = if before.is_watch() && lived >= LIVED { 1 } else { in_a_row + 1 };
        if !follows && in_a_row > PER_ATTEMPT {
            return Err(format!(
                "{path}: {in_a_row} requests in a row, the last {gap:?} after a failure, where {pause:?} are due: {} after {} ({:?})",
                next.query, before.query, before.code
            ));
        }
        if in_a_row > 2 * PER_ATTEMPT {
            return Err(format!("{path}: {in_a_row} requests in a row up to {}", next.query));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::Peer;

    fn asked(at: f64, query: &str, code: u16, ended: f64, changes: usize) -> Asked {
        Asked {
            at: Duration::from_secs_f64(at),
            method: "GET".to_owned(),
            path: "/p".to_owned(),
            query: query.to_owned(),
            code: Some(code),
            ended: Some(Duration::from_secs_f64(ended)),
            changes,
            is_http2: false,
            token: None,
            peer: Peer::default(),
        }
    }

    #[test]
    fn a_minute_of_failures_allows_seven_attempts() {
        let minutes = |minutes: u64| most_attempts(Duration::from_secs(60 * minutes));
        assert_eq!((most_attempts(Duration::ZERO), minutes(1), minutes(10)), (1, 7, 25));
    }

    #[test]
    fn a_client_that_does_not_wait_is_found_out_and_one_that_does_is_not() {
        let busy: Vec<Asked> =
            (0..20).map(|i| asked(f64::from(i) * 0.15, "", 500, f64::from(i) * 0.15, 0)).collect();
        check(&busy, "/p").expect_err("6.5 a second");
        check(&busy, "/other").expect("nothing was asked of it");
        let steady: Vec<Asked> = (0..20).map(|i| asked(f64::from(i), "", 500, f64::from(i), 0)).collect();
        check(&steady, "/p").expect_err("pauses that do not grow");
        let mut at = 0.0;
        let patient: Vec<Asked> = (0..12)
            .map(|i| {
                let one = asked(at, "", 500, at, 0);
                at += f64::min(0.8 * f64::from(1 << i), 30.0);
                one
            })
            .collect();
        check(&patient, "/p").expect("as client-go");
        let ends_at_once: Vec<Asked> =
            (0..20).map(|i| asked(f64::from(i) * 0.1, "watch=true", 200, f64::from(i) * 0.1, 0)).collect();
        check(&ends_at_once, "/p").expect_err("a watch that ends at once is a failure");
        let lives: Vec<Asked> = (0..20)
            .map(|i| asked(f64::from(i) * 2.0, "watch=true", 200, f64::from(i) * 2.0 + 2.0, 0))
            .collect();
        check(&lives, "/p").expect("a watch that lived is started again at once");
    }
}
