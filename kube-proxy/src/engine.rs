//! The one thread that owns the engine: takes in messages, syncs when something is due, looks for drift.

use std::{
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
    /// The configuration changed in a way that can be applied live.
    Settings(EnvironmentSettings, Pace),
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
    let mut next_drift_check = Instant::now() + drift_interval;
    loop {
        let now = Instant::now();
        let wake = engine.next_wakeup().map_or(next_drift_check, |at| at.min(next_drift_check));
        match messages.recv_timeout(wake.saturating_duration_since(now)) {
            Ok(message) => {
                take(&mut engine, message);
                for message in messages.try_iter().take(MOST_MESSAGES_PER_ROUND) {
                    take(&mut engine, message);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if Instant::now() >= next_drift_check {
            for family in engine.check_drift(Instant::now()) {
                observer.drifted(family);
            }
            next_drift_check = Instant::now() + drift_interval;
        }
        observer.queued(&engine);
        for report in engine.sync_due(&mut Instant::now) {
            observer.synced(report, &mut engine);
        }
        observer.round(&mut engine);
    }
}

#[expect(clippy::disallowed_methods, reason = "the engine takes its clock from here")]
fn take<P, X>(engine: &mut Reconciler<P, X>, message: Message)
where
    P: Planner,
    X: Executor<Op = P::Op, Found = P::Found>,
{
    match message {
        Message::Input(input) => engine.handle(input, Instant::now()),
        Message::Settings(settings, pace) => engine.set_settings(settings, pace, Instant::now()),
    }
}
