//! How many VMs may be begun: a token bucket that fills up with time. Should a fault make VMs fail and be replaced in a circle,
//! that circle is slow.

use std::time::Instant;

/// Tokens per processor: a pool of any sensible size fills without waiting.
const BURST_PER_PROCESSOR: f64 = 60.0;
/// Tokens per processor and second; more than forks per second that a processor can make.
const PER_SECOND: f64 = 10.0;

#[derive(Debug)]
pub(super) struct Bucket {
    left: f64,
    most: f64,
    per_second: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        #[expect(clippy::cast_precision_loss, reason = "no machine has so many processors")]
        let processors = processors as f64;
        let most = processors * BURST_PER_PROCESSOR;
        Self {
            left: most,
            most,
            per_second: processors * PER_SECOND,
            at: Instant::now(),
        }
    }

    /// Whole tokens that are there now.
    pub(super) fn look(&mut self) -> usize {
        let now = Instant::now();
        let more = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + more).min(self.most);
        self.at = now;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and a few thousand"
        )]
        let whole = self.left as usize;
        whole
    }

    /// One VM is begun.
    pub(super) fn take(&mut self) {
        self.left = (self.left - 1.0).max(0.0);
    }
}
