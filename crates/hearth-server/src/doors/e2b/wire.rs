//! What the control plane takes and answers, field by field as clients write it.

use std::collections::BTreeMap;

use hearth_api::time;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

/// What this door serves, in the words of the daemon that E2B's VMs have: clients dare what a version has. Below 0.6.2, because
/// files have no metadata here.
pub const ENVD_VERSION: &str = "0.6.1";
/// Clients want some.
pub const CLIENT_ID: &str = "hearth";

/// How a sandbox is asked for.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    #[serde(rename = "templateID")]
    pub template_id: Option<String>,
    /// Seconds.
    pub timeout: Option<i64>,
    #[serde(default)]
    pub auto_pause: Option<bool>,
    pub auto_resume: Option<AutoResume>,
    #[serde(rename = "allow_internet_access", alias = "allowInternetAccess")]
    pub allow_internet_access: Option<bool>,
    pub network: Option<Value>,
    pub metadata: Option<BTreeMap<String, String>>,
    pub env_vars: Option<BTreeMap<String, String>>,
    pub mcp: Option<Value>,
    pub iam: Option<Value>,
    pub volume_mounts: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct AutoResume {
    #[serde(default)]
    pub enabled: bool,
}

/// A sandbox that was made or connected to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Made {
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    #[serde(rename = "clientID")]
    pub client_id: &'static str,
    pub envd_version: &'static str,
    pub alias: String,
    pub envd_access_token: String,
    pub traffic_access_token: String,
    pub domain: Option<String>,
}

fn rfc3339<S: Serializer>(at: &Timestamp, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&time::format(*at))
}

/// A sandbox as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shown {
    #[serde(rename = "templateID")]
    pub template_id: String,
    #[serde(rename = "sandboxID")]
    pub sandbox_id: String,
    #[serde(rename = "clientID")]
    pub client_id: &'static str,
    #[serde(serialize_with = "rfc3339")]
    pub started_at: Timestamp,
    #[serde(serialize_with = "rfc3339")]
    pub end_at: Timestamp,
    pub envd_version: &'static str,
    pub cpu_count: u32,
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    #[serde(rename = "diskSizeMB")]
    pub disk_size_mb: u64,
    pub state: &'static str,
    pub alias: String,
    pub metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    pub more: Option<More>,
}

/// What one sandbox is shown with, and a list is not.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct More {
    pub envd_access_token: String,
    pub domain: Option<String>,
    pub lifecycle: Lifecycle,
    pub allow_internet_access: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_mode: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lifecycle {
    pub auto_resume: bool,
    pub on_timeout: &'static str,
}

/// Running sandboxes.
pub const RUNNING: &str = "running";
/// Paused ones.
pub const PAUSED: &str = "paused";
