//! Checkpoints and templates: what the driver's files mean.

use hearth_api::ids::ProjectId;
use hearth_drivers::CheckpointKey;
use jiff::Timestamp;

use super::{Store, StoreError, from_json, millis, parse, timestamp, to_json};
use crate::provision::Piece;

/// A checkpoint to be written, when its files are whole.
#[derive(Debug, Clone)]
pub struct CheckpointRow {
    /// Its name.
    pub key: CheckpointKey,
    /// The one it goes on from.
    pub parent: Option<CheckpointKey>,
    /// Whose; `None` for a base.
    pub project: Option<ProjectId>,
    /// What ran since the parent.
    pub pieces: Vec<Piece>,
}

/// A template of a project.
#[derive(Debug, Clone)]
pub struct TemplateRow {
    /// Whose.
    pub project: ProjectId,
    /// Name of the recipe it was made by.
    pub recipe: String,
    /// Its checkpoint.
    pub key: CheckpointKey,
    /// When it was made.
    pub created_at: Timestamp,
}

#[derive(sqlx::FromRow)]
struct RawTemplate {
    project_id: String,
    recipe: String,
    key: String,
    created_at: i64,
}

impl TryFrom<RawTemplate> for TemplateRow {
    type Error = StoreError;
    fn try_from(raw: RawTemplate) -> Result<Self, StoreError> {
        Ok(Self {
            project: parse("template.project_id", &raw.project_id)?,
            recipe: raw.recipe,
            key: parse("template.key", &raw.key)?,
            created_at: timestamp(raw.created_at)?,
        })
    }
}

impl Store {
    /// Writes a checkpoint whose files are whole.
    pub async fn insert_checkpoint(&self, row: &CheckpointRow, now: Timestamp) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO checkpoint (key, parent, project_id, pieces, created_at) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
        )
        .bind(row.key.as_str())
        .bind(row.parent.as_ref().map(CheckpointKey::as_str))
        .bind(row.project.as_ref().map(ProjectId::as_str))
        .bind(to_json(&row.pieces)?)
        .bind(millis(now))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Everything that ran up to a checkpoint, from the beginning; `None` when it, or one it lies on, has no row.
    pub async fn pieces_up_to(&self, key: &CheckpointKey) -> Result<Option<Vec<Piece>>, StoreError> {
        let mut pieces = Vec::new();
        let mut at = Some(key.as_str().to_owned());
        while let Some(key) = at.take() {
            let row: Option<(Option<String>, String)> =
                sqlx::query_as("SELECT parent, pieces FROM checkpoint WHERE key = ?1")
                    .bind(&key)
                    .fetch_optional(&self.read)
                    .await?;
            let Some((parent, own)) = row else { return Ok(None) };
            pieces.push(from_json::<Vec<Piece>>("checkpoint.pieces", &own)?);
            at = parent;
        }
        pieces.reverse();
        Ok(Some(pieces.concat()))
    }

    /// Every checkpoint that has a row.
    pub async fn checkpoint_keys(&self) -> Result<Vec<CheckpointKey>, StoreError> {
        let keys: Vec<String> = sqlx::query_scalar("SELECT key FROM checkpoint ORDER BY key")
            .fetch_all(&self.read)
            .await?;
        keys.iter().map(|key| parse("checkpoint.key", key)).collect()
    }

    /// Forgets a checkpoint and all that lie on it, and the templates among them: none of them is used any more.
    pub async fn forget_checkpoint(&self, key: &CheckpointKey) -> Result<(), StoreError> {
        sqlx::query(
            "WITH RECURSIVE gone (key) AS (
                 VALUES (?1) UNION SELECT checkpoint.key FROM checkpoint JOIN gone ON checkpoint.parent = gone.key)
             DELETE FROM checkpoint WHERE key IN (SELECT key FROM gone)",
        )
        .bind(key.as_str())
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Notes which checkpoint the instances of a recipe are forked from.
    pub async fn set_template(
        &self,
        project: &ProjectId,
        recipe: &str,
        key: &CheckpointKey,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO template (project_id, recipe, key, created_at)
             SELECT ?1, ?2, key, ?4 FROM checkpoint WHERE key = ?3
             ON CONFLICT DO UPDATE SET created_at = iif(key = excluded.key, created_at, excluded.created_at),
                                       key = excluded.key",
        )
        .bind(project.as_str())
        .bind(recipe)
        .bind(key.as_str())
        .bind(millis(now))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// The template of a recipe.
    pub async fn template(&self, project: &ProjectId, recipe: &str) -> Result<Option<TemplateRow>, StoreError> {
        let raw: Option<RawTemplate> = sqlx::query_as("SELECT * FROM template WHERE project_id = ?1 AND recipe = ?2")
            .bind(project.as_str())
            .bind(recipe)
            .fetch_optional(&self.read)
            .await?;
        raw.map(TemplateRow::try_from).transpose()
    }

    /// Every template.
    pub async fn templates(&self) -> Result<Vec<TemplateRow>, StoreError> {
        let raw: Vec<RawTemplate> = sqlx::query_as("SELECT * FROM template ORDER BY project_id, recipe")
            .fetch_all(&self.read)
            .await?;
        raw.into_iter().map(TemplateRow::try_from).collect()
    }

    /// Forgets the templates of a project for other recipes than these: nobody forks from them any more.
    pub async fn keep_templates(&self, project: &ProjectId, recipes: &[&str]) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM template WHERE project_id = ?1 AND recipe NOT IN (SELECT value FROM json_each(?2))")
            .bind(project.as_str())
            .bind(to_json(&recipes)?)
            .execute(&self.write)
            .await?;
        Ok(())
    }
}
