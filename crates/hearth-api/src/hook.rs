//! Webhooks: what git hosts send when a branch was pushed.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Object, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::values::{Branch, RepoFullName, RepoUrl};

/// Body of `POST /hooks/git`: what the git host sends. Only the repository's addresses and its name are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GitHook(pub Map<String, Value>);

impl PartialSchema for GitHook {
    // By hand: the derive loses the example of a type that is any object.
    fn schema() -> RefOr<Schema> {
        let mut object = Object::with_type(Type::Object);
        let text = "Body of `POST /hooks/git`: what the git host sends. Only the repository's addresses and its name are read.";
        object.description = Some(text.to_owned());
        object.example = Some(json!({
            "ref": format!("refs/heads/{}", Branch::EXAMPLE),
            "repository": { "full_name": RepoFullName::EXAMPLE, "clone_url": RepoUrl::EXAMPLE }
        }));
        RefOr::T(Schema::Object(object))
    }
}

impl ToSchema for GitHook {}

/// Reply of `POST /hooks/git`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GitHookReply {
    /// How many watched repositories it concerns.
    pub repositories: u64,
}
