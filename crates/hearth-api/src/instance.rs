//! Instances: one VM made for a pool, from request to deletion, and the log of its steps.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::claim::ClaimedRepo;
use crate::ids::{InstanceId, ProjectId, VmId};
use crate::settings::Settings;
use crate::time;

/// What a client sees of an instance's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum InstanceStatus {
    /// It can be claimed (a test boot: it succeeded).
    Ready,
    /// It is being made.
    Provisioning,
    /// A step failed.
    Failed,
    /// A task has it.
    Claimed,
}

impl InstanceStatus {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Provisioning, Self::Failed, Self::Claimed];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Provisioning => "provisioning",
            Self::Failed => "failed",
            Self::Claimed => "claimed",
        }
    }
}

impl std::str::FromStr for InstanceStatus {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no status: use ready, provisioning, failed or claimed"))
    }
}

/// One line of the list of instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceItem {
    /// The record's id: what every path takes.
    pub id: InstanceId,
    /// The VM's name.
    pub instance_id: VmId,
    /// What it is doing.
    pub status: InstanceStatus,
    /// Made by a test boot: never handed out.
    pub is_test: bool,
    /// Why it failed.
    #[schema(required)]
    pub failure_reason: Option<String>,
    /// When it became ready.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub provisioned_at: Option<Timestamp>,
    /// When it was requested.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// One instance with its steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceDetail {
    /// The record's id.
    pub id: InstanceId,
    /// The VM's name.
    pub instance_id: VmId,
    /// What it is doing.
    pub status: InstanceStatus,
    /// Made by a test boot.
    pub is_test: bool,
    /// A summary of the steps.
    pub summary: Summary,
    /// Why it failed.
    #[schema(required)]
    pub failure_reason: Option<String>,
    /// The steps that have ended, in order.
    pub steps: Vec<Step>,
    /// When it was requested.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// In the metadata of a step that failed: which command failed and how, as a message for people.
pub const FAILURE_KEY: &str = "failure";

/// In the metadata of the step that a boot began again with, because the server was restarted in it: when that was found.
pub const INTERRUPTED_KEY: &str = "interruptedAt";

/// What a person is told of it; `from`: what the boot's VM was made from then.
#[must_use]
pub fn interruption(from: &str, at: Timestamp) -> String {
    let goes_on = match from {
        "image" => "nothing of it was frozen yet, so it starts again",
        "template" => "all of its set-up is frozen",
        _ => "it continues after the last stage that was frozen; what ran before is shown as cached",
    };
    format!("the server was restarted during this boot (found at {at:.0}): {goes_on}")
}

/// The same as the record of a boot says it; `None` when no restart interrupted it.
#[must_use]
pub fn interruption_of(steps: &[Step]) -> Option<String> {
    let mut metadata = steps.iter().filter_map(|step| step.metadata.as_ref());
    metadata.find_map(|metadata| {
        let fact = |key| metadata.get(key)?.as_str();
        let at = fact(INTERRUPTED_KEY)?.parse().ok()?;
        Some(interruption(fact("from").unwrap_or_default(), at))
    })
}

/// Why an instance failed, for people: the step, the command in it and how it ended. `reason` is what the record says, which for
/// a command is its exit code and its last words alone.
#[must_use]
pub fn failure_with_names(steps: &[Step], reason: &str) -> String {
    let Some(step) = steps.iter().find(|step| step.status == StepStatus::Error) else {
        return reason.to_owned();
    };
    let fact = |key| step.metadata.as_ref()?.get(key)?.as_str();
    let name = &step.name;
    match (fact(FAILURE_KEY), fact("repo")) {
        (Some(failure), _) => format!("{name}: {failure}"),
        (None, Some(repo)) if !reason.contains(repo) => format!("{name}: {repo}: {reason}"),
        _ => format!("{name}: {reason}"),
    }
}

/// One instance with what is inside: the reply of `GET /instances/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceView {
    /// The record's id.
    pub id: InstanceId,
    /// The VM's name.
    pub instance_id: VmId,
    /// Whose.
    pub project_id: ProjectId,
    /// What it is doing.
    pub status: InstanceStatus,
    /// Made by a test boot.
    pub is_test: bool,
    /// Name of the recipe it was made by.
    pub recipe: String,
    /// Its checkouts.
    pub repos: Vec<ClaimedRepo>,
    /// Commands of the project's setup object, to be run by name.
    pub commands: Vec<InstanceCommand>,
    /// What the repositories' settings files say.
    pub settings: Vec<RepoSettings>,
    /// Why it failed: the step, the command in it, and how that ended; `null` when it did not.
    #[serde(default)]
    #[schema(required)]
    pub failure: Option<String>,
    /// End of its claim's lease.
    #[serde(with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub expires_at: Option<Timestamp>,
    /// So many minutes before its end the lease is warned of; 0: not at all.
    #[serde(default)]
    #[schema(required)]
    pub lease_warning_minutes: u32,
    /// Its VM is there and does not answer; `null` while it does, as far as is known.
    #[serde(default)]
    #[schema(required)]
    pub unresponsive: Option<Unresponsive>,
    /// Its VM is paused: it costs no processor, and everything in it stays. The next call into it resumes it.
    #[serde(default)]
    #[schema(required)]
    pub paused: bool,
    /// It is paused to the disk: it costs no memory either.
    #[serde(default)]
    #[schema(required)]
    pub paused_to_disk: bool,
    /// Why Hearth paused it; `null` when it is not paused, or its owner wanted it.
    #[serde(default)]
    #[schema(required)]
    pub paused_because: Option<String>,
    /// When it was last noticed that the VM had restarted since it was made: what ran in it then does not run any more.
    #[serde(default, with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub rebooted_at: Option<Timestamp>,
    /// When its VM was removed whose record stays, with the status that its boot ended in; or when it was noticed that the VM of a claimed
    /// instance had ended by itself.
    #[serde(default, with = "time::nullable")]
    #[schema(required, value_type = Option<String>, format = DateTime)]
    pub vm_ended_at: Option<Timestamp>,
    /// Why.
    #[serde(default)]
    #[schema(required)]
    pub vm_ended_because: Option<String>,
}

/// A VM that is there and does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unresponsive {
    /// When it first did not answer, of all the times that it was asked since it last did.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// What keeps it from answering, as far as the host can see, as a message for people.
    pub reason: String,
}

/// Reply of `DELETE /instances/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BootEnded {
    /// The instance; its record and its log stay.
    pub id: InstanceId,
    /// A boot was under way and was ended. `false`: it had ended before; a VM that was kept for debugging is removed.
    pub cancelled: bool,
    /// What it is now.
    pub status: InstanceStatus,
}

/// A command that can be run by name in an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct InstanceCommand {
    /// What it is called.
    pub name: String,
    /// A text for a shell.
    pub command: String,
    /// The repository it belongs to.
    pub repo_full_name: String,
    /// Where it runs.
    pub path: String,
}

/// What one repository's settings file says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepoSettings {
    /// `org/name`.
    pub repo_full_name: String,
    /// Which file.
    pub file: String,
    /// What it says.
    pub settings: Settings,
}

/// A summary of the steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// True only when ready or claimed.
    pub success: bool,
    /// From the request to the end of the last step so far, milliseconds.
    pub total_duration_ms: u64,
    /// Name of the step that failed.
    #[schema(required)]
    pub failed_step: Option<String>,
    /// What it said.
    #[schema(required)]
    pub error: Option<String>,
    /// Entries with success.
    pub completed_steps: u64,
    /// Entries so far.
    pub total_steps: u64,
}

/// Name of a provisioning step; the order of the variants is the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    /// A fresh VM.
    CreateVm,
    /// The server inside the VM answers.
    EnsureServer,
    /// Project variables to `/home/.env`.
    SetEnvVars,
    /// One repository's files.
    CloneRepo,
    /// One repository's own hooks.
    InitRepo,
    /// The project's set-up commands.
    ProjectSetup,
    /// One repository's set-up commands.
    RepoSetup,
    /// The pool's set-up commands.
    WarmPoolSetup,
}

impl StepName {
    /// All steps in their order.
    pub const ALL: [Self; 8] = [
        Self::CreateVm,
        Self::EnsureServer,
        Self::SetEnvVars,
        Self::CloneRepo,
        Self::InitRepo,
        Self::ProjectSetup,
        Self::RepoSetup,
        Self::WarmPoolSetup,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::CreateVm => "create_vm",
            Self::EnsureServer => "ensure_server",
            Self::SetEnvVars => "set_env_vars",
            Self::CloneRepo => "clone_repo",
            Self::InitRepo => "init_repo",
            Self::ProjectSetup => "project_setup",
            Self::RepoSetup => "repo_setup",
            Self::WarmPoolSetup => "warm_pool_setup",
        }
    }
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StepStatus {
    /// It did what it should.
    Success,
    /// It did not; `error` says why.
    Error,
}

/// The log entry of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Which step.
    #[schema(value_type = StepName)]
    pub name: String,
    /// How it ended.
    pub status: StepStatus,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub error: Option<String>,
    /// What its commands printed, secrets redacted, the middle cut when it is long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub output: Option<String>,
    /// How long it took, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub duration_ms: Option<u64>,
    /// When it ended.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// Facts by step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Option<Object>)]
    pub metadata: Option<serde_json::Value>,
}

/// One event of `GET /instances/{id}/follow` (server-sent events; the event's name is `kind`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum FollowEvent {
    /// A step began.
    #[serde(rename_all = "camelCase")]
    StepStarted {
        /// Which.
        name: String,
        /// What it works on: a repository or a command's name.
        subject: Option<String>,
        /// How long it had run when the client began to follow, milliseconds.
        #[serde(default)]
        ran_ms: u64,
    },
    /// A command of a running step began.
    #[serde(rename_all = "camelCase")]
    CommandStarted {
        /// What the step works on, as in `stepStarted`.
        #[serde(default)]
        subject: Option<String>,
        /// The command's name, or how it begins.
        command: String,
        /// How long it has run already, milliseconds.
        #[serde(default)]
        ran_ms: u64,
        /// How long it has printed nothing; `null` when it has printed nothing yet.
        #[serde(default)]
        silent_ms: Option<u64>,
    },
    /// A command of a running step printed something; secrets are redacted.
    #[serde(rename_all = "camelCase")]
    Output {
        /// What the step works on, as in `stepStarted`: several repositories' scripts may run at the same time.
        #[serde(default)]
        subject: Option<String>,
        /// The text.
        text: String,
    },
    /// A step ended; its entry as it is in the record.
    #[serde(rename_all = "camelCase")]
    StepEnded {
        /// The entry.
        step: Step,
    },
    /// The boot is over: the last event.
    #[serde(rename_all = "camelCase")]
    Ended {
        /// Ready, failed or claimed; `None` when the instance was removed meanwhile.
        status: Option<InstanceStatus>,
        /// Why it failed.
        failure_reason: Option<String>,
    },
}
