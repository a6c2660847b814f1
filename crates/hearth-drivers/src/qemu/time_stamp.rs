//! How fast the processor's time-stamp counter counts, which is the clock of an emulated guest: its kernel gets the rate.
//!
//! Left to itself the kernel measures the counter against the emulated PIT while it boots. On a host that is busy in that moment it is
//! wrong, several times over (seen: 275 MHz in place of 2,445 MHz, so the guest's clock ran nine times too fast), and `tsc=reliable` keeps it so.

use quanta::Clock;

/// Ticks over which the rate is asked for: some minutes' worth, so that rounding does not matter.
const SPAN: u64 = 1 << 40;
const NANOS_PER_MILLI: u128 = 1_000_000;

/// The kernel's parameter; `None` where the counter cannot be used as a clock. Blocks for up to 0.2 s the first time, while it measures.
pub(super) fn kernel_argument() -> Option<String> {
    khz(&Clock::new()).map(|khz| format!("tsc_early_khz={khz}"))
}

fn khz(clock: &Clock) -> Option<u64> {
    let nanos = clock.delta_as_nanos(0, SPAN);
    // A clock that is not the counter counts nanoseconds.
    if nanos == 0 || nanos == SPAN {
        return None;
    }
    u64::try_from(u128::from(SPAN) * NANOS_PER_MILLI / u128::from(nanos)).ok()
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn rate_is_that_of_the_counter() {
        let clock = Clock::new();
        let Some(khz) = khz(&clock) else {
            assert_eq!(clock.delta_as_nanos(0, SPAN), SPAN, "a counter that is used has a rate");
            return;
        };
        let (start, begin) = (clock.raw(), Instant::now());
        while begin.elapsed() < Duration::from_millis(50) {
            std::hint::spin_loop();
        }
        let (ticks, took) = (clock.raw() - start, begin.elapsed());
        let counted = u128::from(ticks) * NANOS_PER_MILLI / took.as_nanos();
        let (counted, khz) = (u64::try_from(counted).unwrap(), khz);
        assert!(
            counted.abs_diff(khz) < khz / 20,
            "{counted} kHz counted, {khz} kHz told"
        );
    }

    #[test]
    fn clock_without_counter_has_no_rate() {
        assert_eq!(khz(&Clock::mock().0), None);
    }
}
