//! How often a token may ask: a bucket per token that fills at a steady rate. All webhooks share one.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use hearth_api::ids::TokenId;

/// A token that was silent may ask this many seconds' worth of requests at once.
const BURST_SECONDS: u32 = 5;

type Buckets<K> = Option<Arc<DefaultKeyedRateLimiter<K>>>;

/// The buckets. Only tokens that exist have one, so there are never many. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub struct Pace<K: Hash + Eq + Clone = TokenId>(Arc<RwLock<Buckets<K>>>);

impl<K: Hash + Eq + Clone> Pace<K> {
    /// Requests per second and token; 0 sets no limit.
    #[must_use]
    pub fn new(per_second: u32) -> Self {
        Self(Arc::new(RwLock::new(buckets(per_second))))
    }

    /// Another rate from now on; all buckets are full again.
    pub fn change(&self, per_second: u32) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = buckets(per_second);
    }

    /// Counts a request; how long the token must wait before the next, when it has asked too often.
    #[must_use]
    pub fn must_wait(&self, token: &K) -> Option<Duration> {
        let buckets = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let refused = buckets?.check_key(token).err()?;
        Some(refused.wait_time_from(DefaultClock::default().now()))
    }
}

fn buckets<K: Hash + Eq + Clone>(per_second: u32) -> Buckets<K> {
    let quota = NonZeroU32::new(per_second).map(|rate| {
        Quota::per_second(rate).allow_burst(rate.saturating_mul(NonZeroU32::MIN.saturating_add(BURST_SECONDS - 1)))
    });
    quota.map(|quota| Arc::new(RateLimiter::keyed(quota)))
}
