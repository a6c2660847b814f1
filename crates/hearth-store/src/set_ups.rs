//! The set-ups that a project's VMs were made by, as far as there are any.

use std::collections::BTreeMap;

use hearth_api::ids::ProjectId;
use hearth_core::set_up::{OwnCommand, SetUp};
use jiff::Timestamp;

use super::{Store, StoreError, db, from_json, millis, optional_timestamp, to_json};

impl Store {
    /// Notes the set-up that a project's pool is to follow, from now on when that is news. Those that nothing was made by are
    /// forgotten.
    pub async fn note_set_up(&self, project: &ProjectId, set_up: &SetUp, now: Timestamp) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        // Elsewhere it may be another one, until that server has seen the same changes.
        if !self.is_home(&mut tx, project).await? {
            return Ok(());
        }
        let known =
            db::query("UPDATE project SET set_up = $2, set_up_since = $3 WHERE id = $1 AND set_up IS DISTINCT FROM $2")
                .bind(project.as_str())
                .bind(&set_up.name)
                .bind(millis(now))
                .execute(&mut *tx)
                .await?;
        if known.rows_affected() > 0 {
            db::query(
                "DELETE FROM set_up WHERE project_id = $1 AND name <> $2
                   AND NOT EXISTS (SELECT 1 FROM instance
                                   WHERE instance.project_id = $1 AND substr(recipe, 1, length(name)) = name)
                   AND NOT EXISTS (SELECT 1 FROM template
                                   WHERE template.project_id = $1 AND substr(recipe, 1, length(name)) = name)",
            )
            .bind(project.as_str())
            .bind(&set_up.name)
            .execute(&mut *tx)
            .await?;
        }
        // Not when the project is gone by now.
        db::query(
            "INSERT INTO set_up (project_id, name, parts, commands)
             SELECT id, $2, $3, $4 FROM project WHERE id = $1
             ON CONFLICT (project_id, name) DO UPDATE SET parts = excluded.parts, commands = excluded.commands",
        )
        .bind(project.as_str())
        .bind(&set_up.name)
        .bind(to_json(&set_up.parts)?)
        .bind(to_json(&set_up.commands)?)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(())
    }

    /// A set-up of a project, if it was noted.
    pub async fn set_up(&self, project: &ProjectId, name: &str) -> Result<Option<SetUp>, StoreError> {
        let row: Option<(String, String)> =
            db::query_as("SELECT parts, commands FROM set_up WHERE project_id = $1 AND name = $2")
                .bind(project.as_str())
                .bind(name)
                .fetch_optional(&self.read)
                .await?;
        row.map(|(parts, commands)| {
            Ok(SetUp {
                name: name.to_owned(),
                parts: from_json::<BTreeMap<String, String>>("set_up.parts", &parts)?,
                commands: from_json::<Vec<OwnCommand>>("set_up.commands", &commands)?,
            })
        })
        .transpose()
    }

    /// Since when a project's pool is to follow the set-up that it follows.
    pub async fn set_up_since(&self, project: &ProjectId) -> Result<Option<Timestamp>, StoreError> {
        let since: Option<Option<i64>> = db::query_scalar("SELECT set_up_since FROM project WHERE id = $1")
            .bind(project.as_str())
            .fetch_optional(&self.read)
            .await?;
        optional_timestamp(since.flatten())
    }
}
