//! The warm pool of a project: its configuration, and how far it is fulfilled.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::InstanceId;
use crate::patch::{present, present_objects_or_null, whole};
use crate::time;
use crate::values::{Branch, CommandText, Name};

/// One set-up command.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetupCommand {
    /// What it is called in logs.
    pub name: Name,
    /// A text for `bash -eo pipefail -c`.
    pub command: CommandText,
    /// Started detached; later commands do not wait for it.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub background: Option<bool>,
    /// Its time limit, seconds; absent: the server's. One in the background has none.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 86400)]
    pub timeout_seconds: Option<i64>,
}

impl SetupCommand {
    /// How long it may run, where a command may run for `usual`. `None`: it is started in the background.
    #[must_use]
    pub fn limit(&self, usual: Duration) -> Option<Duration> {
        let own = self.timeout_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let limit = own.map_or(usual, Duration::from_secs);
        (self.background != Some(true)).then_some(limit)
    }
}

/// What the pool should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Whether VMs are kept ready.
    pub enabled: bool,
    /// How many.
    #[schema(minimum = 1, maximum = 20)]
    pub target_size: i64,
    /// How long an instance may stay in the pool.
    #[schema(minimum = 30, maximum = 180)]
    pub max_age_minutes: i64,
    /// The branch of every repository; `null` = each repository's own.
    #[schema(required)]
    pub branch: Option<String>,
    /// Commands of the step `warm_pool_setup`.
    #[schema(required)]
    pub setup_commands: Option<Vec<SetupCommand>>,
    /// When the pool was first configured.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// How many instances there are, test boots and claimed ones apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// Ready to be claimed.
    pub ready: u64,
    /// Being made.
    pub provisioning: u64,
    /// Failed within the last 24 h.
    pub failed: u64,
}

/// Reply of `GET …/warm-pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Whether the project may have a pool.
    pub allowed: bool,
    /// `null` until it is first configured.
    #[schema(required)]
    pub config: Option<Config>,
    /// Counts.
    pub status: Status,
    /// `null` until it is first configured.
    #[schema(required)]
    pub metadata: Option<PoolMetadata>,
}

/// When things last happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolMetadata {
    /// When an instance of the pool last became ready.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub last_provisioned_at: Option<Timestamp>,
    /// When one was last handed over.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub last_claimed_at: Option<Timestamp>,
}

/// Body of `PATCH …/warm-pool`; absent keeps, `null` clears where it is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "enabled": true, "targetSize": 3,
    "setupCommands": [{ "name": "build", "command": "cd app && npm run build" },
                      { "name": "dev", "command": "cd app && npm run dev", "background": true }]
}))]
pub struct PatchPool {
    /// Whether VMs are kept ready.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub enabled: Option<bool>,
    /// 1 to 20.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 20)]
    pub target_size: Option<i64>,
    /// 30 to 180.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 30, maximum = 180)]
    pub max_age_minutes: Option<i64>,
    /// The branch of every repository.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Branch>)]
    pub branch: Option<Option<Branch>>,
    /// Commands of the step `warm_pool_setup`.
    #[serde(
        default,
        deserialize_with = "present_objects_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<Vec<SetupCommand>>, max_items = 1000)]
    pub setup_commands: Option<Option<Vec<SetupCommand>>>,
}

/// Reply of `PATCH …/warm-pool`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PatchPoolReply {
    /// As it is now.
    #[schema(required)]
    pub config: Option<Config>,
    /// Counts.
    pub status: Status,
}

/// Body of `POST …/warm-pool/test`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({ "setupCommands": [{ "name": "build", "command": "cd app && npm run build" }] }))]
pub struct TestRequest {
    /// Saved to the pool before the boot; `null` clears, absent keeps.
    #[serde(
        default,
        deserialize_with = "present_objects_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<Vec<SetupCommand>>, max_items = 1000)]
    pub setup_commands: Option<Option<Vec<SetupCommand>>>,
}

/// Reply of `POST …/warm-pool/test`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TestReply {
    /// The test instance to poll.
    pub id: InstanceId,
}

/// Body of `POST …/warm-pool/clear`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "replenish": true }))]
pub struct ClearRequest {
    /// Start new instances at once.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub replenish: Option<bool>,
}

/// Reply of `POST …/warm-pool/clear`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClearReply {
    /// How many instances were removed.
    pub cleared: u64,
    /// Counts after it.
    pub status: Status,
}

/// Reply of `POST …/warm-pool/retry`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RetryReply {
    /// Counts; what is tried again shows as `provisioning` a moment later.
    pub status: Status,
}
