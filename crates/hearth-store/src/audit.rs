//! The audit log.

use hearth_api::audit::AuditEntry;
use hearth_api::ids::ProjectId;
use jiff::Timestamp;

use super::{RunOn as _, Store, StoreError, db, millis, parse, timestamp};

/// An entry to be written. What the path does not name is `None`.
#[derive(Debug, Clone)]
pub struct NewAuditEntry {
    pub at: Timestamp,
    /// The token that asked.
    pub by: AuditedBy,
    pub address: Option<String>,
    pub operation: &'static str,
    pub project: Option<String>,
    pub instance: Option<String>,
    pub subject: Option<String>,
    pub status: u16,
    pub request: Option<String>,
}

/// The token that asked.
#[derive(Debug, Clone)]
pub struct AuditedBy {
    pub tenant: String,
    pub token: String,
    pub name: String,
    pub owner: String,
}

/// Which entries are read.
#[derive(Debug, Clone, Copy)]
pub struct AuditFilter<'a> {
    pub tenant: &'a str,
    /// About this project alone.
    pub project: Option<&'a ProjectId>,
    /// Older than this one.
    pub before: Option<u64>,
    pub limit: u32,
}

#[derive(sqlx::FromRow)]
struct Raw {
    id: i64,
    at: i64,
    token_id: String,
    token_name: String,
    owner: String,
    address: Option<String>,
    operation: String,
    project_id: Option<String>,
    instance_id: Option<String>,
    subject: Option<String>,
    status: i64,
    request_id: Option<String>,
}

impl TryFrom<Raw> for AuditEntry {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        Ok(Self {
            id: u64::try_from(raw.id).unwrap_or_default(),
            at: timestamp(raw.at)?,
            token_id: parse("audit.token_id", &raw.token_id)?,
            token_name: raw.token_name,
            owner: raw.owner,
            address: raw.address,
            operation: raw.operation,
            // One row that is not as it should be must not hide all others.
            project_id: raw.project_id.and_then(|id| id.parse().ok()),
            instance_id: raw.instance_id.and_then(|id| id.parse().ok()),
            subject: raw.subject,
            status: u16::try_from(raw.status).map_err(|error| StoreError::corrupt("audit.status", error))?,
            request_id: raw.request_id,
        })
    }
}

impl Store {
    /// Writes entries, all in one transaction. One about an instance gets the instance's project.
    pub async fn write_audit(&self, entries: &[NewAuditEntry]) -> Result<(), StoreError> {
        let mut tx = self.write.begin_shared().await?;
        for entry in entries {
            let by = &entry.by;
            db::query(
                "INSERT INTO audit (at, tenant, token_id, token_name, owner, address, operation, project_id, instance_id,
                                    subject, status, request_id)
                 VALUES ($1, $2, $3, $4, $5, $6, $7,
                         coalesce($8, (SELECT project_id FROM instance WHERE id = $9),
                                  (SELECT project_id FROM claim WHERE instance_id = $9)),
                         $9, $10, $11, $12)",
            )
            .bind(millis(entry.at))
            .bind(by.tenant.as_str())
            .bind(by.token.as_str())
            .bind(by.name.as_str())
            .bind(by.owner.as_str())
            .bind(entry.address.as_deref())
            .bind(entry.operation)
            .bind(entry.project.as_deref())
            .bind(entry.instance.as_deref())
            .bind(entry.subject.as_deref())
            .bind(i64::from(entry.status))
            .bind(entry.request.as_deref())
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Entries, newest first.
    pub async fn audit(&self, filter: AuditFilter<'_>) -> Result<Vec<AuditEntry>, StoreError> {
        let before = filter.before.and_then(|id| i64::try_from(id).ok()).unwrap_or(i64::MAX);
        let raw: Vec<Raw> = db::query_as(
            "SELECT * FROM audit WHERE tenant = $1 AND ($2 IS NULL OR project_id = $2) AND id < $3 ORDER BY id DESC LIMIT $4",
        )
        .bind(filter.tenant)
        .bind(filter.project.map(ProjectId::as_str))
        .bind(before)
        .bind(filter.limit)
        .fetch_all(&self.read)
        .await?;
        raw.into_iter().map(AuditEntry::try_from).collect()
    }

    /// Removes the oldest entries of before then, at most so many at once; how many there were.
    pub async fn remove_audit(&self, before: Timestamp, batch: u32) -> Result<u64, StoreError> {
        let oldest: Vec<(i64, i64)> = db::query_as("SELECT id, at FROM audit ORDER BY id LIMIT $1")
            .bind(batch)
            .fetch_all(&self.read)
            .await?;
        let old = oldest.iter().take_while(|(_, at)| *at < millis(before));
        let Some((last, _)) = old.last().copied() else {
            return Ok(0);
        };
        self.freeing(|| self.remove_audit_up_to(last)).await
    }

    async fn remove_audit_up_to(&self, last: i64) -> Result<u64, StoreError> {
        let done = db::query("DELETE FROM audit WHERE id <= $1")
            .bind(last)
            .run_on(&self.write)
            .await?;
        Ok(done.rows_affected())
    }
}
