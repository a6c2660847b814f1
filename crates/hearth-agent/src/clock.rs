//! The VM's clock.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

const NANOS_PER_SECOND: i64 = 1_000_000_000;

/// Sets it, to nanoseconds since the Unix epoch.
pub(crate) fn set(unix_nanos: i64) -> nix::Result<()> {
    let now = TimeSpec::new(
        unix_nanos.div_euclid(NANOS_PER_SECOND),
        unix_nanos.rem_euclid(NANOS_PER_SECOND),
    );
    clock_settime(ClockId::CLOCK_REALTIME, now)
}
