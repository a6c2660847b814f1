//! The audit log: who did what.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{InstanceId, ProjectId, TokenId};
use crate::time;

/// One request that changed something, or was to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditEntry {
    /// Grows from entry to entry; what `before` takes.
    pub id: u64,
    /// When the request came.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The token that asked.
    pub token_id: TokenId,
    /// Its name then.
    pub token_name: String,
    /// Whose it was.
    pub owner: String,
    /// The address that the request came from: of the last proxy, if there is one.
    #[schema(required)]
    pub address: Option<String>,
    /// The operation's id in the OpenAPI document; `sign_in_with_openid` where somebody signed in to the pages at a provider.
    pub operation: String,
    /// What project it was about, if one.
    #[schema(required)]
    pub project_id: Option<ProjectId>,
    /// What instance it was about, if one.
    #[schema(required)]
    pub instance_id: Option<InstanceId>,
    /// What else its path names: a variable, a checkpoint, a token, a session.
    #[schema(required)]
    pub subject: Option<String>,
    /// HTTP status of the answer: the result.
    pub status: u16,
    /// What the server's log has it under.
    #[schema(required)]
    pub request_id: Option<String>,
}
