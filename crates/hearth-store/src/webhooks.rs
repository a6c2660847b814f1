//! Outgoing webhooks and their deliveries.

use hearth_api::event::EventKind;
use hearth_api::ids::{DeliveryId, ProjectId, WebhookId};
use hearth_api::webhook::{Delivery, WebhookItem};
use jiff::Timestamp;

use super::{
    EventRow, RunOn as _, Store, StoreError, db, from_json, millis, optional_timestamp, parse, set_meta, timestamp,
    to_json,
};

/// The last event that was put on its way.
const CURSOR: &str = "webhooks_after";

/// A webhook that is to be made.
#[derive(Debug, Clone)]
pub struct NewWebhook<'a> {
    pub id: &'a WebhookId,
    pub tenant: &'a str,
    pub project: Option<&'a ProjectId>,
    pub url: &'a str,
    pub kinds: Option<&'a [EventKind]>,
    pub secret: &'a str,
}

/// Whose webhooks.
#[derive(Debug, Clone, Copy)]
pub struct WebhookReach<'a> {
    pub tenant: &'a str,
    /// Those of this project alone.
    pub project: Option<&'a ProjectId>,
}

/// What a webhook wants.
#[derive(Debug, Clone)]
pub struct WebhookRow {
    pub id: WebhookId,
    pub tenant: String,
    pub project: Option<ProjectId>,
    pub kinds: Option<Vec<EventKind>>,
    pub after: u64,
}

impl WebhookRow {
    /// Whether it gets this event.
    #[must_use]
    pub fn wants(&self, row: &EventRow) -> bool {
        let event = &row.event;
        let of_project = self.project.as_ref().is_none_or(|project| *project == event.project_id);
        let of_kind = self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&event.kind));
        event.id > self.after && row.tenant == self.tenant && of_project && of_kind
    }
}

/// An event that is to be put on its way.
#[derive(Debug, Clone)]
pub struct NewDelivery {
    pub webhook: WebhookId,
    pub event: u64,
    pub kind: EventKind,
    pub body: String,
}

/// A delivery whose time has come.
#[derive(Clone)]
pub struct DueDelivery {
    pub id: DeliveryId,
    pub webhook: WebhookId,
    pub url: String,
    pub secret: String,
    pub body: String,
    /// Attempts until now.
    pub attempts: u32,
}

impl std::fmt::Debug for DueDelivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DueDelivery")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// HTTP status of the answer.
    pub status: Option<u16>,
    /// Why it failed; nothing when it did not.
    pub error: Option<String>,
    /// When it is tried again; nothing when it is given up, or was taken.
    pub next_at: Option<Timestamp>,
}

#[derive(sqlx::FromRow)]
struct Raw {
    id: String,
    tenant: String,
    project_id: Option<String>,
    url: String,
    kinds: Option<String>,
    after: i64,
    created_at: i64,
}

#[derive(sqlx::FromRow)]
struct RawDelivery {
    id: String,
    event_id: i64,
    kind: String,
    status: String,
    attempts: i64,
    next_at: Option<i64>,
    last_status: Option<i64>,
    last_error: Option<String>,
    created_at: i64,
}

fn context(id: &str) -> String {
    format!("webhook:{id}")
}

fn kinds(text: Option<&str>) -> Result<Option<Vec<EventKind>>, StoreError> {
    text.map(|text| from_json("webhook.kinds", text)).transpose()
}

fn number<T: TryFrom<i64> + Default>(number: i64) -> T {
    T::try_from(number).unwrap_or_default()
}

impl Raw {
    fn project(&self) -> Result<Option<ProjectId>, StoreError> {
        let project = self.project_id.as_deref();
        project.map(|id| parse("webhook.project_id", id)).transpose()
    }
}

impl TryFrom<RawDelivery> for Delivery {
    type Error = StoreError;
    fn try_from(raw: RawDelivery) -> Result<Self, StoreError> {
        Ok(Self {
            id: parse("webhook_delivery.id", &raw.id)?,
            event_id: number(raw.event_id),
            kind: parse("webhook_delivery.kind", &raw.kind)?,
            created_at: timestamp(raw.created_at)?,
            status: from_json("webhook_delivery.status", &to_json(&raw.status)?)?,
            attempts: number(raw.attempts),
            next_at: optional_timestamp(raw.next_at)?,
            last_status: raw.last_status.and_then(|status| u16::try_from(status).ok()),
            last_error: raw.last_error,
        })
    }
}

impl Store {
    /// Writes a new webhook. It gets the events that are written from now on.
    pub async fn insert_webhook(&self, new: &NewWebhook<'_>, now: Timestamp) -> Result<(), StoreError> {
        let secret = self.cipher.seal(&context(new.id.as_str()), new.secret)?;
        db::query(
            "INSERT INTO webhook (id, tenant, project_id, url, kinds, secret, after, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, (SELECT coalesce(max(id), 0) FROM event), $7)",
        )
        .bind(new.id.as_str())
        .bind(new.tenant)
        .bind(new.project.map(ProjectId::as_str))
        .bind(new.url)
        .bind(new.kinds.map(|kinds| to_json(&kinds)).transpose()?)
        .bind(secret)
        .bind(millis(now))
        .run_on(&self.write)
        .await?;
        Ok(())
    }

    /// The webhooks of a reach, oldest first.
    pub async fn webhooks(&self, reach: WebhookReach<'_>) -> Result<Vec<WebhookItem>, StoreError> {
        let raw: Vec<Raw> =
            db::query_as("SELECT * FROM webhook WHERE tenant = $1 AND ($2 IS NULL OR project_id = $2) ORDER BY id")
                .bind(reach.tenant)
                .bind(reach.project.map(ProjectId::as_str))
                .fetch_all(&self.read)
                .await?;
        let mut items = Vec::with_capacity(raw.len());
        for raw in raw {
            let (pending, failed): (i64, i64) = db::query_as(
                "SELECT count(*) FILTER (WHERE status = 'pending'), count(*) FILTER (WHERE status = 'failed')
                 FROM webhook_delivery WHERE webhook_id = $1",
            )
            .bind(&raw.id)
            .fetch_one(&self.read)
            .await?;
            items.push(WebhookItem {
                id: parse("webhook.id", &raw.id)?,
                project_id: raw.project()?,
                kinds: kinds(raw.kinds.as_deref())?,
                created_at: timestamp(raw.created_at)?,
                pending: number(pending),
                failed: number(failed),
                url: raw.url,
            });
        }
        Ok(items)
    }

    /// What every webhook wants.
    pub async fn all_webhooks(&self) -> Result<Vec<WebhookRow>, StoreError> {
        let raw: Vec<Raw> = db::query_as("SELECT * FROM webhook").fetch_all(&self.read).await?;
        raw.into_iter()
            .map(|raw| {
                Ok(WebhookRow {
                    id: parse("webhook.id", &raw.id)?,
                    project: raw.project()?,
                    kinds: kinds(raw.kinds.as_deref())?,
                    after: number(raw.after),
                    tenant: raw.tenant,
                })
            })
            .collect()
    }

    /// Removes a webhook with its deliveries; false when there is none of that id in the reach.
    pub async fn delete_webhook(&self, reach: WebhookReach<'_>, id: &WebhookId) -> Result<bool, StoreError> {
        self.freeing(|| self.delete_webhook_once(reach, id)).await
    }

    async fn delete_webhook_once(&self, reach: WebhookReach<'_>, id: &WebhookId) -> Result<bool, StoreError> {
        let done = db::query("DELETE FROM webhook WHERE id = $1 AND tenant = $2 AND ($3 IS NULL OR project_id = $3)")
            .bind(id.as_str())
            .bind(reach.tenant)
            .bind(reach.project.map(ProjectId::as_str))
            .run_on(&self.write)
            .await?;
        Ok(done.rows_affected() == 1)
    }

    /// The last event that was put on its way to webhooks.
    pub async fn webhook_cursor(&self) -> Result<u64, StoreError> {
        let value = self.meta(CURSOR).await?;
        value.map_or(Ok(0), |value| parse("meta.webhooks_after", &value))
    }

    /// Puts events on their way, all in one transaction, and notes up to which event that is done.
    pub async fn queue_deliveries(&self, new: &[NewDelivery], upto: u64, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write.begin_shared().await?;
        for delivery in new {
            // It may have been deleted meanwhile.
            db::query(
                "INSERT INTO webhook_delivery (id, webhook_id, event_id, kind, body, status, attempts, next_at, created_at)
                 SELECT $1, id, $3, $4, $5, 'pending', 0, $6, $6 FROM webhook WHERE id = $2 ON CONFLICT DO NOTHING",
            )
            .bind(DeliveryId::generate().as_str())
            .bind(delivery.webhook.as_str())
            .bind(i64::try_from(delivery.event).unwrap_or(i64::MAX))
            .bind(delivery.kind.as_str())
            .bind(&delivery.body)
            .bind(millis(now))
            .execute(&mut *tx)
            .await?;
        }
        set_meta(&mut tx, CURSOR, &upto.to_string()).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Deliveries to this receiver whose time has come, the ones that wait longest first; at most so many.
    pub async fn due_deliveries(
        &self,
        webhook: &WebhookId,
        now: Timestamp,
        limit: u32,
    ) -> Result<Vec<DueDelivery>, StoreError> {
        let rows: Vec<(String, String, String, Vec<u8>, String, i64)> = db::query_as(
            "SELECT webhook_delivery.id, webhook.id, webhook.url, webhook.secret, webhook_delivery.body, webhook_delivery.attempts
             FROM webhook_delivery JOIN webhook ON webhook.id = webhook_delivery.webhook_id
             WHERE webhook.id = $1 AND next_at <= $2 ORDER BY next_at, webhook_delivery.event_id LIMIT $3",
        )
        .bind(webhook.as_str())
        .bind(millis(now))
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|(id, webhook, url, secret, body, attempts)| {
                Ok(DueDelivery {
                    id: parse("webhook_delivery.id", &id)?,
                    secret: self.cipher.open_value(&context(&webhook), &secret)?,
                    webhook: parse("webhook.id", &webhook)?,
                    attempts: number(attempts),
                    url,
                    body,
                })
            })
            .collect()
    }

    /// The receivers that something is on its way to, and when the next delivery to each is due.
    pub async fn next_deliveries(&self) -> Result<Vec<(WebhookId, Timestamp)>, StoreError> {
        let rows: Vec<(String, i64)> = db::query_as(
            "SELECT webhook_id, min(next_at) FROM webhook_delivery WHERE next_at IS NOT NULL GROUP BY webhook_id",
        )
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|(webhook, next_at)| Ok((parse("webhook_delivery.webhook_id", &webhook)?, timestamp(next_at)?)))
            .collect()
    }

    /// Notes how an attempt ended.
    pub async fn note_attempt(&self, id: &DeliveryId, attempt: &Attempt) -> Result<(), StoreError> {
        let status = match (&attempt.error, attempt.next_at) {
            (None, _) => "delivered",
            (Some(_), Some(_)) => "pending",
            (Some(_), None) => "failed",
        };
        db::query(
            "UPDATE webhook_delivery SET status = $2, attempts = attempts + 1, next_at = $3, last_status = $4, last_error = $5
             WHERE id = $1",
        )
        .bind(id.as_str())
        .bind(status)
        .bind(attempt.next_at.map(millis))
        .bind(attempt.status.map(i64::from))
        .bind(attempt.error.as_deref())
        .run_on(&self.write)
        .await?;
        Ok(())
    }

    /// The deliveries of a webhook, newest first; `None` when the reach has no such webhook.
    pub async fn deliveries(
        &self,
        reach: WebhookReach<'_>,
        id: &WebhookId,
        failed: bool,
        limit: u32,
    ) -> Result<Option<Vec<Delivery>>, StoreError> {
        let known: bool = db::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM webhook WHERE id = $1 AND tenant = $2 AND ($3 IS NULL OR project_id = $3))",
        )
        .bind(id.as_str())
        .bind(reach.tenant)
        .bind(reach.project.map(ProjectId::as_str))
        .fetch_one(&self.read)
        .await?;
        if !known {
            return Ok(None);
        }
        let raw: Vec<RawDelivery> = db::query_as(
            "SELECT id, event_id, kind, status, attempts, next_at, last_status, last_error, created_at FROM webhook_delivery
             WHERE webhook_id = $1 AND (NOT $2 OR status = 'failed') ORDER BY event_id DESC LIMIT $3",
        )
        .bind(id.as_str())
        .bind(failed)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        let deliveries = raw.into_iter().map(Delivery::try_from);
        deliveries.collect::<Result<_, _>>().map(Some)
    }

    /// Sends a delivery again, with all its attempts before it; false when the reach has none of these ids.
    pub async fn replay_delivery(
        &self,
        reach: WebhookReach<'_>,
        webhook: &WebhookId,
        id: &DeliveryId,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let done = db::query(
            "UPDATE webhook_delivery SET status = 'pending', attempts = 0, next_at = $5
             WHERE id = $1 AND webhook_id = (
                SELECT id FROM webhook WHERE id = $2 AND tenant = $3 AND ($4 IS NULL OR project_id = $4))",
        )
        .bind(id.as_str())
        .bind(webhook.as_str())
        .bind(reach.tenant)
        .bind(reach.project.map(ProjectId::as_str))
        .bind(millis(now))
        .run_on(&self.write)
        .await?;
        Ok(done.rows_affected() == 1)
    }

    /// Removes deliveries that ended and are older than this, at most so many at once; how many there were.
    pub async fn remove_deliveries(&self, before: Timestamp, batch: u32) -> Result<u64, StoreError> {
        let some: bool = db::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM webhook_delivery WHERE next_at IS NULL AND created_at < $1)",
        )
        .bind(millis(before))
        .fetch_one(&self.read)
        .await?;
        if !some {
            return Ok(0);
        }
        self.freeing(|| self.remove_deliveries_once(before, batch)).await
    }

    async fn remove_deliveries_once(&self, before: Timestamp, batch: u32) -> Result<u64, StoreError> {
        let done = db::query(
            "DELETE FROM webhook_delivery WHERE id IN (
                SELECT id FROM webhook_delivery WHERE next_at IS NULL AND created_at < $1 LIMIT $2)",
        )
        .bind(millis(before))
        .bind(batch)
        .run_on(&self.write)
        .await?;
        Ok(done.rows_affected())
    }
}
