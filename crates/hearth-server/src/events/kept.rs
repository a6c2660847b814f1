//! Which events are kept, and the removal of the others: a few at a time, with pauses, so that no other writer waits for it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::store::{EventsKept, Store};

/// Removed in one transaction: some milliseconds of the writer's time.
const BATCH: u32 = 500;
/// Between two of them, so that others write meanwhile.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two removals of all that has become too old.
const EVERY: Duration = Duration::from_secs(60);

/// Which events are kept.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Not those that are older.
    pub age: Duration,
    /// So many at most.
    pub most: u64,
}

impl Keep {
    /// Removes what is not to be kept, for ever.
    pub(super) async fn run(&self, store: &Store) {
        loop {
            let age = SignedDuration::try_from(self.age).unwrap_or(SignedDuration::MAX);
            let kept = EventsKept {
                since: Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN),
                most: self.most,
            };
            let pause = match store.remove_events(kept, BATCH).await {
                Ok(0) => EVERY,
                Ok(_) => PAUSE,
                Err(error) => {
                    tracing::warn!(%error, "old events could not be removed; it is tried again");
                    EVERY
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}
