//! API tokens.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use crate::ids::{ProjectId, TokenId};
use crate::time;
use crate::values::Name;

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum Scope {
    /// Everything, tokens included.
    #[serde(rename = "admin")]
    Admin,
    /// See projects, pools and instances.
    #[serde(rename = "project:read")]
    ProjectRead,
    /// Change projects, variables and pools.
    #[serde(rename = "project:write")]
    ProjectWrite,
    /// Claim instances and work inside the ones it claimed.
    #[serde(rename = "claim")]
    Claim,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Admin, Self::ProjectRead, Self::ProjectWrite, Self::Claim];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ProjectRead => "project:read",
            Self::ProjectWrite => "project:write",
            Self::Claim => "claim",
        }
    }
}

impl std::str::FromStr for Scope {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no scope: use admin, project:read, project:write or claim"))
    }
}

/// Body of `POST /tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "name": "ci", "scopes": ["claim"], "owner": "ada" }))]
pub struct CreateToken {
    /// What it is for.
    pub name: Name,
    /// What it may do; at least one.
    #[schema(min_items = 1)]
    pub scopes: Vec<Scope>,
    /// Whose it is (a user name): VMs claimed with it get this user's personal variables. When absent, the creator's owner for a
    /// token with the scope `admin`; any other is its own, under its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Name>,
    /// Only this project, if given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<ProjectId>,
    /// Only projects whose names begin so, if given: it sees and makes no others. Not for `admin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_prefix: Option<Name>,
    /// How many VMs its claims may hold at once, and the largest target of a pool that it sets; no limit of its own when absent. Not
    /// for `admin`.
    #[serde(
        default,
        deserialize_with = "crate::patch::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 1, maximum = 10_000)]
    pub max_vms: Option<u32>,
    /// When it stops working, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// The tenant it belongs to; the creator's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
}

/// What is shown of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokenItem {
    /// Its public id.
    pub id: TokenId,
    /// What it is for.
    pub name: String,
    /// Whose it is: VMs claimed with it get this user's personal variables.
    pub owner: String,
    /// The tenant it belongs to.
    pub tenant: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Only this project, if set.
    #[schema(required)]
    pub project_id: Option<ProjectId>,
    /// Only projects whose names begin so, if set.
    #[serde(default)]
    #[schema(required)]
    pub name_prefix: Option<String>,
    /// How many VMs its claims may hold at once, if set.
    #[serde(default)]
    #[schema(required)]
    pub max_vms: Option<u32>,
    /// When it was made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last used.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub last_used_at: Option<Timestamp>,
    /// When it stops working.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
}

/// Reply of `POST /tokens`: the only time the secret is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TokenCreated {
    /// The token's record.
    #[serde(flatten)]
    pub item: TokenItem,
    /// `hearth_…`; it is stored hashed and cannot be shown again.
    pub token: String,
}

impl PartialSchema for TokenCreated {
    // By hand: the derive writes `allOf`, which a reply that has no other key cannot be.
    fn schema() -> RefOr<Schema> {
        let mut schema = TokenItem::schema();
        if let RefOr::T(Schema::Object(object)) = &mut schema {
            let token = ObjectBuilder::new()
                .schema_type(Type::String)
                .description(Some("`hearth_…`; it is stored hashed and cannot be shown again."));
            object.description = Some("Reply of `POST /tokens`: the only time the secret is shown.".to_owned());
            object.properties.insert("token".to_owned(), token.into());
            object.required.push("token".to_owned());
        }
        schema
    }
}

impl ToSchema for TokenCreated {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        TokenItem::schemas(schemas);
    }
}

impl std::fmt::Debug for TokenCreated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenCreated")
            .field("item", &self.item)
            .finish_non_exhaustive()
    }
}

/// Reply of `DELETE /tokens/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TokenRevoked {
    /// The token.
    pub id: TokenId,
    /// Always true.
    pub revoked: bool,
}
