//! Environment variables. Values go in and never come back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::patch::objects;
use crate::time;

/// Longest name.
pub const MAX_NAME_CHARS: usize = 191;
/// Longest value.
pub const MAX_VALUE_CHARS: usize = 100_000;
/// Most variables in one PUT.
pub const MAX_VARIABLES: usize = 100;

/// Body of PUT: each one is made or replaced, the others stay.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PutVariables {
    /// 1 to 100 variables.
    #[serde(deserialize_with = "objects")]
    pub variables: Vec<Variable>,
}

/// One variable. No `Debug` that shows the value.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variable {
    /// A shell name.
    pub name: String,
    /// Its value.
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VariableItem {
    /// Its name.
    pub name: String,
    /// Always true.
    pub configured: bool,
    /// When it was last set.
    #[serde(with = "time")]
    pub updated_at: Timestamp,
    /// Who set it.
    pub last_updated_by_user_id: Option<String>,
}

/// Reply of DELETE.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariableDeleted {
    /// Whether there was one.
    pub deleted: bool,
    /// Its name.
    pub name: String,
}
