//! How a pool went over time, read from the history and the events: what charts are drawn from.

use hearth_api::event::EventKind;
use hearth_api::ids::ProjectId;
use hearth_api::schedule::PoolSchedule;
use hearth_core::schedule::Schedule;
use jiff::Timestamp;

use super::history::named;
use super::{ClaimSeen, Sight, Store, StoreError, db, from_json, millis, timestamp};

/// Most rows of one kind that are read: the newest.
const MOST: u32 = 50_000;

/// From when until when something was; `None` while it still is.
pub type Span = (Timestamp, Option<Timestamp>);

/// How a pool went.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PoolCourse {
    /// When VMs waited ready.
    pub ready: Vec<Span>,
    /// When VMs were claimed.
    pub claimed: Vec<Span>,
    /// The target size from then on, in order; 0 while the pool was disabled.
    pub targets: Vec<(Timestamp, u64)>,
    /// Names of steps that ended well, and how long each took, milliseconds. Those that came from a checkpoint took none.
    pub steps: Vec<(String, u64)>,
}

fn spans(rows: Vec<(i64, Option<i64>)>) -> Result<Vec<Span>, StoreError> {
    let span = |(begin, end): (i64, Option<i64>)| Ok((timestamp(begin)?, end.map(timestamp).transpose()?));
    rows.into_iter().map(span).collect()
}

/// How many VMs a pool kept ready from when on, by its target size and its schedule.
fn in_force_between(
    own: i64,
    schedule: Option<&PoolSchedule>,
    since: Timestamp,
    until: Timestamp,
) -> Vec<(Timestamp, u64)> {
    let count = |target: i64| u64::try_from(target).unwrap_or(0);
    // One that is not understood any more changes nothing.
    let Some(schedule) = schedule.and_then(|schedule| Schedule::parse(schedule).ok()) else {
        return vec![(since, count(own))];
    };
    let mut found = Vec::new();
    let mut at = since;
    while found.len() < MOST as usize {
        let now = schedule.in_force(own, at);
        if found.last().is_none_or(|(_, before)| *before != count(now.target_size)) {
            found.push((at, count(now.target_size)));
        }
        match now.until {
            Some(next) if at < next && next < until => at = next,
            _ => break,
        }
    }
    found
}

impl Store {
    /// How a pool went since then.
    pub async fn pool_course(&self, project: &ProjectId, since: Timestamp) -> Result<PoolCourse, StoreError> {
        let ready = db::query_as(
            "SELECT ended_at, until FROM (
                SELECT b.ended_at, b.ordered_at,
                       CASE WHEN b.gone_at IS NULL OR c.claimed_at < b.gone_at THEN c.claimed_at ELSE b.gone_at END AS until
                FROM boot_history b LEFT JOIN claim_history c ON c.instance_id = b.instance_id
                WHERE b.project_id = $1 AND b.outcome = 'ready' AND b.purpose = 'pool') AS waited
             WHERE until IS NULL OR until >= $2
             ORDER BY ordered_at DESC LIMIT $3",
        )
        .bind(project.as_str())
        .bind(millis(since))
        .bind(MOST)
        .fetch_all(&self.read)
        .await?;
        let claimed = db::query_as(
            "SELECT claimed_at, ended_at FROM claim_history
             WHERE project_id = $1 AND (ended_at IS NULL OR ended_at >= $2) ORDER BY claimed_at DESC LIMIT $3",
        )
        .bind(project.as_str())
        .bind(millis(since))
        .bind(MOST)
        .fetch_all(&self.read)
        .await?;
        // The last change before `since` says how it began.
        let changes: Vec<(i64, Option<i64>, Option<String>)> = db::query_as(
            "SELECT at, CASE WHEN CAST(json(detail) ->> 'enabled' AS TEXT) IN ('1', 'true')
                             THEN CAST(json(detail) ->> 'targetSize' AS BIGINT) END,
                    json(detail) ->> 'schedule' FROM event
             WHERE project_id = $1 AND kind = $2
               AND at >= coalesce((SELECT max(at) FROM event WHERE project_id = $1 AND kind = $2 AND at < $3), $3)
             ORDER BY id LIMIT $4",
        )
        .bind(project.as_str())
        .bind(EventKind::PoolChanged.as_str())
        .bind(millis(since))
        .bind(MOST)
        .fetch_all(&self.read)
        .await?;
        let mut targets = Vec::new();
        let mut changes = changes.into_iter().peekable();
        while let Some((at, own, schedule)) = changes.next() {
            let until = match changes.peek() {
                Some((next, ..)) => timestamp(*next)?,
                None => Timestamp::now(),
            };
            let Some(own) = own else {
                targets.push((timestamp(at)?, 0));
                continue;
            };
            let schedule = schedule
                .as_deref()
                .map(|text| from_json("event.detail", text))
                .transpose()?;
            targets.extend(in_force_between(
                own,
                schedule.as_ref(),
                timestamp(at)?.max(since),
                until,
            ));
        }
        let steps: Vec<(String, i64)> = db::query_as(
            "SELECT json(detail) ->> 'step', CAST(json(detail) ->> 'durationMs' AS BIGINT) FROM event
             WHERE project_id = $1 AND kind = $2 AND at >= $3 AND json(detail) ->> 'status' = 'success'
               AND CAST(json(detail) ->> 'durationMs' AS BIGINT) > 0
             ORDER BY id DESC LIMIT $4",
        )
        .bind(project.as_str())
        .bind(EventKind::InstanceStep.as_str())
        .bind(millis(since))
        .bind(MOST)
        .fetch_all(&self.read)
        .await?;
        let steps = steps
            .into_iter()
            .map(|(step, took)| (step, u64::try_from(took).unwrap_or(0)));
        Ok(PoolCourse {
            ready: spans(ready)?,
            claimed: spans(claimed)?,
            targets,
            steps: steps.collect(),
        })
    }

    /// The claims of the history that a caller sees since then; the newest where there are very many. The history does not know which
    /// token claimed, so this is for callers that see all claims of their projects.
    pub async fn claims_told(&self, sight: Sight<'_>, since: Timestamp) -> Result<Vec<ClaimSeen>, StoreError> {
        let rows: Vec<(i64, String, i64, Option<String>)> = db::query_as(
            "SELECT claimed_at, source, wait_ms, cause FROM claim_history JOIN project ON project.id = project_id
             WHERE project.tenant = $1 AND ($2 IS NULL OR project_id = $2) AND claimed_at >= $3
               AND ($5 IS NULL OR substr(project.name, 1, length($5)) = $5)
             ORDER BY claimed_at DESC LIMIT $4",
        )
        .bind(sight.tenant)
        .bind(sight.project.map(ProjectId::as_str))
        .bind(millis(since))
        .bind(MOST)
        .bind(sight.name_prefix)
        .fetch_all(&self.read)
        .await?;
        let told = |(at, source, wait_ms, cause): (i64, String, i64, Option<String>)| {
            Ok(ClaimSeen {
                at: timestamp(at)?,
                source: named("claim_history.source", &source)?,
                wait_ms: u64::try_from(wait_ms).unwrap_or_default(),
                cause: cause.map(|cause| named("claim_history.cause", &cause)).transpose()?,
            })
        };
        rows.into_iter().map(told).collect()
    }
}
