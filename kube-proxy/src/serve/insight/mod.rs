//! Answers questions about this process on a Unix socket of root's: what the engine was told and what it did. Read only; the
//! schema and the protocol are in `docs/insight.md`.
//!
//! One line of JSON comes in, lines of JSON go out. Who asks waits for the engine, never the engine for who asks: it is
//! looked at between two syncs, a piece at a time ([`look`]). An extra: whatever fails here is told once and harms nothing.

mod answer;
pub(crate) mod look;
mod socket;

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use insight::text::Time;
use jiff::Timestamp;
use proxy_core::model::Family;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{engine::mailbox::Beside, settings::effective::Settings, telemetry::recent::Recent};

pub(crate) use socket::serve;

/// The protocol's number; a client of another one is told so.
pub(crate) const PROTOCOL: u32 = 1;

/// What a client asks, on a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Request {
    /// [`PROTOCOL`].
    pub(crate) protocol: u32,
    /// The state, or the part of it that the filter names.
    pub(crate) state: insight::state::Filter,
}

/// What questions are answered from.
#[derive(Debug, Clone)]
pub(crate) struct Sources {
    pub(crate) path: Option<PathBuf>,
    pub(crate) engines: Beside,
    pub(crate) families: Vec<Family>,
    pub(crate) settings: watch::Receiver<Arc<Settings>>,
    pub(crate) recent: Recent,
    pub(crate) node: String,
    /// What the backend makes of the configuration, in ipvs mode.
    pub(crate) ipvs: Option<insight::state::Ipvs>,
}

/// Two clocks read together, so that times of one can be told by the other.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    now: Instant,
    today: Time,
}

impl Clocks {
    #[expect(clippy::disallowed_methods, reason = "the engine's times are told as times of day")]
    fn read() -> Self {
        Self { now: Instant::now(), today: Time::from_micros(Timestamp::now().as_microsecond()) }
    }

    fn time(self, at: Instant) -> Time {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let past = micros(self.now.saturating_duration_since(at));
        let ahead = micros(at.saturating_duration_since(self.now));
        Time::from_micros(self.today.micros().saturating_sub(past).saturating_add(ahead))
    }
}

/// Why a question is not answered, for who asked.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
