//! The thread that owns one family's engine: takes in messages, syncs when something is due, looks for drift. Each family
//! has a thread of its own, so that neither waits for the other's kernel tables.

pub(crate) mod mailbox;

use std::{
    collections::HashSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use proxy_core::{
    backend::{Executor, Planner},
    instance::SyncReport,
    model::{Family, Protocol},
    reconciler::Reconciler,
};

use mailbox::{Closed, Inbox, Message};

/// How many messages are taken in before a sync gets its turn.
const MOST_MESSAGES_PER_ROUND: usize = 20_000;

/// What the engine tells the rest of the process: metrics, health, events, conntrack.
pub(crate) trait Observer<P, X> {
    /// Messages were taken in; something may be waiting now.
    fn queued(&mut self, engine: &Reconciler<P, X>);
    /// A sync ended, well or not.
    fn synced(&mut self, report: SyncReport, engine: &mut Reconciler<P, X>);
    /// Somebody else changed what was installed; it is rebuilt next.
    fn drifted(&mut self, family: Family);
    /// Which flows to these destinations should have been translated?
    fn asked(&mut self, untranslated: &HashSet<(Protocol, IpAddr, u16)>, engine: &Reconciler<P, X>);
    /// After every round: what is pending, which health check ports there are.
    fn round(&mut self, engine: &mut Reconciler<P, X>);
}

/// Runs until nobody can send messages any more.
#[expect(clippy::disallowed_methods, reason = "the engine takes its clock from here")]
pub(crate) fn run<P, X>(
    mut engine: Reconciler<P, X>,
    messages: &Inbox,
    observer: &mut impl Observer<P, X>,
    drift_interval: Duration,
) where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    let mut drift = DriftPace { usual: drift_interval, in_a_row: 0 };
    let mut next_drift_check = Instant::now() + drift_interval;
    loop {
        let now = Instant::now();
        let wake = engine.next_wakeup().map_or(next_drift_check, |at| at.min(next_drift_check));
        match messages.receive(wake.saturating_duration_since(now), MOST_MESSAGES_PER_ROUND) {
            Ok(received) => {
                for message in received {
                    match message {
                        Message::Input(input) => engine.handle(input, Instant::now()),
                        Message::Settings(settings, pace, interval) => {
                            engine.set_settings(settings, pace, Instant::now());
                            drift.usual = interval;
                            next_drift_check = next_drift_check.min(Instant::now() + interval);
                        }
                        Message::Untranslated(_, destinations) => observer.asked(&destinations, &engine),
                    }
                }
            }
            Err(Closed) => return,
        }
        if Instant::now() >= next_drift_check {
            let drifted = engine.check_drift(Instant::now());
            drifted.iter().for_each(|family| observer.drifted(*family));
            next_drift_check = Instant::now() + drift.next(!drifted.is_empty());
        }
        observer.queued(&engine);
        for report in engine.sync_due(&mut Instant::now) {
            observer.synced(report, &mut engine);
        }
        observer.round(&mut engine);
        // One a round: between two looks, what came meanwhile is taken in and written.
        if let Some(ask) = messages.ask() {
            ask.answer(&engine);
        }
    }
}

/// When to look for drift next. Where look after look finds some, another program puts its own rules into the place of
/// ours each time, as a second proxy on the node does: then it is looked ever more rarely, or the two would do nothing
/// else.
struct DriftPace {
    usual: Duration,
    in_a_row: u32,
}

impl DriftPace {
    /// So many looks that find drift are no fight yet.
    const PATIENCE: u32 = 5;
    const LONGEST: Duration = Duration::from_secs(30);

    fn next(&mut self, drifted: bool) -> Duration {
        self.in_a_row = if drifted { self.in_a_row + 1 } else { 0 };
        let doublings = self.in_a_row.saturating_sub(Self::PATIENCE).min(16);
        (self.usual * (1 << doublings)).min(Self::LONGEST.max(self.usual))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_fights_over_the_rules_is_answered_ever_more_rarely() {
        let second = Duration::from_secs(1);
        let mut pace = DriftPace { usual: second, in_a_row: 0 };
        let waits: Vec<u64> = (0..12).map(|_| pace.next(true).as_secs()).collect();
        assert_eq!(waits, [1, 1, 1, 1, 1, 2, 4, 8, 16, 30, 30, 30]);
        assert_eq!(pace.next(false), second);
        assert_eq!(pace.next(true), second);
        let mut slow = DriftPace { usual: 60 * second, in_a_row: 20 };
        assert_eq!(slow.next(true), 60 * second, "never more often than usual");
    }
}
