//! What a person sees first: every project of a tenant with the counts of its pool, in two statements whatever their number; and the
//! claims of the last hours.

use std::collections::HashMap;

use hearth_api::claim::{ClaimReply, ClaimSource};
use hearth_api::explain::MissCause;
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::redact::Redacted;
use jiff::Timestamp;

use super::{PoolSize, Sight, Store, StoreError, db, from_json, millis, parse, timestamp};

/// A project in the list.
#[derive(Debug, Clone)]
pub struct ProjectOverview {
    pub id: ProjectId,
    pub name: String,
    pub description: Option<String>,
    /// Its pool: whether it is enabled, and how many VMs it keeps ready then; `None` until it is first configured.
    pub pool: Option<(bool, u64)>,
    /// VMs that can be claimed.
    pub ready: u64,
    /// VMs that are being made.
    pub provisioning: u64,
    /// Boots that failed since the time that was asked for.
    pub failed: u64,
    /// VMs that tasks have.
    pub claimed: u64,
}

/// A boot that failed.
#[derive(Debug, Clone)]
pub struct FailureSeen {
    pub instance: InstanceId,
    pub reason: Redacted,
    pub at: Timestamp,
    /// A test boot, and not one of the pool.
    pub is_test: bool,
}

/// A claim, for figures.
#[derive(Debug, Clone)]
pub struct ClaimSeen {
    pub at: Timestamp,
    pub source: ClaimSource,
    pub wait_ms: u64,
    /// Why it was not warm; only the history knows.
    pub cause: Option<MissCause>,
}

#[derive(sqlx::FromRow)]
struct RawProject {
    id: String,
    name: String,
    description: Option<String>,
    enabled: Option<bool>,
    target_size: Option<i64>,
    schedule: Option<String>,
    max_vms: Option<i64>,
}

#[derive(sqlx::FromRow)]
struct RawCounts {
    project_id: String,
    ready: i64,
    provisioning: i64,
    failed: i64,
    claimed: i64,
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or_default()
}

impl Store {
    /// The projects that a caller sees, by name; failures count since then. `target`: how many VMs a pool of this size keeps ready.
    pub async fn overview(
        &self,
        sight: Sight<'_>,
        failed_since: Timestamp,
        target: impl Fn(&ProjectId, &PoolSize) -> u64,
    ) -> Result<Vec<ProjectOverview>, StoreError> {
        let only = sight.project.map(ProjectId::as_str);
        let projects: Vec<RawProject> = db::query_as(
            "SELECT project.id, project.name, project.description, pool.enabled, pool.target_size, pool.schedule,
                    project.max_vms
             FROM project LEFT JOIN pool ON pool.project_id = project.id
             WHERE project.tenant = $1 AND ($2 IS NULL OR project.id = $2)
               AND ($3 IS NULL OR substr(project.name, 1, length($3)) = $3)
             ORDER BY lower(project.name), project.id",
        )
        .bind(sight.tenant)
        .bind(only)
        .bind(sight.name_prefix)
        .fetch_all(&self.read)
        .await?;
        let counts: Vec<RawCounts> = db::query_as(
            "SELECT project_id,
                    count(*) FILTER (WHERE state = 'ready' AND purpose = 'pool' AND server = coalesce(
                        (SELECT home.server FROM home WHERE home.project_id = instance.project_id), server)) AS ready,
                    count(*) FILTER (WHERE state = 'provisioning' AND serves_claims) AS provisioning,
                    count(*) FILTER (WHERE state IN ('failed', 'retiring', 'archived') AND serves_claims
                                     AND failure_reason IS NOT NULL AND state_since >= $3) AS failed,
                    count(*) FILTER (WHERE state = 'claimed') AS claimed
             FROM instance
             WHERE project_id IN (SELECT id FROM project WHERE tenant = $1 AND ($2 IS NULL OR id = $2))
             GROUP BY project_id",
        )
        .bind(sight.tenant)
        .bind(only)
        .bind(millis(failed_since))
        .fetch_all(&self.read)
        .await?;
        let mut counts: HashMap<String, RawCounts> =
            counts.into_iter().map(|raw| (raw.project_id.clone(), raw)).collect();
        let overview = projects.into_iter().map(|raw| {
            let of = counts.remove(&raw.id);
            let of = |pick: fn(&RawCounts) -> i64| of.as_ref().map(pick).map(count).unwrap_or_default();
            let id = parse("project.id", &raw.id)?;
            let pool = match raw.enabled.zip(raw.target_size) {
                Some((enabled, own)) => {
                    let size = PoolSize::read(own, raw.schedule, raw.max_vms)?;
                    Some((enabled, target(&id, &size)))
                }
                None => None,
            };
            Ok(ProjectOverview {
                ready: of(|raw| raw.ready),
                provisioning: of(|raw| raw.provisioning),
                failed: of(|raw| raw.failed),
                claimed: of(|raw| raw.claimed),
                id,
                name: raw.name,
                description: raw.description,
                pool,
            })
        });
        overview.collect()
    }

    /// The newest boot of a project that failed since then.
    pub async fn newest_failure(
        &self,
        project: &ProjectId,
        since: Timestamp,
    ) -> Result<Option<FailureSeen>, StoreError> {
        let found: Option<(String, String, i64, String)> = db::query_as(
            "SELECT id, failure_reason, state_since, purpose FROM instance
             WHERE project_id = $1 AND state IN ('failed', 'retiring', 'archived') AND failure_reason IS NOT NULL
               AND state_since >= $2
             ORDER BY id DESC LIMIT 1",
        )
        .bind(project.as_str())
        .bind(millis(since))
        .fetch_optional(&self.read)
        .await?;
        found
            .map(|(id, reason, at, purpose)| {
                Ok(FailureSeen {
                    instance: parse("instance.id", &id)?,
                    reason: Redacted::stored(reason),
                    at: timestamp(at)?,
                    is_test: purpose.starts_with("test"),
                })
            })
            .transpose()
    }

    /// The claims that a caller sees and that were answered since then, oldest first; those that are kept.
    pub async fn claims_since(&self, sight: Sight<'_>, since: Timestamp) -> Result<Vec<ClaimSeen>, StoreError> {
        let rows: Vec<(i64, String)> = db::query_as(
            "SELECT claim.created_at, claim.reply FROM claim JOIN project ON project.id = claim.project_id
             WHERE project.tenant = $1 AND ($2 IS NULL OR project.id = $2) AND ($3 IS NULL OR claim.token_id = $3)
               AND ($5 IS NULL OR substr(project.name, 1, length($5)) = $5)
               AND claim.created_at >= $4 AND claim.handed_over
             ORDER BY claim.created_at",
        )
        .bind(sight.tenant)
        .bind(sight.project.map(ProjectId::as_str))
        .bind(sight.claimed_by.map(hearth_api::ids::TokenId::as_str))
        .bind(millis(since))
        .bind(sight.name_prefix)
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|(at, reply)| {
                let reply: ClaimReply = from_json("claim.reply", &reply)?;
                Ok(ClaimSeen {
                    at: timestamp(at)?,
                    source: reply.source,
                    wait_ms: reply.wait_ms,
                    cause: None,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::RunOn as _;
    use crate::testing::{Database, Kind, on_both};

    on_both!(thousand_projects_with_twenty_thousand_instances_are_counted_at_once);

    /// Without optimisation, SQLite's too, and while the machine does other things. Optimised it takes 14 ms of one processor.
    const QUICK: Duration = Duration::from_millis(300);

    async fn thousand_projects_with_twenty_thousand_instances_are_counted_at_once(kind: Kind) {
        let database = Database::new(kind);
        let store = database.open().await;
        // Of the 20 instances of each: 8 ready, 4 provisioning, 3 claimed, 5 failed, of which one long ago; another tenant's are not seen.
        for statement in [
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)
             INSERT INTO project (id, tenant, name, task_code, repos, vm_size, created_at, updated_at)
             SELECT 'prj_' || substr(CAST(10000 + i AS TEXT), 2), CASE WHEN i = 1000 THEN 'other' ELSE 'default' END,
                    'p' || substr(CAST(10000 + i AS TEXT), 2), 'P', '[]', 'small', 1, 1 FROM n",
            "INSERT INTO pool (project_id, enabled, target_size, max_age_minutes, created_at, updated_at)
             SELECT id, TRUE, 9, 60, 1, 1 FROM project",
            "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 19)
             INSERT INTO instance (id, project_id, vm_id, state, generation, purpose, recipe, memory_mib, failure_reason,
                                   created_at, state_since)
             SELECT 'wpi_' || project.id || '_' || substr(CAST(100 + i AS TEXT), 2), project.id,
                    'vm_' || project.id || '_' || substr(CAST(100 + i AS TEXT), 2),
                    CASE WHEN i < 8 THEN 'ready' WHEN i < 12 THEN 'provisioning' WHEN i < 15 THEN 'claimed' ELSE 'failed' END,
                    1, 'pool', 'r', 1024, CASE WHEN i < 15 THEN NULL ELSE 'exit code 1: no' END, 1,
                    CASE WHEN i = 15 THEN 1 ELSE 5000 END
             FROM n, project",
        ] {
            db::query(statement).run_on(&store.write).await.unwrap();
        }
        let sight = Sight {
            tenant: "default",
            project: None,
            claimed_by: None,
            name_prefix: None,
        };
        let since = Timestamp::from_millisecond(2000).unwrap();
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            let all = store.overview(sight, since, |_, size| count(size.own)).await.unwrap();
            quickest = quickest.min(start.elapsed());
            assert_eq!(all.len(), 1000);
            let counts = |one: &ProjectOverview| (one.ready, one.provisioning, one.claimed, one.failed, one.pool);
            assert!(all.iter().all(|one| counts(one) == (8, 4, 3, 4, Some((true, 9)))));
        }
        println!("1000 projects, 20000 instances: {quickest:?}");
        assert!(quickest < QUICK, "{quickest:?}");
        let failure = store
            .newest_failure(&"prj_0000".parse().unwrap(), since)
            .await
            .unwrap()
            .unwrap();
        assert_eq!((failure.instance.as_str(), failure.is_test), ("wpi_prj_0000_19", false));
    }
}
