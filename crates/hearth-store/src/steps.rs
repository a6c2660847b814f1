//! The log of an instance: the entries of its steps, in order.

use hearth_api::ids::InstanceId;
use hearth_api::instance::{Step, failure_with_names};
use hearth_core::step_record::StepRecord;
use jiff::Timestamp;

use super::{InstanceRow, RunOn as _, Store, StoreError, from_json, millis, to_json};

impl Store {
    /// Appends a step's entry.
    pub async fn append_step(&self, id: &InstanceId, record: &StepRecord) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO step (instance_id, seq, entry)
             SELECT ?1, coalesce(max(seq), 0) + 1, ?2 FROM step WHERE instance_id = ?1
             HAVING EXISTS (SELECT 1 FROM instance WHERE id = ?1)",
        )
        .bind(id.as_str())
        .bind(to_json(&record.to_step())?)
        .run_on(&self.write)
        .await?;
        Ok(())
    }

    /// The steps that have ended, in order.
    pub async fn steps(&self, id: &InstanceId) -> Result<Vec<Step>, StoreError> {
        let entries: Vec<String> = sqlx::query_scalar("SELECT entry FROM step WHERE instance_id = ?1 ORDER BY seq")
            .bind(id.as_str())
            .fetch_all(&self.read)
            .await?;
        entries.iter().map(|entry| from_json("step.entry", entry)).collect()
    }

    /// Why an instance failed, with the step and the command; `None` when it did not.
    pub async fn failure_of(&self, row: &InstanceRow) -> Result<Option<String>, StoreError> {
        let Some(reason) = &row.failure_reason else {
            return Ok(None);
        };
        let steps = self.steps(&row.id).await?;
        Ok(Some(failure_with_names(&steps, reason)))
    }

    /// No task works on it any more and its VM is gone: it begins again, with a log of its own. False when it is too late.
    pub async fn begin_again(&self, id: &InstanceId, now: Timestamp) -> Result<bool, StoreError> {
        let mut tx = self.write.begin().await?;
        let done = sqlx::query(
            "UPDATE instance SET started_by = NULL, restarts = restarts + 1, interrupted_at = ?2
             WHERE id = ?1 AND state = 'provisioning' AND started_by IS NOT NULL",
        )
        .bind(id.as_str())
        .bind(millis(now))
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 1 {
            sqlx::query("DELETE FROM step WHERE instance_id = ?1")
                .bind(id.as_str())
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }
}
