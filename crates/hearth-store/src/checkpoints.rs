//! Checkpoints and templates: what the driver's files mean.

use std::collections::HashMap;

use hearth_api::claim::ClaimedRepo;
use hearth_api::event::EventKind;
use hearth_api::ids::ProjectId;
use hearth_api::instance::RepoSettings;
use hearth_core::checkout::CheckoutState;
use hearth_core::checkpoint::CheckpointKey;
use hearth_core::stage_log::StageLog;
use jiff::Timestamp;
use serde_json::json;

use super::events::Change;
use super::moves::delete_rows;
use super::{RunOn as _, Store, StoreError, db, from_json, millis, parse, timestamp, to_json};

/// A checkpoint to be written, when its files are whole.
#[derive(Debug, Clone)]
pub struct CheckpointRow {
    pub key: CheckpointKey,
    /// Its parent.
    pub parent: Option<CheckpointKey>,
    /// Whose; `None` for a base.
    pub project: Option<ProjectId>,
    /// What ran since the parent.
    pub logs: Vec<StageLog>,
    /// Where the set-up left the checkouts; for the last one of a set-up.
    pub checkouts: Option<Vec<CheckoutState>>,
}

/// A template of a project.
#[derive(Debug, Clone)]
pub struct TemplateRow {
    pub project: ProjectId,
    /// Name of the recipe it was made by.
    pub recipe: String,
    /// Its checkpoint.
    pub key: CheckpointKey,
    /// When it was made.
    pub created_at: Timestamp,
    /// The checkouts of its forks.
    pub repos: Vec<ClaimedRepo>,
    /// What their settings files say.
    pub settings: Vec<RepoSettings>,
}

/// A checkpoint that was found damaged.
#[derive(Debug, Clone)]
pub struct CheckpointFaultRow {
    pub key: CheckpointKey,
    pub project: Option<ProjectId>,
    /// What was wrong.
    pub reason: String,
    /// When it was found.
    pub at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct RawTemplate {
    project_id: String,
    recipe: String,
    key: String,
    created_at: i64,
    repos: String,
    settings: String,
}

impl TryFrom<RawTemplate> for TemplateRow {
    type Error = StoreError;
    fn try_from(raw: RawTemplate) -> Result<Self, StoreError> {
        Ok(Self {
            project: parse("template.project_id", &raw.project_id)?,
            recipe: raw.recipe,
            key: parse("template.key", &raw.key)?,
            created_at: timestamp(raw.created_at)?,
            repos: from_json("template.repos", &raw.repos)?,
            settings: from_json("template.settings", &raw.settings)?,
        })
    }
}

impl Store {
    /// Writes a checkpoint whose files are whole.
    pub async fn insert_checkpoint(&self, row: &CheckpointRow, now: Timestamp) -> Result<(), StoreError> {
        db::query(
            "INSERT INTO checkpoint (server, key, parent, project_id, logs, created_at, checkouts) VALUES ($7, $1, $2, $3, $4, $5, $6)
             ON CONFLICT DO NOTHING",
        )
        .bind(row.key.as_str())
        .bind(row.parent.as_ref().map(CheckpointKey::as_str))
        .bind(row.project.as_ref().map(ProjectId::as_str))
        .bind(to_json(&row.logs)?)
        .bind(millis(now))
        .bind(row.checkouts.as_ref().map(to_json).transpose()?)
        .bind(self.server())
        .run_on(&self.write)
        .await?;
        Ok(())
    }

    /// Where a set-up left the checkouts, in their order; nothing where that was not recorded.
    pub async fn checkouts_of(&self, key: &CheckpointKey) -> Result<Vec<CheckoutState>, StoreError> {
        let told: Option<Option<String>> =
            db::query_scalar("SELECT checkouts FROM checkpoint WHERE server = $1 AND key = $2")
                .bind(self.server())
                .bind(key.as_str())
                .fetch_optional(&self.read)
                .await?;
        let told = told.flatten().map(|told| from_json("checkpoint.checkouts", &told));
        told.transpose().map(Option::unwrap_or_default)
    }

    /// Everything that ran up to a checkpoint, from the beginning; `None` when it, or one of its parents, has no row.
    pub async fn stage_logs_up_to(&self, key: &CheckpointKey) -> Result<Option<Vec<StageLog>>, StoreError> {
        let mut logs = Vec::new();
        let mut at = Some(key.as_str().to_owned());
        while let Some(key) = at.take() {
            let row: Option<(Option<String>, String)> =
                db::query_as("SELECT parent, logs FROM checkpoint WHERE server = $1 AND key = $2")
                    .bind(self.server())
                    .bind(&key)
                    .fetch_optional(&self.read)
                    .await?;
            let Some((parent, own)) = row else { return Ok(None) };
            logs.push(from_json::<Vec<StageLog>>("checkpoint.logs", &own)?);
            at = parent;
        }
        logs.reverse();
        Ok(Some(logs.concat()))
    }

    /// Every checkpoint of this server that has a row, and whose it is.
    pub async fn checkpoint_owners(&self) -> Result<HashMap<CheckpointKey, Option<ProjectId>>, StoreError> {
        let rows: Vec<(String, Option<String>)> =
            db::query_as("SELECT key, project_id FROM checkpoint WHERE server = $1")
                .bind(self.server())
                .fetch_all(&self.read)
                .await?;
        rows.into_iter()
            .map(|(key, project)| {
                let project = project
                    .map(|project| parse("checkpoint.project_id", &project))
                    .transpose()?;
                Ok((parse("checkpoint.key", &key)?, project))
            })
            .collect()
    }

    /// Forgets a checkpoint and all that are based on it, and the templates among them: none of them is used any more. With
    /// `damaged`, ready instances that were forked from one of them go too: what they share with it is not what it was.
    pub async fn forget_checkpoint(
        &self,
        key: &CheckpointKey,
        damaged: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.freeing(|| self.forget_checkpoint_once(key, damaged, now)).await
    }

    async fn forget_checkpoint_once(
        &self,
        key: &CheckpointKey,
        damaged: bool,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let gone = format!(
            "WITH RECURSIVE gone (key) AS (
                SELECT {} UNION SELECT checkpoint.key FROM checkpoint JOIN gone ON checkpoint.parent = gone.key
                WHERE checkpoint.server = $2)",
            self.dialect().key("$1")
        );
        let mut tx = self.write.begin().await?;
        if damaged {
            let ids: Vec<String> = db::query_scalar(sqlx::AssertSqlSafe(format!(
                "{gone} SELECT id FROM instance
                 WHERE server = $2 AND template_key IN (SELECT key FROM gone) AND state = 'ready' AND purpose <> 'claim'"
            )))
            .bind(key.as_str())
            .bind(self.server())
            .fetch_all(&mut *tx)
            .await?;
            delete_rows(
                &mut tx,
                ids,
                "the template that it shares memory with was found damaged",
                now,
            )
            .await?;
        }
        let templates: Vec<(String, String, String)> = db::query_as(sqlx::AssertSqlSafe(format!(
            "{gone} SELECT project_id, recipe, key FROM template WHERE server = $2 AND key IN (SELECT key FROM gone)"
        )))
        .bind(key.as_str())
        .bind(self.server())
        .fetch_all(&mut *tx)
        .await?;
        for (project, recipe, key) in templates {
            let project: ProjectId = parse("template.project_id", &project)?;
            let change = Change::of_project(EventKind::TemplateRemoved, &project, now);
            let why = if damaged {
                "it was found damaged"
            } else {
                "it is of no use any more"
            };
            tx.tell(change.because(why).with(json!({ "recipe": recipe, "checkpoint": key })))
                .await?;
        }
        db::query(sqlx::AssertSqlSafe(format!(
            "{gone} DELETE FROM checkpoint WHERE server = $2 AND key IN (SELECT key FROM gone)"
        )))
        .bind(key.as_str())
        .bind(self.server())
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// Notes that a checkpoint was found damaged. False, and nothing is noted, when nobody is to begin at it anyway: it has no row any
    /// more, or its project is gone.
    pub async fn note_checkpoint_fault(
        &self,
        key: &CheckpointKey,
        reason: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.freeing(|| self.note_checkpoint_fault_once(key, reason, now)).await
    }

    async fn note_checkpoint_fault_once(
        &self,
        key: &CheckpointKey,
        reason: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let noted: Option<Option<String>> = db::query_scalar(
            "INSERT INTO checkpoint_fault (key, project_id, reason, at)
             SELECT key, project_id, $2, $3 FROM checkpoint
             WHERE server = $4 AND key = $1 AND (project_id IS NULL OR project_id IN (SELECT id FROM project)) RETURNING project_id",
        )
        .bind(key.as_str())
        .bind(reason)
        .bind(millis(now))
        .bind(self.server())
        .fetch_optional(&mut *tx)
        .await?;
        // A base is no project's.
        if let Some(Some(project)) = &noted {
            let project: ProjectId = parse("checkpoint.project_id", project)?;
            let change = Change::of_project(EventKind::CheckpointDamaged, &project, now);
            tx.tell(change.because(reason).with(json!({ "checkpoint": key.as_str() })))
                .await?;
        }
        tx.commit().await?;
        Ok(noted.is_some())
    }

    /// Checkpoints that were found damaged since then, newest first; the 100 latest of them.
    pub async fn checkpoint_faults(&self, since: Timestamp) -> Result<Vec<CheckpointFaultRow>, StoreError> {
        let rows: Vec<(String, Option<String>, String, i64)> = db::query_as(
            "SELECT key, project_id, reason, at FROM checkpoint_fault WHERE at >= $1 ORDER BY at DESC LIMIT 100",
        )
        .bind(millis(since))
        .fetch_all(&self.read)
        .await?;
        rows.into_iter()
            .map(|(key, project, reason, at)| {
                Ok(CheckpointFaultRow {
                    key: parse("checkpoint_fault.key", &key)?,
                    project: project
                        .map(|project| parse("checkpoint_fault.project_id", &project))
                        .transpose()?,
                    reason,
                    at: timestamp(at)?,
                })
            })
            .collect()
    }

    /// Notes which checkpoint the instances of a recipe are forked from. Not when that has no row any more.
    pub async fn set_template(&self, row: &TemplateRow) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        let before: Option<String> =
            db::query_scalar("SELECT key FROM template WHERE server = $1 AND project_id = $2 AND recipe = $3")
                .bind(self.server())
                .bind(row.project.as_str())
                .bind(&row.recipe)
                .fetch_optional(&mut *tx)
                .await?;
        let done = db::query(
            "INSERT INTO template (server, project_id, recipe, key, created_at, repos, settings)
             SELECT server, $1, $2, key, $4, $5, $6 FROM checkpoint WHERE server = $7 AND key = $3
             ON CONFLICT (server, project_id, recipe) DO UPDATE
             SET created_at = CASE WHEN template.key = excluded.key THEN template.created_at ELSE excluded.created_at END,
                 key = excluded.key, repos = excluded.repos, settings = excluded.settings",
        )
        .bind(row.project.as_str())
        .bind(&row.recipe)
        .bind(row.key.as_str())
        .bind(millis(row.created_at))
        .bind(to_json(&row.repos)?)
        .bind(to_json(&row.settings)?)
        .bind(self.server())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() > 0 && before.is_none_or(|before| before != row.key.as_str()) {
            let change = Change::of_project(EventKind::TemplateMade, &row.project, Timestamp::now());
            tx.tell(change.with(json!({ "recipe": row.recipe, "checkpoint": row.key.as_str() })))
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// The template of a recipe on this server.
    pub async fn template(&self, project: &ProjectId, recipe: &str) -> Result<Option<TemplateRow>, StoreError> {
        let raw: Option<RawTemplate> =
            db::query_as("SELECT * FROM template WHERE server = $1 AND project_id = $2 AND recipe = $3")
                .bind(self.server())
                .bind(project.as_str())
                .bind(recipe)
                .fetch_optional(&self.read)
                .await?;
        raw.map(TemplateRow::try_from).transpose()
    }

    /// Every template of a project on this server.
    pub async fn templates_of(&self, project: &ProjectId) -> Result<Vec<TemplateRow>, StoreError> {
        let raw: Vec<RawTemplate> =
            db::query_as("SELECT * FROM template WHERE server = $1 AND project_id = $2 ORDER BY recipe")
                .bind(self.server())
                .bind(project.as_str())
                .fetch_all(&self.read)
                .await?;
        raw.into_iter().map(TemplateRow::try_from).collect()
    }

    /// Every template on this server.
    pub async fn templates(&self) -> Result<Vec<TemplateRow>, StoreError> {
        let raw: Vec<RawTemplate> =
            db::query_as("SELECT * FROM template WHERE server = $1 ORDER BY project_id, recipe")
                .bind(self.server())
                .fetch_all(&self.read)
                .await?;
        raw.into_iter().map(TemplateRow::try_from).collect()
    }
}
