//! Webhooks: what git hosts send when a branch was pushed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// Body of `POST /hooks/git`: what the git host sends. Only the repository's addresses and its name are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Object)]
pub struct GitHook(pub Map<String, Value>);

/// Reply of `POST /hooks/git`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitHookReply {
    /// How many watched repositories it concerns.
    pub repositories: u64,
}
