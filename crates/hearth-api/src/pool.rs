//! The warm pool of a project: the wish and how far it is fulfilled.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::ids::InstanceId;
use crate::patch::{present, present_objects_or_null, present_whole};
use crate::time;

/// Bounds of `targetSize`.
pub const TARGET_SIZE: std::ops::RangeInclusive<i64> = 1..=20;
/// Bounds of `maxAgeMinutes`.
pub const MAX_AGE_MINUTES: std::ops::RangeInclusive<i64> = 30..=180;

/// One set-up command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SetupCommand {
    /// What it is called in logs.
    pub name: String,
    /// A text for `bash -eo pipefail -c`.
    pub command: String,
    /// Started detached; later commands do not wait for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<bool>,
}

/// What the pool should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Whether VMs are kept ready.
    pub enabled: bool,
    /// How many.
    pub target_size: i64,
    /// How long an instance may stay in the pool.
    pub max_age_minutes: i64,
    /// The branch of every repository; `null` = each repository's own.
    pub branch: Option<String>,
    /// Commands of the step `warm_pool_setup`.
    pub setup_commands: Option<Vec<SetupCommand>>,
    /// When the pool was first configured.
    #[serde(with = "time")]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[serde(with = "time")]
    pub updated_at: Timestamp,
}

/// How many instances there are, test boots and claimed ones apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Ready to be claimed.
    pub ready: u64,
    /// Being made.
    pub provisioning: u64,
    /// Failed within the last 24 h.
    pub failed: u64,
}

/// Reply of `GET …/warm-pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// Whether the project may have a pool.
    pub allowed: bool,
    /// `null` until it is first configured.
    pub config: Option<Config>,
    /// Counts.
    pub status: Status,
    /// `null` until it is first configured.
    pub metadata: Option<PoolMetadata>,
}

/// When things last happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PoolMetadata {
    /// When an instance of the pool last became ready.
    #[serde(with = "time::nullable")]
    pub last_provisioned_at: Option<Timestamp>,
    /// When one was last handed over.
    #[serde(with = "time::nullable")]
    pub last_claimed_at: Option<Timestamp>,
}

/// Body of `PATCH …/warm-pool`; absent keeps, `null` clears where it is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PatchPool {
    /// Whether VMs are kept ready.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// 1 to 20.
    #[serde(deserialize_with = "present_whole", skip_serializing_if = "Option::is_none")]
    pub target_size: Option<i64>,
    /// 30 to 180.
    #[serde(deserialize_with = "present_whole", skip_serializing_if = "Option::is_none")]
    pub max_age_minutes: Option<i64>,
    /// The branch of every repository.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub branch: Option<Option<String>>,
    /// Commands of the step `warm_pool_setup`.
    #[serde(
        deserialize_with = "present_objects_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    pub setup_commands: Option<Option<Vec<SetupCommand>>>,
}

/// Reply of `PATCH …/warm-pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PatchPoolReply {
    /// As it is now.
    pub config: Option<Config>,
    /// Counts.
    pub status: Status,
}

/// Body of `POST …/warm-pool/test`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TestRequest {
    /// Saved to the pool before the boot; `null` clears, absent keeps.
    #[serde(
        deserialize_with = "present_objects_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    pub setup_commands: Option<Option<Vec<SetupCommand>>>,
}

/// Reply of `POST …/warm-pool/test`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestReply {
    /// The test instance to poll.
    pub id: InstanceId,
}

/// Body of `POST …/warm-pool/clear`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClearRequest {
    /// Start new instances at once.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub replenish: Option<bool>,
}

/// Reply of `POST …/warm-pool/clear`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearReply {
    /// How many instances were removed.
    pub cleared: u64,
    /// Counts after it.
    pub status: Status,
}
