//! Environment variables. Values go in and never come back.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::patch::objects;
use crate::time;
use crate::values::{VariableName, VariableValue};

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

/// Variables that bash does not let anybody set: assigning one ends `set -a; . /home/.env` in the middle.
const READ_ONLY: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];
/// Those that bash gives values of its own, whatever its environment says.
const BASHS_OWN: [&str; 20] = [
    "_",
    "BASH",
    "BASHPID",
    "BASH_COMMAND",
    "BASH_SUBSHELL",
    "BASH_VERSION",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "FUNCNAME",
    "GROUPS",
    "HISTCMD",
    "LINENO",
    "OLDPWD",
    "PIPESTATUS",
    "PWD",
    "RANDOM",
    "SECONDS",
    "SHLVL",
    "SRANDOM",
];

/// Why a variable of this name is refused: no command would see it, or every shell would break. `None` for all others: those that
/// change how programs run (`PATH`, `HOME`, `LD_PRELOAD`, `BASH_ENV`) are given to commands, whose start does not depend on them.
#[must_use]
pub fn refusal(name: &str) -> Option<String> {
    if READ_ONLY.contains(&name) {
        return Some(format!(
            "`{name}` is read-only in bash: no command can be given another value; use another name"
        ));
    }
    if BASHS_OWN.contains(&name) {
        return Some(format!(
            "bash sets `{name}` itself: no command would see this value; use another name"
        ));
    }
    (name == "IFS").then(|| {
        "`IFS` is how a shell splits words: bash takes none from its environment, and one in /home/.env breaks the scripts that read \
         that file; set it in the command that needs it"
            .to_owned()
    })
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

/// One variable. Its value is never shown in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Variable {
    /// A shell name.
    pub name: VariableName,
    /// Its value.
    pub value: VariableValue,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_command_would_see_are_refused_with_the_rule() {
        for (name, rule) in [("UID", "read-only"), ("SECONDS", "itself"), ("IFS", "splits words")] {
            assert!(refusal(name).unwrap().contains(rule), "{name}");
        }
        for name in ["PATH", "HOME", "SHELL", "LD_PRELOAD", "BASH_ENV", "uid", "API_KEY"] {
            assert_eq!(refusal(name), None, "{name}");
        }
    }
}
