//! History: records of claims and boots, written from their events, and kept when their rows are gone.

use std::collections::HashMap;

use hearth_api::event::{Event, EventKind};
use hearth_api::history::{BootRecord, ClaimRecord};
use hearth_api::ids::{InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};

use super::writer::Writing;
use super::{
    EventRow, RunOn as _, Store, StoreError, db, from_json, millis, optional_timestamp, parse, set_meta, timestamp,
    to_json,
};

/// The last event that is in the history.
const CURSOR: &str = "history_after";
/// What a record takes on the disk besides its log, about, bytes.
const RECORD_BYTES: i64 = 600;

/// Which records are read.
#[derive(Debug, Clone, Copy)]
pub struct HistoryFilter<'a> {
    pub project: &'a ProjectId,
    /// Older than this.
    pub before: Option<Timestamp>,
    /// Only claims that were not warm, and boots that failed.
    pub troubled: bool,
    /// Only those with this text in an id, a task, an owner or a failure.
    pub text: Option<&'a str>,
    pub limit: u32,
}

/// What of the history is kept.
#[derive(Debug, Clone, Copy)]
pub struct HistoryKept {
    pub since: Timestamp,
    /// What all of it may take, about, bytes.
    pub bytes: u64,
}

#[derive(sqlx::FromRow)]
struct RawClaim {
    instance_id: String,
    claimed_at: i64,
    ended_at: Option<i64>,
    ended_because: Option<String>,
    owner: Option<String>,
    task: Option<String>,
    source: String,
    cause: Option<String>,
    wait_ms: i64,
    total_ms: Option<f64>,
    recipe: String,
}

#[derive(sqlx::FromRow)]
struct RawBoot {
    instance_id: String,
    purpose: String,
    recipe: String,
    ordered_at: i64,
    reason: Option<String>,
    ended_at: Option<i64>,
    outcome: Option<String>,
    failure: Option<String>,
    gone_at: Option<i64>,
    gone_because: Option<String>,
    has_log: bool,
}

#[derive(sqlx::FromRow)]
struct RawBootWithLog {
    #[sqlx(flatten)]
    boot: RawBoot,
    log: Option<Vec<u8>>,
}

/// The columns of [`RawBoot`].
const BOOT: &str =
    "instance_id, purpose, recipe, ordered_at, reason, ended_at, outcome, failure, gone_at, gone_because,
                    log IS NOT NULL AS has_log";

/// A name of the wire as its type.
pub(crate) fn named<T: serde::de::DeserializeOwned>(what: &str, name: &str) -> Result<T, StoreError> {
    from_json(what, &to_json(&name)?)
}

impl TryFrom<RawClaim> for ClaimRecord {
    type Error = StoreError;
    fn try_from(raw: RawClaim) -> Result<Self, StoreError> {
        let cause = raw.cause.map(|cause| named("claim_history.cause", &cause));
        Ok(Self {
            id: parse("claim_history.instance_id", &raw.instance_id)?,
            claimed_at: timestamp(raw.claimed_at)?,
            ended_at: optional_timestamp(raw.ended_at)?,
            ended_because: raw.ended_because,
            owner: raw.owner,
            task_id: raw.task,
            source: named("claim_history.source", &raw.source)?,
            cause: cause.transpose()?,
            wait_ms: u64::try_from(raw.wait_ms).unwrap_or_default(),
            total_ms: raw.total_ms,
            recipe: raw.recipe,
        })
    }
}

impl TryFrom<RawBoot> for BootRecord {
    type Error = StoreError;
    fn try_from(raw: RawBoot) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("boot_history.instance_id", &raw.instance_id)?,
            purpose: raw.purpose,
            recipe: raw.recipe,
            ordered_at: timestamp(raw.ordered_at)?,
            reason: raw.reason,
            ended_at: optional_timestamp(raw.ended_at)?,
            outcome: raw.outcome,
            failure: raw.failure,
            gone_at: optional_timestamp(raw.gone_at)?,
            gone_because: raw.gone_because,
            has_log: raw.has_log,
        })
    }
}

impl Store {
    /// The last event that is in the history.
    pub async fn history_cursor(&self) -> Result<u64, StoreError> {
        let value = self.meta(CURSOR).await?;
        value.map_or(Ok(0), |value| parse("meta.history_after", &value))
    }

    /// Writes what events tell into the history, all in one transaction, and up to which event it is. `logs` are those of boots that ended.
    pub async fn write_history(
        &self,
        events: &[EventRow],
        logs: &HashMap<InstanceId, Vec<u8>>,
        upto: u64,
    ) -> Result<(), StoreError> {
        let mut tx = self.write.begin_shared().await?;
        for EventRow { event, .. } in events {
            let Some(id) = &event.instance_id else { continue };
            match event.kind {
                EventKind::InstanceProvisioning => ordered(&mut tx, id, event).await?,
                EventKind::InstanceReady => ended(&mut tx, id, event, "ready", logs.get(id)).await?,
                EventKind::InstanceFailed => ended(&mut tx, id, event, "failed", logs.get(id)).await?,
                EventKind::InstanceRetiring | EventKind::InstanceDeleting => gone(&mut tx, id, event).await?,
                EventKind::ClaimHandedOver => handed_over(&mut tx, id, event).await?,
                EventKind::ClaimEnded => claim_ended(&mut tx, id, event).await?,
                _ => {}
            }
        }
        set_meta(&mut tx, CURSOR, &upto.to_string()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Claims, newest first.
    pub async fn claim_records(&self, filter: HistoryFilter<'_>) -> Result<Vec<ClaimRecord>, StoreError> {
        let found = self.dialect().position(
            "lower(instance_id || ' ' || coalesce(task, '') || ' ' || coalesce(owner, ''))",
            "lower($4)",
        );
        let query = format!(
            "SELECT * FROM claim_history
             WHERE project_id = $1 AND claimed_at < $2 AND (NOT $3 OR cause IS NOT NULL) AND ($4 IS NULL OR {found} > 0)
             ORDER BY claimed_at DESC, instance_id DESC LIMIT $5"
        );
        let raw: Vec<RawClaim> = self.filtered(query, filter).await?;
        raw.into_iter().map(ClaimRecord::try_from).collect()
    }

    /// Boots, newest first.
    pub async fn boot_records(&self, filter: HistoryFilter<'_>) -> Result<Vec<BootRecord>, StoreError> {
        let dialect = self.dialect();
        let found = dialect.position("lower(instance_id || ' ' || coalesce(failure, ''))", "lower($4)");
        let query = format!(
            "SELECT {BOOT} FROM boot_history
             WHERE project_id = $1 AND ordered_at < $2 AND (NOT $3 OR outcome = 'failed') AND ($4 IS NULL OR {found} > 0)
             ORDER BY ordered_at DESC, instance_id DESC LIMIT $5"
        );
        let raw: Vec<RawBoot> = self.filtered(query, filter).await?;
        raw.into_iter().map(BootRecord::try_from).collect()
    }

    /// What a query finds whose parameters are the filter's project, time, trouble, text and limit, in this order.
    async fn filtered<T: db::Row>(&self, query: String, filter: HistoryFilter<'_>) -> Result<Vec<T>, StoreError> {
        let found = db::query_as(sqlx::AssertSqlSafe(query))
            .bind(filter.project.as_str())
            .bind(filter.before.map_or(i64::MAX, millis))
            .bind(filter.troubled)
            .bind(filter.text)
            .bind(filter.limit);
        Ok(found.fetch_all(&self.read).await?)
    }

    /// A boot of a project with its log, as it was given to [`Store::write_history`].
    pub async fn boot_record(
        &self,
        project: &ProjectId,
        id: &InstanceId,
    ) -> Result<Option<(BootRecord, Option<Vec<u8>>)>, StoreError> {
        let query = format!("SELECT {BOOT}, log FROM boot_history WHERE instance_id = $1 AND project_id = $2");
        let raw: Option<RawBootWithLog> = db::query_as(sqlx::AssertSqlSafe(query))
            .bind(id.as_str())
            .bind(project.as_str())
            .fetch_optional(&self.read)
            .await?;
        raw.map(|raw| Ok((BootRecord::try_from(raw.boot)?, raw.log)))
            .transpose()
    }

    /// Removes the oldest records that are not to be kept, and those of projects that are gone, at most so many of each table at once; how
    /// many there were.
    pub async fn remove_history(&self, kept: HistoryKept, batch: u32) -> Result<u64, StoreError> {
        let bytes: i64 = db::query_scalar(
            "SELECT CAST((SELECT coalesce(sum(coalesce(length(log), 0) + $1), 0) FROM boot_history)
                  + (SELECT count(*) * $1 FROM claim_history) AS BIGINT)",
        )
        .bind(RECORD_BYTES)
        .fetch_one(&self.read)
        .await?;
        let is_full = u64::try_from(bytes).unwrap_or_default() > kept.bytes;
        let since = if is_full { Timestamp::MAX } else { kept.since };
        let some: bool = db::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM claim_history WHERE claimed_at < $1 OR project_id NOT IN (SELECT id FROM project))
                 OR EXISTS (SELECT 1 FROM boot_history WHERE ordered_at < $1 OR project_id NOT IN (SELECT id FROM project))",
        )
        .bind(millis(since))
        .fetch_one(&self.read)
        .await?;
        if !some {
            return Ok(0);
        }
        self.freeing(|| self.remove_history_once(since, batch)).await
    }

    async fn remove_history_once(&self, since: Timestamp, batch: u32) -> Result<u64, StoreError> {
        let mut removed = 0;
        for statement in [
            "DELETE FROM boot_history WHERE instance_id IN (
                SELECT instance_id FROM boot_history
                WHERE ordered_at < $1 OR project_id NOT IN (SELECT id FROM project) ORDER BY ordered_at LIMIT $2)",
            "DELETE FROM claim_history WHERE instance_id IN (
                SELECT instance_id FROM claim_history
                WHERE claimed_at < $1 OR project_id NOT IN (SELECT id FROM project) ORDER BY claimed_at LIMIT $2)",
        ] {
            let done = db::query(statement)
                .bind(millis(since))
                .bind(batch)
                .run_on(&self.write)
                .await?;
            removed += done.rows_affected();
        }
        Ok(removed)
    }
}

/// What the history says of how a pool was used.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolUse {
    /// When claims of the pool came, in order; the newest of them where there are very many.
    pub claims: Vec<Timestamp>,
    /// How long its VMs took to be made, the median; `None` when none was.
    pub refill: Option<SignedDuration>,
}

impl Store {
    /// How a pool was used since then. Claims that left it alone, and copies of VMs in use, do not count.
    pub async fn pool_use(&self, project: &ProjectId, since: Timestamp, most: u32) -> Result<PoolUse, StoreError> {
        let mut claims: Vec<i64> = db::query_scalar(
            "SELECT claimed_at - wait_ms FROM claim_history
             WHERE project_id = $1 AND claimed_at >= $2 AND coalesce(cause, '') <> 'bypass' AND total_ms IS NOT NULL
             ORDER BY claimed_at DESC LIMIT $3",
        )
        .bind(project.as_str())
        .bind(millis(since))
        .bind(most)
        .fetch_all(&self.read)
        .await?;
        claims.sort_unstable();
        let refills: Vec<i64> = db::query_scalar(
            "SELECT ended_at - ordered_at AS took FROM boot_history
             WHERE project_id = $1 AND ordered_at >= $2 AND outcome = 'ready' AND purpose IN ('pool', 'claim') ORDER BY took",
        )
        .bind(project.as_str())
        .bind(millis(since))
        .fetch_all(&self.read)
        .await?;
        Ok(PoolUse {
            claims: claims.into_iter().map(timestamp).collect::<Result<_, _>>()?,
            refill: refills.get(refills.len() / 2).copied().map(SignedDuration::from_millis),
        })
    }
}

async fn ordered(tx: &mut Writing, id: &InstanceId, event: &Event) -> Result<(), StoreError> {
    db::query(
        "INSERT INTO boot_history (instance_id, project_id, purpose, recipe, ordered_at, reason)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(id.as_str())
    .bind(event.project_id.as_str())
    .bind(event.detail["purpose"].as_str().unwrap_or_default())
    .bind(event.detail["recipe"].as_str().unwrap_or_default())
    .bind(millis(event.at))
    .bind(event.reason.as_deref())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn ended(
    tx: &mut Writing,
    id: &InstanceId,
    event: &Event,
    outcome: &str,
    log: Option<&Vec<u8>>,
) -> Result<(), StoreError> {
    db::query(
        "UPDATE boot_history SET ended_at = $2, outcome = $3, failure = $4, recipe = coalesce($5, recipe), log = coalesce($6, log)
         WHERE instance_id = $1",
    )
    .bind(id.as_str())
    .bind(millis(event.at))
    .bind(outcome)
    .bind(event.reason.as_deref().filter(|_| outcome == "failed"))
    .bind(event.detail["recipe"].as_str())
    .bind(log.map(Vec::as_slice))
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn gone(tx: &mut Writing, id: &InstanceId, event: &Event) -> Result<(), StoreError> {
    db::query("UPDATE boot_history SET gone_at = $2, gone_because = $3 WHERE instance_id = $1 AND gone_at IS NULL")
        .bind(id.as_str())
        .bind(millis(event.at))
        .bind(event.reason.as_deref())
        .execute(&mut **tx)
        .await?;
    Ok(())
}

async fn handed_over(tx: &mut Writing, id: &InstanceId, event: &Event) -> Result<(), StoreError> {
    let detail = &event.detail;
    db::query(
        "INSERT INTO claim_history (instance_id, project_id, claimed_at, owner, task, source, cause, wait_ms, total_ms, recipe)
         VALUES ($1, $2, coalesce((SELECT created_at FROM claim WHERE instance_id = $1), $3),
                 (SELECT owner FROM claim WHERE instance_id = $1), (SELECT key FROM claim WHERE instance_id = $1),
                 $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(id.as_str())
    .bind(event.project_id.as_str())
    .bind(millis(event.at))
    .bind(detail["source"].as_str().unwrap_or_default())
    .bind(detail["cause"].as_str())
    .bind(detail["waitMs"].as_i64().unwrap_or_default())
    .bind(detail["totalMs"].as_f64())
    .bind(detail["recipe"].as_str().unwrap_or_default())
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn claim_ended(tx: &mut Writing, id: &InstanceId, event: &Event) -> Result<(), StoreError> {
    db::query("UPDATE claim_history SET ended_at = $2, ended_because = $3 WHERE instance_id = $1 AND ended_at IS NULL")
        .bind(id.as_str())
        .bind(millis(event.at))
        .bind(event.reason.as_deref())
        .execute(&mut **tx)
        .await?;
    Ok(())
}
