//! Variables of a project, sealed: the shared ones, and each user's personal ones.

use hearth_api::event::EventKind;
use hearth_api::ids::ProjectId;
use hearth_api::variables::{Variable, VariableItem};
use jiff::Timestamp;
use serde_json::json;

use super::events::Change;
use super::{Store, StoreError, db, millis, timestamp};

/// Whose variables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VariableOwner<'a> {
    /// The project's: in every VM.
    Shared,
    /// A user's: only in the VMs this user claims.
    User(&'a str),
}

impl VariableOwner<'_> {
    /// The owner's column.
    fn column(self) -> String {
        match self {
            Self::Shared => String::new(),
            Self::User(user) => user.to_owned(),
        }
    }

    /// What a sealed value is bound to: moved to another row it does not open.
    fn context(self, project: &ProjectId, name: &str) -> String {
        match self {
            Self::Shared => format!("shared\0{project}\0{name}"),
            Self::User(user) => format!("personal\0{project}\0{user}\0{name}"),
        }
    }
}

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

impl Store {
    async fn variable_rows(&self, project: &ProjectId, owner: VariableOwner<'_>) -> Result<Vec<Raw>, StoreError> {
        let rows = db::query_as("SELECT * FROM variable WHERE project_id = $1 AND owner = $2 ORDER BY name");
        Ok(rows
            .bind(project.as_str())
            .bind(owner.column())
            .fetch_all(&self.read)
            .await?)
    }

    /// What is shown of variables, by name.
    pub async fn variable_items(
        &self,
        project: &ProjectId,
        owner: VariableOwner<'_>,
    ) -> Result<Vec<VariableItem>, StoreError> {
        self.variable_rows(project, owner)
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
    pub async fn variables(
        &self,
        project: &ProjectId,
        owner: VariableOwner<'_>,
    ) -> Result<Vec<VariableRow>, StoreError> {
        self.variable_rows(project, owner)
            .await?
            .into_iter()
            .map(|raw| {
                let context = owner.context(project, &raw.name);
                let value = self.cipher.open_value(&context, &raw.value)?;
                Ok(VariableRow { name: raw.name, value })
            })
            .collect()
    }

    /// Makes or replaces variables; false when the project is gone. Only shared ones change the recipe.
    pub async fn put_variables(
        &self,
        project: &ProjectId,
        owner: VariableOwner<'_>,
        variables: &[Variable],
        by: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let known = db::query_scalar("SELECT EXISTS (SELECT 1 FROM project WHERE id = $1)");
        if !known.bind(project.as_str()).fetch_one(&mut *tx).await? {
            return Ok(false);
        }
        let mut changed = false;
        for variable in variables {
            let context = owner.context(project, &variable.name);
            let before: Option<Vec<u8>> =
                db::query_scalar("SELECT value FROM variable WHERE project_id = $1 AND owner = $2 AND name = $3")
                    .bind(project.as_str())
                    .bind(owner.column())
                    .bind(variable.name.as_str())
                    .fetch_optional(&mut *tx)
                    .await?;
            // The set-up would run again for nothing.
            let is_same = before.is_some_and(|sealed| {
                let value = self.cipher.open_value(&context, &sealed);
                value.is_ok_and(|value| variable.value == value)
            });
            if is_same {
                continue;
            }
            changed = true;
            db::query(
                "INSERT INTO variable (project_id, owner, name, value, updated_at, updated_by)
                 VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (project_id, owner, name) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at,
                                           updated_by = excluded.updated_by",
            )
            .bind(project.as_str())
            .bind(owner.column())
            .bind(variable.name.as_str())
            .bind(self.cipher.seal(&context, &variable.value)?)
            .bind(millis(now))
            .bind(by)
            .execute(&mut *tx)
            .await?;
        }
        if changed && owner == VariableOwner::Shared {
            db::query("UPDATE project SET variables_version = variables_version + 1 WHERE id = $1")
                .bind(project.as_str())
                .execute(&mut *tx)
                .await?;
            let change = Change::of_project(EventKind::ProjectChanged, project, now);
            tx.tell(change.with(json!({ "what": "variables" }))).await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Removes a variable; false when there was none.
    pub async fn delete_variable(
        &self,
        project: &ProjectId,
        owner: VariableOwner<'_>,
        name: &str,
    ) -> Result<bool, StoreError> {
        self.freeing(|| self.delete_variable_once(project, owner, name)).await
    }

    async fn delete_variable_once(
        &self,
        project: &ProjectId,
        owner: VariableOwner<'_>,
        name: &str,
    ) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let done = db::query("DELETE FROM variable WHERE project_id = $1 AND owner = $2 AND name = $3")
            .bind(project.as_str())
            .bind(owner.column())
            .bind(name)
            .execute(&mut *tx)
            .await?;
        let deleted = done.rows_affected() == 1;
        if deleted && owner == VariableOwner::Shared {
            db::query("UPDATE project SET variables_version = variables_version + 1 WHERE id = $1")
                .bind(project.as_str())
                .execute(&mut *tx)
                .await?;
            let change = Change::of_project(EventKind::ProjectChanged, project, Timestamp::now());
            tx.tell(change.with(json!({ "what": "variables" }))).await?;
        }
        tx.commit().await?;
        Ok(deleted)
    }
}
