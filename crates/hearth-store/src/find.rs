//! ReadyCount-ups for people: what a text means that a person typed, and which claims there are.

use hearth_api::find::{ClaimItem, InstanceFound, LAST, ProjectFound};
use hearth_api::ids::{ProjectId, TokenId, VmId};
use hearth_core::state::InstanceState;

use super::{Store, StoreError, db, optional_timestamp, parse, timestamp};

/// Most candidates of one look-up: enough to show a person what a text may mean.
const MAX_FOUND: i64 = 10;
/// Shortest end of an id that stands for it.
const SHORTEST_END: usize = 4;

/// Whose projects, instances and claims a caller sees.
#[derive(Debug, Clone, Copy)]
pub struct Sight<'a> {
    /// The tenant's.
    pub tenant: &'a str,
    /// Of this project alone.
    pub project: Option<&'a ProjectId>,
    /// What this token claimed alone.
    pub claimed_by: Option<&'a TokenId>,
    /// Of projects alone whose names begin so.
    pub name_prefix: Option<&'a str>,
}

#[derive(sqlx::FromRow)]
struct RawInstance {
    id: String,
    project_id: String,
    project_name: String,
    state: Option<String>,
    failed: bool,
    task: Option<String>,
    claimed_at: Option<i64>,
    place: i64,
}

#[derive(sqlx::FromRow)]
struct RawClaim {
    instance_id: String,
    project_id: String,
    project_name: String,
    task: Option<String>,
    owner: Option<String>,
    created_at: i64,
    expires_at: i64,
    paused_because: Option<String>,
    lease_warning_minutes: i64,
    vm_id: String,
    rebooted_at: Option<i64>,
    vm_ended_at: Option<i64>,
    vm_ended_why: Option<String>,
}

impl Store {
    /// The projects that a text means: the one of this id, else the one of this name, else those whose ids begin so.
    pub async fn find_projects(&self, sight: Sight<'_>, text: &str) -> Result<Vec<ProjectFound>, StoreError> {
        let rows: Vec<(String, String, i64)> = db::query_as(
            "SELECT id, name, CAST(CASE WHEN id = $3 THEN 0 WHEN lower(trim(name)) = lower(trim($3)) THEN 1 ELSE 2 END AS BIGINT) AS place
             FROM project
             WHERE tenant = $1 AND ($2 IS NULL OR id = $2) AND ($5 IS NULL OR substr(name, 1, length($5)) = $5)
               AND (id = $3 OR lower(trim(name)) = lower(trim($3)) OR substr(id, 1, length($3)) = $3)
             ORDER BY place, id LIMIT $4",
        )
        .bind(sight.tenant)
        .bind(sight.project.map(ProjectId::as_str))
        .bind(text)
        .bind(MAX_FOUND)
        .bind(sight.name_prefix)
        .fetch_all(&self.read)
        .await?;
        let best = rows.first().map(|(_, _, place)| *place);
        rows.into_iter()
            .filter(|(_, _, place)| Some(*place) == best)
            .map(|(id, name, _)| {
                Ok(ProjectFound {
                    id: parse("project.id", &id)?,
                    name,
                })
            })
            .collect()
    }

    /// The instances that a text means: `last` is the one that `caller` claimed last; else the one of this id, else those
    /// claimed for this task, else those whose ids begin or end so. Living ones come first; of what is gone only the claim
    /// is known.
    pub async fn find_instances(
        &self,
        sight: Sight<'_>,
        caller: &TokenId,
        text: &str,
    ) -> Result<Vec<InstanceFound>, StoreError> {
        let is_last = text == LAST;
        let rows: Vec<RawInstance> = db::query_as(
            "WITH seen AS (SELECT id, project_id FROM instance UNION SELECT instance_id, project_id FROM claim)
             SELECT seen.id, seen.project_id, project.name AS project_name, instance.state,
                    instance.failure_reason IS NOT NULL AS failed, claim.key AS task, claim.created_at AS claimed_at,
                    CAST(CASE WHEN seen.id = $4 THEN 0 WHEN $5 THEN 1 WHEN claim.key = $4 THEN 2 ELSE 3 END AS BIGINT) AS place
             FROM seen
             JOIN project ON project.id = seen.project_id AND project.tenant = $1
             LEFT JOIN instance ON instance.id = seen.id
             LEFT JOIN claim ON claim.instance_id = seen.id
             WHERE ($2 IS NULL OR seen.project_id = $2) AND ($9 IS NULL OR substr(project.name, 1, length($9)) = $9) AND ($3 IS NULL OR claim.token_id = $3)
               AND (claim.instance_id IS NOT NULL OR instance.state <> 'deleting')
               AND CASE WHEN $5 THEN claim.token_id = $6
                        ELSE seen.id = $4 OR claim.key = $4 OR substr(seen.id, 1, length($4)) = $4
                             OR substr(seen.id, 1, length($4) + 4) = 'wpi_' || $4
                             OR length($4) >= $7 AND length($4) <= length(seen.id)
                                AND substr(seen.id, length(seen.id) - length($4) + 1) = $4 END
             ORDER BY place, instance.id IS NULL OR claim.ended_at IS NOT NULL, claim.created_at DESC, seen.id DESC LIMIT $8",
        )
        .bind(sight.tenant)
        .bind(sight.project.map(ProjectId::as_str))
        .bind(sight.claimed_by.map(TokenId::as_str))
        .bind(text)
        .bind(is_last)
        .bind(caller.as_str())
        .bind(i64::try_from(SHORTEST_END).unwrap_or(i64::MAX))
        .bind(if is_last { 1 } else { MAX_FOUND })
        .bind(sight.name_prefix)
        .fetch_all(&self.read)
        .await?;
        let best = rows.first().map(|row| row.place);
        rows.into_iter()
            .filter(|row| Some(row.place) == best)
            .map(|row| {
                let state = row.state.map(|state| parse::<InstanceState>("instance.state", &state));
                Ok(InstanceFound {
                    id: parse("instance.id", &row.id)?,
                    project_id: parse("instance.project_id", &row.project_id)?,
                    project_name: row.project_name,
                    status: state.transpose()?.and_then(|state| state.status(row.failed)),
                    task_id: row.task,
                    claimed_at: optional_timestamp(row.claimed_at)?,
                })
            })
            .collect()
    }

    /// The claims that have not ended, newest first, each with its VM. Whether that answers is not known here.
    pub async fn claims(&self, sight: Sight<'_>) -> Result<Vec<(VmId, ClaimItem)>, StoreError> {
        let rows: Vec<RawClaim> = db::query_as(
            "SELECT claim.instance_id, claim.project_id, project.name AS project_name, claim.key AS task, claim.owner,
                    claim.created_at, claim.expires_at, claim.paused_because, project.lease_warning_minutes, instance.vm_id, instance.rebooted_at,
                    instance.vm_ended_at, instance.vm_ended_why
             FROM claim
             JOIN project ON project.id = claim.project_id AND project.tenant = $1
             JOIN instance ON instance.id = claim.instance_id AND instance.state = 'claimed'
             WHERE claim.ended_at IS NULL AND (instance.fork_of IS NULL OR claim.handed_over) AND ($2 IS NULL OR claim.project_id = $2) AND ($3 IS NULL OR claim.token_id = $3)
               AND ($4 IS NULL OR substr(project.name, 1, length($4)) = $4)
             ORDER BY claim.created_at DESC, claim.instance_id DESC",
        )
        .bind(sight.tenant)
        .bind(sight.project.map(ProjectId::as_str))
        .bind(sight.claimed_by.map(TokenId::as_str))
        .bind(sight.name_prefix)
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|row| {
                let lease_warning_minutes = u32::try_from(row.lease_warning_minutes)
                    .map_err(|error| StoreError::corrupt("project.lease_warning_minutes", error))?;
                let item = ClaimItem {
                    id: parse("claim.instance_id", &row.instance_id)?,
                    project_id: parse("claim.project_id", &row.project_id)?,
                    project_name: row.project_name,
                    task_id: row.task,
                    owner: row.owner,
                    claimed_at: timestamp(row.created_at)?,
                    expires_at: timestamp(row.expires_at)?,
                    rebooted_at: optional_timestamp(row.rebooted_at)?,
                    vm_ended_at: optional_timestamp(row.vm_ended_at)?,
                    vm_ended_because: row.vm_ended_why,
                    lease_warning_minutes,
                    lease_ends_soon: false,
                    unresponsive: None,
                    paused: false,
                    paused_to_disk: false,
                    paused_because: row.paused_because,
                };
                Ok((parse("instance.vm_id", &row.vm_id)?, item))
            })
            .collect()
    }
}
