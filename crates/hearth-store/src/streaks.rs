//! How the latest boots ended, by project and recipe: read in one go, because a pass needs those of all pools.

use std::collections::HashMap;

use hearth_api::ids::ProjectId;
use hearth_core::world::FailureStreak;

use super::{Store, StoreError, db, parse, timestamp};

/// The streaks of recipes that anything was booted by.
#[derive(Debug, Default)]
pub struct Streaks(HashMap<ProjectId, HashMap<String, FailureStreak>>);

impl Streaks {
    /// How the latest boots of a project by a recipe ended.
    #[must_use]
    pub fn get(&self, project: &ProjectId, recipe: &str) -> FailureStreak {
        let own = self.0.get(project).and_then(|own| own.get(recipe));
        own.copied().unwrap_or_default()
    }
}

#[derive(sqlx::FromRow)]
struct Raw {
    project_id: String,
    recipe: String,
    failure_kind: Option<String>,
    state_since: i64,
    was_ready: bool,
}

impl Store {
    /// Of one project, or of all: the latest 20 boots by each recipe, without those that ended before a person said to try
    /// again.
    pub async fn failure_streaks(&self, project: Option<&ProjectId>) -> Result<Streaks, StoreError> {
        let rows: Vec<Raw> = db::query_as(
            "SELECT project_id, recipe, failure_kind, state_since, was_ready FROM (
               SELECT project_id, recipe, failure_kind, state_since, provisioned_at IS NOT NULL AS was_ready,
                 row_number() OVER (
                   PARTITION BY project_id, recipe ORDER BY coalesce(provisioned_at, state_since) DESC
                 ) AS place
               FROM instance LEFT JOIN pool USING (project_id)
               WHERE ($1 IS NULL OR project_id = $1) AND purpose NOT IN ('test', 'test-uncached')
                 AND (provisioned_at IS NOT NULL OR failure_kind IS NOT NULL)
                 AND (retried_at IS NULL OR coalesce(provisioned_at, state_since) > retried_at)) AS boot
             WHERE place <= 20 ORDER BY project_id, recipe, place DESC",
        )
        .bind(project.map(ProjectId::as_str))
        .fetch_all(&self.read)
        .await?;
        let mut streaks = Streaks::default();
        for row in rows {
            let project = parse("instance.project_id", &row.project_id)?;
            let streak = streaks.0.entry(project).or_default().entry(row.recipe).or_default();
            // Whatever happened to it later: the recipe made a ready VM.
            *streak = match row.failure_kind.filter(|_| !row.was_ready) {
                None => streak.succeeded(),
                Some(kind) => streak.failed(parse("instance.failure_kind", &kind)?, timestamp(row.state_since)?),
            };
        }
        Ok(streaks)
    }
}
