//! Folders packed and unpacked, as they are and as an enemy would write them.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod hostile;
mod round;
