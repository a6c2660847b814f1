//! Projects: repositories + variables + set-up, owned by a tenant.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::ProjectId;
use crate::patch::{
    object_or_null, objects, objects_or_null, present, present_object_or_null, present_objects, present_objects_or_null,
};
use crate::pool::SetupCommand;
use crate::time;
use crate::values::{Branch, Description, Email, GitName, Name, RepoFullName, RepoUrl};

/// A project as the documented operations show it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its name.
    pub name: String,
    /// What it is, for people.
    #[schema(required)]
    pub description: Option<String>,
    /// Short code that task names start with.
    pub task_code: String,
    /// Its repositories, in order.
    pub repos: Vec<Repo>,
    /// When it was made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// One repository of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Repo {
    /// `org/name`.
    pub repo_full_name: String,
    /// The branch its instances start on.
    pub branch: String,
}

/// One repository in a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RepoInput {
    /// `org/name`.
    pub repo_full_name: RepoFullName,
    /// The branch its instances start on.
    pub branch: Branch,
    /// Where the host fetches it from and what `origin` says in the VM: `https://`, `http://`, `ssh://`, `git@host:path` or
    /// `file://`. Default: the server's git base URL + `org/name`. Tenants other than the first may fetch from public hosts by
    /// `https://` and `ssh://`, and from what the installation's rules name (`hearth serve --source`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<RepoUrl>,
    /// Whether what Git LFS keeps of it comes along; true when absent here and in the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lfs: Option<bool>,
    /// Whether its submodules come along; true when absent here and in the project.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submodules: Option<bool>,
}

/// Who makes the commits that are made in a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "name": "Shop Agent", "email": "agent@example.org" }))]
pub struct GitIdentity {
    /// Git's `user.name`.
    pub name: GitName,
    /// Git's `user.email`.
    pub email: Email,
}

/// Reply of `GET /projects/{id}/view`: everything that can be set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProjectView {
    /// Its id.
    pub id: ProjectId,
    /// Its name.
    pub name: String,
    /// What it is, for people.
    #[schema(required)]
    pub description: Option<String>,
    /// Short code that task names start with.
    pub task_code: String,
    /// Its repositories, in order.
    pub repos: Vec<RepoView>,
    /// Digest prefix or name of the guest image; the newest one when `null`.
    #[schema(required)]
    pub image: Option<String>,
    /// Commands of the step `project_setup`.
    #[schema(required)]
    pub project_setup: Option<Vec<SetupCommand>>,
    /// Size of its VMs.
    pub vm_size: VmSize,
    /// Most VMs the project may have at once, in any state.
    #[schema(required)]
    pub max_vms: Option<u32>,
    /// Most claims that may hold a VM at once.
    #[serde(default)]
    #[schema(required)]
    pub max_claims: Option<u32>,
    /// A claimed VM that nobody uses for so many minutes is paused; never when `null`.
    #[serde(default)]
    #[schema(required)]
    pub idle_pause_minutes: Option<u32>,
    /// To the disk, and not in memory.
    #[serde(default)]
    #[schema(required)]
    pub idle_pause_to_disk: bool,
    /// So many minutes before its end a lease is warned of; 0: not at all.
    #[serde(default)]
    #[schema(required)]
    pub lease_warning_minutes: u32,
    /// Who makes the commits in its VMs; the owner of the claiming token when `null`.
    #[schema(required)]
    pub git_identity: Option<GitIdentity>,
    /// When it was made.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it was last changed.
    #[serde(with = "time")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: Timestamp,
}

/// One repository of a [`ProjectView`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepoView {
    /// `org/name`.
    pub repo_full_name: String,
    /// The branch its instances start on.
    pub branch: String,
    /// Where the host fetches it from.
    pub url: String,
    /// Whether what Git LFS keeps of it comes along.
    pub lfs: bool,
    /// Whether its submodules come along.
    pub submodules: bool,
}

/// What the documented operations show is part of what can be set.
impl From<ProjectView> for Project {
    fn from(view: ProjectView) -> Self {
        Self {
            id: view.id,
            name: view.name,
            description: view.description,
            task_code: view.task_code,
            repos: view.repos.into_iter().map(Repo::from).collect(),
            created_at: view.created_at,
            updated_at: view.updated_at,
        }
    }
}

impl From<RepoView> for Repo {
    fn from(view: RepoView) -> Self {
        Self {
            repo_full_name: view.repo_full_name,
            branch: view.branch,
        }
    }
}

/// Size of a project's VMs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum VmSize {
    /// 1 vCPU, 1 GiB unless configured otherwise.
    Small,
    /// 2 vCPU, 2 GiB unless configured otherwise.
    #[default]
    Medium,
    /// 4 vCPU, 8 GiB unless configured otherwise.
    Large,
    /// 8 vCPU, 16 GiB unless configured otherwise.
    Ultra,
    /// 16 vCPU, 32 GiB unless configured otherwise.
    Hyper,
}

impl VmSize {
    /// All sizes, smallest first.
    pub const ALL: [Self; 5] = [Self::Small, Self::Medium, Self::Large, Self::Ultra, Self::Hyper];

    /// The name on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
            Self::Ultra => "ultra",
            Self::Hyper => "hyper",
        }
    }
}

impl std::str::FromStr for VmSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|size| size.as_str() == text)
            .ok_or_else(|| format!("`{text}` is no VM size: use small, medium, large, ultra or hyper"))
    }
}

/// Body of `POST /projects`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({
    "name": "web",
    "repos": [{ "repoFullName": "acme/app", "branch": "main", "url": "https://git.example.org/acme/app.git" }],
    "vmSize": "small"
}))]
pub struct CreateProject {
    /// Its name.
    pub name: Name,
    /// What it is, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Description>,
    /// Short code that task names start with; made from the name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_code: Option<Name>,
    /// Its repositories, in order.
    #[serde(default, deserialize_with = "objects")]
    #[schema(max_items = 50)]
    pub repos: Vec<RepoInput>,
    /// Digest prefix or name of the guest image; the newest one when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Name>,
    /// Commands of the step `project_setup`.
    #[serde(
        default,
        deserialize_with = "objects_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(max_items = 1000)]
    pub project_setup: Option<Vec<SetupCommand>>,
    /// Size of its VMs; `medium` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_size: Option<VmSize>,
    /// Most VMs the project may have at once, in any state; 0 forbids it a pool, `null` or absent sets no limit of its own.
    #[serde(
        default,
        deserialize_with = "crate::patch::whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(minimum = 0, maximum = 10_000)]
    pub max_vms: Option<u32>,
    /// Who makes the commits in its VMs; the owner of the claiming token when absent.
    #[serde(
        default,
        deserialize_with = "object_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    pub git_identity: Option<GitIdentity>,
    /// Whether Git LFS objects are fetched, for every repository that does not say it itself; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lfs: Option<bool>,
    /// Whether submodules are fetched, for every repository that does not say it itself; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submodules: Option<bool>,
}

/// Body of `PATCH /projects/{id}`; absent keeps, `null` clears where it is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({ "description": "The shop", "maxVms": 10 }))]
pub struct PatchProject {
    /// Its name.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Name)]
    pub name: Option<Name>,
    /// What it is, for people.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Description>)]
    pub description: Option<Option<Description>>,
    /// Short code that task names start with.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Name)]
    pub task_code: Option<Name>,
    /// Its repositories, in order.
    #[serde(
        default,
        deserialize_with = "present_objects",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false, max_items = 50)]
    pub repos: Option<Vec<RepoInput>>,
    /// Digest prefix or name of the guest image.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Name>)]
    pub image: Option<Option<Name>>,
    /// Commands of the step `project_setup`.
    #[serde(
        default,
        deserialize_with = "present_objects_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<Vec<SetupCommand>>, max_items = 1000)]
    pub project_setup: Option<Option<Vec<SetupCommand>>>,
    /// Size of its VMs.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub vm_size: Option<VmSize>,
    /// Most VMs the project may have at once, in any state; 0 forbids it a pool, `null` sets no limit of its own.
    #[serde(
        default,
        deserialize_with = "crate::patch::present_whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>, minimum = 0, maximum = 10_000)]
    pub max_vms: Option<Option<u32>>,
    /// Most claims that may hold a VM at once; `null` sets no limit of its own.
    #[serde(
        default,
        deserialize_with = "crate::patch::present_whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 10_000)]
    pub max_claims: Option<Option<u32>>,
    /// A claimed VM that nobody uses for so many minutes is paused, and resumed by the next call into it; `null`: never.
    #[serde(
        default,
        deserialize_with = "crate::patch::present_whole_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 10_080)]
    pub idle_pause_minutes: Option<Option<u32>>,
    /// Whether such a VM is paused to the disk, and not in memory.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub idle_pause_to_disk: Option<bool>,
    /// So many minutes before its end a lease is warned of; 0: not at all.
    #[serde(
        default,
        deserialize_with = "crate::patch::whole",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(nullable = false, minimum = 0, maximum = 10_080)]
    pub lease_warning_minutes: Option<u32>,
    /// Who makes the commits in its VMs; the owner of the claiming token when `null`.
    #[serde(
        default,
        deserialize_with = "present_object_or_null",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<GitIdentity>)]
    pub git_identity: Option<Option<GitIdentity>>,
    /// Whether Git LFS objects are fetched, for every repository that does not say it itself.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub lfs: Option<bool>,
    /// Whether submodules are fetched, for every repository that does not say it itself.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub submodules: Option<bool>,
}

/// The branches of one repository of a project.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepoBranches {
    /// `org/name`.
    pub repo_full_name: String,
    /// The branch that the pool's VMs start on.
    pub branch: String,
    /// Whether the repository has it; `null` when it cannot be asked.
    #[schema(required)]
    pub is_there: Option<bool>,
    /// Its branches, at most 1000; `null` when it cannot be asked.
    #[schema(required)]
    pub branches: Option<Vec<String>>,
}

/// Reply of `DELETE /projects/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProjectDeleted {
    /// Always true: an unknown project is a 404.
    pub deleted: bool,
    /// The project that is gone.
    pub id: ProjectId,
}
