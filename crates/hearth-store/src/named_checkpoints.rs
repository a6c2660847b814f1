//! Checkpoints that owners of claims made, by name. The row is written before the checkpoint is made, and says since when it is whole.

use hearth_api::claim::ClaimReply;
use hearth_api::event::EventKind;
use hearth_api::ids::{InstanceId, ProjectId, VmId};
use hearth_api::instance::RepoSettings;
use hearth_core::checkpoint::CheckpointKey;
use jiff::Timestamp;
use serde_json::json;

use super::events::Change;
use super::forks::{forget_stopped, note_stopped};
use super::writer::Writing;
use super::{RunOn as _, Store, StoreError, db, from_json, millis, parse, timestamp, to_json};

/// A checkpoint with a name.
#[derive(Debug, Clone)]
pub struct NamedCheckpoint {
    pub project: ProjectId,
    pub name: String,
    /// The driver's name for it.
    pub key: CheckpointKey,
    /// The server with its files; empty where there can be only one.
    pub server: String,
    /// What it was made of.
    pub instance: InstanceId,
    /// Whose claim that was.
    pub owner: String,
    pub note: Option<String>,
    /// What was answered to that claim.
    pub reply: ClaimReply,
    /// What its repositories' settings files say.
    pub settings: Vec<RepoSettings>,
    /// Memory of its VM, MiB.
    pub memory_mib: u64,
    /// What it takes on the disk; `None` while it is being made.
    pub bytes: Option<u64>,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// The driver's name of a checkpoint with a name.
#[derive(Debug, Clone)]
pub struct NamedKey {
    pub key: CheckpointKey,
    pub project: ProjectId,
    /// It is made.
    pub whole: bool,
}

#[derive(sqlx::FromRow)]
struct Raw {
    project_id: String,
    name: String,
    key: String,
    server: String,
    instance_id: String,
    owner: String,
    note: Option<String>,
    claim_reply: String,
    settings: String,
    memory_mib: i64,
    bytes: Option<i64>,
    created_at: i64,
}

impl TryFrom<Raw> for NamedCheckpoint {
    type Error = StoreError;
    fn try_from(raw: Raw) -> Result<Self, StoreError> {
        Ok(Self {
            project: parse("named_checkpoint.project_id", &raw.project_id)?,
            name: raw.name,
            key: parse("named_checkpoint.key", &raw.key)?,
            server: raw.server,
            instance: parse("named_checkpoint.instance_id", &raw.instance_id)?,
            owner: raw.owner,
            note: raw.note,
            reply: from_json("named_checkpoint.claim_reply", &raw.claim_reply)?,
            settings: from_json("named_checkpoint.settings", &raw.settings)?,
            memory_mib: u64::try_from(raw.memory_mib)
                .map_err(|error| StoreError::corrupt("named_checkpoint.memory_mib", error))?,
            bytes: raw.bytes.and_then(|bytes| u64::try_from(bytes).ok()),
            created_at: timestamp(raw.created_at)?,
        })
    }
}

/// Which checkpoint, as an event tells of it.
#[derive(sqlx::FromRow)]
struct Named {
    project_id: String,
    name: String,
    instance_id: String,
}

impl Named {
    async fn tell(&self, tx: &mut Writing, kind: EventKind) -> Result<(), StoreError> {
        let instance = parse("named_checkpoint.instance_id", &self.instance_id)?;
        let change = Change::of_instance(kind, &self.project_id, &instance, Timestamp::now());
        tx.tell(change.with(json!({ "name": self.name }))).await
    }
}

impl Store {
    /// Takes the name of a checkpoint that is about to be made; false when the project has another one of it, or is gone. `stops`: a VM that
    /// runs and is stopped for a moment.
    pub async fn begin_checkpoint(&self, new: &NamedCheckpoint, stops: Option<&VmId>) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let done = db::query(
            "INSERT INTO named_checkpoint (project_id, name, key, instance_id, owner, note, claim_reply, settings, memory_mib, created_at, server)
             SELECT id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 FROM project WHERE id = $1
             ON CONFLICT DO NOTHING",
        )
        .bind(new.project.as_str())
        .bind(&new.name)
        .bind(new.key.as_str())
        .bind(new.instance.as_str())
        .bind(&new.owner)
        .bind(&new.note)
        .bind(to_json(&new.reply)?)
        .bind(to_json(&new.settings)?)
        .bind(i64::try_from(new.memory_mib).unwrap_or(i64::MAX))
        .bind(millis(new.created_at))
        .bind(self.server())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        if let Some(vm) = stops {
            note_stopped(&mut tx, vm, self.server()).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// The checkpoint is whole: from now on it is listed. False when its project is gone.
    pub async fn end_checkpoint(
        &self,
        key: &CheckpointKey,
        bytes: u64,
        stopped: Option<&VmId>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let made: Option<Named> = db::query_as(
            "UPDATE named_checkpoint SET bytes = $2 WHERE key = $1 RETURNING project_id, name, instance_id",
        )
        .bind(key.as_str())
        .bind(i64::try_from(bytes).unwrap_or(i64::MAX))
        .fetch_optional(&mut *tx)
        .await?;
        if let Some(made) = &made {
            made.tell(&mut tx, EventKind::CheckpointMade).await?;
        }
        forget_stopped(&mut tx, stopped).await?;
        tx.commit().await?;
        Ok(made.is_some())
    }

    /// Forgets a checkpoint with a name, if it is one; whether it was.
    pub async fn forget_named_checkpoint(&self, key: &CheckpointKey) -> Result<bool, StoreError> {
        self.freeing(|| self.forget_named_checkpoint_once(key)).await
    }

    async fn forget_named_checkpoint_once(&self, key: &CheckpointKey) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let gone: Option<Named> =
            db::query_as("DELETE FROM named_checkpoint WHERE key = $1 RETURNING project_id, name, instance_id")
                .bind(key.as_str())
                .fetch_optional(&mut *tx)
                .await?;
        if let Some(gone) = &gone {
            gone.tell(&mut tx, EventKind::CheckpointRemoved).await?;
        }
        tx.commit().await?;
        Ok(gone.is_some())
    }

    /// At start: checkpoints that were being made are forgotten.
    pub async fn undo_checkpoints(&self) -> Result<(), StoreError> {
        self.freeing(|| self.undo_checkpoints_once()).await
    }

    async fn undo_checkpoints_once(&self) -> Result<(), StoreError> {
        const BEGUN: &str = "FROM named_checkpoint WHERE server = $1 AND bytes IS NULL";
        let some: bool = db::query_scalar(sqlx::AssertSqlSafe(format!("SELECT EXISTS (SELECT 1 {BEGUN})")))
            .bind(self.server())
            .fetch_one(&self.read)
            .await?;
        if !some {
            return Ok(());
        }
        db::query(sqlx::AssertSqlSafe(format!("DELETE {BEGUN}")))
            .bind(self.server())
            .run_on(&self.write)
            .await?;
        Ok(())
    }

    /// A checkpoint of a project, if it is whole.
    pub async fn named_checkpoint(
        &self,
        project: &ProjectId,
        name: &str,
    ) -> Result<Option<NamedCheckpoint>, StoreError> {
        let raw: Option<Raw> =
            db::query_as("SELECT * FROM named_checkpoint WHERE project_id = $1 AND name = $2 AND bytes IS NOT NULL")
                .bind(project.as_str())
                .bind(name)
                .fetch_optional(&self.read)
                .await?;
        raw.map(NamedCheckpoint::try_from).transpose()
    }

    /// The whole checkpoints of a project, by name.
    pub async fn named_checkpoints(&self, project: &ProjectId) -> Result<Vec<NamedCheckpoint>, StoreError> {
        let raw: Vec<Raw> =
            db::query_as("SELECT * FROM named_checkpoint WHERE project_id = $1 AND bytes IS NOT NULL ORDER BY name")
                .bind(project.as_str())
                .fetch_all(&self.read)
                .await?;
        raw.into_iter().map(NamedCheckpoint::try_from).collect()
    }

    /// The checkpoints with a name on this server, those that are being made too.
    pub async fn named_checkpoint_keys(&self) -> Result<Vec<NamedKey>, StoreError> {
        let rows: Vec<(String, String, bool)> =
            db::query_as("SELECT key, project_id, bytes IS NOT NULL FROM named_checkpoint WHERE server = $1")
                .bind(self.server())
                .fetch_all(&self.read)
                .await?;
        rows.iter()
            .map(|(key, project, whole)| {
                Ok(NamedKey {
                    key: parse("named_checkpoint.key", key)?,
                    project: parse("named_checkpoint.project_id", project)?,
                    whole: *whole,
                })
            })
            .collect()
    }
}
