//! A repository's own settings file: `.hearth/settings.json` or `.capy/settings.json`. Unknown keys are left to newer
//! versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::patch::{objects, optional_object};
use crate::setup::HookContext;
use crate::values::{CommandText, Name};

/// The file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(example = json!({
    "hooks": {
        "setup": ["npm ci"],
        "terminals": [{ "name": "dev", "command": "npm run dev", "readonly": false }],
        "previews": [{ "name": "app", "port": 3000 }]
    }
}))]
pub struct Settings {
    /// What happens when.
    #[serde(deserialize_with = "crate::patch::object", skip_serializing_if = "Hooks::is_empty")]
    pub hooks: Hooks,
}

/// What happens when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Run once when the repository is first in a VM, in the repository: the step `init_repo`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(default = json!([]))]
    pub setup: Vec<SetupHook>,
    /// Patterns of files, like `**/package-lock.json`. When a claim moves the checkout, its script `updateAfterCheckout` runs only
    /// if one of them changed; without this, lock files of the usual package managers are watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub update_when_changed: Option<Vec<String>>,
    /// Run at a claim that moved the checkout, in the repository, where the setup object has no such script for it. Only in
    /// `.hearth/settings.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub update_after_checkout: Option<CommandText>,
    /// Run when the VM becomes ready, in the repository, where the setup object has no such script for it. Only in
    /// `.hearth/settings.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub startup: Option<CommandText>,
    /// Terminals that are open from the start.
    #[serde(default, deserialize_with = "objects", skip_serializing_if = "Vec::is_empty")]
    #[schema(default = json!([]))]
    pub terminals: Vec<Terminal>,
    /// Ports to show to the user.
    #[serde(default, deserialize_with = "objects", skip_serializing_if = "Vec::is_empty")]
    #[schema(default = json!([]))]
    pub previews: Vec<Preview>,
    /// Commands around an agent's tools.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub tools: Option<Tools>,
    /// How the output of tool hooks is shown to the agent.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub context: Option<HookContext>,
}

impl Hooks {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// One set-up command: a text, or an object with `command`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a command: a string or an object with \"command\"")]
pub enum SetupHook {
    /// The command.
    Text(CommandText),
    /// The command in an object.
    Object {
        /// The command.
        command: CommandText,
    },
}

impl SetupHook {
    /// The command.
    #[must_use]
    pub fn command(&self) -> &str {
        match self {
            Self::Text(command) | Self::Object { command } => command,
        }
    }
}

/// A terminal that is open from the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Terminal {
    /// What it is called.
    pub name: Name,
    /// What runs in it.
    pub command: CommandText,
    /// Whether it takes no input.
    #[serde(default)]
    pub readonly: bool,
}

/// A port to show to the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Preview {
    /// What it is called.
    pub name: Name,
    /// A TCP port in the VM.
    #[schema(value_type = u16, minimum = 1, maximum = 65535)]
    pub port: std::num::NonZeroU16,
}

/// Commands around an agent's tools, by tool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Tools {
    /// Before the tool runs.
    pub pre: BTreeMap<String, Vec<CommandText>>,
    /// After it ran.
    pub post: BTreeMap<String, Vec<CommandText>>,
}
