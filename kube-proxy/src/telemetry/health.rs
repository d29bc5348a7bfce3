//! Is the data plane keeping up? The verdict behind `/healthz`, `/livez` and every health check node port.
//!
//! kube-proxy calls itself unhealthy when an update has waited for two sync periods. Here a write that is under way is
//! given more time: a large first sync that goes on and on is not stuck. Where the last write failed it is not, so
//! health turns bad as it should. And until the first sync is done this node is nothing for load balancers, though the
//! process is well.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use proxy_core::model::Family;
use serde::Serialize;

/// What one family's sync is known to have done.
#[derive(Debug, Clone, Copy, Default)]
struct Progress {
    /// The last success, or the start; `None`: this family is not served.
    updated: Option<Instant>,
    /// There was a success since the start.
    synced: bool,
    /// Since when the oldest update that is not in the kernel has waited.
    waiting: Option<Instant>,
    /// Since when an update is being written; `None` again once it ended, well or not.
    writing: Option<Instant>,
    /// The last time something was written, it failed.
    failed: bool,
}

/// How many times the usual limit one write may take before it counts as stuck: a first load of a very large cluster
/// takes minutes in the modes whose kernel interface is slow.
const PATIENCE_WHILE_WRITING: u32 = 15;

impl Progress {
    fn healthy(&self, now: Instant, limit: Duration) -> bool {
        let Some(waiting) = self.waiting else { return true };
        let passed = |since: Instant| now.saturating_duration_since(since);
        let writing = self.writing.filter(|_| !self.failed);
        passed(waiting) < limit || writing.is_some_and(|since| passed(since) < limit * PATIENCE_WHILE_WRITING)
    }
}

/// What the process knows about its health; shared by the thread that syncs and the servers that answer.
#[derive(Debug, Clone)]
pub(crate) struct HealthState {
    shared: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    limit: Duration,
    families: [Progress; 2],
    eligible: bool,
    /// Since when nothing was heard from the API server, where that is too long.
    api_silent: Option<Instant>,
}

impl HealthState {
    /// `limit`: how long an update may wait, which is two sync periods.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            shared: Arc::new(Mutex::new(State {
                limit,
                families: [Progress::default(); 2],
                eligible: false,
                api_silent: None,
            })),
        }
    }

    /// Follows a change of the sync period.
    pub(crate) fn set_limit(&self, limit: Duration) {
        self.state().limit = limit;
    }

    /// The family is served from now on.
    pub(crate) fn started(&self, family: Family, now: Instant) {
        self.state().families[index(family)].updated.get_or_insert(now);
    }

    /// Something came that is not in the kernel yet.
    pub(crate) fn queued(&self, family: Family, now: Instant) {
        self.state().families[index(family)].waiting.get_or_insert(now);
    }

    /// An update begins to be written.
    pub(crate) fn writing(&self, family: Family, now: Instant) {
        self.state().families[index(family)].writing = Some(now);
    }

    /// What began to be written is written, or was refused.
    pub(crate) fn written(&self, family: Family, well: bool) {
        let progress = &mut self.state().families[index(family)];
        progress.writing = None;
        progress.failed = !well;
    }

    /// All that waited is in the kernel.
    pub(crate) fn updated(&self, family: Family, now: Instant) {
        let progress = &mut self.state().families[index(family)];
        *progress = Progress { updated: Some(now), synced: true, ..Progress::default() };
    }

    /// Whether load balancers may send new connections to this node; not as long as the node is unknown.
    pub(crate) fn set_eligible(&self, eligible: bool) {
        self.state().eligible = eligible;
    }

    /// Since when nothing is heard from the API server; `None`: it is. It is told and does not count: a node goes on with
    /// what it has, and all nodes of a cluster would turn unhealthy at once.
    pub(crate) fn set_api_silent(&self, since: Option<Instant>) {
        self.state().api_silent = since;
    }

    /// The verdict at this moment.
    pub(crate) fn health(&self, now: Instant) -> Health {
        let state = self.state();
        let of = |family: Family| {
            let progress = &state.families[index(family)];
            let updated = progress.updated?;
            let healthy = progress.healthy(now, state.limit);
            Some(FamilyHealth { updated, healthy, synced: progress.synced })
        };
        let (v4, v6) = (of(Family::V4), of(Family::V6));
        let all = |holds: fn(&FamilyHealth) -> bool| [v4, v6].iter().flatten().all(holds);
        Health {
            healthy: all(|family| family.healthy),
            synced: all(|family| family.synced),
            eligible: state.eligible,
            api_silent: state.api_silent,
            v4,
            v6,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single assignment, so what a panicking thread left behind is whole.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Health {
    /// Every family that is served keeps up.
    pub(crate) healthy: bool,
    /// The rules of every family that is served were written, at least once.
    pub(crate) synced: bool,
    pub(crate) eligible: bool,
    api_silent: Option<Instant>,
    v4: Option<FamilyHealth>,
    v6: Option<FamilyHealth>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FamilyHealth {
    updated: Instant,
    healthy: bool,
    synced: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    api_server: Option<String>,
}

#[derive(Serialize)]
struct Status {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyReport>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

impl Health {
    /// The JSON that kube-proxy answers with. `good`: the code will be 200, and then "last updated" means now.
    /// `for_balancers`: to those who ask about new traffic; to them, a family without rules is not healthy.
    pub(crate) fn to_json(self, good: bool, for_balancers: bool, now: Instant, wall: Timestamp) -> String {
        let text = |at: Instant| {
            let ago = SignedDuration::try_from(now.saturating_duration_since(at)).unwrap_or_default();
            (wall - ago).to_string()
        };
        let of = |family: Option<FamilyHealth>| {
            family.map(|family| FamilyReport {
                last_updated: text(family.updated),
                healthy: family.healthy && (family.synced || !for_balancers),
            })
        };
        let last =
            if good { Some(now) } else { [self.v4, self.v6].iter().flatten().map(|one| one.updated).max() };
        let report = Report {
            // Go's zero time, where nothing was updated ever.
            last_updated: last.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), text),
            current_time: wall.to_string(),
            node_eligible: for_balancers.then_some(self.eligible),
            healthy: self.healthy && (self.synced || !for_balancers),
            status: (self.v4.is_some() || self.v6.is_some())
                .then(|| Status { v4: of(self.v4), v6: of(self.v6) }),
            api_server: self.api_silent.map(|since| {
                let seconds = now.saturating_duration_since(since).as_secs();
                format!("nothing was heard from the API server for {seconds} s")
            }),
        };
        serde_json::to_string(&report).expect("strings and booleans always are JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[expect(clippy::disallowed_methods, reason = "virtual time has to begin somewhere")]
    fn begin() -> (HealthState, Instant) {
        let now = Instant::now();
        let state = HealthState::new(LIMIT);
        for family in Family::BOTH {
            state.started(family, now);
        }
        state.set_eligible(true);
        (state, now)
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_process_without_families_is_healthy() {
        let (_, now) = begin();
        let health = HealthState::new(LIMIT).health(now);
        assert!(health.healthy && !health.eligible);
        let wall: Timestamp = "2026-11-21T01:26:13.2057Z".parse().expect("a timestamp");
        assert_eq!(
            health.to_json(true, false, now, wall),
            r#"{"lastUpdated":"2026-11-21T01:26:13.2057Z","currentTime":"2026-11-21T01:26:13.2057Z","healthy":true}"#
        );
    }

    #[test]
    fn before_its_first_sync_a_node_is_nothing_for_load_balancers() {
        let (state, now) = begin();
        state.updated(Family::V4, now);
        let health = state.health(now);
        assert!(health.healthy && !health.synced);
        let report = |for_balancers| -> serde_json::Value {
            serde_json::from_str(&health.to_json(false, for_balancers, now, Timestamp::UNIX_EPOCH))
                .expect("JSON")
        };
        let healthy = |report: &serde_json::Value| {
            [&report["healthy"], &report["status"]["IPv4"]["healthy"], &report["status"]["IPv6"]["healthy"]]
                .map(|value| value == true)
        };
        assert_eq!(healthy(&report(true)), [false, true, false]);
        assert_eq!(healthy(&report(false)), [true, true, true]);
        state.updated(Family::V6, now);
        assert!(state.health(now).synced);
    }

    #[test]
    fn an_update_that_waits_too_long_is_unhealthy() {
        let (state, now) = begin();
        state.queued(Family::V4, now + seconds(1));
        state.queued(Family::V4, now + seconds(30));
        assert!(state.health(now + seconds(60)).healthy);
        assert!(!state.health(now + seconds(61)).healthy, "counted from the oldest");
        state.updated(Family::V4, now + seconds(70));
        assert!(state.health(now + seconds(500)).healthy, "nothing waits");
    }

    #[test]
    fn a_long_write_keeps_a_sync_healthy_but_not_for_ever() {
        let (state, now) = begin();
        state.queued(Family::V6, now);
        state.writing(Family::V6, now + seconds(1));
        assert!(state.health(now + seconds(900)).healthy);
        assert!(!state.health(now + seconds(901)).healthy);
    }

    #[test]
    fn writes_that_fail_again_and_again_are_unhealthy_also_while_one_is_under_way() {
        let (state, now) = begin();
        state.queued(Family::V4, now);
        state.writing(Family::V4, now + seconds(1));
        state.written(Family::V4, false);
        state.writing(Family::V4, now + seconds(59));
        assert!(state.health(now + seconds(59)).healthy, "the limit is not reached");
        assert!(!state.health(now + seconds(60)).healthy);
        state.updated(Family::V4, now + seconds(61));
        assert!(state.health(now + seconds(61)).healthy);
    }

    #[test]
    fn one_stuck_family_is_enough() {
        let (state, now) = begin();
        state.queued(Family::V4, now);
        state.queued(Family::V6, now);
        state.updated(Family::V4, now + seconds(1));
        let health = state.health(now + seconds(90));
        assert!(!health.healthy);
        assert_eq!(
            (health.v4.map(|v4| v4.healthy), health.v6.map(|v6| v6.healthy)),
            (Some(true), Some(false))
        );
    }

    #[test]
    fn the_limit_follows_the_configuration() {
        let (state, now) = begin();
        state.queued(Family::V4, now);
        assert!(state.health(now + seconds(30)).healthy);
        state.set_limit(seconds(20));
        assert!(!state.health(now + seconds(30)).healthy);
    }

    #[test]
    fn silence_of_the_api_server_is_told_and_does_not_count() {
        let (state, now) = begin();
        let report = |at: Instant| state.health(at).to_json(true, true, at, Timestamp::UNIX_EPOCH);
        assert!(!report(now).contains("apiServer"));
        state.set_api_silent(Some(now));
        let at = now + seconds(93);
        assert!(state.health(at).healthy && state.health(at).eligible);
        assert!(report(at).contains(r#""apiServer":"nothing was heard from the API server for 93 s""#));
        state.set_api_silent(None);
        assert!(!report(at).contains("apiServer"));
    }

    #[test]
    fn the_report_is_byte_for_byte_that_of_kube_proxy() {
        let (state, now) = begin();
        state.updated(Family::V4, now + seconds(2));
        state.updated(Family::V6, now);
        state.queued(Family::V6, now);
        let at = now + seconds(63);
        let wall: Timestamp = "2026-11-21T01:26:13.205707562Z".parse().expect("a timestamp");
        let health = state.health(at);
        assert_eq!(
            health.to_json(false, true, at, wall),
            "{\"lastUpdated\":\"2026-11-21T01:25:12.205707562Z\",\"currentTime\":\"2026-11-21T01:26:13.205707562Z\",\
             \"nodeEligible\":true,\"healthy\":false,\"status\":{\
             \"IPv4\":{\"lastUpdated\":\"2026-11-21T01:25:12.205707562Z\",\"healthy\":true},\
             \"IPv6\":{\"lastUpdated\":\"2026-11-21T01:25:10.205707562Z\",\"healthy\":false}}}"
        );
        let unchanged: serde_json::Value =
            serde_json::from_str(&health.to_json(true, false, at, wall)).expect("JSON");
        assert_eq!(unchanged["lastUpdated"], unchanged["currentTime"]);
        assert_eq!(unchanged.get("nodeEligible"), None);
    }
}
