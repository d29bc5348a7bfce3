//! What all connections of a server share.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::Request;
use tokio::sync::watch;

use super::faults::Control;
use super::journal::{Entry, Journal};
use super::store::Store;

/// What `/version` answers.
pub(crate) const KUBERNETES_VERSION: &str = "v1.36.0";

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Mutex<Store>,
    pub(crate) control: watch::Sender<Control>,
    pub(crate) journal: Journal,
    pub(crate) bookmark_interval: Duration,
}

impl Shared {
    pub(crate) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    pub(crate) fn note_request(&self, request: &Request) -> Entry {
        self.journal.note(request)
    }

    pub(crate) async fn wait_while_hanging(&self) {
        let mut control = self.control.subscribe();
        let delay = control.borrow().faults.delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        drop(control.wait_for(|control| !control.faults.hang).await);
    }
}

/// A panic elsewhere leaves the data as it was before or after one whole change, so it may be used further.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
