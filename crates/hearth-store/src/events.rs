//! Events: what changed. [`Writing::tell`] is the one function that writes them, in the transaction that makes the change; nobody else
//! can read the change without its event, nor the event without the change.

use hearth_api::event::{Event, EventKind};
use hearth_api::ids::{InstanceId, ProjectId};
use hearth_core::state::InstanceState;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::dialect::Dialect;
use super::writer::Writing;
use super::{Store, StoreError, db, millis, parse, timestamp};

/// Longest reason of an event: the whole of it is on the row that it is about.
const MAX_REASON_CHARS: usize = 1000;

/// What is told of one change.
#[derive(Debug, Clone)]
pub(super) struct Change<'a> {
    pub kind: EventKind,
    pub project: &'a str,
    pub instance: Option<&'a str>,
    /// For people. Whatever a guest, git or the driver said in it is redacted.
    pub reason: Option<&'a str>,
    /// A JSON object.
    pub detail: Value,
    pub now: Timestamp,
}

impl<'a> Change<'a> {
    /// Of a project.
    pub(super) fn of_project(kind: EventKind, project: &'a ProjectId, now: Timestamp) -> Self {
        Self {
            kind,
            project: project.as_str(),
            instance: None,
            reason: None,
            detail: json!({}),
            now,
        }
    }

    /// Of an instance.
    pub(super) fn of_instance(kind: EventKind, project: &'a str, instance: &'a InstanceId, now: Timestamp) -> Self {
        Self {
            kind,
            project,
            instance: Some(instance.as_str()),
            reason: None,
            detail: json!({}),
            now,
        }
    }

    pub(super) fn because(self, reason: impl Into<Option<&'a str>>) -> Self {
        let reason = reason.into();
        Self { reason, ..self }
    }

    pub(super) fn with(self, detail: Value) -> Self {
        Self { detail, ..self }
    }

    /// The statement that writes it.
    pub(super) fn insert(&self) -> db::Query<'static> {
        let reason = self
            .reason
            .map(|reason| reason.chars().take(MAX_REASON_CHARS).collect::<String>());
        db::query(
            "INSERT INTO event (at, tenant, project_id, instance_id, kind, reason, detail)
             VALUES ($1, coalesce((SELECT tenant FROM project WHERE id = $2),
                                  (SELECT tenant FROM event WHERE project_id = $2 ORDER BY id DESC LIMIT 1), ''),
                     $2, $3, $4, $5, $6)",
        )
        .bind(millis(self.now))
        .bind(self.project.to_owned())
        .bind(self.instance.map(str::to_owned))
        .bind(self.kind.as_str())
        .bind(reason)
        .bind(self.detail.to_string())
    }
}

/// What an instance that comes into this state is told of as.
pub(super) fn kind_of(state: InstanceState) -> EventKind {
    match state {
        InstanceState::Provisioning => EventKind::InstanceProvisioning,
        InstanceState::Ready => EventKind::InstanceReady,
        InstanceState::Claimed => EventKind::InstanceClaimed,
        InstanceState::Failed => EventKind::InstanceFailed,
        InstanceState::Retiring => EventKind::InstanceRetiring,
        InstanceState::Archived => EventKind::InstanceArchived,
        InstanceState::Deleting => EventKind::InstanceDeleting,
    }
}

impl Writing {
    /// Tells of a change that this transaction makes.
    pub(super) async fn tell(&mut self, change: Change<'_>) -> Result<(), StoreError> {
        change.insert().execute(&mut **self).await?;
        self.has_told();
        Ok(())
    }
}

/// An event with whose it is.
#[derive(Debug, Clone, PartialEq)]
pub struct EventRow {
    pub tenant: String,
    pub event: Event,
}

/// The oldest and the newest event that are kept; both 0 when there never was one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventSpan {
    pub oldest: u64,
    pub newest: u64,
}

/// Whose events are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventFilter<'a> {
    /// Of this tenant alone.
    pub tenant: Option<&'a str>,
    /// Of this project alone.
    pub project: Option<&'a ProjectId>,
}

/// What of the events is kept.
#[derive(Debug, Clone, Copy)]
pub struct EventsKept {
    /// Those since then.
    pub since: Timestamp,
    /// So many at most.
    pub most: u64,
}

#[derive(sqlx::FromRow)]
struct Raw {
    id: i64,
    at: i64,
    tenant: String,
    project_id: String,
    instance_id: Option<String>,
    kind: String,
    reason: Option<String>,
    detail: String,
}

impl TryFrom<Raw> for EventRow {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        let instance = raw.instance_id.map(|id| parse("event.instance_id", &id));
        Ok(Self {
            tenant: raw.tenant,
            event: Event {
                id: number(raw.id),
                at: timestamp(raw.at)?,
                project_id: parse("event.project_id", &raw.project_id)?,
                instance_id: instance.transpose()?,
                kind: parse("event.kind", &raw.kind)?,
                reason: raw.reason,
                detail: super::from_json("event.detail", &raw.detail)?,
            },
        })
    }
}

/// Ids are made by the database and count up from 1.
fn number(id: i64) -> u64 {
    u64::try_from(id).unwrap_or_default()
}

fn column(id: u64) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

impl Store {
    /// Changes whenever events were written: by this process, and on PostgreSQL by another server too.
    #[must_use]
    pub fn events_written(&self) -> watch::Receiver<u64> {
        match &self.messages {
            Some(messages) => messages.written(),
            None => self.write.told().subscribe(),
        }
    }

    /// The id up to which no event comes any more that is not there: on PostgreSQL transactions end in another order than that in which
    /// they took ids. To be asked before what reads.
    async fn event_horizon(&self) -> Result<i64, StoreError> {
        match self.dialect() {
            Dialect::Sqlite => Ok(i64::MAX),
            Dialect::Postgres => Ok(db::query_scalar("SELECT event_horizon()").fetch_one(&self.read).await?),
        }
    }

    /// Which events are kept.
    pub async fn event_span(&self) -> Result<EventSpan, StoreError> {
        let (oldest, newest): (Option<i64>, Option<i64>) = db::query_as(
            "SELECT (SELECT min(id) FROM event WHERE id <= $1), (SELECT max(id) FROM event WHERE id <= $1)",
        )
        .bind(self.event_horizon().await?)
        .fetch_one(&self.read)
        .await?;
        Ok(EventSpan {
            oldest: oldest.map_or(0, number),
            newest: newest.map_or(0, number),
        })
    }

    /// The next events after one, in order; at most so many.
    pub async fn events_after(
        &self,
        filter: EventFilter<'_>,
        after: u64,
        limit: u32,
    ) -> Result<Vec<EventRow>, StoreError> {
        let horizon = self.event_horizon().await?;
        let raw: Vec<Raw> = match filter.project {
            Some(project) => {
                db::query_as(
                    "SELECT * FROM event WHERE project_id = $1 AND id > $2 AND ($3 IS NULL OR tenant = $3) AND id <= $5 ORDER BY id LIMIT $4",
                )
                .bind(project.as_str())
                .bind(column(after))
                .bind(filter.tenant)
                .bind(limit)
                .bind(horizon)
                .fetch_all(&self.read)
                .await?
            }
            None => {
                db::query_as(
                    "SELECT * FROM event WHERE id > $1 AND ($2 IS NULL OR tenant = $2) AND id <= $4 ORDER BY id LIMIT $3",
                )
                    .bind(column(after))
                    .bind(filter.tenant)
                    .bind(limit)
                    .bind(horizon)
                    .fetch_all(&self.read)
                    .await?
            }
        };
        raw.into_iter().map(EventRow::try_from).collect()
    }

    /// The id before the last so many events: `events_after` of it gives those.
    pub async fn before_last_events(&self, filter: EventFilter<'_>, count: u32) -> Result<u64, StoreError> {
        let first: Option<i64> = db::query_scalar(
            "SELECT min(id) FROM (SELECT id FROM event
             WHERE ($1 IS NULL OR project_id = $1) AND ($2 IS NULL OR tenant = $2) AND id <= $4 ORDER BY id DESC LIMIT $3) AS last",
        )
        .bind(filter.project.map(ProjectId::as_str))
        .bind(filter.tenant)
        .bind(count)
        .bind(self.event_horizon().await?)
        .fetch_one(&self.read)
        .await?;
        Ok(match first {
            Some(first) => number(first).saturating_sub(1),
            None => self.event_span().await?.newest,
        })
    }

    /// Removes the oldest events that are not to be kept, at most so many at once; how many there were. The newest one stays, so that it
    /// is known which ids there have been.
    pub async fn remove_events(&self, kept: EventsKept, batch: u32) -> Result<u64, StoreError> {
        let oldest: Vec<(i64, i64)> = db::query_as("SELECT id, at FROM event ORDER BY id LIMIT $1")
            .bind(batch)
            .fetch_all(&self.read)
            .await?;
        let newest = self.event_span().await?.newest;
        let first_kept = column(newest.saturating_sub(kept.most.max(1)) + 1);
        let is_old = |(id, at): &&(i64, i64)| *id < first_kept || *at < millis(kept.since) && *id < column(newest);
        let Some((last, _)) = oldest.iter().take_while(is_old).last().copied() else {
            return Ok(0);
        };
        self.freeing(|| self.remove_events_up_to(last)).await
    }

    async fn remove_events_up_to(&self, last: i64) -> Result<u64, StoreError> {
        use super::RunOn as _;
        let done = db::query("DELETE FROM event WHERE id <= $1")
            .bind(last)
            .run_on(&self.write)
            .await?;
        Ok(done.rows_affected())
    }
}
