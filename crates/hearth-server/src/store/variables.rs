//! Shared variables of a project, sealed.

use hearth_api::ids::ProjectId;
use hearth_api::variables::{Variable, VariableItem};
use jiff::Timestamp;

use super::{Store, StoreError, millis, timestamp};

/// A variable with its value.
#[derive(Clone)]
pub struct VariableRow {
    /// A shell name.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl std::fmt::Debug for VariableRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VariableRow")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[derive(sqlx::FromRow)]
struct Raw {
    name: String,
    value: Vec<u8>,
    updated_at: i64,
    updated_by: Option<String>,
}

fn context(project: &ProjectId, name: &str) -> String {
    format!("shared\0{project}\0{name}")
}

impl Store {
    async fn variable_rows(&self, project: &ProjectId) -> Result<Vec<Raw>, StoreError> {
        let rows = sqlx::query_as("SELECT * FROM variable WHERE project_id = ?1 ORDER BY name");
        Ok(rows.bind(project.as_str()).fetch_all(&self.read).await?)
    }

    /// What is shown of a project's shared variables, by name.
    pub async fn shared_variable_items(&self, project: &ProjectId) -> Result<Vec<VariableItem>, StoreError> {
        self.variable_rows(project)
            .await?
            .into_iter()
            .map(|raw| {
                Ok(VariableItem {
                    name: raw.name,
                    configured: true,
                    updated_at: timestamp(raw.updated_at)?,
                    last_updated_by_user_id: raw.updated_by,
                })
            })
            .collect()
    }

    /// The variables with their values, by name.
    pub async fn shared_variables(&self, project: &ProjectId) -> Result<Vec<VariableRow>, StoreError> {
        self.variable_rows(project)
            .await?
            .into_iter()
            .map(|raw| {
                let value = self.cipher.open_value(&context(project, &raw.name), &raw.value)?;
                Ok(VariableRow { name: raw.name, value })
            })
            .collect()
    }

    /// Makes or replaces variables; false when the project is gone.
    pub async fn put_shared_variables(
        &self,
        project: &ProjectId,
        variables: &[Variable],
        by: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let known = sqlx::query("UPDATE project SET variables_version = variables_version + 1 WHERE id = ?1")
            .bind(project.as_str())
            .execute(&mut *tx)
            .await?;
        if known.rows_affected() == 0 {
            return Ok(false);
        }
        for variable in variables {
            sqlx::query(
                "INSERT INTO variable (project_id, name, value, updated_at, updated_by) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at,
                                           updated_by = excluded.updated_by",
            )
            .bind(project.as_str())
            .bind(&variable.name)
            .bind(self.cipher.seal(&context(project, &variable.name), &variable.value)?)
            .bind(millis(now))
            .bind(by)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Removes a variable; false when there was none.
    pub async fn delete_shared_variable(&self, project: &ProjectId, name: &str) -> Result<bool, StoreError> {
        let mut tx = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let done = sqlx::query("DELETE FROM variable WHERE project_id = ?1 AND name = ?2")
            .bind(project.as_str())
            .bind(name)
            .execute(&mut *tx)
            .await?;
        let deleted = done.rows_affected() == 1;
        if deleted {
            sqlx::query("UPDATE project SET variables_version = variables_version + 1 WHERE id = ?1")
                .bind(project.as_str())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(deleted)
    }
}
