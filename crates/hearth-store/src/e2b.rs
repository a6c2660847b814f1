//! What clients of E2B said of claims. A claim without such a row was made by another client.

use std::collections::BTreeMap;

use hearth_api::event::EventKind;
use hearth_api::ids::{InstanceId, ProjectId, TokenId, VmId};
use hearth_api::time;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::events::Change;
use super::find::Sight;
use super::{
    NamedCheckpoint, RunOn as _, Store, StoreError, db, from_json, millis, optional_timestamp, parse, timestamp,
    to_json,
};

/// What is kept of a sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct E2bRow {
    /// The project or checkpoint, as it was asked for.
    pub template: String,
    pub metadata: BTreeMap<String, String>,
    /// How long it lives from the last time that was said.
    pub timeout: SignedDuration,
    /// At its end it is paused, not released.
    pub auto_pause: bool,
    /// A call into it resumes it.
    pub auto_resume: bool,
    /// Its ports need no token.
    pub public_traffic: bool,
    /// What it may connect to, as it was asked for.
    pub network: Option<Value>,
    /// When it is paused, with `auto_pause`.
    pub ends_at: Option<Timestamp>,
    /// Since when it is paused, for its client.
    pub paused_at: Option<Timestamp>,
}

/// A claim as a client of E2B sees it.
#[derive(Debug, Clone)]
pub struct SandboxSeen {
    pub id: InstanceId,
    pub vm: VmId,
    pub project: ProjectId,
    pub project_name: String,
    /// The token that claimed.
    pub token: TokenId,
    pub claimed_at: Timestamp,
    /// End of the lease.
    pub expires_at: Timestamp,
    /// Its VM has ended by itself.
    pub vm_ended: bool,
    /// Nothing when the claim is another client's.
    pub kept: Option<E2bRow>,
}

impl SandboxSeen {
    /// When it is released, or paused.
    #[must_use]
    pub fn ends_at(&self) -> Timestamp {
        self.kept
            .as_ref()
            .and_then(|kept| kept.ends_at)
            .unwrap_or(self.expires_at)
    }

    /// Whether its client paused it.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.paused_at.is_some())
    }
}

#[derive(sqlx::FromRow)]
struct Raw {
    instance_id: String,
    vm_id: String,
    project_id: String,
    project_name: String,
    token_id: String,
    created_at: i64,
    expires_at: i64,
    vm_ended: bool,
    template: Option<String>,
    metadata: Option<String>,
    timeout_ms: Option<i64>,
    auto_pause: Option<bool>,
    auto_resume: Option<bool>,
    public_traffic: Option<bool>,
    network: Option<String>,
    ends_at: Option<i64>,
    paused_at: Option<i64>,
}

impl TryFrom<Raw> for SandboxSeen {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        let kept = match raw.template {
            None => None,
            Some(template) => Some(E2bRow {
                template,
                metadata: from_json("e2b_sandbox.metadata", raw.metadata.as_deref().unwrap_or("{}"))?,
                timeout: SignedDuration::from_millis(raw.timeout_ms.unwrap_or_default()),
                auto_pause: raw.auto_pause.unwrap_or_default(),
                auto_resume: raw.auto_resume.unwrap_or_default(),
                public_traffic: raw.public_traffic.unwrap_or_default(),
                network: raw
                    .network
                    .map(|text| from_json("e2b_sandbox.network", &text))
                    .transpose()?,
                ends_at: optional_timestamp(raw.ends_at)?,
                paused_at: optional_timestamp(raw.paused_at)?,
            }),
        };
        Ok(Self {
            id: parse("claim.instance_id", &raw.instance_id)?,
            vm: parse("instance.vm_id", &raw.vm_id)?,
            project: parse("claim.project_id", &raw.project_id)?,
            project_name: raw.project_name,
            token: parse("claim.token_id", &raw.token_id)?,
            claimed_at: timestamp(raw.created_at)?,
            expires_at: timestamp(raw.expires_at)?,
            vm_ended: raw.vm_ended,
            kept,
        })
    }
}

const SEEN: &str =
    "SELECT claim.instance_id, instance.vm_id, claim.project_id, project.name AS project_name, claim.token_id,
           claim.created_at, claim.expires_at, instance.vm_ended_at IS NOT NULL AS vm_ended, kept.template, kept.metadata, kept.timeout_ms, kept.auto_pause,
           kept.auto_resume, kept.public_traffic, kept.network, kept.ends_at, kept.paused_at
    FROM claim
    JOIN project ON project.id = claim.project_id
    JOIN instance ON instance.id = claim.instance_id AND instance.state = 'claimed'
    LEFT JOIN e2b_sandbox kept ON kept.instance_id = claim.instance_id
    WHERE claim.ended_at IS NULL AND claim.handed_over";

impl Store {
    /// Keeps what a client said of its claim; what was kept before is replaced. Nothing when the claim is gone.
    pub async fn put_e2b(&self, instance: &InstanceId, row: &E2bRow) -> Result<(), StoreError> {
        db::query(
            "INSERT INTO e2b_sandbox (instance_id, template, metadata, timeout_ms, auto_pause, auto_resume, public_traffic, network, ends_at, paused_at)
             SELECT instance_id, $2, $3, $4, $5, $6, $7, $8, $9, $10 FROM claim WHERE instance_id = $1
             ON CONFLICT (instance_id) DO UPDATE SET template = excluded.template, metadata = excluded.metadata, timeout_ms = excluded.timeout_ms,
                 auto_pause = excluded.auto_pause, auto_resume = excluded.auto_resume, public_traffic = excluded.public_traffic,
                 network = excluded.network, ends_at = excluded.ends_at, paused_at = excluded.paused_at",
        )
        .bind(instance.to_string())
        .bind(row.template.clone())
        .bind(to_json(&row.metadata)?)
        .bind(i64::try_from(row.timeout.as_millis()).unwrap_or(i64::MAX))
        .bind(row.auto_pause)
        .bind(row.auto_resume)
        .bind(row.public_traffic)
        .bind(row.network.as_ref().map(to_json).transpose()?)
        .bind(row.ends_at.map(millis))
        .bind(row.paused_at.map(millis))
        .run_on(&self.write)
        .await?;
        Ok(())
    }

    /// One claim that has not ended.
    pub async fn sandbox(&self, instance: &InstanceId) -> Result<Option<SandboxSeen>, StoreError> {
        let raw: Option<Raw> = db::query_as(sqlx::AssertSqlSafe(format!("{SEEN} AND claim.instance_id = $1")))
            .bind(instance.as_str())
            .fetch_optional(&self.read)
            .await?;
        raw.map(SandboxSeen::try_from).transpose()
    }

    /// The claims that have not ended, newest first.
    pub async fn sandboxes(&self, sight: Sight<'_>) -> Result<Vec<SandboxSeen>, StoreError> {
        let query = format!(
            "{SEEN} AND project.tenant = $1 AND ($2 IS NULL OR claim.project_id = $2) AND ($3 IS NULL OR claim.token_id = $3)
               AND ($4 IS NULL OR substr(project.name, 1, length($4)) = $4)
             ORDER BY claim.created_at DESC, claim.instance_id DESC"
        );
        let raw: Vec<Raw> = db::query_as(sqlx::AssertSqlSafe(query))
            .bind(sight.tenant)
            .bind(sight.project.map(ProjectId::as_str))
            .bind(sight.claimed_by.map(TokenId::as_str))
            .bind(sight.name_prefix)
            .fetch_all(&self.read)
            .await?;
        raw.into_iter().map(SandboxSeen::try_from).collect()
    }

    /// The claims of clients of E2B on this server that are paused at their end, and whose end was before.
    pub async fn e2b_to_pause(&self, now: Timestamp) -> Result<Vec<SandboxSeen>, StoreError> {
        let query = format!(
            "{SEEN} AND kept.auto_pause AND kept.paused_at IS NULL AND kept.ends_at <= $1 AND instance.server = $2"
        );
        let raw: Vec<Raw> = db::query_as(sqlx::AssertSqlSafe(query))
            .bind(millis(now))
            .bind(self.server())
            .fetch_all(&self.read)
            .await?;
        raw.into_iter().map(SandboxSeen::try_from).collect()
    }

    /// The claims that have a row here and have not ended: a link of one of them names none.
    pub async fn e2b_ids(&self) -> Result<Vec<InstanceId>, StoreError> {
        let ids: Vec<String> = db::query_scalar(
            "SELECT kept.instance_id FROM e2b_sandbox kept JOIN claim ON claim.instance_id = kept.instance_id
             WHERE claim.ended_at IS NULL AND claim.handed_over ORDER BY claim.created_at DESC",
        )
        .fetch_all(&self.read)
        .await?;
        ids.iter().map(|id| parse("e2b_sandbox.instance_id", id)).collect()
    }

    /// Lets a lease end then, and be renewed by this much from now on; false when the instance is not claimed any more.
    pub async fn set_lease(
        &self,
        instance: &InstanceId,
        until: Timestamp,
        lease: SignedDuration,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let project: Option<String> = db::query_scalar(
            "UPDATE claim SET expires_at = $2, lease_ms = $3
             WHERE instance_id = $1 AND ended_at IS NULL
               AND EXISTS (SELECT 1 FROM instance WHERE id = $1 AND state = 'claimed')
             RETURNING project_id",
        )
        .bind(instance.as_str())
        .bind(millis(until))
        .bind(i64::try_from(lease.as_millis()).unwrap_or(i64::MAX))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(project) = &project {
            let change = Change::of_instance(EventKind::ClaimExtended, project, instance, Timestamp::now());
            tx.tell(change.with(json!({ "expiresAt": time::format(until) })))
                .await?;
        }
        tx.commit().await?;
        Ok(project.is_some())
    }

    /// The whole checkpoints with a name, of a tenant or one project, newest first.
    pub async fn checkpoints_in_sight(&self, sight: Sight<'_>) -> Result<Vec<NamedCheckpoint>, StoreError> {
        let projects: Vec<String> = db::query_scalar(
            "SELECT id FROM project WHERE tenant = $1 AND ($2 IS NULL OR id = $2)
               AND ($3 IS NULL OR substr(name, 1, length($3)) = $3)",
        )
        .bind(sight.tenant)
        .bind(sight.project.map(ProjectId::as_str))
        .bind(sight.name_prefix)
        .fetch_all(&self.read)
        .await?;
        let mut found = Vec::new();
        for project in projects {
            found.extend(self.named_checkpoints(&parse("project.id", &project)?).await?);
        }
        found.sort_by(|one, other| other.created_at.cmp(&one.created_at).then(one.key.cmp(&other.key)));
        Ok(found)
    }
}
