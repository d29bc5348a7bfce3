//! The one thread that owns the engine: takes in messages, syncs when something is due, looks for drift.

use std::{
    iter,
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use proxy_core::{
    backend::{Executor, Planner},
    environment::EnvironmentSettings,
    instance::SyncReport,
    model::{Family, Input},
    reconciler::{Pace, Reconciler},
};

/// What the rest of the process tells the engine.
#[derive(Debug)]
pub(crate) enum Message {
    Input(Input),
    /// The configuration changed in a way that can be applied live. The last one: how often to look for drift.
    Settings(EnvironmentSettings, Pace, Duration),
}

impl From<Input> for Message {
    fn from(input: Input) -> Self {
        Self::Input(input)
    }
}

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
    /// After every round: what is pending, which health check ports there are.
    fn round(&mut self, engine: &mut Reconciler<P, X>);
}

/// Runs until nobody can send messages any more.
#[expect(clippy::disallowed_methods, reason = "the engine takes its clock from here")]
pub(crate) fn run<P, X>(
    mut engine: Reconciler<P, X>,
    messages: &Receiver<Message>,
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
        match messages.recv_timeout(wake.saturating_duration_since(now)) {
            Ok(message) => {
                let more = messages.try_iter().take(MOST_MESSAGES_PER_ROUND);
                for message in iter::once(message).chain(more) {
                    if let Some(interval) = take(&mut engine, message) {
                        drift.usual = interval;
                        next_drift_check = next_drift_check.min(Instant::now() + interval);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
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
    }
}

/// Answers how often to look for drift from now on, where that was told.
#[expect(clippy::disallowed_methods, reason = "the engine takes its clock from here")]
fn take<P, X>(engine: &mut Reconciler<P, X>, message: Message) -> Option<Duration>
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    match message {
        Message::Input(input) => {
            engine.handle(input, Instant::now());
            None
        }
        Message::Settings(settings, pace, drift_interval) => {
            engine.set_settings(settings, pace, Instant::now());
            Some(drift_interval)
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
