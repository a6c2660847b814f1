//! Lengths of time as the API has them.

use std::time::Duration;

/// Whole milliseconds; the most there are, for one that is longer.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
