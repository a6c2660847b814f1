//! Pools: their configuration.

use std::collections::HashMap;

use hearth_api::event::EventKind;
use hearth_api::ids::ProjectId;
use hearth_api::pool::{Config, PatchPool, PoolMetadata, SetupCommand};
use hearth_api::schedule::PoolSchedule;
use jiff::Timestamp;
use serde_json::json;

use super::events::Change;
use super::writer::Writing;
use super::{ProjectRow, Store, StoreError, db, from_json, millis, optional_timestamp, parse, timestamp, to_json};

/// Target size of a pool for which none was set.
const DEFAULT_TARGET: i64 = 1;
/// Maximum age of a pool for which none was set, minutes.
const DEFAULT_MAX_AGE: i64 = 60;

/// A configured pool.
#[derive(Debug, Clone)]
pub struct PoolRow {
    /// What the wire shows.
    pub config: Config,
    /// What the wire shows beside it.
    pub metadata: PoolMetadata,
    /// When its target size is another one.
    pub schedule: Option<PoolSchedule>,
}

/// What says how many VMs a pool keeps ready while it is enabled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSize {
    /// Its target size.
    pub own: i64,
    /// When that is another one.
    pub schedule: Option<PoolSchedule>,
    /// More VMs its project may not have.
    pub max_vms: Option<i64>,
}

impl PoolSize {
    pub(crate) fn read(own: i64, schedule: Option<String>, max_vms: Option<i64>) -> Result<Self, StoreError> {
        Ok(Self {
            own,
            schedule: schedule.map(|text| from_json("pool.schedule", &text)).transpose()?,
            max_vms,
        })
    }
}

#[derive(sqlx::FromRow)]
struct Raw {
    project_id: String,
    enabled: bool,
    target_size: i64,
    max_age_minutes: i64,
    branch: Option<String>,
    setup_commands: Option<String>,
    created_at: i64,
    updated_at: i64,
    last_provisioned_at: Option<i64>,
    last_claimed_at: Option<i64>,
    schedule: Option<String>,
}

impl TryFrom<Raw> for PoolRow {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        let setup_commands: Option<Vec<SetupCommand>> = raw
            .setup_commands
            .map(|text| from_json("pool.setup_commands", &text))
            .transpose()?;
        let schedule = raw.schedule.map(|text| from_json("pool.schedule", &text)).transpose()?;
        Ok(Self {
            schedule,
            config: Config {
                enabled: raw.enabled,
                target_size: raw.target_size,
                max_age_minutes: raw.max_age_minutes,
                branch: raw.branch,
                setup_commands,
                created_at: timestamp(raw.created_at)?,
                updated_at: timestamp(raw.updated_at)?,
            },
            metadata: PoolMetadata {
                last_provisioned_at: optional_timestamp(raw.last_provisioned_at)?,
                last_claimed_at: optional_timestamp(raw.last_claimed_at)?,
            },
        })
    }
}

impl Store {
    /// The pool of a project, if it was ever configured.
    pub async fn pool(&self, project: &ProjectId) -> Result<Option<PoolRow>, StoreError> {
        let raw: Option<Raw> = db::query_as("SELECT * FROM pool WHERE project_id = $1")
            .bind(project.as_str())
            .fetch_optional(&self.read)
            .await?;
        raw.map(PoolRow::try_from).transpose()
    }

    /// Every pool that was ever configured and is at home on this server, by its project.
    pub async fn pools(&self) -> Result<HashMap<ProjectId, PoolRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as(
            "SELECT * FROM pool
             WHERE $1 = '' OR EXISTS (SELECT 1 FROM home WHERE home.project_id = pool.project_id AND home.server = $1)",
        )
        .bind(self.server())
        .fetch_all(&self.read)
        .await?;
        let pools = raw.into_iter().map(|raw| {
            let project = parse("pool.project_id", &raw.project_id)?;
            Ok((project, PoolRow::try_from(raw)?))
        });
        pools.collect()
    }

    /// Every project whose pool is enabled and at home on this server, with its pool.
    pub async fn enabled_pools(&self) -> Result<Vec<(ProjectRow, PoolRow)>, StoreError> {
        let mut pools = self.pools().await?;
        let projects = self.all_projects().await?.into_iter();
        let enabled = projects.filter_map(|project| {
            let pool = pools.remove(&project.id).filter(|pool| pool.config.enabled)?;
            Some((project, pool))
        });
        Ok(enabled.collect())
    }

    /// Failures up to now do not count against the pool's recipe any more. False when there is no pool.
    pub async fn retry_pool(&self, project: &ProjectId, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let done = db::query("UPDATE pool SET retried_at = $2 WHERE project_id = $1")
            .bind(project.as_str())
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
        let retried = done.rows_affected() == 1;
        if retried {
            tx.tell(Change::of_project(EventKind::PoolRetried, project, now))
                .await?;
        }
        tx.commit().await?;
        Ok(retried)
    }

    /// Applies a change, making the pool with its defaults when there is none. `None` when the project is gone.
    pub async fn change_pool(
        &self,
        project: &ProjectId,
        change: &PatchPool,
        now: Timestamp,
    ) -> Result<Option<PoolRow>, StoreError> {
        let mut tx = self.write.begin().await?;
        make_pool(&mut tx, project, now).await?;
        let commands = match &change.setup_commands {
            Some(Some(commands)) => Some(to_json(commands)?),
            _ => None,
        };
        let raw: Option<Raw> = db::query_as(
            "UPDATE pool SET
                enabled = coalesce($2, enabled),
                target_size = coalesce($3, target_size),
                max_age_minutes = coalesce($4, max_age_minutes),
                branch = CASE WHEN $5 THEN $6 ELSE branch END,
                setup_commands = CASE WHEN $7 THEN $8 ELSE setup_commands END,
                updated_at = $9
             WHERE project_id = $1 RETURNING *",
        )
        .bind(project.as_str())
        .bind(change.enabled)
        .bind(change.target_size)
        .bind(change.max_age_minutes)
        .bind(change.branch.is_some())
        .bind(change.branch.as_ref().and_then(|branch| branch.as_deref()))
        .bind(change.setup_commands.is_some())
        .bind(commands)
        .bind(millis(now))
        .fetch_optional(&mut *tx)
        .await?;
        changed(tx, project, raw, now).await
    }

    /// Sets or removes a pool's schedule, making the pool with its defaults when there is none. `None` when the project is gone.
    pub async fn put_schedule(
        &self,
        project: &ProjectId,
        schedule: Option<&PoolSchedule>,
        now: Timestamp,
    ) -> Result<Option<PoolRow>, StoreError> {
        let schedule = schedule.map(to_json).transpose()?;
        let mut tx = self.write.begin().await?;
        make_pool(&mut tx, project, now).await?;
        let raw: Option<Raw> =
            db::query_as("UPDATE pool SET schedule = $2, updated_at = $3 WHERE project_id = $1 RETURNING *")
                .bind(project.as_str())
                .bind(schedule)
                .bind(millis(now))
                .fetch_optional(&mut *tx)
                .await?;
        changed(tx, project, raw, now).await
    }
}

impl PoolRow {
    /// What says how many VMs it keeps ready.
    #[must_use]
    pub fn size(&self, project: &ProjectRow) -> PoolSize {
        PoolSize {
            own: self.config.target_size,
            schedule: self.schedule.clone(),
            max_vms: project.max_vms.map(i64::from),
        }
    }
}

/// Tells what the pool is now, and ends the transaction. `None` when there is none, because its project is gone.
async fn changed(
    mut tx: Writing,
    project: &ProjectId,
    raw: Option<Raw>,
    now: Timestamp,
) -> Result<Option<PoolRow>, StoreError> {
    let Some(row) = raw.map(PoolRow::try_from).transpose()? else {
        return Ok(None);
    };
    let detail = json!({
        "enabled": row.config.enabled,
        "targetSize": row.config.target_size,
        "maxAgeMinutes": row.config.max_age_minutes,
        "branch": row.config.branch,
        "schedule": row.schedule,
    });
    tx.tell(Change::of_project(EventKind::PoolChanged, project, now).with(detail))
        .await?;
    tx.commit().await?;
    Ok(Some(row))
}

/// The pool with its defaults, unless it is there or its project is gone.
async fn make_pool(tx: &mut db::Tx, project: &ProjectId, now: Timestamp) -> Result<(), StoreError> {
    db::query(
        "INSERT INTO pool (project_id, enabled, target_size, max_age_minutes, created_at, updated_at)
         SELECT id, FALSE, $2, $3, $4, $4 FROM project WHERE id = $1 ON CONFLICT DO NOTHING",
    )
    .bind(project.as_str())
    .bind(DEFAULT_TARGET)
    .bind(DEFAULT_MAX_AGE)
    .bind(millis(now))
    .execute(tx)
    .await?;
    Ok(())
}
