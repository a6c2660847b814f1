//! Environment variables. Values go in and never come back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::patch::objects;
use crate::text::{VariableName, VariableValue};
use crate::time;

/// Which variables of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariableKind {
    /// In every VM of the project.
    Shared,
    /// Those of the token's owner: only in the VMs that this owner claims.
    Personal,
}

impl VariableKind {
    /// As it stands in paths.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Personal => "personal",
        }
    }
}

/// Body of PUT: each one is made or replaced, the others stay.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({ "variables": [{ "name": "API_KEY", "value": "s3cret" }] }))]
pub struct PutVariables {
    /// 1 to 100 variables.
    #[serde(deserialize_with = "objects")]
    #[schema(min_items = 1, max_items = 100)]
    pub variables: Vec<Variable>,
}

/// One variable. No `Debug` that shows the value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Variable {
    /// A shell name.
    #[schema(value_type = VariableName)]
    pub name: String,
    /// Its value.
    #[schema(value_type = VariableValue)]
    pub value: String,
}

impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Variable")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PutVariables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.variables).finish()
    }
}

/// What is shown of a variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct VariableItem {
    /// Its name.
    pub name: String,
    /// Always true.
    pub configured: bool,
    /// When it was last set.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
    /// Who set it.
    #[schema(required)]
    pub last_updated_by_user_id: Option<String>,
}

/// Reply of DELETE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VariableDeleted {
    /// Whether there was one.
    pub deleted: bool,
    /// Its name.
    pub name: String,
}
