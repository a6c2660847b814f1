//! What clients of E2B call the builds of a template.

use hearth_api::ids::ProjectId;
use jiff::Timestamp;

use super::{Store, StoreError, db, millis, timestamp};

/// A name of one build of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct E2bTag {
    pub tag: String,
    /// The build, as its client was told.
    pub build: String,
    /// When the build was begun.
    pub built_at: Timestamp,
    pub tagged_at: Timestamp,
}

impl Store {
    /// The tags of a template, by name.
    pub async fn e2b_tags(&self, project: &ProjectId) -> Result<Vec<E2bTag>, StoreError> {
        let rows: Vec<(String, String, i64, i64)> =
            db::query_as("SELECT tag, build, built_at, tagged_at FROM e2b_tag WHERE project_id = $1 ORDER BY tag")
                .bind(project.as_str())
                .fetch_all(&self.read)
                .await?;
        rows.into_iter()
            .map(|(tag, build, built_at, tagged_at)| {
                Ok(E2bTag {
                    tag,
                    build,
                    built_at: timestamp(built_at)?,
                    tagged_at: timestamp(tagged_at)?,
                })
            })
            .collect()
    }

    /// Gives these tags; each is taken from the build that had it.
    pub async fn put_e2b_tags(&self, project: &ProjectId, tags: &[E2bTag]) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        for tag in tags {
            db::query(
                "INSERT INTO e2b_tag (project_id, tag, build, built_at, tagged_at)
                 SELECT id, $2, $3, $4, $5 FROM project WHERE id = $1
                 ON CONFLICT (project_id, tag) DO UPDATE SET build = excluded.build, built_at = excluded.built_at,
                     tagged_at = excluded.tagged_at",
            )
            .bind(project.as_str())
            .bind(tag.tag.as_str())
            .bind(tag.build.as_str())
            .bind(millis(tag.built_at))
            .bind(millis(tag.tagged_at))
            .execute(&mut *tx)
            .await?;
        }
        Ok(tx.commit().await?)
    }

    /// Takes these tags away; those that are not there are no matter.
    pub async fn remove_e2b_tags(&self, project: &ProjectId, tags: &[String]) -> Result<(), StoreError> {
        let mut tx = self.write.begin().await?;
        for tag in tags {
            db::query("DELETE FROM e2b_tag WHERE project_id = $1 AND tag = $2")
                .bind(project.as_str())
                .bind(tag.as_str())
                .execute(&mut *tx)
                .await?;
        }
        Ok(tx.commit().await?)
    }
}
