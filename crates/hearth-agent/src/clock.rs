//! The VM's clock.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::container;

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Sets it, to nanoseconds since the Unix epoch. A container's is its host's: never frozen, and not ours to set.
pub(crate) fn set(unix_nanos: i64) -> nix::Result<()> {
    if container::shares_kernel() {
        return Ok(());
    }
    let now = TimeSpec::new(
        unix_nanos.div_euclid(NANOS_PER_SECOND),
        unix_nanos.rem_euclid(NANOS_PER_SECOND),
    );
    clock_settime(ClockId::CLOCK_REALTIME, now)
}
