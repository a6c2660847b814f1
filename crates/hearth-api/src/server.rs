//! The servers that share one database.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time;
use crate::values::Name;

/// One of the servers of a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "id": "srv_3f0c2a9b1d4e", "place": "box1:/var/lib/hearth", "url": "https://box1.example:7717", "version": "0.1.0", "alive": true,
    "answers": true, "startedAt": "2026-11-30T08:00:00.000Z", "aliveUntil": "2026-11-30T12:00:06.000Z", "pools": 12, "vms": 80,
    "memoryMib": 196608
}))]
pub struct ServerItem {
    /// Its id, which its data folder keeps.
    pub id: String,
    /// Host and data folder.
    pub place: String,
    /// Where the other servers reach it; null when it has not said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub url: Option<String>,
    /// Of its program.
    pub version: String,
    /// It said so within the last six seconds. The pools of one that did not get another home.
    pub alive: bool,
    /// It is the one that answers this.
    pub answers: bool,
    /// When its process began.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When it counts as silent unless it is heard of before; or since when it does.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub alive_until: Timestamp,
    /// Pools that are at home there: it makes their VMs, and hands them over.
    pub pools: u64,
    /// VMs that it runs.
    pub vms: u64,
    /// What its VMs may have together, MiB.
    pub memory_mib: u64,
}

/// Body of PUT: where a pool is to be at home.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "server": "srv_3f0c2a9b1d4e" }))]
pub struct PutPoolHome {
    /// The server's id.
    pub server: Name,
}
