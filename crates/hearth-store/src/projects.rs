//! Projects.

use hearth_api::event::EventKind;
use hearth_api::ids::ProjectId;
use hearth_api::pool::SetupCommand;
use hearth_api::project::{GitIdentity, ProjectView, RepoView, VmSize};
use hearth_api::setup::SetupBody;
use hearth_api::values::{Branch, RepoFullName};
use hearth_core::checkout::Remote;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::claim_rules::ClaimRules;
use super::events::Change;
use super::moves::delete_rows;
use super::{RunOn as _, Store, StoreError, db, from_json, millis, parse, timestamp, to_json};

/// A project with everything that is not shown on the wire.
#[derive(Debug, Clone)]
pub struct ProjectRow {
    pub id: ProjectId,
    /// Whose it is.
    pub tenant: String,
    pub name: String,
    pub description: Option<String>,
    /// Short code.
    pub task_code: String,
    /// Its repositories.
    pub repos: Vec<RepoSource>,
    /// The image it wants.
    pub image: Option<String>,
    /// Size of its VMs.
    pub vm_size: VmSize,
    /// Commands of `project_setup`.
    pub project_setup: Option<Vec<SetupCommand>>,
    /// The setup object as it was saved. Its VM size and branches are the project's: they are not read from here.
    pub setup: Option<SetupBody>,
    /// Most VMs it may have at once; 0 forbids it a pool.
    pub max_vms: Option<u32>,
    /// What it says of its claims.
    pub claim_rules: ClaimRules,
    /// Who makes the commits in its VMs; the owner of the claiming token when there is none.
    pub git_identity: Option<GitIdentity>,
    /// Counts up with every change of its shared variables.
    pub variables_version: i64,
    /// Counts up with every change of its git credentials; 0 until it had one.
    pub credentials_version: i64,
    /// Counts up when its template is renewed without its inputs having changed.
    pub template_epoch: i64,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// A repository and where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RepoSource {
    /// `org/name`.
    pub repo_full_name: RepoFullName,
    /// The branch its instances start on.
    pub branch: Branch,
    /// Where the host fetches it from; no credentials in it.
    pub url: String,
    /// Whether what Git LFS keeps of it comes along.
    #[serde(default = "yes")]
    pub lfs: bool,
    /// Whether its submodules come along.
    #[serde(default = "yes")]
    pub submodules: bool,
}

/// What rows of before mean that do not say it.
fn yes() -> bool {
    true
}

impl ProjectRow {
    /// Where this repository of the project is fetched from.
    #[must_use]
    pub fn remote(&self, repo: &RepoSource) -> Remote {
        Remote {
            tenant: self.tenant.clone(),
            project: self.fetches_for(),
            url: repo.url.clone(),
        }
    }

    /// The project itself, once it has had credentials: what was fetched with those is no other project's. Not only while it has
    /// some, because what was fetched stays.
    #[must_use]
    pub fn fetches_for(&self) -> Option<ProjectId> {
        (self.credentials_version > 0).then(|| self.id.clone())
    }

    /// Everything that can be set.
    #[must_use]
    pub fn to_view(&self) -> ProjectView {
        ProjectView {
            id: self.id.clone(),
            name: self.name.clone(),
            description: self.description.clone(),
            task_code: self.task_code.clone(),
            repos: self
                .repos
                .iter()
                .map(|repo| RepoView {
                    repo_full_name: repo.repo_full_name.to_string(),
                    branch: repo.branch.to_string(),
                    url: repo.url.clone(),
                    lfs: repo.lfs,
                    submodules: repo.submodules,
                })
                .collect(),
            image: self.image.clone(),
            project_setup: self.project_setup.clone(),
            vm_size: self.vm_size,
            max_vms: self.max_vms,
            max_claims: self.claim_rules.max_claims,
            idle_pause_minutes: self.claim_rules.idle_pause_minutes,
            idle_pause_to_disk: self.claim_rules.idle_pause_to_disk,
            lease_warning_minutes: self.claim_rules.lease_warning_minutes,
            git_identity: self.git_identity.clone(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        }
    }
}

#[derive(sqlx::FromRow)]
struct Raw {
    id: String,
    tenant: String,
    name: String,
    description: Option<String>,
    task_code: String,
    repos: String,
    image: Option<String>,
    vm_size: String,
    project_setup: Option<String>,
    setup: Option<String>,
    max_vms: Option<i64>,
    max_claims: Option<i64>,
    idle_pause_minutes: Option<i64>,
    idle_pause_to_disk: bool,
    lease_warning_minutes: i64,
    git_identity: Option<String>,
    variables_version: i64,
    credentials_version: i64,
    template_epoch: i64,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<Raw> for ProjectRow {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        let number = |column, number: i64| u32::try_from(number).map_err(|error| StoreError::corrupt(column, error));
        let optional = |column, value: Option<i64>| value.map(|value| number(column, value)).transpose();
        Ok(Self {
            id: parse("project.id", &raw.id)?,
            tenant: raw.tenant,
            name: raw.name,
            description: raw.description,
            task_code: raw.task_code,
            repos: from_json("project.repos", &raw.repos)?,
            image: raw.image,
            vm_size: parse("project.vm_size", &raw.vm_size)?,
            project_setup: raw
                .project_setup
                .map(|text| from_json("project.project_setup", &text))
                .transpose()?,
            setup: raw.setup.map(|text| from_json("project.setup", &text)).transpose()?,
            max_vms: optional("project.max_vms", raw.max_vms)?,
            claim_rules: ClaimRules {
                max_claims: optional("project.max_claims", raw.max_claims)?,
                idle_pause_minutes: optional("project.idle_pause_minutes", raw.idle_pause_minutes)?,
                idle_pause_to_disk: raw.idle_pause_to_disk,
                lease_warning_minutes: number("project.lease_warning_minutes", raw.lease_warning_minutes)?,
            },
            git_identity: raw
                .git_identity
                .map(|text| from_json("project.git_identity", &text))
                .transpose()?,
            variables_version: raw.variables_version,
            credentials_version: raw.credentials_version,
            template_epoch: raw.template_epoch,
            created_at: timestamp(raw.created_at)?,
            updated_at: timestamp(raw.updated_at)?,
        })
    }
}

const IMAGES_OF_PROJECTS: &str = "SELECT DISTINCT image FROM project WHERE image IS NOT NULL";

/// The images that the projects of a data folder name, read from its database beside the server that may work with it. None where
/// there is no database; those of one in PostgreSQL only its server knows.
pub async fn images_of_data_folder(data_dir: &std::path::Path) -> Result<Vec<String>, StoreError> {
    let file = data_dir.join("hearth.db");
    if !file.exists() {
        if let Ok(text) = std::fs::read_to_string(data_dir.join("database")) {
            return Err(StoreError::Elsewhere {
                folder: data_dir.to_owned(),
                url: text.lines().next().unwrap_or_default().to_owned(),
            });
        }
        return Ok(Vec::new());
    }
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file).read_only(true);
    let mut connection = sqlx::ConnectOptions::connect(&options).await?;
    let named = db::query_scalar(IMAGES_OF_PROJECTS).fetch_all(&mut connection).await?;
    sqlx::Connection::close(connection).await?;
    Ok(named)
}

impl Store {
    /// Writes a new project; [`StoreError::NameTaken`] when another one of its tenant has its name.
    pub async fn insert_project(&self, project: &ProjectRow) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        need_free_name(&mut tx, project).await?;
        db::query(
            "INSERT INTO project (id, tenant, name, description, task_code, repos, image, vm_size, project_setup,
                                  variables_version, created_at, updated_at, setup, max_vms, git_identity)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
        )
        .bind(project.id.as_str())
        .bind(&project.tenant)
        .bind(&project.name)
        .bind(&project.description)
        .bind(&project.task_code)
        .bind(to_json(&project.repos)?)
        .bind(&project.image)
        .bind(project.vm_size.as_str())
        .bind(project.project_setup.as_ref().map(to_json).transpose()?)
        .bind(project.variables_version)
        .bind(millis(project.created_at))
        .bind(millis(project.updated_at))
        .bind(project.setup.as_ref().map(to_json).transpose()?)
        .bind(project.max_vms)
        .bind(project.git_identity.as_ref().map(to_json).transpose()?)
        .execute(&mut *tx)
        .await?;
        let change = Change::of_project(EventKind::ProjectCreated, &project.id, project.created_at);
        tx.tell(change.with(json!({ "name": project.name }))).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Changes what a PATCH may change, reading and writing in one transaction: of two changes at the same time neither undoes
    /// the other. `change` does no work but on the row, since every other writer waits for it; its refusal leaves everything
    /// as it was. `None` when the project is gone.
    pub async fn change_project<E: From<StoreError>>(
        &self,
        id: &ProjectId,
        now: Timestamp,
        change: impl FnOnce(&mut ProjectRow) -> Result<(), E> + Send,
    ) -> Result<Option<ProjectRow>, E> {
        let mut tx = self.write.begin().await.map_err(StoreError::from)?;
        let raw: Option<Raw> = db::query_as("SELECT * FROM project WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(StoreError::from)?;
        let Some(mut project) = raw.map(ProjectRow::try_from).transpose()? else {
            return Ok(None);
        };
        change(&mut project)?;
        project.updated_at = now;
        need_free_name(&mut tx, &project).await?;
        write_changed(&mut tx, &project).await?;
        let change = Change::of_project(EventKind::ProjectChanged, id, now);
        tx.tell(change.with(json!({ "what": "configuration", "name": project.name })))
            .await?;
        tx.commit().await.map_err(StoreError::from)?;
        Ok(Some(project))
    }

    /// The template of this epoch is there: from now on it is the project's.
    pub async fn set_template_epoch(&self, id: &ProjectId, epoch: i64) -> Result<(), StoreError> {
        db::query("UPDATE project SET template_epoch = $2 WHERE id = $1 AND template_epoch < $2")
            .bind(id.as_str())
            .bind(epoch)
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    /// One project of any tenant.
    pub async fn project(&self, id: &ProjectId) -> Result<Option<ProjectRow>, StoreError> {
        let raw: Option<Raw> = db::query_as("SELECT * FROM project WHERE id = $1")
            .bind(id.as_str())
            .fetch_optional(&self.read)
            .await?;
        raw.map(ProjectRow::try_from).transpose()
    }

    /// A tenant's projects by id, after the one named; `only` narrows to one, `prefix` to those whose names begin so.
    pub async fn projects(
        &self,
        tenant: &str,
        only: Option<&ProjectId>,
        prefix: Option<&str>,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<ProjectRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as(
            "SELECT * FROM project
             WHERE tenant = $1 AND ($2 IS NULL OR id = $2) AND ($3 IS NULL OR id > $3)
               AND ($5 IS NULL OR substr(name, 1, length($5)) = $5)
             ORDER BY id LIMIT $4",
        )
        .bind(tenant)
        .bind(only.map(ProjectId::as_str))
        .bind(after)
        .bind(limit)
        .bind(prefix)
        .fetch_all(&self.read)
        .await?;
        raw.into_iter().map(ProjectRow::try_from).collect()
    }

    /// Every project: what the pool loop sees.
    pub async fn all_projects(&self) -> Result<Vec<ProjectRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as("SELECT * FROM project ORDER BY id")
            .fetch_all(&self.read)
            .await?;
        raw.into_iter().map(ProjectRow::try_from).collect()
    }

    /// The images that projects name: names, or beginnings of digests.
    pub async fn images_of_projects(&self) -> Result<Vec<String>, StoreError> {
        let named = db::query_scalar(IMAGES_OF_PROJECTS).fetch_all(&self.read).await?;
        Ok(named)
    }

    /// Removes a project, its pool and its variables, and marks its instances for deletion, claimed ones too: their
    /// project is gone. False when there was none.
    pub async fn delete_project(&self, id: &ProjectId, now: Timestamp) -> Result<bool, StoreError> {
        self.freeing(|| self.delete_project_once(id, now)).await
    }

    async fn delete_project_once(&self, id: &ProjectId, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let ids: Vec<String> = db::query_scalar("SELECT id FROM instance WHERE project_id = $1")
            .bind(id.as_str())
            .fetch_all(&mut *tx)
            .await?;
        const WHY: &str = "its project was deleted";
        delete_rows(&mut tx, ids, WHY, now).await?;
        let ended: Vec<String> = db::query_scalar(
            "UPDATE claim SET ended_at = $2 WHERE project_id = $1 AND ended_at IS NULL RETURNING instance_id",
        )
        .bind(id.as_str())
        .bind(millis(now))
        .fetch_all(&mut *tx)
        .await?;
        for instance in ended {
            let instance = parse("claim.instance_id", &instance)?;
            let change = Change::of_instance(EventKind::ClaimEnded, id.as_str(), &instance, now);
            tx.tell(change.because(WHY)).await?;
        }
        let known: bool = db::query_scalar("SELECT EXISTS (SELECT 1 FROM project WHERE id = $1)")
            .bind(id.as_str())
            .fetch_one(&mut *tx)
            .await?;
        if known {
            // While the row still says whose it is.
            tx.tell(Change::of_project(EventKind::ProjectDeleted, id, now)).await?;
        }
        let done = db::query("DELETE FROM project WHERE id = $1")
            .bind(id.as_str())
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }
}

/// Names are compared without blanks around them and without regard to the case of ASCII letters, as the index does.
async fn need_free_name(tx: &mut db::Tx, project: &ProjectRow) -> Result<(), StoreError> {
    let other: Option<String> = db::query_scalar(
        "SELECT id FROM project WHERE tenant = $1 AND lower(trim(name)) = lower(trim($2)) AND id <> $3 LIMIT 1",
    )
    .bind(&project.tenant)
    .bind(&project.name)
    .bind(project.id.as_str())
    .fetch_optional(tx)
    .await?;
    match other {
        Some(id) => Err(StoreError::NameTaken {
            project: parse("project.id", &id)?,
        }),
        None => Ok(()),
    }
}

/// Writes what a PATCH may change.
async fn write_changed(tx: &mut db::Tx, project: &ProjectRow) -> Result<(), StoreError> {
    db::query(
        "UPDATE project SET name = $2, description = $3, task_code = $4, repos = $5, image = $6, vm_size = $7,
                            project_setup = $8, updated_at = $9, setup = $10, max_vms = $11,
                            git_identity = $12, max_claims = $13, idle_pause_minutes = $14, idle_pause_to_disk = $15,
                            lease_warning_minutes = $16
         WHERE id = $1",
    )
    .bind(project.id.as_str())
    .bind(&project.name)
    .bind(&project.description)
    .bind(&project.task_code)
    .bind(to_json(&project.repos)?)
    .bind(&project.image)
    .bind(project.vm_size.as_str())
    .bind(project.project_setup.as_ref().map(to_json).transpose()?)
    .bind(millis(project.updated_at))
    .bind(project.setup.as_ref().map(to_json).transpose()?)
    .bind(project.max_vms)
    .bind(project.git_identity.as_ref().map(to_json).transpose()?)
    .bind(project.claim_rules.max_claims)
    .bind(project.claim_rules.idle_pause_minutes)
    .bind(project.claim_rules.idle_pause_to_disk)
    .bind(project.claim_rules.lease_warning_minutes)
    .execute(tx)
    .await?;
    Ok(())
}
