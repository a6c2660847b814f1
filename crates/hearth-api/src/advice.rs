//! What another target size of a pool would have meant.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time;

/// Advice for a pool's target size: recorded claims replayed against pools of other sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolAdvice {
    /// Claims since then.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Until then.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
    /// How many claims that were; not those that left the pool alone.
    pub claims: u64,
    /// How long a VM of the pool took to be made, the median, milliseconds.
    pub refill_ms: u64,
    /// VMs that are made at a time.
    pub at_once: u64,
    /// The smallest target with which 95 of 100 claims would have got a ready VM.
    pub suggested: AdviceOutcome,
    /// The target that the pool has.
    pub present: AdviceOutcome,
    /// The target that was asked about.
    #[schema(required)]
    pub asked: Option<AdviceOutcome>,
}

/// What a target would have meant for the claims that there were.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdviceOutcome {
    /// The target.
    pub target: u64,
    /// Share of the claims that would have got a ready VM.
    pub hit_rate: f64,
    /// The wait that 95 of 100 claims would not have exceeded, milliseconds.
    pub p95_wait_ms: u64,
    /// Hours that VMs would have waited ready, all together.
    pub vm_hours: f64,
}
