//! How often a token may ask: a bucket per token that fills at a steady rate. All webhooks share one.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use hearth_api::ids::TokenId;

/// A token that was silent may ask this many seconds' worth of requests at once.
const BURST_SECONDS: u32 = 5;

/// The buckets. Only tokens that exist have one, so there are never many.
#[derive(Debug, Clone)]
pub struct Pace<K: Hash + Eq + Clone = TokenId>(Option<Arc<DefaultKeyedRateLimiter<K>>>);

impl<K: Hash + Eq + Clone> Pace<K> {
    /// Requests per second and token; 0 sets no limit.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        let quota = NonZeroU32::new(per_second).map(|rate| {
            Quota::per_second(rate).allow_burst(rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1)))
        });
        Self(quota.map(|quota| Arc::new(RateLimiter::keyed(quota))))
    }

    /// Counts a request; how long the token must wait before the next, when it has asked too often.
    #[must_use]
    pub fn must_wait(&self, token: &K) -> Option<Duration> {
        let limiter = self.0.as_ref()?;
        let refused = limiter.check_key(token).err()?;
        Some(refused.wait_time_from(DefaultClock::default().now()))
    }
}
