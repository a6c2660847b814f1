//! What the loops share that remove records which are too old: some at once, with pauses, so that no other writer waits for them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::store::StoreError;

/// Between two removals of all that has become too old.
const EVERY: Duration = Duration::from_secs(60);

/// What is older than `age` is from before this time.
pub fn since(age: Duration) -> Timestamp {
    let age = SignedDuration::try_from(age).unwrap_or(SignedDuration::MAX);
    Timestamp::now().checked_sub(age).unwrap_or(Timestamp::MIN)
}

/// How long until more is removed: `between` two batches, and longer when nothing is left or the last one failed. `what` is for people.
pub fn pause(removed: Result<u64, StoreError>, between: Duration, what: &str) -> Duration {
    match removed {
        Ok(0) => EVERY,
        Ok(_) => between,
        Err(error) => {
            tracing::warn!(%error, "{what} could not be removed; it is tried again");
            EVERY
        }
    }
}
