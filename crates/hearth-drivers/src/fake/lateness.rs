//! How slowly the fakes' agents answer.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How much later than at once agents answer; all of a driver share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Lateness(Arc<Mutex<Duration>>);

impl Lateness {
    pub(super) fn set(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = by;
    }

    pub(super) fn get(&self) -> Duration {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
