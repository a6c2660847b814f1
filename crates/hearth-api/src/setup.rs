//! The setup object of a project: what its VMs are and what runs in them, repository by repository.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::patch::{object, objects, optional_object, whole};
use crate::pool::SetupCommand;
use crate::project::VmSize;
use crate::values::{Branch, CommandText, Name, RepoFullName};

/// Time limit of a script for which none is given, seconds.
pub const DEFAULT_SCRIPT_SECONDS: i64 = 1800;

/// Reply of `GET` and `PATCH …/setup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SetupView {
    /// What future VMs are set up by.
    pub source: SetupSource,
    /// The hooks in the repositories' `.capy/settings.json`.
    pub legacy_hooks: LegacyHooks,
    /// The setup object; made up from the project when none was saved.
    pub setup: SetupBody,
}

/// Reply of `GET …/setup/import`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetupImport {
    /// The project's repositories, in their order.
    pub repositories: Vec<ImportedRepository>,
}

/// What a repository says about its set-up to others than Hearth, as a set-up of Hearth's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImportedRepository {
    /// `org/name`
    pub repository: String,
    /// The branch whose newest commit was read.
    pub branch: String,
    /// The files that it was read from, the deciding one first; empty when no file is understood.
    pub files: Vec<String>,
    /// Commands for the pool.
    pub setup_commands: Vec<SetupCommand>,
    /// Scripts for the setup object.
    pub scripts: Scripts,
    /// The smallest size that has what the files ask for; `null` when they ask for nothing.
    pub vm_size: Option<VmSize>,
    /// What was taken and how, a line each.
    pub taken: Vec<String>,
    /// What was not taken and why, a line each.
    pub not_taken: Vec<String>,
    /// Why nothing could be read; `null` when it could.
    pub problem: Option<String>,
}

/// What future VMs are set up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SetupSource {
    /// The saved setup object.
    Setup,
    /// The hooks in the repositories' `.capy/settings.json`.
    Legacy,
    /// Neither is there.
    None,
}

/// The hooks in the repositories' `.capy/settings.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LegacyHooks {
    /// Whether they run.
    pub status: LegacyStatus,
    /// The repositories that have some.
    pub repositories: Vec<String>,
    /// Whether every repository could be read.
    pub check_complete: bool,
}

/// Whether hooks in repositories run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LegacyStatus {
    /// They run as `init_repo`.
    Active,
    /// They are there, but the saved setup object replaces them.
    Ignored,
    /// There are none.
    None,
}

/// The setup object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(example = json!({
    "vmSize": "medium",
    "repositories": [{
        "repository": "acme/app", "branch": "main",
        "scripts": { "initialize": "npm ci", "updateAfterCheckout": "npm ci", "startup": "nohup npm start >/tmp/app.log 2>&1 &" },
        "timeouts": { "initialize": 900 },
        "commands": [{ "name": "test", "command": "npm test" }]
    }]
}))]
pub struct SetupBody {
    /// Size of the project's VMs; absent keeps it.
    #[serde(
        default,
        deserialize_with = "crate::patch::present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub vm_size: Option<VmSize>,
    /// What runs for each repository; replaces what was saved before.
    #[serde(deserialize_with = "objects")]
    #[schema(max_items = 50)]
    pub repositories: Vec<RepoSetup>,
    /// Hooks around an agent's tools; absent keeps them.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub hooks: Option<ToolHooks>,
}

/// What runs for one repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepoSetup {
    /// `org/name`, one of the project's.
    pub repository: RepoFullName,
    /// The branch its instances start on.
    pub branch: Branch,
    /// Scripts by phase.
    #[serde(deserialize_with = "object")]
    pub scripts: Scripts,
    /// Time limits by phase.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub timeouts: Option<Timeouts>,
    /// Commands that an agent may run by name; the set-up does not run them.
    #[serde(deserialize_with = "objects")]
    #[schema(max_items = 1000)]
    pub commands: Vec<NamedCommand>,
}

/// Scripts of one repository by phase, run in the repository. Those of different repositories run at the same time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scripts {
    /// Once in a fresh VM, as the step `repo_setup`.
    #[serde(deserialize_with = "crate::patch::nullable")]
    #[schema(required)]
    pub initialize: Option<CommandText>,
    /// At a claim that moved the checkout.
    #[serde(deserialize_with = "crate::patch::nullable")]
    #[schema(required)]
    pub update_after_checkout: Option<CommandText>,
    /// When the VM becomes ready, and after a hand-over that kept no processes: starts services.
    #[serde(deserialize_with = "crate::patch::nullable")]
    #[schema(required)]
    pub startup: Option<CommandText>,
}

/// Time limits of one repository's scripts, seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timeouts {
    /// Of `initialize`.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 60, maximum = 3600)]
    pub initialize: Option<i64>,
    /// Of `updateAfterCheckout`.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 60, maximum = 3600)]
    pub update_after_checkout: Option<i64>,
    /// Of `startup`.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 60, maximum = 3600)]
    pub startup: Option<i64>,
}

/// A command with a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub struct NamedCommand {
    /// What it is called.
    pub name: Name,
    /// A text for a shell, run in the repository.
    pub command: CommandText,
}

/// Hooks around an agent's tools. Hearth stores and shows them; the program that runs the agent runs them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolHooks {
    /// Commands before a tool runs, by tool.
    #[serde(
        default,
        deserialize_with = "crate::patch::present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub pre: Option<BTreeMap<String, Vec<CommandText>>>,
    /// Commands after a tool ran, by tool.
    #[serde(
        default,
        deserialize_with = "crate::patch::present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub post: Option<BTreeMap<String, Vec<CommandText>>>,
    /// How their output is shown to the agent.
    #[serde(
        default,
        deserialize_with = "optional_object",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub context: Option<HookContext>,
}

/// How the output of hooks is shown to the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HookContext {
    /// Most characters.
    #[serde(default, deserialize_with = "whole", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, minimum = 1, maximum = 9_007_199_254_740_991_i64)]
    pub max_output_length: Option<i64>,
    /// Which part of a longer output stays.
    #[serde(
        default,
        deserialize_with = "crate::patch::present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false)]
    pub truncate_strategy: Option<TruncateStrategy>,
}

/// Which part of a longer output stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum TruncateStrategy {
    /// The beginning.
    Head,
    /// The end.
    Tail,
    /// Beginning and end.
    Middle,
}
