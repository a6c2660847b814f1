//! Which events are kept, and the removal of the others: a few at a time, with pauses, so that no other writer waits for it.

use std::time::Duration;

use crate::retention;
use crate::store::{EventsKept, Store};

/// Removed in one transaction: some milliseconds of the writer's time.
const BATCH: u32 = 500;
/// Between two of them, so that others write meanwhile.
const PAUSE: Duration = Duration::from_millis(50);

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
            let kept = EventsKept {
                since: retention::since(self.age),
                most: self.most,
            };
            let removed = store.remove_events(kept, BATCH).await;
            tokio::time::sleep(retention::pause(removed, PAUSE, "old events")).await;
        }
    }
}
