//! Counts over all projects, for metrics.

use hearth_api::claim::ClaimedRepo;
use hearth_api::ids::ProjectId;
use hearth_core::purpose::Purpose;
use hearth_core::state::InstanceState;
use jiff::Timestamp;

use super::{PoolSize, Store, StoreError, db, from_json, millis, parse, timestamp};

/// So many instances of a project in a state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceFigure {
    pub project: ProjectId,
    pub state: InstanceState,
    pub purpose: Purpose,
    pub count: u64,
    /// When the one came into its state that is in it longest.
    pub oldest: Timestamp,
}

/// An enabled pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolFigure {
    pub project: ProjectId,
    pub size: PoolSize,
    pub max_age_minutes: u64,
    /// When its newest template was made.
    pub template: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct RawPool {
    project_id: String,
    target_size: i64,
    schedule: Option<String>,
    max_vms: Option<i64>,
    max_age_minutes: i64,
    template: Option<i64>,
}

/// A project's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectFigure {
    pub id: ProjectId,
    pub tenant: String,
    pub name: String,
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

impl Store {
    /// The instances of all projects, counted; not mere records.
    pub async fn instance_figures(&self) -> Result<Vec<InstanceFigure>, StoreError> {
        let rows: Vec<(String, String, String, i64, i64)> = db::query_as(
            "SELECT project_id, state, purpose, count(*), min(state_since) FROM instance
             WHERE state <> 'archived' GROUP BY project_id, state, purpose",
        )
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|(project, state, purpose, number, oldest)| {
                Ok(InstanceFigure {
                    project: parse("instance.project_id", &project)?,
                    state: parse("instance.state", &state)?,
                    purpose: parse("instance.purpose", &purpose)?,
                    count: count(number),
                    oldest: timestamp(oldest)?,
                })
            })
            .collect()
    }

    /// What the ready VMs of pools have checked out: one entry for all of a project that have the same.
    pub async fn ready_checkouts(&self) -> Result<Vec<(ProjectId, Vec<ClaimedRepo>)>, StoreError> {
        let rows: Vec<(String, String)> =
            db::query_as("SELECT DISTINCT project_id, repos FROM instance WHERE state = 'ready' AND purpose = 'pool'")
                .fetch_all(&self.read)
                .await?;
        rows.into_iter()
            .map(|(project, repos)| {
                let project = parse("instance.project_id", &project)?;
                Ok((project, from_json("instance.repos", &repos)?))
            })
            .collect()
    }

    /// The enabled pools.
    pub async fn pool_figures(&self) -> Result<Vec<PoolFigure>, StoreError> {
        let rows: Vec<RawPool> = db::query_as(
            "SELECT project_id, target_size, schedule, project.max_vms, max_age_minutes,
                    (SELECT max(created_at) FROM template WHERE template.project_id = pool.project_id) AS template
             FROM pool JOIN project ON project.id = pool.project_id WHERE enabled",
        )
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|raw| {
                Ok(PoolFigure {
                    project: parse("pool.project_id", &raw.project_id)?,
                    size: PoolSize::read(raw.target_size, raw.schedule, raw.max_vms)?,
                    max_age_minutes: count(raw.max_age_minutes),
                    template: raw.template.map(timestamp).transpose()?,
                })
            })
            .collect()
    }

    /// The names of all projects.
    pub async fn project_figures(&self) -> Result<Vec<ProjectFigure>, StoreError> {
        let rows: Vec<(String, String, String)> = db::query_as("SELECT id, tenant, name FROM project ORDER BY id")
            .fetch_all(&self.read)
            .await?;
        rows.into_iter()
            .map(|(id, tenant, name)| {
                let id = parse("project.id", &id)?;
                Ok(ProjectFigure { id, tenant, name })
            })
            .collect()
    }

    /// How many leases of claims end before this time.
    pub async fn leases_ending(&self, before: Timestamp) -> Result<u64, StoreError> {
        let number: i64 = db::query_scalar(
            "SELECT count(*) FROM claim JOIN instance ON instance.id = claim.instance_id
             WHERE claim.ended_at IS NULL AND instance.state = 'claimed' AND claim.expires_at < $1",
        )
        .bind(millis(before))
        .fetch_one(&self.read)
        .await?;
        Ok(count(number))
    }
}
