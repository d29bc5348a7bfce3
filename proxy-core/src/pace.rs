//! How fast to act, and how long to wait after what failed.

use std::time::Duration;

/// How fast to act.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The least time between the end of one sync and the start of the next.
    pub min_interval: Duration,
    /// The wait after the first failure; doubled by each further one.
    pub first_retry: Duration,
    /// The longest wait after a failure.
    pub max_retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            min_interval: Duration::from_millis(2),
            first_retry: Duration::from_millis(250),
            max_retry: Duration::from_secs(30),
        }
    }
}
